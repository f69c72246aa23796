"""The attention kernel with several queries per row on the CPU: the sources themselves against float64."""

import functools
import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels.attention import SpanAttention, plan_grid
from cuda_kernels.checks import AttentionShape
from cuda_kernels.compile import KernelConfig
from tests.support import attention_problem
from tests.support.attention_problem import BF16, needs_compiler
from tests.support.kernel_on_cpu import Problem, attend, plan, ranges, table_of
from tests.support.query_problem import exact_queries, make_queries, random_table, seen_by_queries
from tests.support.slow import examples, sampled

assert_close = functools.partial(attention_problem.assert_close, exact=exact_queries)
ONE_BLOCK = KernelConfig(96, 3, True, 2, 5)
WIDE_BLOCK = KernelConfig(128, 4, True, 4, 8)
TWO_BLOCKS = KernelConfig(128, 4, True, 4, 16)
PADDED_BLOCKS = KernelConfig(64, 7, False, 4, 5)
CONFIGS = [
    ONE_BLOCK,
    WIDE_BLOCK,
    TWO_BLOCKS,
    PADDED_BLOCKS,
    KernelConfig(96, 3, True, 8, 6),
    KernelConfig(128, 1, True, 8, 2),
    KernelConfig(64, 1, False, 8, 16),
    KernelConfig(128, 16, False, 2, 2),
    KernelConfig(128, 1, False, 8, 8),
    KernelConfig(96, 4, True, 4, 5),
    KernelConfig(64, 16, True, 2, 16),
    KernelConfig(96, 7, False, 4, 8),
]


@pytest.mark.parametrize(
    ("group_size", "num_queries", "blocks", "columns"),
    [(1, 1, 1, 1), (1, 16, 1, 16), (4, 8, 1, 32), (3, 8, 1, 24), (4, 16, 2, 32), (7, 5, 2, 21), (9, 16, 6, 27)],
)
def test_queries_are_divided_evenly(group_size, num_queries, blocks, columns):
    """Would catch column blocks of very different sizes, or more columns than a warp has room for."""
    config = KernelConfig(128, group_size, True, 8, num_queries)
    assert (config.column_blocks, config.columns) == (blocks, columns)


@needs_compiler
@pytest.mark.parametrize("config", sampled(CONFIGS, CONFIGS[:5:2]), ids=str)
@settings(max_examples=examples(4, 20), deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 200), st.integers(1, 2), st.integers(1, 6))
def test_agrees_with_float64_on_any_table(config, seed, batch, capacity, num_kv_heads, num_blocks):
    """Would catch a token that a wrong query sees or that is read where none does; a query or head in another's place;
    a lost split; a wrong merge."""
    table = random_table(seed, batch, capacity, 9, config.num_queries)
    problem = make_queries(seed, *table, config, num_kv_heads, capacity)
    order = list(range(num_blocks * config.column_blocks))
    random.Random(seed).shuffle(order)
    out, lse = attend(config, problem, 9, num_blocks, order)
    assert_close(out, lse, problem)


def dense(config: KernelConfig, positions: list[int], num_kv_heads: int = 1) -> Problem:
    """Rows whose queries see all up to themselves, by an interval that goes on behind them."""
    capacity = max(positions) + config.num_queries + 20
    rows = [[(0, capacity)] for _ in positions]
    masks = [[2**config.num_queries - 1] for _ in positions]
    return make_queries(7, rows, masks, positions, config, num_kv_heads, capacity)


@needs_compiler
@pytest.mark.parametrize("config", [ONE_BLOCK, PADDED_BLOCKS], ids=str)
def test_a_query_sees_itself_and_none_behind(config):
    """Would catch a causal edge that is off by one, at and around the edges of a tile."""
    problem = dense(config, [0, 1, 14, 15, 16, 17, 27, 28, 31, 32, 60])
    out, lse = attend(config, problem, 1, 3)
    assert_close(out, lse, problem)
    # The first query of the first row sees one token: the values are what it gets.
    heads = problem.values[0, :, 0].repeat_interleave(config.group_size, 0)
    assert torch.equal(out[0, 0], heads)


@needs_compiler
@pytest.mark.parametrize("num_blocks", [1, 2, 7])
@pytest.mark.parametrize("config", [ONE_BLOCK, WIDE_BLOCK, TWO_BLOCKS], ids=str)
def test_a_query_that_sees_nothing_gives_zeros(config, num_blocks):
    """Would catch NaN, or the mean of hidden values, where a round has fewer drafts than queries; and that what stands
    in an unused query spreads to the others."""
    used = 2**config.num_queries - 2
    masks = [[used & ~4, used & ~4], [0b1000]]
    problem = make_queries(3, [[(0, 150), (160, 200)], [(5, 9)]], masks, [195, 8], config, 2, 220)
    problem.query[:, 0] = problem.query[0, 2] = float("nan")
    out, lse = attend(config, problem, 2, num_blocks)
    hidden = ~seen_by_queries(problem).any(-1)
    assert hidden.sum() == 2 + config.num_queries - 1
    assert not out[hidden].any() and (lse[hidden] == -torch.inf).all()
    problem.query[hidden] = 1.0
    assert_close(out, lse, problem)


