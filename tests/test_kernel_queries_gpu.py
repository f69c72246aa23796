"""The attention kernel with several queries per row on a GPU: what the CPU's stand-in cannot show."""

import functools
import random
from dataclasses import replace

import pytest
import torch

from cuda_kernels.compile import KernelConfig
from cuda_kernels.planned import BadIntervals
from tests.support import attention_problem
from tests.support.attention_on_gpu import called, on_cpu, on_gpu
from tests.support.attention_problem import needs_cuda
from tests.support.kernel_on_cpu import Problem, table_of
from tests.support.query_problem import exact_queries, make_queries, random_table, seen_by_queries

assert_close = functools.partial(attention_problem.assert_close, exact=exact_queries)
# Compiling takes a second or two each: every group size and head_dim, with one column block and with several.
GPU_CONFIGS = [
    KernelConfig(128, 1, True, 0, 2),
    KernelConfig(128, 1, False, 0, 8),
    KernelConfig(64, 1, True, 0, 16),
    KernelConfig(96, 3, True, 0, 5),
    KernelConfig(128, 4, True, 0, 4),
    KernelConfig(128, 4, True, 0, 8),
    KernelConfig(128, 4, False, 0, 6),
    KernelConfig(128, 4, True, 0, 16),
    KernelConfig(96, 4, False, 0, 16),
    KernelConfig(64, 7, False, 0, 5),
    KernelConfig(128, 16, True, 0, 2),
    KernelConfig(64, 16, False, 0, 16),
]


def assert_right(out, lse, problem):
    assert_close(out, lse, on_cpu(problem))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", GPU_CONFIGS, ids=str)
def test_gpu_agrees_with_float64_on_any_table(config):
    """Would catch what the CPU cannot show: a race, a wrong instruction, a store that others do not see."""
    for seed in range(30):
        generator = random.Random(seed)
        batch, num_kv_heads = generator.randint(1, 9), generator.randint(1, 4)
        capacity = generator.choice([1, 17, 300, 4099])
        table = random_table(seed, batch, capacity, 48, config.num_queries)
        attention, problem, _ = on_gpu(config, make_queries(seed, *table, config, num_kv_heads, capacity), 48)
        out, lse = called(attention, problem)
        assert_right(out, lse, problem)
        again, lse_again = called(attention, problem)
        assert torch.equal(out, again) and torch.equal(lse, lse_again)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", [KernelConfig(128, 1, True, 0, 8), KernelConfig(128, 4, True, 0, 8)], ids=str)
@pytest.mark.parametrize(("batch", "num_kv_heads"), [(1, 8), (32, 8), (40, 16), (130, 1)])
def test_gpu_equal_rows(config, batch, num_kv_heads):
    """Would catch what goes wrong only where whole row-heads are assigned, or where all blocks share one; beside them
    an empty row, and a query that sees nothing."""
    rows = [[(i % 7, 100 + i % 7), (150, 250 + i % 3), (300, 308)] for i in range(batch)]
    masks, positions = [[255, 2 * i % 256, 255] for i in range(batch)], [300] * batch
    if batch > 1:
        rows[batch // 2], masks[batch // 2], masks[0] = [], [], [254, 254, 254]
    attention, problem, _ = on_gpu(config, make_queries(batch, rows, masks, positions, config, num_kv_heads, 310), 3)
    for _ in range(2):
        out, lse = called(attention, problem)
        assert_right(out, lse, problem)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("head_dim", "num_queries"), [(128, 8), (128, 6), (64, 8)])
def test_gpu_many_columns_of_many_rows(head_dim, num_queries):
    """Would catch slots in global memory that mix up warps or launches: nearly every warp ends a row-head and begins
    another."""
    config, generator = KernelConfig(head_dim, 4, True, 0, num_queries), random.Random(head_dim + num_queries)
    lengths = [generator.randint(1, 4000) for _ in range(90)]
    masks, positions = [[2**num_queries - 1]] * 90, [length - 1 for length in lengths]
    rows = [[(0, length + num_queries - 1)] for length in lengths]
    problem = make_queries(1, rows, masks, positions, config, 8, 4010)
    attention, problem, _ = on_gpu(config, problem, 1)
    out, lse = called(attention, problem)
    assert_right(out, lse, problem)
    for _ in range(20):
        again, lse_again = called(attention, problem)
        assert torch.equal(out, again) and torch.equal(lse, lse_again)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_queries", [4, 8])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 97, 1025, 65_536])
