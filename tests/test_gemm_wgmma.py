"""Products by Hopper's tensor cores: the kernel's code on the CPU, how work is shared out, and the machine code."""

import argparse
import ctypes
import functools
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_on_cpu import COMPILER, compiled, pointer
from test_gemm import DTYPES, assert_product, problem
from test_kernel import needs_cuda

from cuda_kernels import bench_products, gemm_wgmma
from cuda_kernels import compile as loader
from cuda_kernels.gemm_wgmma import BATCH_TILES, CLUSTERS, GROUPS, UNITS, WideLinear, batch_tile, share_out
from cuda_kernels.layers import DecodeOps
from training import report

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
SHARED_BYTES = 232_448
"""That a block of a Hopper GPU may have."""


@functools.cache
def library(dtype: torch.dtype, tile: int, num_blocks: int) -> ctypes.CDLL:
    """The kernel of one configuration; compiled once per test run."""
    return compiled("gemm_wgmma.cpp", gemm_wgmma.macros(dtype, tile, num_blocks))


def run(x, weight, bias, is_gated, num_blocks, max_clusters, num_stages, starved_warp=-1):
    """The kernel's result on a GPU with room for so many clusters."""
    (batch, depth), num_rows = x.shape, weight.shape[0]
    shape = share_out(batch_tile(batch), num_rows, num_blocks, max_clusters)
    out = torch.full((batch, num_rows // (2 if is_gated else 1)), float("nan"), dtype=x.dtype)
    library(x.dtype, shape.tile, num_blocks).run_linear_wide(
        pointer(x),
        pointer(weight),
        pointer(bias),
        batch,
        num_rows,
        depth,
        int(is_gated),
        shape.num_passes,
        shape.max_units,
        num_stages,
        shape.num_clusters,
        shape.shared_bytes(num_stages),
        pointer(out),
        starved_warp,
    )
    return out


def assert_gated(out, x, weight):
    """silu(gate) * up, rounded four times on the way."""
    gate, up = F.linear(x.double(), weight.double()).chunk(2, -1)
    # Half a unit each of the gate, its activation (which passes on 1.1 of what the gate is off), up and the result.
    of_rounding = 2.1 * torch.finfo(x.dtype).eps * (gate * up).abs()
    # As in `assert_product`, of some 40 that the largest sums here have.
    of_summing = 4e-5 * (gate.abs() + 1.1 * up.abs() + 1e-3)
    assert ((out.double() - F.silu(gate) * up).abs() <= of_rounding + of_summing).all()


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(CLUSTERS),
    st.integers(1, 30),
    st.integers(4, 9),
    st.integers(1, 2),
    st.integers(2, 5),
    st.sampled_from([None, "bias", "gates"]),
    st.data(),
)
def test_any_shape(seed, dtype, num_blocks, units, pieces, max_clusters, num_stages, kind, data):
    """Would catch a tile or another block's sums overwritten while they are read, a block that leaves early."""
    batch = data.draw(st.integers(1, 40))
    # Any warp may be slower than all others.
    starved_warp = data.draw(st.integers(-1, 13 * num_blocks - 1))
    x, weight, bias = problem(seed, dtype, batch, 16 * units, 64 * pieces)
    bias = bias if kind == "bias" else None
    out = run(x, weight, bias, kind == "gates", num_blocks, max_clusters, num_stages, starved_warp)
    if kind == "gates":
        assert_gated(out, x, weight)
    else:
        assert_product(out, x, weight, bias)


@needs_compiler
@pytest.mark.parametrize("num_blocks", CLUSTERS)
@pytest.mark.parametrize("batch", [64, 65, 97, 128])
def test_large_batches(batch, num_blocks):
    """Would catch a part of the batch that another block of the cluster has, of tiles with 64 to 128 rows."""
    x, weight, bias = problem(batch, torch.bfloat16, batch, 16 * 14, 64 * 5)
    assert_product(run(x, weight, bias, False, num_blocks, 1, 3), x, weight, bias)


@needs_compiler
@pytest.mark.parametrize("starved_warp", [0, 5, 7, 9, 11, 14, 20, 24, 40])
@pytest.mark.parametrize(
    ("num_blocks", "pieces", "num_stages"), [(4, 4, 5), (2, 8, 5), (2, 8, 3), (2, 9, 3), (4, 20, 3)]
)
def test_a_slow_warp_among_fast_ones(num_blocks, pieces, num_stages, starved_warp):
    """Would catch a warp without a unit (7, 11, 20 and 24 are some) that says of the next pass what one with a unit has
    not come to yet, or that waits for what is over."""
    x, weight, bias = problem(starved_warp, torch.bfloat16, 100, 16 * 30, 64 * pieces)
    out = run(x, weight, bias, False, num_blocks, 1, num_stages, starved_warp % (13 * num_blocks))
    assert_product(out, x, weight, bias)


@needs_compiler
def test_rows_do_not_depend_on_others():
    """Would catch results that change with a row's place in the batch, or with what else is in it."""
    x, weight, _ = problem(3, torch.bfloat16, 32, 16 * 9, 64 * 8)
    together = run(x, weight, None, False, 4, 1, 3)
    turned = run(x.flip(0), weight, None, False, 4, 1, 3)
    assert torch.equal(together, turned.flip(0))
    assert torch.equal(together[7:8], run(x[7:8], weight, None, False, 4, 1, 3))


@given(st.sampled_from(BATCH_TILES), st.integers(1, 10_000), st.sampled_from(CLUSTERS), st.integers(1, 132), st.data())
def test_everything_is_shared_out(tile, units, num_blocks, max_clusters, data):
    """Would catch a cluster with more units than its passes hold, or memory too small for what is in it."""
    shape = share_out(tile, 16 * units, num_blocks, max_clusters)
    largest = -(-units // shape.num_clusters)
    assert 1 <= shape.num_clusters <= max_clusters
    assert shape.max_units <= GROUPS * UNITS
    assert shape.num_passes * shape.max_units >= largest
    assert (shape.num_passes - 1) * GROUPS * UNITS < largest
    num_stages = shape.num_stages(SHARED_BYTES)
    assert 3 <= num_stages <= gemm_wgmma.MAX_STAGES
    assert shape.shared_bytes(num_stages) <= SHARED_BYTES


def measured_clusters():
    """What bench_products measured of every size of clusters: weight, rows, depth, tile, and figures by size."""
    for path in sorted((report.ROOT / "assets/results").glob("products_*.json")):
        for weight in json.loads(path.read_text(encoding="utf-8"))["weights"]:
            for line in weight["measured"]:
                if found := {int(number): one for number, one in line.get("clusters", {}).items() if one}:
                    yield pytest.param(*weight["shape"], line["rows"], found, id=f"{weight['name']}-{line['rows']}")


@pytest.mark.parametrize(("num_rows", "depth", "tile", "measured"), list(measured_clusters()))
def test_the_choice_of_clusters(num_rows, depth, tile, measured):
    """Would catch a choice that was measured to be slower, by more than 1.5 %."""
    shapes = {number: share_out(tile, num_rows, number, one["at_a_time"]) for number, one in measured.items()}
    chosen = min(shapes, key=lambda number: shapes[number].block_bytes(depth))
    assert measured[chosen]["us"] <= 1.015 * min(one["us"] for one in measured.values())


def test_the_benchmark_refuses_what_it_cannot_measure(monkeypatch, capsys):
    """Would catch a traceback out of torch, or a wrong argument that shows after minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_products"])
    with pytest.raises(SystemExit, match="the CUDA kernels need a CUDA device, and torch finds none"):
        bench_products.main()
    monkeypatch.setattr("sys.argv", ["bench_products", "--rows", "0"])
    with pytest.raises(SystemExit):
        bench_products.main()
    assert "--rows: 0 is less than 1" in capsys.readouterr().err


def test_the_table_of_products():
    """Would catch a table that takes the slower of cuBLAS's two ways."""
    line = {"rows": 64, "us": 40.0, "cublas_us": {"x W^T": 60.0, "W x^T": 50.0}, "floor_us": 32.0}
    origin = {"command": "python -m x", "machine": {"gpu": "G"}, "commit": "abc", "dirty": False}
    text = report.products_on({"weights": [{"name": "down", "measured": [line]}], **origin}, "x.json")
    assert "64 rows |" in text and "| down | 32.0 | 40.0 (1.25x) |" in text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", BATCH_TILES)
@pytest.mark.parametrize("num_blocks", CLUSTERS)
def test_compiles_without_spills(dtype, tile, num_blocks):
    """Would catch registers that go to memory, and products that the compiler makes wait for each other."""
    code, report = loader.compile_for(gemm_wgmma.macros(dtype, tile, num_blocks), "90a", "gemm_wgmma.cu")
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert "wgmma" not in report, report
    assert code[:4] == b"\x7fELF"


@pytest.mark.gpu
@needs_cuda
@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 17, 33, 64, 77, 97, 128])
@pytest.mark.parametrize(
    ("num_rows", "depth"), [(12288, 4096), (4096, 11008), (22016, 4096), (32000, 512), (1008, 320), (16, 256)]
)
def test_gpu_products(dtype, batch, num_rows, depth):
    """Would catch a race: all of twenty results are the same; and a wrong map of a tensor."""
    x, weight, bias = problem(batch, dtype, batch, num_rows, depth, "cuda")
    wide = WideLinear(dtype, x.device)
    for given_bias in (None, bias):
        results = [torch.full((batch, num_rows), float("nan"), dtype=dtype, device="cuda") for _ in range(20)]
        for out in results:
            wide(x, weight, given_bias, out, is_gated=False)
        assert_product(results[0], x, weight, given_bias)
        assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.gpu
