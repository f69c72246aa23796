"""Attention over a paged cache: the plan that looks up pages, and what comes of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import compile as loader
from cuda_kernels.checks import AttentionShape
from cuda_kernels.compile import KernelConfig
from cuda_kernels.paged import PagedAttention, PageLayout, pages_threads
from cuda_kernels.planned import BadIntervals
from tests.support.attention_problem import (
    CONFIGS,
    assert_close,
    make_problem,
    needs_compiler,
    needs_cuda,
    random_rows,
)
from tests.support.kernel_on_cpu import table_of
from tests.support.paged_on_cpu import ORDERS, attend_pages, made_pages, plan_pages
from tests.support.slow import examples

SIZES = (1, 5, 16, 32, 128)


def position_in_cache(table, layout, row, position):
    page, place = divmod(position, layout.page_size)
    return int(table[row, page]) * layout.page_step + place


@needs_compiler
@settings(max_examples=examples(30, 80), deadline=None)
@given(
    st.integers(0, 10**9),
    st.integers(1, 4),
    st.integers(1, 2500),
    st.sampled_from(SIZES),
    st.integers(1, 3),
    st.sampled_from([32, 96, 256]),
)
def test_plan_lists_every_visible_token(seed, batch, capacity, page_size, spread, num_threads):
    """Would catch a page that is looked up in another row, an edge inside a page that is off by one, a prefix sum that
    is wrong where a row has more pages than threads."""
    max_pages = -(-capacity // page_size)
    generator = torch.Generator().manual_seed(seed)
    num_pages = batch * max_pages + 5
    table = torch.randperm(num_pages, generator=generator)[: batch * max_pages].view(batch, -1).int()
    layout = PageLayout(num_pages, page_size, spread * page_size)
    rows = random_rows(seed, batch, capacity, 400)
    planned = plan_pages(CONFIGS[0], rows, table, layout, 400, 2, num_threads=num_threads)
    assert not planned.errors.any() and not planned.arrived.any()
    assert planned.num_visible == [sum(end - start for start, end in spans) for spans in rows]
    num_spans = planned.schedule[-batch:].tolist()
    for row, spans in enumerate(rows):
        wanted = [position_in_cache(table, layout, row, at) for start, end in spans for at in range(start, end)]
        found, index = [], 0
        for end, shift in planned.spans[row, : num_spans[row]].tolist():
            assert end > index, "an empty span"
            found += range(index + shift, end + shift)
            index = end
        assert found == wanted


@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("page_size", SIZES)
def test_attention_over_pages_is_exact(page_size, order):
    """Would catch a layout in which heads or tokens are mixed up, keys read as values, or a token of a page that no
    interval names."""
    for number, config in enumerate(CONFIGS[:3]):
        rows = [*random_rows(page_size + number, 3, 700, 12), []]
        problem = make_problem(number, rows, config, 2, 700)
        query, keys, values = problem.tensors
        *pages, table = made_pages(keys, values, page_size, order, number)
        layout = PageLayout.of(pages[0])
        planned = plan_pages(config, rows, table, layout, 12, 2, 5)
        assert_close(*attend_pages(config, query, *pages, planned, problem.scale, 5), problem)


@needs_compiler
@pytest.mark.parametrize(
    ("spans", "count", "page", "code"),
    [
        ([(0, 5), (4, 9)], 2, 1, 4),
        ([(6, 9), (0, 5)], 2, 1, 4),
        ([(0, 5), (6, 13)], 2, 1, 2),
        ([(-1, 5)], 1, 1, 2),
        ([(3, 3)], 1, 1, 2),
        ([(0, 2), (3, 4), (4, 5)], 4, 1, 1),
        ([(0, 12), (0, 12), (0, 12)], 3, 1, 4),
        ([(0, 5)], -1, 1, 1),
        ([(2, 7)], 1, 99, 32),
        ([(2, 7)], 1, -1, 32),
        ([(0, 4), (8, 12)], 2, 99, 0),
        ([(0, 12)], 1, 1, 0),
    ],
)
def test_plan_finds_what_is_wrong_and_keeps_within_the_cache(spans, count, page, code):
    """Would catch debug mode being blind, or a wrong table that makes the kernel read outside of the cache or write
    behind its spans."""
    layout = PageLayout(7, 4, 4)
    table = torch.tensor([[2, 3, 4], [0, page, 6]], dtype=torch.int32)
    planned = plan_pages(CONFIGS[0], [[(0, 1)], spans], table, layout, 3, 1, counts=[1, count])
    assert planned.errors.tolist() == [0, code]
    num_spans = planned.schedule[-1]
    assert 0 <= num_spans <= 6 and 0 <= planned.num_visible[1] <= 12
    index = 0
    for end, shift in planned.spans[1, :num_spans].tolist():
        assert end <= index or 0 <= index + shift <= end + shift <= layout.num_pages * layout.page_step
        index = end
    assert planned.num_visible[1] == index


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (torch.zeros(4, 2, 16), "cache is"),
        (torch.zeros(4, 2, 16, 64)[:, :, ::3], "the step of a page is no multiple"),
        (torch.zeros(2, 4, 2, 16, 64)[:, 0].transpose(0, 2), "the step of a page is no multiple"),
        (torch.empty(2**27, 1, 16, 64, device="meta"), "too many for one plan"),
    ],
    ids=["dimensions", "every third token", "pages inside", "positions"],
)
def test_layouts_that_cannot_be_read_are_named(cache, message):
    """Would catch a cache whose pages are read at other places than they are."""
    with pytest.raises(ValueError, match=message):
        PageLayout.of(cache)


SHAPE = {"batch": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "max_spans": 3}


@pytest.mark.parametrize(
    ("changes", "max_pages", "message"),
    [
        ({"num_queries": 2}, 4, "read by one query per sequence, not 2"),
        ({}, 0, "max_pages is 1 or more, not 0"),
        ({}, True, "max_pages is an int"),
        ({}, 2**20, "capacity is 1 to"),
    ],
)
def test_shapes_that_cannot_be_served_are_named(changes, max_pages, message):
    """Would catch drafts that are read under the mask of one query, or spans without room."""
    with pytest.raises(ValueError, match=message):
        PagedAttention(AttentionShape(**SHAPE | changes), PageLayout(9, 16, 16), max_pages, device="cpu")


def without_a_device(launches):
    """An instance that launches nothing."""
    attention = PagedAttention.__new__(PagedAttention)
    attention.shape, attention.layout, attention.max_pages = AttentionShape(**SHAPE), PageLayout(9, 16, 32), 4
    attention.device, attention.debug = torch.device("cpu"), False
    attention._num_blocks, attention._num_threads, attention._shared_bytes = 4, 256, 1024
    attention._plan, attention._attend = "plan", "attend"
    attention._planned_capacity, attention._is_plan_done = None, False
    attention._allocate(KernelConfig(64, 2, True, 8))
    attention._launch = lambda kernel, grid, threads, arguments, *_: launches.append((kernel, grid, threads, arguments))
    return attention


def test_what_is_launched():
    """Would catch a plan with too few blocks, spans without room, or a row that is read at a place of its own."""
    launches = []
    attention = without_a_device(launches)
    attention.plan(*table_of([[(0, 5)], [(3, 40)]], 3), torch.zeros(2, 4, dtype=torch.int32))
    query = torch.zeros(2, 4, 64, dtype=torch.bfloat16)
    both = torch.zeros(9, 2, 16, 2, 64, dtype=torch.bfloat16)
    keys, values = (both[:, number].transpose(1, 2) for number in (0, 1))
    attention(query, keys, values)
    (plan, grid, threads, _), (attend, _, _, arguments) = launches
    assert (plan, grid, threads, attend) == ("plan", 2, 32, "attend")
    assert attention._spans.shape == (2, 7, 2)
    assert [int(step) for step in arguments[4:7]] == [0, 64, 128] == [int(step) for step in arguments[8:11]]
    heads_first = torch.zeros(9, 4, 16, 64, dtype=torch.bfloat16)[:, :2]
    with pytest.raises(ValueError, match="keys: pages lie otherwise than in PageLayout"):
        attention(query, heads_first, values)
    with pytest.raises(ValueError, match="values has shape"):
        attention(query, keys, values[:8])
    with pytest.raises(ValueError, match="table has shape"):
        attention.plan(*table_of([[], []], 3), torch.zeros(2, 5, dtype=torch.int32))


def test_threads_of_a_plan():
    """Would catch a block without threads, or with more than the kernel has room for."""
    assert [pages_threads(number) for number in (2, 32, 33, 255, 9000)] == [32, 32, 64, 256, 256]
    assert f"constexpr int MAX_PAGES_THREADS = {pages_threads(10**6)};" in loader.source("plan_pages.cu")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize("config", CONFIGS[:4], ids=str)
def test_gpu_attention_over_pages_is_exact(config, page_size, order):
    """Would catch what the stand-in does not have: addresses beyond 32 bits of elements, a plan that is read early, a
    table that is baked into a graph."""
    rows = [*random_rows(page_size, 5, 3000, 40), [], [(0, 3000)]]
    problem = make_problem(page_size, rows, config, 2, 3000)
    query, keys, values = problem.tensors
    *pages, table = made_pages(keys, values, page_size, order, 1)
    shape = AttentionShape(
        batch=len(rows),
        num_heads=query.shape[1],
        num_kv_heads=2,
        head_dim=config.head_dim,
        max_spans=40,
        dtype=query.dtype,
    )
    pages = [on_gpu(page) for page in pages]
    attention = PagedAttention(shape, PageLayout.of(pages[0]), table.shape[1], debug=True)
    attention.plan(*(x.cuda() for x in table_of(rows, 40)), table.cuda())
    lse = torch.full(query.shape[:-1], float("nan"), device="cuda")
    out = attention(query.cuda(), *pages, scale=problem.scale, lse=lse)
    assert_close(out.cpu(), lse.cpu(), problem)
    wrong = table.clone()
    wrong[-1, 3] = len(pages[0])
    with pytest.raises(BadIntervals, match=f"row {len(rows) - 1}: a page that the cache has not"):
        attention.plan(*(x.cuda() for x in table_of(rows, 40)), wrong.cuda())


def on_gpu(page):
    """A view of other strides, on the GPU with the same ones."""
    base = page._base if page._base is not None else page
    return base.cuda().as_strided(page.shape, page.stride(), page.storage_offset())
