"""The small operations of a decoder layer: their code on the CPU, and for every architecture."""

import ctypes
import functools

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from cuda_kernels import compile as loader
from cuda_kernels.checks import queries_per_row
from cuda_kernels.device import CudaUnavailable
from cuda_kernels.layers import DecodeOps
from selfspan_core.engine.decoder import TorchOps
from tests.support.kernel_on_cpu import COMPILER, compiled, pointer

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
DTYPES = {torch.bfloat16: 1, torch.float16: 0}
THREADS = 64


@functools.cache
def library(is_bf16: int) -> ctypes.CDLL:
    """The kernels for one element type; compiled once per test run."""
    return compiled("layer.cpp", (f"-DIS_BF16={is_bf16}",))


def random(seed, dtype, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nan(dtype, *shape):
    return torch.full(shape, float("nan"), dtype=dtype)


def assert_same(found, expected):
    """The same but for the last bits: two roundings, of what root and exponential may differ in."""
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(found.dtype).eps, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [8, 384, 1032])
@pytest.mark.parametrize("has_delta", [True, False])
def test_add_and_norm(dtype, hidden, has_delta):
    """Would catch a sum that is not rounded before the norm, and an element that two threads or none take."""
    residual, delta, weight = random(1, dtype, 3, hidden), random(2, dtype, 3, hidden), random(3, dtype, hidden)
    norm = LlamaRMSNorm(hidden, eps=1e-5).to(dtype)
    norm.weight.data = weight
    total = residual + delta if has_delta else residual.clone()
    out = nan(dtype, 3, hidden)
    library(DTYPES[dtype]).run_add_rms_norm(
        pointer(residual),
        pointer(delta if has_delta else None),
        pointer(weight),
        ctypes.c_float(1e-5),
        3,
        hidden,
        pointer(out),
        THREADS,
    )
    assert torch.equal(residual, total)
    assert_same(out, norm(total).detach())


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_rotary_and_cache(dtype, head_dim):
    """Would catch a key at another row's position, halves mixed up, or a row without a token that is written."""
    batch, num_heads, num_kv_heads, capacity = 3, 6, 2, 20
    qkv = random(1, dtype, batch, num_heads + 2 * num_kv_heads, head_dim)
    angles = torch.arange(capacity)[:, None] * (10_000 ** -(torch.arange(0, head_dim, 2) / head_dim))
    rotary = torch.stack([angles.cos(), angles.sin()], 1).to(dtype)
    positions = torch.tensor([7, -1, 19], dtype=torch.int32)
    queries = nan(dtype, batch, num_heads, head_dim)
    keys, values = (
        nan(dtype, batch, num_kv_heads, capacity, head_dim),
        nan(dtype, batch, num_kv_heads, capacity, head_dim),
    )
    library(DTYPES[dtype]).run_rotary_write(
        pointer(qkv),
        pointer(rotary),
        pointer(positions),
        batch,
        1,
        num_heads,
        num_kv_heads,
        head_dim,
        pointer(queries),
        pointer(keys),
        pointer(values),
        (ctypes.c_longlong * 3)(*keys.stride()[:3]),
        THREADS,
    )
    query, key, value = qkv.split([num_heads, num_kv_heads, num_kv_heads], 1)
    assert queries[1].isnan().all() and keys[1].isnan().all() and values[1].isnan().all()
    for row in (0, 2):
        position = positions[row]
        cosine, sine = (part.repeat(2)[None, None] for part in rotary[position])
        rotated_query, rotated_key = apply_rotary_pos_emb(
            query[row, None, :, None], key[row, None, :, None], cosine, sine
        )
        assert torch.equal(queries[row], rotated_query[0, :, 0])
        assert torch.equal(keys[row, :, position], rotated_key[0, :, 0])
        assert torch.equal(values[row, :, position], value[row])
        assert keys[row].isnan().any(-1).sum() == num_kv_heads * (capacity - 1)


