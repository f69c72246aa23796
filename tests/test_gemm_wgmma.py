"""The wgmma GEMM: the kernel's code on the CPU, how work is divided, and the machine code."""

import argparse
import ctypes
import functools
import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import bench_products, gemm_wgmma
from cuda_kernels import compile as loader
from cuda_kernels.gemm_wgmma import (
    BATCH_TILES,
    CLUSTER_SIZES,
    NUM_WARP_GROUPS,
    WARPS_PER_GROUP,
    WgmmaGemm,
    batch_tile_of,
    partition_gemm,
)
from cuda_kernels.layers import DecodeOps
from tests.support.attention_problem import needs_compiler, needs_cuda
from tests.support.gemm_problem import DTYPES, assert_gemm, problem
from tests.support.kernel_on_cpu import compiled, pointer
from tests.support.missing_waits import run_with, sources_without
from tests.support.slow import examples, sampled
from training.reports.markdown import ROOT
from training.reports.products import products_on

needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
SHARED_BYTES = 232_448
"""That a block of a Hopper GPU may have."""


@functools.cache
def library(dtype: torch.dtype, batch_tile: int, cluster_size: int) -> ctypes.CDLL:
    """The kernel of one configuration; compiled once per test run."""
    return compiled("gemm_wgmma.cpp", gemm_wgmma.macros(dtype, batch_tile, cluster_size))


@dataclass(frozen=True)
class Launch:
    """A GPU with room for so many clusters of so many blocks, the ring buffer's stages, and the slowest warp or -1, of
    which one lane or, -1, all are slow."""

    cluster_size: int
    max_clusters: int
    num_stages: int
    starved_warp: int = -1
    starved_lane: int = -1