def test_gpu_lengths(length, num_queries):
    """Would catch a causal edge that is off by one, or a split over all blocks that loses a part."""
    config, end = KernelConfig(128, 4, True, 0, num_queries), length + num_queries - 1
    rows, masks = [[(0, end)], [(length - 1, end)]], [[2**num_queries - 1]] * 2
    problem = make_queries(length, rows, masks, [length - 1] * 2, config, 1, end)
    attention, problem, _ = on_gpu(config, problem, 1)
    out, lse = called(attention, problem)
    assert_right(out, lse, problem)


@pytest.mark.gpu
@needs_cuda
def test_gpu_means_the_same_as_one_query_at_a_time():
    """Would catch a query whose answer depends on those beside it."""
    config, capacity = KernelConfig(128, 4, True, 0, 8), 700
    problem = make_queries(5, *random_table(12, 5, capacity, 20, 8), config, 2, capacity)
    attention, several, _ = on_gpu(config, problem, 20)
    out, lse = called(attention, several)
    for query, seen in enumerate(seen_by_queries(problem).unbind(1)):
        edges = torch.nn.functional.pad(seen.int(), (1, 1)).diff(dim=1)
        rows = [
            list(zip((row > 0).nonzero()[:, 0].tolist(), (row < 0).nonzero()[:, 0].tolist(), strict=True))
            for row in edges
        ]
        one = Problem(problem.query[:, query].contiguous(), problem.keys, problem.values, rows)
        expected, expected_lse = called(*on_gpu(replace(config, num_queries=1), one, 20)[:2])
        torch.testing.assert_close(out[:, query], expected, atol=2e-2, rtol=0)
        torch.testing.assert_close(lse[:, query], expected_lse, atol=1e-4, rtol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", [KernelConfig(128, 1, True, 0, 16), KernelConfig(128, 4, True, 0, 8)], ids=str)
def test_gpu_graph_replays_see_new_masks(config):
    """Would catch a value that is baked into a captured graph: intervals, masks, positions and tensors change."""
    batch, capacity, max_spans = 32, 700, 48
    problems = [
        make_queries(seed, *random_table(seed, batch, capacity, max_spans, config.num_queries), config, 8, capacity)
        for seed in range(3)
    ]
    attention, problem, given = on_gpu(config, problems[0], max_spans)
    out = torch.empty_like(problem.query)
    attention(*problem.tensors, scale=0.1, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.plan(*given[:2], capacity, *given[2:])
        # Two layers share a plan.
        attention(*problem.tensors, scale=0.1, out=torch.empty_like(out))
        attention(*problem.tensors, scale=0.1, out=out)
    for fresh in (problems[1], problems[2], problems[0]):
        tables = (*table_of(fresh.rows, max_spans), *fresh.queries_table(max_spans))
        for kept, new in zip((*problem.tensors, *given), (*fresh.tensors, *tables), strict=True):
            kept.copy_(new)
        out.fill_(float("nan"))
        graph.replay()
        expected, _ = exact_queries(fresh)
        assert (out.cpu().double() - expected).abs().max() < 0.02


@pytest.mark.gpu
@needs_cuda
def test_gpu_debug_mode_names_bad_masks():
    """Would catch a debug mode that lets bits of queries pass that there are not, or a position outside the cache."""
    config = KernelConfig(64, 1, True, 0, 2)
    with pytest.raises(BadIntervals, match="row 1: masks with bits at or above num_queries"):
        on_gpu(config, make_queries(0, [[(0, 5)]] * 2, [[3], [5]], [4, 4], config, 1, 20), 1, debug=True)
    problem = replace(make_queries(0, [[(0, 5)]] * 2, [[3], [3]], [4, 4], config, 1, 20), positions=[20, 4])
    with pytest.raises(BadIntervals, match=r"row 0: position outside \[0, capacity\)"):
        on_gpu(config, problem, 1, debug=True)