def several_tokens(dtype, num_queries):
    """Arguments of `rotary_write` for four rows: one with all its tokens, one with fewer, one with its first only, one
    without; what has to be written is poisoned."""
    num_heads, num_kv_heads, head_dim, capacity = 6, 2, 64, 40
    num_tokens = 4 * num_queries
    qkv = random(1, dtype, num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    rotary = random(2, dtype, capacity, 2, head_dim // 2)
    positions = torch.full((4, num_queries), -1, dtype=torch.int32)
    for row, (start, size) in enumerate([(24, num_queries), (3, (num_queries + 1) // 2), (0, 1), (0, 0)]):
        positions[row, :size] = torch.arange(start, start + size)
    queries = nan(dtype, num_tokens, num_heads, head_dim)
    cache = nan(dtype, 2, 4, capacity, num_kv_heads, head_dim).transpose(2, 3)
    return qkv, rotary, positions.flatten(), queries, cache


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_queries", [1, 3, 16])
def test_rotary_of_several_tokens_per_row(dtype, num_queries):
    """Would catch a draft's key in the next row's cache, and one written for a draft that a row does not have."""
    qkv, rotary, positions, queries, cache = several_tokens(dtype, num_queries)
    wanted_queries, wanted_cache = queries.clone(), cache.clone()
    TorchOps().rotary_write(qkv, rotary, positions, wanted_queries, wanted_cache[0], wanted_cache[1])
    library(DTYPES[dtype]).run_rotary_write(
        pointer(qkv),
        pointer(rotary),
        pointer(positions),
        len(qkv),
        num_queries,
        queries.shape[1],
        cache.shape[2],
        queries.shape[2],
        pointer(queries),
        pointer(cache[0]),
        pointer(cache[1]),
        (ctypes.c_longlong * 3)(*cache.stride()[1:4]),
        THREADS,
    )
    torch.testing.assert_close(queries, wanted_queries, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(cache, wanted_cache, rtol=0, atol=0, equal_nan=True)
    # As many as there are tokens, in the rows that these belong to.
    written = cache[0, :, 0, :, 0].isfinite().sum(1)
    assert written.tolist() == [num_queries, (num_queries + 1) // 2, 1, 0]


def test_tokens_that_rows_do_not_share_equally_are_refused():
    """Would catch tokens that are written to a row that is not theirs, and an error that does not say what is wrong."""
    qkv, rotary, positions, queries, cache = several_tokens(torch.float32, 3)
    with pytest.raises(ValueError, match="queries: 11 tokens are no multiple of 4 rows"):
        TorchOps().rotary_write(qkv[:11], rotary, positions[:11], queries[:11], cache[0], cache[1])
    for num_tokens, batch in ((3, 4), (0, 4), (4, 0)):
        with pytest.raises(ValueError, match=f"logits: {num_tokens} tokens are no multiple of {batch} rows"):
            queries_per_row("logits", num_tokens, batch)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "size"), [(1, 8), (3, 1032), (5, 64)])
def test_gated_silu(dtype, batch, size):
    """Would catch gate and up swapped, or a row that reads its neighbour's."""
    gate_up, out = random(1, dtype, batch, 2, size), nan(dtype, batch, size)
    library(DTYPES[dtype]).run_gated_silu(pointer(gate_up), batch, size, pointer(out), 3, THREADS)
    assert_same(out, torch.nn.functional.silu(gate_up[:, 0]) * gate_up[:, 1])


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "size"), [(34, 64), (64, 192), (130, 128)])
def test_gated_silu_of_a_transposed_input(dtype, batch, size):
    """Would catch a tile that is not transposed, one of the last rows that is left out, and writing behind them."""
    gate_up, out = random(1, dtype, 2, size, batch), nan(dtype, batch + 1, size)
    library(DTYPES[dtype]).run_gated_silu_transposed(pointer(gate_up), batch, size, pointer(out))
    assert_same(out[:batch], (torch.nn.functional.silu(gate_up[0]) * gate_up[1]).T)
    assert out[batch].isnan().all()


@pytest.mark.parametrize(
    ("architecture", "is_bf16"),
    # bfloat16 needs sm_80.
    [(number, is_bf16) for number in loader.ARCHITECTURES for is_bf16 in (0, 1) if number >= 80 or not is_bf16],
)
def test_compiles_for_every_architecture(architecture, is_bf16):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    report = loader.compile_for((f"-DIS_BF16={is_bf16}",), architecture, "layer.cu")[1]
    assert " 0 bytes spill stores" in report


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_layer_operations(dtype):
    """Would catch a launcher that hands over the wrong shape or stride, and what the CPU's stand-in does not show."""
    ops = DecodeOps(dtype)
    batch, hidden, num_heads, num_kv_heads, head_dim, capacity = 5, 1032, 8, 2, 128, 33
    residual, delta, weight = (
        x.cuda() for x in (random(1, dtype, batch, hidden), random(2, dtype, batch, hidden), random(3, dtype, hidden))
    )
    norm = LlamaRMSNorm(hidden, eps=1e-5).to(dtype).cuda()
    norm.weight.data = weight
    total, out = residual + delta, torch.full_like(residual, float("nan"))
    ops.add_rms_norm(residual, delta, weight, 1e-5, out)
    assert torch.equal(residual, total)
    assert_same(out, norm(total).detach())
    qkv = random(4, dtype, batch, num_heads + 2 * num_kv_heads, head_dim).cuda()
    rotary = random(5, dtype, capacity, 2, head_dim // 2).cuda()
    positions = torch.tensor([0, 32, -1, 7, 7], dtype=torch.int32, device="cuda")
    queries = torch.full((batch, num_heads, head_dim), float("nan"), dtype=dtype, device="cuda")
    cache = torch.full(
        (2, batch, capacity, num_kv_heads, head_dim), float("nan"), dtype=dtype, device="cuda"
    ).transpose(2, 3)
    ops.rotary_write(qkv, rotary, positions, queries, cache[0], cache[1])
    query, key, value = qkv.split([num_heads, num_kv_heads, num_kv_heads], 1)
    for row in (0, 1, 3, 4):
        position = positions[row]
        cosine, sine = (part.repeat(2)[None, None] for part in rotary[position])
        rotated_query, rotated_key = apply_rotary_pos_emb(
            query[row, None, :, None], key[row, None, :, None], cosine, sine
        )
        assert torch.equal(queries[row], rotated_query[0, :, 0])
        assert torch.equal(cache[0, row, :, position], rotated_key[0, :, 0])
        assert torch.equal(cache[1, row, :, position], value[row])
    assert queries[2].isnan().all() and cache[:, 2].isnan().all()
    gate_up, gated = random(6, dtype, batch, 2, hidden).cuda(), torch.full_like(residual, float("nan"))
    ops.gated_silu(gate_up, gated)
    assert_same(gated, torch.nn.functional.silu(gate_up[:, 0]) * gate_up[:, 1])
    for batch in (5, 40, 64, 130):
        x, weight = random(7, dtype, batch, hidden).cuda(), random(8, dtype, 2 * 192, hidden).cuda() / hidden**0.5
        gated = torch.full((batch, 192), float("nan"), dtype=dtype, device="cuda")
        ops.gated_linear(x, weight, gated)
        gate, up = torch.nn.functional.linear(x, weight).float().chunk(2, -1)
        # GEMMs may round differently, and their results are rounded again.
        torch.testing.assert_close(
            gated.float(), torch.nn.functional.silu(gate) * up, rtol=0, atol=16 * torch.finfo(dtype).eps
        )
    with pytest.raises(ValueError, match=r"out has shape \(5, 1032\), and has to have \(4, 1032\)"):
        ops.add_rms_norm(residual[:4], None, weight, 1e-5, out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_queries", [1, 3, 16])
def test_gpu_rotary_of_several_tokens_per_row(dtype, num_queries):
    """Would catch a launcher that counts rows for tokens, so that drafts are left out or read beyond the end."""
    ops = DecodeOps(dtype)
    qkv, rotary, positions, queries, cache = (x.cuda() for x in several_tokens(dtype, num_queries))
    wanted_queries, wanted_cache = queries.clone(), cache.clone()
    TorchOps().rotary_write(qkv, rotary, positions, wanted_queries, wanted_cache[0], wanted_cache[1])
    ops.rotary_write(qkv, rotary, positions, queries, cache[0], cache[1])
    torch.testing.assert_close(queries, wanted_queries, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(cache, wanted_cache, rtol=0, atol=0, equal_nan=True)
    num = len(queries) - 1
    if num % 4:
        with pytest.raises(ValueError, match=f"queries: {num} tokens are no multiple of 4 rows"):
            ops.rotary_write(qkv[:num], rotary, positions[:num], queries[:num], cache[0], cache[1])


def test_other_dtypes_and_devices_are_refused():
    """Would catch a silent fallback, or a float32 model that is read as something else."""
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        DecodeOps(torch.float32)
    with pytest.raises(CudaUnavailable, match="need a CUDA device"):
        DecodeOps(torch.bfloat16, "cpu")
