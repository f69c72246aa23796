"""The attention kernel on the CPU: the sources themselves, thread by thread, against float64."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels.compile import KernelConfig
from tests.support.attention_problem import BF16, CONFIGS, assert_close, make_problem, needs_compiler, random_rows
from tests.support.kernel_on_cpu import attend, ranges
from tests.support.slow import examples, sampled

SAMPLE = [KernelConfig(96, 3, True, 2), KernelConfig(128, 16, False, 2), KernelConfig(128, 1, True, 8), CONFIGS[2]]
"""Few more than `DIVISIONS` has: compiling one takes longer than running it."""


@needs_compiler
@pytest.mark.parametrize("config", sampled(CONFIGS, SAMPLE), ids=str)
@settings(max_examples=examples(5, 20), deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 300), st.integers(1, 3), st.integers(1, 9))
def test_agrees_with_float64_on_any_table(config, seed, batch, capacity, num_kv_heads, num_blocks):
    """Would catch a token read twice, left out or from outside the intervals; a lost split; a wrong merge."""
    rows = random_rows(seed, batch, capacity, 12)
    problem = make_problem(seed, rows, config, num_kv_heads, capacity)
    order = list(range(num_blocks))
    random.Random(seed).shuffle(order)
    out, lse = attend(config, problem, 12, num_blocks, order)
    assert_close(out, lse, problem)


# Every way to divide the work: configuration, visible tokens of the rows, key/value heads, blocks.
DIVISIONS = {
    "equal, two warps": ("equal", KernelConfig(96, 3, True, 2), [40, 900, 3], 2, 5),
    "equal, more than 32 blocks": ("equal", KernelConfig(96, 3, True, 2), [2500, 17], 1, 70),
    "equal, splits in the second sixteen": ("equal", KernelConfig(128, 16, False, 2), [1300], 1, 20),
    "whole, one per warp": ("whole", KernelConfig(128, 1, True, 8), [50, 48, 49, 0], 2, 1),
    "whole, two per warp": ("whole", KernelConfig(64, 16, False, 8), [64] * 7, 2, 1),
    "whole, two warps each": ("whole", KernelConfig(128, 1, True, 8), [100] * 4, 2, 2),
    "whole, eight warps each": ("whole", KernelConfig(64, 16, False, 8), [333, 340], 2, 4),
}


@needs_compiler
@pytest.mark.parametrize("case", DIVISIONS, ids=str)
def test_every_way_to_divide_the_work(case):
    """Would catch a way that is never taken, or is wrong where random tables seldom take it."""
    mode, config, num_visible, num_kv_heads, num_blocks = DIVISIONS[case]
    assert ranges(config, num_visible, num_kv_heads, num_blocks)[1] == mode
    capacity = max(num_visible) + 9
    rows = [
        [(i, i + n // 2), (i + n // 2 + 3, i + n + 3)] if n > 1 else [(0, 1)] * n for i, n in enumerate(num_visible)
    ]
    problem = make_problem(1, rows, config, num_kv_heads, capacity)
    out, lse = attend(config, problem, 2, num_blocks)
    assert_close(out, lse, problem)
    again = attend(config, problem, 2, num_blocks, list(range(num_blocks))[::-1])
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])


@needs_compiler
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 97, 1025])
def test_odd_lengths(length):
    """Would catch a last tile that is cut off or padded with something."""
    config = CONFIGS[0]
    rows = [[(0, length)], [(3, 3 + length)], [(length, length + 1)]]
    problem = make_problem(length, rows, config, 2, length + 8)
    out, lse = attend(config, problem, 1, 3)
    assert_close(out, lse, problem)


@needs_compiler
def test_long_and_short_rows_in_one_batch():
    """Would catch ranges that follow rows instead of tokens: then a long row is one block's work, or is cut short."""
    config = CONFIGS[1]
    rows = [[(0, 3)], [(i, i + 1) for i in range(0, 2000, 2)], [], [(7, 1900)], [(0, 1)]]
    problem = make_problem(1, rows, config, 2, 2000)
    out, lse = attend(config, problem, 1000, 6)
    assert_close(out, lse, problem)
    assert not out[2].any() and (lse[2] == -torch.inf).all()


@needs_compiler
def test_same_bits_whichever_block_is_last():
    """Would catch a merge in order of arrival: answers would change from run to run."""
    config = CONFIGS[1]
    rows = random_rows(5, 3, 400, 12)
    problem = make_problem(5, rows, config, 2, 400)
    run = lambda order: attend(config, problem, 12, 7, order)  # noqa: E731
    (out, lse), (again, lse_again) = run(None), run([6, 2, 0, 5, 1, 3, 4])
    assert torch.equal(out, again) and torch.equal(lse, lse_again)


@needs_compiler
def test_any_layout_of_the_cache():
    """Would catch strides mixed up, in caches that keep tokens together or are a part of another one."""
    config = CONFIGS[0]
    rows = random_rows(8, 2, 90, 12)
    problem = make_problem(8, rows, config, 3, 90)
    by_token = problem.keys.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.full((2, 3, 200, 128), float("nan"), dtype=BF16)[:, :, 55:145]
    sliced.copy_(problem.values)
    laid_out = replace(problem, keys=by_token, values=sliced)
    out, lse = attend(config, laid_out, 12, 2)
    assert_close(out, lse, problem)


@needs_compiler
def test_large_scores_do_not_overflow():
    """Would catch weights without their greatest score taken off, and a split that weighs nothing beside the others."""
    config = CONFIGS[0]
    rows = [[(0, 40), (60, 100)]]
    problem = make_problem(2, rows, config, 1, 100, scale=1.0)
    problem.keys[0, 0, 70] = 30 * problem.query[0, 0]
    problem.keys[0, 0, 5] = -30 * problem.query[0, 0]
    out, lse = attend(config, problem, 2, 2)
    assert_close(out, lse, problem)
    torch.testing.assert_close(out[0, 0], problem.values[0, 0, 70])
