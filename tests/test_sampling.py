"""Sampling on the device: its code on the CPU, and for every architecture."""

import ctypes
import functools

import numpy as np
import pytest
import torch
from kernel_on_cpu import COMPILER, compiled, pointer

from cuda_kernels import loader
from cuda_kernels.decode_ops import DecodeOps

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernel for the CPU")
BF16 = torch.bfloat16


@functools.cache
def library() -> ctypes.CDLL:
    """The kernel for bfloat16; compiled once per test run."""
    return compiled("sample.cpp", ("-DIS_BF16=1",))


def sample(logits, temperature=0.0, share=1.0, seeds=None, positions=None, threads=32):
    batch, vocab = logits.shape
    ids = torch.full((batch,), -7, dtype=torch.int64)
    temperatures, shares = torch.full((batch,), temperature), torch.full((batch,), share)
    seeds = torch.zeros(batch, dtype=torch.int64) if seeds is None else seeds
    positions = torch.zeros(batch, dtype=torch.int32) if positions is None else positions
    logits = logits.contiguous()
    library().run_sample(
        pointer(logits),
        batch,
        vocab,
        pointer(temperatures),
        pointer(shares),
        pointer(seeds),
        pointer(positions),
        pointer(ids),
        threads,
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


@needs_compiler
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_only_the_likeliest_are_drawn(share):
    """Would catch an id outside the nucleus, or a nucleus that leaves out what belongs to it."""
    logits = (3 * torch.randn(40, generator=torch.Generator().manual_seed(3))).to(BF16)
    ids = sample(logits.repeat(1500, 1), 1.0, share, seeds=torch.arange(1500) << 32)
    probabilities = torch.softmax(logits.double(), 0)
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].cumsum(0) < share).sum()) + 1
    nucleus = {i for i in range(40) if probabilities[i] >= probabilities[order[size - 1]]}
    drawn = set(ids.tolist())
    assert drawn <= nucleus
    total = sum(probabilities[i] for i in nucleus)
    assert all(i in drawn for i in nucleus if probabilities[i] / total > 0.01)


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
