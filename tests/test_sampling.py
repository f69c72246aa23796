"""Sampling: all that draws against one definition, the device's code on the CPU too, and for every architecture."""

import ctypes
import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from cuda_kernels import compile as loader
from cuda_kernels.layers import DecodeOps
from selfspan_core.engine import sampling
from selfspan_core.engine.torch_parts import TorchParts
from selfspan_core.params import SamplingParams
from tests.support.kernel_on_cpu import COMPILER, compiled, pointer

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernel for the CPU")
BF16 = torch.bfloat16


@functools.cache
def library() -> ctypes.CDLL:
    """The kernel for bfloat16; compiled once per test run."""
    return compiled("sample.cpp", ("-DIS_BF16=1",))


def sample(logits, temperature=0.0, share=1.0, seeds=None, positions=None, threads=32):
    batch = len(logits)
    seeds = torch.zeros(batch, dtype=torch.int64) if seeds is None else seeds
    positions = torch.zeros(batch, dtype=torch.int32) if positions is None else positions
    rows = torch.full((batch,), temperature), torch.full((batch,), share), seeds
    return sample_rows(logits.contiguous(), rows, positions, threads)


def sample_rows(logits, rows, positions, threads=32):
    """Ids behind tokens, as many of every row; -7 where none is written.

    Args:
        rows: temperatures, shares and seeds of the rows.
    """
    num_tokens, vocab = logits.shape
    ids = torch.full((num_tokens,), -7, dtype=torch.int64)
    settings = [pointer(x) for x in rows]
    num_queries = num_tokens // len(rows[0])
    library().run_sample(
        pointer(logits), num_tokens, vocab, num_queries, *settings, pointer(positions), pointer(ids), threads
    )
    return ids


@needs_compiler
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_is_philox(counter, key, words):
    """The known answers that its authors publish (Random123, kat_vectors); would catch a wrong constant or round."""
    out = np.zeros(4, dtype=np.uint32)
    given = [np.array(x, dtype=np.uint32) for x in (counter, key)]
    library().run_philox(*(x.ctypes.data_as(ctypes.c_void_p) for x in (*given, out)))
    assert " ".join(f"{word:08x}" for word in out) == words


@needs_compiler
@pytest.mark.parametrize("vocab", [1, 31, 1000])
@pytest.mark.parametrize("threads", [32, 128])
def test_greedy_takes_the_first_of_the_greatest(vocab, threads):
    """Would catch ties that are decided by which thread comes first, or a last element that nobody looks at."""
    logits = torch.randint(-3, 3, (6, vocab), generator=torch.Generator().manual_seed(vocab)).to(BF16)
    logits[0] = -torch.inf
    logits[0, -1] = -1000.0
    expected = [row.tolist().index(row.max().item()) for row in logits]
    assert sample(logits, threads=threads).tolist() == expected