SPLITS = {
    "equal": (ONE_BLOCK, [700, 9], 2, 5),
    "equal, column blocks": (TWO_BLOCKS, [900, 33], 1, 3),
    "equal, 32 columns": (WIDE_BLOCK, [900, 33], 2, 3),
    "equal, several row-heads per warp": (WIDE_BLOCK, [130, 3, 75, 0, 40, 18, 90], 3, 2),
    "whole, one per warp": (PADDED_BLOCKS, [50, 48, 49, 0], 1, 1),
    "whole, two warps each": (WIDE_BLOCK, [100] * 4, 1, 2),
    "whole, two warps each, column blocks": (TWO_BLOCKS, [100] * 4, 1, 2),
}


@needs_compiler
@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_splits_of_which_a_query_sees_none(case):
    """Would catch a merge that counts the hidden tokens of a split in which a query sees none, in every way to divide
    the work; and a merge in order of arrival."""
    config, num_visible, num_kv_heads, num_blocks = SPLITS[case]
    assert ranges(config, num_visible, num_kv_heads, num_blocks)[1] == case.partition(",")[0]
    # Every query sees a narrow interval of its own, and no query the same as another.
    rows, masks = [], []
    for visible in num_visible:
        step = max(1, visible // config.num_queries)
        starts = range(0, visible, step)[: config.num_queries]
        rows.append(list(itertools.pairwise([*starts, visible])))
        masks.append([1 << query for query in range(len(rows[-1]))])
    positions = [max(0, visible - 1) for visible in num_visible]
    problem = make_queries(4, rows, masks, positions, config, num_kv_heads, max(num_visible))
    out, lse = attend(config, problem, config.num_queries, num_blocks)
    assert_close(out, lse, problem)
    backwards = list(range(num_blocks * config.column_blocks))[::-1]
    again = attend(config, problem, config.num_queries, num_blocks, backwards)
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])


@needs_compiler
def test_means_the_same_as_one_query_at_a_time():
    """Would catch a query whose answer depends on those beside it."""
    config, capacity = TWO_BLOCKS, 120
    problem = make_queries(5, *random_table(12, 3, capacity, 7, config.num_queries), config, 2, capacity)
    out, lse = attend(config, problem, 7, 3)
    assert not out.isnan().any()
    for query in range(config.num_queries):
        rows = [
            [
                (start, min(end, position + query + 1))
                for (start, end), mask in zip(spans, masks, strict=True)
                if mask >> query & 1 and start <= position + query
            ]
            for spans, masks, position in zip(problem.rows, problem.masks, problem.positions, strict=True)
        ]
        one = Problem(problem.query[:, query].contiguous(), problem.keys, problem.values, rows)
        expected, expected_lse = attend(replace(config, num_queries=1), one, 7, 3)
        torch.testing.assert_close(out[:, query], expected, atol=2e-2, rtol=0)
        torch.testing.assert_close(lse[:, query], expected_lse, atol=1e-4, rtol=1e-5)


@needs_compiler
def test_any_layout_of_the_queries():
    """Would catch strides of rows, queries and heads mixed up: queries may lie head by head."""
    config = PADDED_BLOCKS
    problem = dense(config, [40, 3], 2)
    by_head = problem.query.transpose(1, 2).contiguous().transpose(1, 2)
    out, lse = attend(config, replace(problem, query=by_head), 1, 2)
    assert out.stride() == by_head.stride() != problem.query.stride()
    assert_close(out, lse, problem)


@needs_compiler
@settings(max_examples=examples(10, 40), deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 5), st.integers(1, 300))
def test_plan_lists_what_some_query_sees(seed, batch, capacity):
    """Would catch a token planned that no query sees, a mask beside the wrong interval, or a warp's second turn that
    differs from a block's only one."""
    config, max_spans = ONE_BLOCK, 48
    problem = make_queries(
        seed, *random_table(seed, batch, capacity, max_spans, config.num_queries), config, 1, capacity
    )
    table = table_of(problem.rows, max_spans)
    made = [
        plan(config, *table, capacity, 1, 3, grid, *problem.queries_table(max_spans))
        for grid in (None, (1, 64), (batch, 64))
    ]
    assert plan_grid(batch, max_spans, config.num_queries) == (1, 32 * batch)
    assert made[0].num_visible == seen_by_queries(problem).any(1).sum(1).tolist()
    assert not made[0].errors.any() and not made[0].arrived.any()
    for other in made[1:]:
        assert torch.equal(made[0].schedule, other.schedule) and torch.equal(made[0].spans, other.spans)
    for row, masks in enumerate(problem.masks):
        expected = [[mask, problem.positions[row]] for mask in masks]
        assert made[0].spans[row, : len(masks), 2:].tolist() == expected


