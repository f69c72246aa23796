"""The attention kernel on a GPU: what the CPU's stand-in cannot show."""

import random

import pytest
import torch

from cuda_kernels.compile import KernelConfig
from cuda_kernels.planned import BadIntervals
from tests.support.attention_on_gpu import called, on_cpu, on_gpu
from tests.support.attention_problem import assert_close, exact, make_problem, needs_cuda, random_rows
from tests.support.kernel_on_cpu import table_of


def assert_right(out, lse, problem):
    assert_close(out, lse, on_cpu(problem))


# Compiling takes a second each: a few of the 96 combinations, all paths among them.
GPU_CONFIGS = [
    KernelConfig(128, 1, True, 0),
    KernelConfig(128, 4, True, 0),
    KernelConfig(128, 8, False, 0),
    KernelConfig(128, 12, False, 0),
    KernelConfig(96, 3, True, 0),
    KernelConfig(64, 2, False, 0),
    KernelConfig(64, 16, True, 0),
]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", GPU_CONFIGS, ids=str)
def test_gpu_agrees_with_float64_on_any_table(config):
    """Would catch what the CPU cannot show: a race, a wrong instruction, a store that others do not see."""
    for seed in range(60):
        generator = random.Random(seed)
        batch, num_kv_heads = generator.randint(1, 9), generator.randint(1, 4)
        capacity = generator.choice([1, 17, 300, 4099])
        rows = random_rows(seed, batch, capacity, 300)
        attention, problem, _ = on_gpu(config, make_problem(seed, rows, config, num_kv_heads, capacity), 300)
        out, lse = called(attention, problem)
        assert_right(out, lse, problem)
        again, lse_again = called(attention, problem)
        assert torch.equal(out, again) and torch.equal(lse, lse_again)


@pytest.mark.gpu
@needs_cuda
def test_gpu_long_work():
    """Would catch a range that begins a tile too early or too late where there are many: a lost or doubled token."""
    config = KernelConfig(64, 1, True, 0)
    rows = [[(0, 16_384)]] * 40 + random_rows(3, 8, 16_384, 300)
    attention, problem, _ = on_gpu(config, make_problem(3, rows, config, 4, 16_384), 300)
    for _ in range(3):  # the counters are back at zero each time
        out, lse = called(attention, problem)
        assert_right(out, lse, problem)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", [KernelConfig(128, 4, True, 0), KernelConfig(96, 12, False, 0)], ids=str)
@pytest.mark.parametrize(("batch", "num_kv_heads"), [(32, 8), (64, 16), (130, 16), (256, 1)])
def test_gpu_equal_rows(config, batch, num_kv_heads):
    """Would catch what goes wrong only where whole row-heads are assigned: on GPUs of any size one of these is."""
    rows = [[(i % 7, 100 + i % 7), (150, 250 + i % 3)] for i in range(batch)]
    rows[batch // 2] = []
    attention, problem, _ = on_gpu(config, make_problem(batch, rows, config, num_kv_heads, 260), 2)
    for _ in range(2):
        out, lse = called(attention, problem)
        assert_right(out, lse, problem)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("length", [1, 15, 16, 17, 97, 1025, 131_072, 262_144])
def test_gpu_lengths(length):
    """Would catch an index that overflows, or a split over all blocks that loses a part."""
    config = KernelConfig(128, 4, True, 0)
    rows = [[(0, length)], [(length - 1, length)]]
    attention, problem, _ = on_gpu(config, make_problem(length, rows, config, 1, length), 1)
    out, lse = called(attention, problem)
    assert_right(out, lse, problem)


@pytest.mark.gpu
@needs_cuda
def test_gpu_graph_replays_see_new_intervals():
    """Would catch a value that is baked into a captured graph: intervals, counts, queries and cache change, and with
    them the way the work is divided."""
    config = KernelConfig(128, 8, True, 0)
    batch, capacity, max_spans = 32, 700, 12
    tables = {
        "random": random_rows(1, batch, capacity, max_spans),
        "equal": [[(i, i + 300), (400, 420)] for i in range(batch)],
        "one row": [[(3, 690)]] + [[]] * (batch - 1),
        "nothing": [[]] * batch,
    }
    attention, problem, given = on_gpu(config, make_problem(1, tables["random"], config, 8, capacity), max_spans)
    out = torch.empty_like(problem.query)
    attention(*problem.tensors, scale=0.1, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.plan(*given, capacity)
        # Two layers share a plan.
        attention(*problem.tensors, scale=0.1, out=torch.empty_like(out))
        attention(*problem.tensors, scale=0.1, out=out)
    for seed, name in enumerate(("random", "equal", "nothing", "one row", "equal", "random")):
        rows = tables[name]
        fresh = make_problem(seed, rows, config, 8, capacity)
        new_inputs = (*fresh.tensors, *table_of(rows, max_spans))
        for kept, new in zip((*problem.tensors, *given), new_inputs, strict=True):
            kept.copy_(new)
        out.fill_(float("nan"))
        graph.replay()
        expected, _ = exact(fresh)
        assert (out.cpu().double() - expected).abs().max() < 0.02


@pytest.mark.gpu
@needs_cuda
def test_gpu_more_spans_than_threads():
    """Would catch a plan that loses count where a row has more spans than a block of it has threads."""
    config = KernelConfig(64, 2, True, 0)
    rows = [[(2 * i, 2 * i + 1) for i in range(2000)], [(3 * i, 3 * i + 2) for i in range(1300)]]
    attention, problem, _ = on_gpu(config, make_problem(3, rows, config, 2, 4099), 2000)
    out, lse = called(attention, problem)
    assert_right(out, lse, problem)
    with pytest.raises(ValueError, match="out: rows or heads lie on each other"):
        attention(*problem.tensors, out=problem.query[:1].expand_as(problem.query))


@pytest.mark.gpu
@needs_cuda
def test_gpu_debug_mode_names_bad_intervals():
    """Would catch a debug mode that lets overlapping intervals pass: tokens would weigh twice."""
    config = KernelConfig(64, 1, True, 0)
    problem = make_problem(0, [[(0, 5)], [(0, 5), (4, 9)]], config, 1, 20)
    with pytest.raises(BadIntervals, match="row 1: intervals not sorted or overlapping"):
        on_gpu(config, problem, 2, debug=True)