@needs_compiler
def test_draws_follow_the_distribution():
    """Would catch noise that is not Gumbel's, or a temperature that multiplies: frequencies would be others."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 1.5]], dtype=BF16).repeat(4000, 1)
    ids = sample(logits, 0.7, seeds=torch.arange(4000))
    expected = torch.softmax(logits[0].float() / 0.7, 0)
    found = torch.bincount(ids, minlength=5) / 4000
    # Five standard deviations.
    assert (found - expected).abs().max() < 5 * (0.25 / 4000) ** 0.5


def nucleus_of(logits, temperature, share) -> set[int]:
    """Top-p in plain Python: the likeliest ids, one by one, until they hold the share; then all equals of the last."""
    scores = [x / temperature for x in logits.tolist()]
    weights = [math.exp(score - max(scores)) for score in scores]
    held, least = 0.0, max(scores)
    for i in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
        if held >= share * sum(weights):
            break
        held, least = held + weights[i], scores[i]
    return {i for i, score in enumerate(scores) if score >= least}


def drawn_by_the_kernel(logits, temperature, share, count):
    return sample(logits.repeat(count, 1), temperature, share, seeds=torch.arange(count) << 32).tolist()


def drawn_by_the_batch(logits, temperature, share, count):
    """What the batch's step draws with PyTorch's operations."""
    ids = torch.full((count,), -7)
    settings = torch.full((count,), temperature), torch.full((count,), share)
    positions = torch.arange(count, dtype=torch.int32)
    TorchParts.sample(None, logits.repeat(count, 1), *settings, torch.zeros(count, dtype=torch.int64), positions, ids)
    return ids.tolist()


def drawn_on_the_host(logits, temperature, share, count):
    """What a step draws that the host decides."""
    return [sampling.draw(logits, temperature, share, 0, position) for position in range(count)]


WAYS = [
    pytest.param(drawn_by_the_kernel, marks=needs_compiler),
    drawn_by_the_batch,
    drawn_on_the_host,
]


@pytest.mark.parametrize("draw", WAYS)
@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.1), (1.0, 0.5), (1.0, 0.9), (1.0, 0.999), (1.7, 0.8)])
def test_only_the_likeliest_are_drawn(draw, temperature, share):
    """Would catch ways to draw that mean different things by top-p, an id outside the nucleus, one that is left out.

    16-bit logits are equal often: one row has 8 values only, so that the last id of its nucleus has equals.
    """
    generator = torch.Generator().manual_seed(3)
    rows = (3 * torch.randn(40, generator=generator), torch.randint(-4, 4, (30,), generator=generator))
    for number, logits in enumerate(row.to(BF16) for row in rows):
        nucleus = nucleus_of(logits, temperature, share)
        found = Counter(draw(logits, temperature, share, 1000))
        assert set(found) <= nucleus, number
        total = sum(math.exp(logits[i] / temperature) for i in nucleus)
        for i in nucleus:
            chance = math.exp(logits[i] / temperature) / total
            # Five standard deviations; what is likely enough has to come.
            assert abs(found[i] - 1000 * chance) < 5 * (1000 * chance) ** 0.5 + 1, (number, i)
            assert found[i] > 0 or chance < 0.01


@pytest.mark.parametrize("draw", WAYS)
def test_a_share_that_one_id_holds_is_greedy(draw):
    """Would catch a nucleus of nothing: a share so small that 32 bits make it 0, or one that rounding never reaches."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(4)).to(BF16)
    assert logits.eq(logits.max()).sum() == 1
    for share in (1e-50, 1e-9, 0.01):
        assert set(draw(logits, 1.5, share, 20)) == {int(logits.argmax())}
    assert len(set(draw(logits, 1.5, 1 - 1e-12, 50))) > 10


@pytest.mark.parametrize("draw", WAYS)
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-7])
def test_the_least_temperatures_are_greedy(draw, temperature):
    """Would catch scores that are no numbers where a logit is divided by next to nothing."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(5)).to(BF16)
    assert set(draw(logits, temperature, 0.9, 3)) == {int(logits.argmax())}


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (-1.0, 1.0, "temperature is a number from 0 to 5, not -1"),
        (math.nan, 1.0, "temperature is a number from 0 to 5"),
        (math.inf, 1.0, "temperature is a number from 0 to 5"),
        (1.0, 0.0, "top_p is a number above 0 and at most 1, not 0"),
        (1.0, 1.01, "top_p is a number above 0 and at most 1, not 1.01"),
        (1.0, math.nan, "top_p is a number above 0"),
    ],
)
def test_settings_that_nothing_can_be_drawn_by(temperature, top_p, message):
    """Would catch a setting that comparisons let through, or that is refused without its name."""
    with pytest.raises(ValueError, match=message):
        SamplingParams(temperature=temperature, top_p=top_p)


@needs_compiler
def test_draws_depend_on_seed_and_position_only():
    """Would catch a draw that depends on the row, the batch or the number of threads: answers could not be repeated."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)).to(BF16)
    seeds = torch.tensor([5, 6, 5, 7, 5])
    positions = torch.tensor([3, 3, 3, 3, 4], dtype=torch.int32)
    many = [sample(logits.repeat(5, 1), 2.0, 0.95, seeds, positions, threads) for threads in (32, 96)]
    assert torch.equal(*many) and many[0][0] == many[0][2]
    alone = sample(logits, 2.0, 0.95, seeds[1:2], positions[1:2])
    assert alone[0] == many[0][1]
    steps = sample(logits.repeat(30, 1), 2.0, 1.0, torch.full((30,), 5), torch.arange(30, dtype=torch.int32))
    assert len(set(steps.tolist())) > 5