def run(x, weight, bias, is_gated, launch):
    """The kernel's result."""
    (batch, depth), num_rows = x.shape, weight.shape[0]
    shape = partition_gemm(batch_tile_of(batch), num_rows, launch.cluster_size, launch.max_clusters)
    out = torch.full((batch, num_rows // (2 if is_gated else 1)), float("nan"), dtype=x.dtype)
    library(x.dtype, shape.batch_tile, launch.cluster_size).run_linear_wgmma(
        pointer(x),
        pointer(weight),
        pointer(bias),
        batch,
        num_rows,
        depth,
        int(is_gated),
        shape.num_passes,
        shape.max_warp_tiles,
        launch.num_stages,
        shape.num_clusters,
        shape.shared_bytes(launch.num_stages),
        pointer(out),
        launch.starved_warp,
        launch.starved_lane,
    )
    return out


def assert_gated(out, x, weight):
    """silu(gate) * up, rounded four times on the way."""
    gate, up = F.linear(x.double(), weight.double()).chunk(2, -1)
    # Half a unit each of the gate, its activation (which passes on 1.1 of what the gate is off), up and the result.
    of_rounding = 2.1 * torch.finfo(x.dtype).eps * (gate * up).abs()
    # As in `assert_gemm`, of some 40 that the largest sums here have.
    of_summing = 4e-5 * (gate.abs() + 1.1 * up.abs() + 1e-3)
    assert ((out.double() - F.silu(gate) * up).abs() <= of_rounding + of_summing).all()


@st.composite
def launches(draw):
    cluster_size = draw(st.sampled_from(CLUSTER_SIZES))
    # Any warp may be slower than all others, or one of its lanes.
    starved_warp, starved_lane = draw(st.integers(-1, 13 * cluster_size - 1)), draw(st.integers(-1, 31))
    return Launch(cluster_size, draw(st.integers(1, 2)), draw(st.integers(2, 5)), starved_warp, starved_lane)


@needs_compiler
@settings(max_examples=examples(3, 40), deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(4, 9),
    st.sampled_from([None, "bias", "gates"]),
    launches(),
)
def test_any_shape(seed, dtype, batch, warp_tiles, k_tiles, kind, launch):
    """Would catch a tile or another block's sums overwritten while they are read, a block that leaves early."""
    x, weight, bias = problem(seed, dtype, batch, 16 * warp_tiles, 64 * k_tiles)
    bias = bias if kind == "bias" else None
    out = run(x, weight, bias, kind == "gates", launch)
    if kind == "gates":
        assert_gated(out, x, weight)
    else:
        assert_gemm(out, x, weight, bias)


@needs_compiler
@pytest.mark.parametrize("cluster_size", sampled(CLUSTER_SIZES, CLUSTER_SIZES[-1:]))
@pytest.mark.parametrize("batch", sampled([64, 65, 97, 128], [65, 128]))
def test_large_batches(batch, cluster_size):
    """Would catch a part of the batch that another block of the cluster has, of tiles with 64 to 128 rows."""
    x, weight, bias = problem(batch, torch.bfloat16, batch, 16 * 14, 64 * 5)
    assert_gemm(run(x, weight, bias, False, Launch(cluster_size, 1, 3)), x, weight, bias)


SLOW_WARPS = [
    (*shape, warp)
    for shape in [(4, 4, 5), (2, 8, 5), (2, 8, 3), (2, 9, 3), (4, 20, 3)]
    for warp in (0, 5, 7, 9, 11, 14, 20, 24, 40)
]
# Every number of stages, and warps with a tile and without.
SLOW_WARPS_SAMPLE = {(4, 4, 5, 9), (2, 8, 5, 7), (2, 8, 3, 20), (2, 9, 3, 14)}


@needs_compiler
@pytest.mark.parametrize(
    ("cluster_size", "k_tiles", "num_stages", "starved_warp"), sampled(SLOW_WARPS, SLOW_WARPS_SAMPLE)
)
def test_a_slow_warp_among_fast_ones(cluster_size, k_tiles, num_stages, starved_warp):
    """Would catch a warp without a tile (7, 11, 20 and 24 are some) that reports the next pass before one with a tile
    has come to it, or that waits for a phase that is over."""
    x, weight, bias = problem(starved_warp, torch.bfloat16, 100, 16 * 30, 64 * k_tiles)
    launch = Launch(cluster_size, 1, num_stages, starved_warp % (13 * cluster_size))
    out = run(x, weight, bias, False, launch)
    assert_gemm(out, x, weight, bias)


@needs_compiler
@pytest.mark.parametrize(("starved_warp", "starved_lane"), sampled([(7, 17), (11, 31), (4, 1), (5, 9)], [(11, 31)]))
def test_a_slow_lane_among_fast_ones(starved_warp, starved_lane):
    """Would catch a lane that its warp leaves behind: the phase that it waits for is over twice before it looks. Only
    warps 8 to 11 have no tile here: they release stages."""
    x, weight, bias = problem(starved_warp, torch.bfloat16, 100, 16 * 2, 64 * 9)
    out = run(x, weight, bias, False, Launch(1, 1, 3, starved_warp, starved_lane))
    assert_gemm(out, x, weight, bias)


SLOW = "tests/test_gemm_wgmma.py::test_a_slow_"
SUMS = "tests/test_gemm_wgmma.py::test_rows_do_not_depend_on_others"
WAITS = {0: f"{SLOW}warp_among_fast_ones", 1: f"{SLOW}lane_among_fast_ones", 2: SUMS, 3: SUMS}
"""By the number of the wait."""


@needs_compiler
@pytest.mark.parametrize("number", sampled(list(WAITS), [1, 2]))
def test_every_wait_of_a_warp_is_needed(number, tmp_path):
    """Would catch a stand-in for the hardware that forgives: without one `__syncwarp` another test has to fail."""
    sources = sources_without(tmp_path, "gemm_wgmma.cu", number)
    assert run_with(sources, WAITS[number]).returncode != 0


@needs_compiler
def test_rows_do_not_depend_on_others():
    """Would catch results that change with a row's place in the batch, or with what else is in it."""
    x, weight, _ = problem(3, torch.bfloat16, 32, 16 * 9, 64 * 8)
    together = run(x, weight, None, False, Launch(4, 1, 3))
    turned = run(x.flip(0), weight, None, False, Launch(4, 1, 3))
    assert torch.equal(together, turned.flip(0))
    assert torch.equal(together[7:8], run(x[7:8], weight, None, False, Launch(4, 1, 3)))


@given(st.sampled_from(BATCH_TILES), st.integers(1, 10_000), st.sampled_from(CLUSTER_SIZES), st.integers(1, 132))
def test_everything_is_divided(tile, warp_tiles, cluster_size, max_clusters):
    """Would catch a cluster with more warp tiles than its passes hold, or memory too small for what is in it."""
    shape = partition_gemm(tile, 16 * warp_tiles, cluster_size, max_clusters)
    largest = -(-warp_tiles // shape.num_clusters)
    assert 1 <= shape.num_clusters <= max_clusters
    assert shape.max_warp_tiles <= NUM_WARP_GROUPS * WARPS_PER_GROUP
    assert shape.num_passes * shape.max_warp_tiles >= largest
    assert (shape.num_passes - 1) * NUM_WARP_GROUPS * WARPS_PER_GROUP < largest
    num_stages = shape.num_stages(SHARED_BYTES)
    assert 3 <= num_stages <= gemm_wgmma.MAX_STAGES
    assert shape.shared_bytes(num_stages) <= SHARED_BYTES


def measured_clusters():
    """What bench_products measured of every size of clusters: weight, rows, depth, tile, and figures by size."""
    for path in sorted((ROOT / "assets/results").glob("products_*.json")):
        for weight in json.loads(path.read_text(encoding="utf-8"))["weights"]:
            for line in weight["measured"]:
                if found := {int(number): one for number, one in line.get("clusters", {}).items() if one}:
                    yield pytest.param(*weight["shape"], line["rows"], found, id=f"{weight['name']}-{line['rows']}")


@pytest.mark.parametrize(("num_rows", "depth", "tile", "measured"), list(measured_clusters()))
def test_the_choice_of_clusters(num_rows, depth, tile, measured):
    """Would catch a choice that was measured to be slower, by more than 1.5 %."""
    shapes = {number: partition_gemm(tile, num_rows, number, one["at_a_time"]) for number, one in measured.items()}
    chosen = min(shapes, key=lambda number: shapes[number].cost_bytes(depth))
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


def test_the_table_of_gemms():
    """Would catch a table that takes the slower of cuBLAS's two ways."""
    line = {"rows": 64, "us": 40.0, "cublas_us": {"x W^T": 60.0, "W x^T": 50.0}, "floor_us": 32.0}
    origin = {"command": "python -m x", "machine": {"gpu": "G"}, "commit": "abc", "dirty": False}
    text = products_on({"weights": [{"name": "down", "measured": [line]}], **origin}, "x.json")
    assert "64 rows |" in text and "| down | 32.0 | 40.0 (1.25x) |" in text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", BATCH_TILES)
@pytest.mark.parametrize("cluster_size", CLUSTER_SIZES)
def test_compiles_without_spills(dtype, tile, cluster_size):
    """Would catch registers that go to memory, and wgmmas that the compiler makes wait for each other."""
    code, report = loader.compile_for(gemm_wgmma.macros(dtype, tile, cluster_size), "90a", "gemm_wgmma.cu")
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    # ptxas warns of wgmma that it serializes; the kernel's own name does not count.
    assert "wgmma" not in report.replace("selfspan_linear_wgmma", ""), report
    assert code[:4] == b"\x7fELF"


@pytest.mark.gpu
@needs_cuda
@needs_hopper
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 17, 33, 64, 77, 97, 128])
@pytest.mark.parametrize(
    ("num_rows", "depth"), [(12288, 4096), (4096, 11008), (22016, 4096), (32000, 512), (1008, 320), (16, 256)]
)
def test_gpu_gemm(dtype, batch, num_rows, depth):
    """Would catch a race: all of twenty results are the same; and a wrong map of a tensor."""
    x, weight, bias = problem(batch, dtype, batch, num_rows, depth, "cuda")
    gemm = WgmmaGemm(dtype, x.device)
    for given_bias in (None, bias):
        results = [torch.full((batch, num_rows), float("nan"), dtype=dtype, device="cuda") for _ in range(20)]
        for out in results:
            gemm(x, weight, given_bias, out, is_gated=False)
        assert_gemm(results[0], x, weight, given_bias)
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
    WgmmaGemm(dtype, x.device)(x, weight, None, out, is_gated=True)
    assert_gated(out, x, weight)


@pytest.mark.gpu
@needs_cuda
@needs_hopper
@pytest.mark.parametrize("batch", [1, 64, 129])
@pytest.mark.parametrize("num_rows", [8192, 8200, 256])
def test_gpu_choice(batch, num_rows):
    """Would catch a GEMM that goes to a kernel that does not serve its shape, or gates that do."""
    x, weight, bias = problem(batch, torch.bfloat16, batch, num_rows, 1024, "cuda")
    ops = DecodeOps(torch.bfloat16)
    assert ops._wgmma.serves(batch, num_rows, 1024) == (batch <= 128 and num_rows == 8192)
    assert_gemm(ops.linear(x, weight, bias), x, weight, bias)
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