@needs_compiler
@pytest.mark.parametrize(
    ("masks", "position", "code"),
    [([31, 1], 9, 0), ([32, 1], 9, 8), ([-1, 1], 9, 8), ([3, 3], 10, 16), ([3, 3], -1, 16), ([3, -5], 2**31 - 1, 24)],
)
def test_plan_finds_bad_masks_and_keeps_within_the_cache(masks, position, code):
    """Would catch debug mode being blind to masks and positions, or a wrong one that makes the kernel read outside."""
    intervals, counts = table_of([[(0, 5), (6, 10)], []], 2)
    table = torch.tensor([masks, [-1, -1]], dtype=torch.int32)
    positions = torch.tensor([position, -9], dtype=torch.int32)
    planned = plan(ONE_BLOCK, intervals, counts, 10, 1, 3, None, table, positions)
    assert planned.errors.tolist() == [code, 0]
    assert 0 <= planned.num_visible[0] <= 9 and planned.num_visible[1] == 0


@pytest.mark.parametrize(
    ("num_queries", "change", "message"),
    [
        (2, {"masks": None}, "masks is missing: 2 queries per row need it"),
        (2, {"positions": None}, "positions is missing: 2 queries per row need it"),
        (2, {"masks": torch.ones(2, 3, dtype=torch.int64)}, "masks is torch.int64, and has to be torch.int32"),
        (2, {"masks": torch.ones(2, 4, dtype=torch.int32)[:, :3]}, "masks is not contiguous"),
        (2, {"positions": torch.ones(3, dtype=torch.int32)}, r"positions has shape \(3,\), and has to have \(2,\)"),
        (1, {"positions": None}, "masks is for several queries per row"),
        (1, {"masks": None}, "positions is for several queries per row"),
    ],
)
def test_masks_that_cannot_be_served_are_named(num_queries, change, message):
    """Would catch a mask that is ignored, or read past its end."""
    attention = SpanAttention.__new__(SpanAttention)
    attention.shape = AttentionShape(
        batch=2, num_heads=2, num_kv_heads=1, head_dim=64, max_spans=3, num_queries=num_queries
    )
    attention.device = torch.device("cpu")
    make = functools.partial(torch.ones, dtype=torch.int32)
    given = {"masks": make(2, 3), "positions": make(2)} | change
    with pytest.raises(ValueError, match=message):
        attention.plan(make(2, 3, 2), make(2), 9, **given)


def test_the_launch_is_of_all_column_blocks():
    """Would catch column blocks that are never launched or planned for: queries would keep what stood in the output;
    and slots of many columns without memory."""
    config, launches = KernelConfig(64, 4, True, 8, 16), []
    attention = SpanAttention.__new__(SpanAttention)
    attention.shape = AttentionShape(batch=2, num_heads=8, num_kv_heads=2, head_dim=64, max_spans=3, num_queries=16)
    attention.device, attention.debug = torch.device("cpu"), False
    attention._num_blocks, attention._num_threads, attention._shared_bytes = 66, 256, 1024
    attention._plan = attention._attend = None
    attention._allocate(config)
    attention._launch = lambda kernel, blocks, threads, arguments, *_: launches.append((blocks, arguments))
    make = functools.partial(torch.ones, dtype=torch.int32)
    attention.plan(make(2, 3, 2), make(2), 16, make(2, 3), make(2))
    query, cache = torch.zeros(2, 16, 8, 64, dtype=BF16), torch.zeros(2, 2, 16, 64, dtype=BF16)
    out = attention(query, cache, cache, lse=torch.zeros(2, 16, 8))
    assert out.shape == query.shape and launches[1][0] == 132
    assert [int(x) for x in launches[1][1][-2:]] == [512, 512]
    assert [int(x) for x in launches[1][1][1:3]] == [16 * 512, 64]
    assert attention._partials.shape == (2 * (4 + 66 + 8 * 66), 32 * 68) and attention._arrived.shape == (8,)
    with pytest.raises(ValueError, match="query has shape"):
        attention(query[:, 0], cache, cache)