def several_tokens(num_queries):
    """Logits, settings of five rows, and positions of as many tokens of each, of which the later ones or all are absent
    in some rows."""
    generator = torch.Generator().manual_seed(6)
    logits = (2 * torch.randn(5 * num_queries, 300, generator=generator)).to(BF16)
    temperatures, shares = torch.tensor([0, 1, 2, 0.5, 1.5]), torch.tensor([1, 1, 0.9, 0.8, 0.99])
    positions = torch.full((5, num_queries), -1, dtype=torch.int32)
    for row, size in enumerate([num_queries, num_queries, (num_queries + 1) // 2, 1, 0]):
        positions[row, :size] = torch.arange(10 * row, 10 * row + size)
    return logits, (temperatures, shares, torch.arange(5) * 7_000_000_000), positions.flatten()


def by_torch(logits, rows, positions):
    ids = torch.full((len(logits),), -7)
    TorchParts.sample(None, logits, *rows, positions, ids)
    return ids


@pytest.mark.parametrize("way", [pytest.param(sample_rows, marks=needs_compiler), by_torch])
@pytest.mark.parametrize("num_queries", [1, 3, 16])
def test_several_tokens_of_a_row_have_its_settings(way, num_queries):
    """Would catch a draft's query that is drawn by another row's settings, and an id for a draft that is not there."""
    logits, rows, positions = several_tokens(num_queries)
    found = way(logits, rows, positions)
    for token, position in enumerate(positions.tolist()):
        own = [x[token // num_queries, None] for x in rows]
        alone = way(logits[token, None], own, positions[token, None])
        assert found[token] == alone[0] and (alone[0] == -7) == (position < 0)
    assert found[:num_queries].tolist() == logits[:num_queries].argmax(-1).tolist()


def test_logits_that_rows_do_not_share_equally_are_refused():
    """Would catch a draw by settings of a row that is not the token's."""
    logits, rows, positions = several_tokens(3)
    with pytest.raises(ValueError, match="logits: 14 tokens are no multiple of 5 rows"):
        TorchParts.sample(None, logits[:14], *rows, positions[:14], torch.zeros(14, dtype=torch.int64))


@pytest.mark.parametrize(
    ("architecture", "is_bf16"),
    # bfloat16 needs sm_80.
    [(number, is_bf16) for number in loader.ARCHITECTURES for is_bf16 in (0, 1) if number >= 80 or not is_bf16],
)
def test_compiles_for_every_architecture(architecture, is_bf16):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    assert " 0 bytes spill stores" in loader.compile_for((f"-DIS_BF16={is_bf16}",), architecture, "sample.cu")[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_samples_as_on_the_cpu():
    """Would catch a launcher that hands over the wrong tensor, and what the CPU's stand-in does not show."""
    ops = DecodeOps(BF16)
    generator = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(9, 5000, generator=generator)).to(BF16)
    temperatures = torch.tensor([0, 0.5, 1, 2, 0, 1, 1, 1, 3]).float()
    shares = torch.tensor([1, 1, 0.9, 0.5, 0.1, 0.99, 1, 0.3, 1]).float()
    seeds, positions = torch.arange(9) * 7_000_000_000, torch.arange(9, dtype=torch.int32)
    ids = torch.full((9,), -7, device="cuda")
    ops.sample(*(x.cuda() for x in (logits, temperatures, shares, seeds, positions)), ids)
    expected = []
    for row in range(9):
        each = slice(row, row + 1)
        chosen = (temperatures[row].item(), shares[row].item(), seeds[each], positions[each])
        expected.append(sample(logits[each], *chosen).item())
    # Logarithms and exponentials differ in their last bits: a draw may turn, seldom.
    assert sum(a == b for a, b in zip(ids.tolist(), expected, strict=True)) >= 8
    assert ids[0].item() == expected[0] and ids[4].item() == expected[4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_queries", [1, 3, 16])
def test_gpu_several_tokens_of_a_row_have_its_settings(num_queries):
    """Would catch a launcher that counts rows for tokens, or checks settings for one per token."""
    ops = DecodeOps(BF16)
    logits, rows, positions = several_tokens(num_queries)
    logits, positions, *rows = (x.cuda() for x in (logits, positions, *rows))
    ids, alone = (torch.full((len(logits),), -7, device="cuda") for _ in range(2))
    ops.sample(logits, *rows, positions, ids)
    ops.sample(logits, *(x.repeat_interleave(num_queries) for x in rows), positions, alone)
    assert torch.equal(ids, alone)
    assert torch.equal(ids == -7, positions < 0)
    assert torch.equal(ids[:num_queries], logits[:num_queries].argmax(-1))
    if num_queries > 1:
        num = len(logits) - 1
        with pytest.raises(ValueError, match=f"logits: {num} tokens are no multiple of 5 rows"):
            ops.sample(logits[:num], *rows, positions[:num], ids[:num])