@needs_cuda
@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 20, 64, 100, 128])
@pytest.mark.parametrize(("size", "depth"), [(11008, 4096), (1024, 512), (48, 256)])
def test_gpu_gates(dtype, batch, size, depth):
    """Would catch gates that meet another row's ups."""
    x, weight, _ = problem(batch, dtype, batch, 2 * size, depth, "cuda")
    out = torch.full((batch, size), float("nan"), dtype=dtype, device="cuda")
    WideLinear(dtype, x.device)(x, weight, None, out, is_gated=True)
    assert_gated(out, x, weight)


@pytest.mark.gpu
@needs_cuda
@needs_hopper
@pytest.mark.parametrize("batch", [1, 64, 129])
@pytest.mark.parametrize("num_rows", [8192, 8200, 256])
def test_gpu_choice(batch, num_rows):
    """Would catch a product that goes to a kernel that does not serve its shape, or gates that do."""
    x, weight, bias = problem(batch, torch.bfloat16, batch, num_rows, 1024, "cuda")
    ops = DecodeOps(torch.bfloat16)
    assert ops._wide.serves(batch, num_rows, 1024) == (batch <= 128 and num_rows == 8192)
    assert_product(ops.linear(x, weight, bias), x, weight, bias)
    out = torch.full((batch, num_rows // 2), float("nan"), dtype=torch.bfloat16, device="cuda")
    if num_rows % 16 == 0:
        ops.gated_linear(x, weight, out)
        assert_gated(out, x, weight)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("rows", [3, 64])
def test_gpu_benchmark(rows, is_gated):
    """Would catch a benchmark that compares different things: every result is checked."""
    weight = bench_products.Weight("small", 8192, 1024, is_gated)
    arguments = argparse.Namespace(seed=0, replays=2)
    line = bench_products.measure(weight, rows, arguments, 3.0)
    assert line["us"] > 0 and len(line["cublas_us"]) == (1 if rows % 2 and is_gated else 2)
