"""The plan kernel and the schedule: which tokens are visible, and which warp reads them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import compile as loader
from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import MAX_BATCH, AttentionShape
from cuda_kernels.compile import KernelConfig
from cuda_kernels.planned import BadIntervals
from tests.support.attention_problem import CONFIGS, needs_compiler, random_rows
from tests.support.kernel_on_cpu import plan, ranges, table_of
from tests.support.slow import examples


@needs_compiler
@settings(max_examples=examples(30, 60), deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 4000), st.sampled_from([None, (1, 32), (1, 96)]))
def test_plan_lists_the_visible_tokens(seed, batch, capacity, grid):
    """Would catch a prefix sum that is off at the edge of a warp, or of the 1,024 spans that are added at a time."""
    rows = random_rows(seed, batch, capacity, 1500)
    intervals, counts = table_of(rows, 1500)
    planned = plan(CONFIGS[0], intervals, counts, capacity, 2, grid=grid)
    assert torch.equal(planned.schedule, plan(CONFIGS[0], intervals, counts, capacity, 2, grid=(batch, 1024)).schedule)
    assert not planned.errors.any() and not planned.arrived.any()
    assert planned.num_visible == [sum(end - start for start, end in spans) for spans in rows]
    for row, spans in enumerate(rows):
        index = 0
        for (start, end), (list_end, shift) in zip(spans, planned.spans[row].tolist(), strict=False):
            assert (index + shift, list_end + shift) == (start, end)
            index = list_end


@needs_compiler
@pytest.mark.parametrize(
    ("spans", "count", "code"),
    [
        ([(0, 5), (4, 9)], 2, 4),
        ([(6, 9), (0, 5)], 2, 4),
        ([(0, 5), (6, 11)], 2, 2),
        ([(-1, 5)], 1, 2),
        ([(3, 3)], 1, 2),
        ([(5, 3)], 1, 2),
        ([(0, 2), (3, 4), (4, 5)], 4, 1),
        ([(0, 10), (0, 10), (0, 10)], 3, 4),
        ([(0, 5)], -1, 1),
        ([(0, 10)], 1, 0),
    ],
)
@pytest.mark.parametrize("grid", [(1, 64), (2, 32)])
def test_plan_finds_bad_intervals_and_keeps_within_the_cache(spans, count, code, grid):
    """Would catch debug mode being blind, or a wrong table that makes the kernel read outside of the cache."""
    intervals, _ = table_of([[(0, 1)], spans], 3)
    planned = plan(CONFIGS[0], intervals, torch.tensor([1, count], dtype=torch.int32), 10, 1, grid=grid)
    assert planned.errors.tolist() == [0, code]
    assert 0 <= planned.num_visible[1] <= 10


@needs_compiler
@settings(max_examples=examples(80, 200), deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 50))
def test_work_ranges_are_nearly_equal(num_visible, num_kv_heads, num_blocks):
    """Would catch a range that is lost, out of order, or much longer than the others: one warp would hold up all."""
    found, mode = ranges(CONFIGS[0], num_visible, num_kv_heads, num_blocks)
    row_heads = [-(-visible // 16) for visible in num_visible for _ in range(num_kv_heads) if visible]
    ends = list(itertools.accumulate(tiles + 1 for tiles in row_heads))
    # The last work index of a row-head stands for the cost of starting it: no warp needs to have it.
    tiles = set(range(ends[-1] if ends else 0)) - {end - 1 for end in ends}
    indices = [index for one in found for index in one]
    assert len(indices) == len(set(indices)) and tiles <= set(indices)
    lengths = [len(one) for one in found]
    if mode == "whole":
        assert max(lengths) <= 2.2 * sum(lengths) / (8 * num_blocks) + 4
    else:
        assert max(lengths) - min(lengths) <= 1


@needs_compiler
@pytest.mark.parametrize(
    ("row_heads", "per_warp", "warps_each"),
    [(1024, 1, 1), (2048, 2, 1), (256, 1, 4), (128, 1, 8), (40, 0, 0), (1104, 0, 0)],
)
def test_equal_row_heads_are_assigned_whole(row_heads, per_warp, warps_each):
    """Would catch a row-head that two blocks share without need, or blocks that get much less than others."""
    found, mode = ranges(CONFIGS[0], [250] * (row_heads // 8), 8, 132)
    assert (mode == "whole") == (warps_each > 0)
    if mode == "whole":
        blocks = [found[8 * i : 8 * i + 8] for i in range(132)]
        busy = [sum(map(bool, block)) for block in blocks]
        assert sum(busy) == row_heads // per_warp * warps_each and max(busy) - min(busy) <= warps_each
        for number, block in enumerate(blocks):
            for warp, one in enumerate(block):
                turn, split = divmod(warp, warps_each)
                start = (132 * turn + number) * per_warp * 17
                whole = range(start, start + 17 * per_warp)
                assert not one or one == (whole if warps_each == 1 else range(start + split, start + 16, warps_each))
    # A fifth longer is too much.
    assert ranges(CONFIGS[0], [250] * (row_heads // 8 - 1) + [310], 8, 132)[1] == "equal"


@needs_compiler
@pytest.mark.parametrize(("tiles", "mode"), [(159, "whole"), (160, "equal")])
def test_long_work_is_cut_into_equal_ranges(tiles, mode):
    """Would catch whole row-heads where reads take so long that merges do not matter: 1-2 % slower."""
    # A row-head for each of 16 warps, longer by one than its tiles.
    assert ranges(CONFIGS[0], [16 * tiles] * 4, 4, 2)[1] == mode


def test_a_plan_holds_the_largest_batch():
    """Would catch a larger batch being allowed than the plan kernel has shared memory for."""
    assert f"constexpr int MAX_BATCH = {MAX_BATCH};" in loader.source("plan.cuh")


def test_the_first_launch_behind_a_plan_waits_for_it():
    """Would catch attention that reads a plan which is still being made: the others read it before they wait."""
    # Nor may it let the next one start before: that would read the plan at once.
    kernel = loader.source("attention.cu").partition('extern "C"')[2]
    waits = kernel.index("if (!is_plan_done) wait_for_prior_grids();")
    assert waits < kernel.index("launch_dependents();") < kernel.index("copy_schedule(")
    launches = []
    attention = object.__new__(SpanAttention)
    attention.shape = AttentionShape(batch=2, num_heads=2, num_kv_heads=1, head_dim=64, max_spans=3)
    attention.device, attention.debug = torch.device("cpu"), False
    attention._num_blocks, attention._num_threads, attention._shared_bytes = 4, 256, 1024
    attention._plan, attention._attend = "plan", "attend"
    attention._planned_capacity, attention._is_plan_done = None, False
    attention._allocate(KernelConfig(64, 2, True, 8))
    attention._launch = lambda kernel, blocks, threads, arguments, *_: launches.append((kernel, int(arguments[-3])))
    query = torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    cache = torch.zeros(2, 1, 16, 64, dtype=torch.bfloat16)
    for _ in range(2):
        attention.plan(torch.zeros(2, 3, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 16)
        for _ in range(3):
            attention(query, cache, cache)
    assert [done for kernel, done in launches if kernel == "attend"] == 2 * [0, 1, 1]


def test_a_plan_that_debug_mode_refuses_is_none():
    """Would catch attention over a table that was refused, or over the one before, which is overwritten."""
    attention = SpanAttention.__new__(SpanAttention)
    attention.shape = AttentionShape(batch=2, num_heads=1, num_kv_heads=1, head_dim=64, max_spans=1)
    attention.debug = True
    attention.device, attention._num_blocks, attention._plan, attention._planned_capacity = (
        torch.device("cpu"),
        1,
        None,
        None,
    )
    attention._allocate(KernelConfig(64, 1, True, 8))
    intervals, counts = table_of([[(0, 5)], [(0, 5)]], 1)
    attention._launch = lambda *_: None
    attention.plan(intervals, counts, 9)
    assert attention._planned_capacity == 9
    attention._launch = lambda *_: attention._errors.fill_(4)
    with pytest.raises(BadIntervals, match="row 0: intervals not sorted"):
        attention.plan(intervals, counts, 9)
    with pytest.raises(ValueError, match="nothing is planned"):
        attention(*[torch.zeros(2, 1, 64)] * 3)
