"""The CUDA kernels: their logic on the CPU, their code for every architecture, and themselves where there is a GPU."""

import ast
import functools
import itertools
import json
import platform
import random
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_on_cpu import COMPILER, attend, plan, slices, table_of

from cuda_kernels import compile as loader
from cuda_kernels import picture
from cuda_kernels.attention import (
    MAX_BATCH,
    BadIntervals,
    CudaUnavailable,
    SpanAttention,
    check_capacity,
    check_no_overlap,
    check_shape,
    check_tensor,
    cuda_device,
)
from cuda_kernels.bench import attention as bench
from cuda_kernels.bench.selections import ALL, SELECTIONS, choose
from cuda_kernels.compile import ARCHITECTURES, KernelConfig
from training import report

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++ to compile the kernels for the CPU")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BF16, FP16 = torch.bfloat16, torch.float16


def problem(seed, rows, config, num_kv_heads, capacity):
    """Random queries and cache; NaN wherever no interval of the row reaches."""
    generator = torch.Generator().manual_seed(seed)
    dtype = BF16 if config.is_bf16 else FP16
    make = lambda *shape: torch.randn(*shape, config.head_dim, generator=generator).to(dtype)  # noqa: E731
    batch = len(rows)
    query = make(batch, num_kv_heads * config.group_size)
    keys, values = make(batch, num_kv_heads, capacity), make(batch, num_kv_heads, capacity)
    for row, spans in enumerate(rows):
        hidden = torch.ones(capacity, dtype=torch.bool)
        for start, end in spans:
            hidden[start:end] = False
        keys[row, :, hidden] = float("nan")
        values[row, :, hidden] = float("nan")
    return query, keys, values


def exact(query, keys, values, rows, scale, dtype=torch.float64):
    """What the kernel computes, `[B, H, D]` and log-sum-exp, in another precision by PyTorch's own operations."""
    batch, num_heads, head_dim = query.shape
    group = num_heads // keys.shape[1]
    out = torch.zeros(batch, num_heads, head_dim, dtype=dtype)
    lse = torch.full((batch, num_heads), -torch.inf, dtype=torch.float64)
    for row, spans in enumerate(rows):
        if not spans:
            continue
        positions = torch.cat([torch.arange(start, end) for start, end in spans])
        k = keys[row, :, positions].repeat_interleave(group, 0)
        v = values[row, :, positions].repeat_interleave(group, 0)
        q = query[row, :, None]
        out[row] = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), scale=scale)[:, 0]
        lse[row] = torch.logsumexp((k.double() @ q.double().transpose(1, 2))[..., 0] * scale, 1)
    return out, lse


def assert_close(out, lse, query, keys, values, rows, scale):
    """Error against float64 at most twice that of PyTorch's attention in the same precision, plus rounding."""
    expected, expected_lse = exact(query, keys, values, rows, scale)
    rounded, _ = exact(query, keys, values, rows, scale, query.dtype)
    allowed = 2 * (rounded.double() - expected).abs().max() + torch.finfo(query.dtype).eps
    assert not out.isnan().any()
    assert (out.double() - expected).abs().max() <= allowed
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)


def random_rows(seed, batch, capacity, max_spans):
    """Interval lists: some dense, some empty, the others at random offsets, touching ones included."""
    generator = random.Random(seed)
    rows = []
    for _ in range(batch):
        kind = generator.random()
        if kind < 0.15:
            rows.append([])
        elif kind < 0.3:
            rows.append([(0, generator.randint(1, capacity))])
        else:
            count = generator.randint(1, min(max_spans, (capacity + 1) // 2))
            edges = sorted(generator.sample(range(capacity + 1), 2 * count))
            spans = list(zip(edges[::2], edges[1::2], strict=True))
            if generator.random() < 0.3 and len(spans) < max_spans:  # cut one in two
                start, end = spans[-1]
                if end - start > 1:
                    spans[-1:] = [(start, start + 1), (start + 1, end)]
            rows.append(spans)
    return rows


# ---- the logic, on the CPU

CONFIGS = [
    KernelConfig(128, 1, True, 8),
    KernelConfig(128, 4, True, 4),
    KernelConfig(64, 7, False, 4),
    KernelConfig(96, 3, True, 2),
    KernelConfig(128, 16, False, 2),
    KernelConfig(64, 1, True, 8),
]


@pytest.mark.parametrize("name", sorted(file.name for file in loader.FOLDER.glob("*.cu")))
def test_every_kernel_waits_for_its_inputs(name):
    """Would catch a kernel that reads what the one before has not written yet: launches overlap from sm_90 on."""
    if name in ("read_stream.cu", "check.cu"):
        return  # launched alone
    kernels = re.findall(r'extern "C" __global__.*?^}', loader.source(name), re.DOTALL | re.MULTILINE)
    assert kernels
    for kernel in kernels:
        waits = kernel.rindex("wait_for_inputs();")
        assert "let_next_start();" in kernel[:waits]
        # Lambdas that load weights may return: they say so by capturing.
        before = re.sub(r"\[&\]\([^)]*\) \{.*?^    \};", "", kernel[:waits], flags=re.DOTALL | re.MULTILINE)
        assert "return" not in before


@needs_compiler
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 300), st.integers(1, 3), st.integers(1, 9))
def test_agrees_with_float64_on_any_table(config, seed, batch, capacity, num_kv_heads, num_blocks):
    """Would catch a token read twice, left out or from outside the intervals; a lost part of a unit; a wrong merge."""
    rows = random_rows(seed, batch, capacity, 12)
    query, keys, values = problem(seed, rows, config, num_kv_heads, capacity)
    order = list(range(num_blocks))
    random.Random(seed).shuffle(order)
    out, lse = attend(config, query, keys, values, rows, 0.1, 12, num_blocks, order)
    assert_close(out, lse, query, keys, values, rows, 0.1)


# Every way to hand out a line: configuration, visible tokens of the rows, key/value heads, blocks.
MODES = {
    "cut, two warps": ("cut", KernelConfig(96, 3, True, 2), [40, 900, 3], 2, 5),
    "cut, more than 32 blocks": ("cut", KernelConfig(64, 1, True, 2), [2500, 17], 1, 70),
    "cut, parts in the second sixteen": ("cut", KernelConfig(128, 4, True, 2), [1300], 1, 20),
    "dealt, a unit a warp": ("dealt", KernelConfig(128, 4, True, 8), [50, 48, 49, 0], 2, 1),
    "dealt, two units a warp": ("dealt", KernelConfig(64, 16, False, 8), [64] * 7, 2, 1),
    "dealt, two warps a unit": ("dealt", KernelConfig(128, 1, True, 8), [100] * 4, 2, 2),
    "dealt, eight warps a unit": ("dealt", KernelConfig(96, 12, False, 8), [333, 340], 2, 4),
}


@needs_compiler
@pytest.mark.parametrize("case", MODES, ids=str)
def test_every_way_to_hand_out_a_line(case):
    """Would catch a way that is never taken, or is wrong where random tables seldom take it."""
    mode, config, num_visible, num_kv_heads, num_blocks = MODES[case]
    assert slices(config, num_visible, num_kv_heads, num_blocks)[1] == mode
    capacity = max(num_visible) + 9
    rows = [
        [(i, i + n // 2), (i + n // 2 + 3, i + n + 3)] if n > 1 else [(0, 1)] * n for i, n in enumerate(num_visible)
    ]
    query, keys, values = problem(1, rows, config, num_kv_heads, capacity)
    out, lse = attend(config, query, keys, values, rows, 0.1, 2, num_blocks)
    assert_close(out, lse, query, keys, values, rows, 0.1)
    again = attend(config, query, keys, values, rows, 0.1, 2, num_blocks, list(range(num_blocks))[::-1])
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])


@needs_compiler
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 97, 1025])
def test_odd_lengths(length):
    """Would catch a last tile that is cut off or padded with something."""
    config = CONFIGS[0]
    rows = [[(0, length)], [(3, 3 + length)], [(length, length + 1)]]
    query, keys, values = problem(length, rows, config, 2, length + 8)
    out, lse = attend(config, query, keys, values, rows, 0.1, 1, 3)
    assert_close(out, lse, query, keys, values, rows, 0.1)


@needs_compiler
def test_long_and_short_rows_in_one_batch():
    """Would catch slices that follow rows instead of tokens: then a long row is one block's work, or is cut short."""
    config = CONFIGS[1]
    rows = [[(0, 3)], [(i, i + 1) for i in range(0, 2000, 2)], [], [(7, 1900)], [(0, 1)]]
    query, keys, values = problem(1, rows, config, 2, 2000)
    out, lse = attend(config, query, keys, values, rows, 0.1, 1000, 6)
    assert_close(out, lse, query, keys, values, rows, 0.1)
    assert not out[2].any() and (lse[2] == -torch.inf).all()


@needs_compiler
def test_same_bits_whichever_block_is_last():
    """Would catch a merge in order of arrival: answers would change from run to run."""
    config = CONFIGS[1]
    rows = random_rows(5, 3, 400, 12)
    query, keys, values = problem(5, rows, config, 2, 400)
    run = lambda order: attend(config, query, keys, values, rows, 0.1, 12, 7, order)  # noqa: E731
    (out, lse), (again, lse_again) = run(None), run([6, 2, 0, 5, 1, 3, 4])
    assert torch.equal(out, again) and torch.equal(lse, lse_again)


@needs_compiler
def test_any_layout_of_the_cache():
    """Would catch strides mixed up, in caches that keep tokens together or are a part of another one."""
    config = CONFIGS[0]
    rows = random_rows(8, 2, 90, 12)
    query, keys, values = problem(8, rows, config, 3, 90)
    by_token = keys.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.full((2, 3, 200, 128), float("nan"), dtype=BF16)[:, :, 55:145]
    sliced.copy_(values)
    out, lse = attend(config, query, by_token, sliced, rows, 0.1, 12, 2)
    assert_close(out, lse, query, keys, values, rows, 0.1)


@needs_compiler
def test_large_scores_do_not_overflow():
    """Would catch weights without their greatest score taken off, and a part that weighs nothing beside the others."""
    config = CONFIGS[0]
    rows = [[(0, 40), (60, 100)]]
    query, keys, values = problem(2, rows, config, 1, 100)
    keys[0, 0, 70] = 30 * query[0, 0]
    keys[0, 0, 5] = -30 * query[0, 0]
    out, lse = attend(config, query, keys, values, rows, 1.0, 2, 2)
    assert_close(out, lse, query, keys, values, rows, 1.0)
    torch.testing.assert_close(out[0, 0], values[0, 0, 70])


@pytest.mark.parametrize("selection", [*SELECTIONS, ALL], ids=lambda selection: selection.name)
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2048, 4096]), st.sampled_from([0.05, 0.25, 0.5, 0.75]))
def test_benchmark_selections_keep_what_they_say(selection, seed, context, density):
    """Would catch a benchmark of overlapping intervals, or of fewer tokens than it claims."""
    intervals, counts = choose(selection, density, 3, context, torch.Generator().manual_seed(seed))
    starts, ends = intervals[..., 0], intervals[..., 1]
    assert intervals.dtype == torch.int32 and (counts == intervals.shape[1]).all()
    assert (
        (starts < ends).all() and (starts[:, 1:] >= ends[:, :-1]).all() and starts.min() >= 0 and ends.max() <= context
    )
    kept = (ends - starts).sum().item() / (3 * context)
    assert kept == 1 if selection == ALL else abs(kept - density) < 0.08


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 4000), st.sampled_from([None, (1, 32), (1, 96)]))
def test_plan_lists_the_visible_tokens(seed, batch, capacity, grid):
    """Would catch a prefix sum that is off at the edge of a warp, or of the 1,024 spans that are added at a time."""
    rows = random_rows(seed, batch, capacity, 1500)
    intervals, counts = table_of(rows, 1500)
    planned = plan(CONFIGS[0], intervals, counts, capacity, 2, grid=grid)
    assert torch.equal(planned.line, plan(CONFIGS[0], intervals, counts, capacity, 2, grid=(batch, 1024)).line)
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
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 50))
def test_slices_are_nearly_equal(num_visible, num_kv_heads, num_blocks):
    """Would catch a slice that is lost, out of order, or much longer than the others: one warp would hold up all."""
    found, mode = slices(CONFIGS[0], num_visible, num_kv_heads, num_blocks)
    units = [-(-visible // 16) for visible in num_visible for _ in range(num_kv_heads) if visible]
    ends = list(itertools.accumulate(tiles + 1 for tiles in units))
    # A unit's last place stands for what it costs to begin: nobody has to have it.
    tiles = set(range(ends[-1] if ends else 0)) - {end - 1 for end in ends}
    places = [place for one in found for place in one]
    assert len(places) == len(set(places)) and tiles <= set(places)
    lengths = [len(one) for one in found]
    if mode == "dealt":
        assert max(lengths) <= 2.2 * sum(lengths) / (8 * num_blocks) + 4
    else:
        assert max(lengths) - min(lengths) <= 1


@needs_compiler
@pytest.mark.parametrize(
    ("units", "per_warp", "warps_each"),
    [(1024, 1, 1), (2048, 2, 1), (256, 1, 4), (128, 1, 8), (40, 0, 0), (1104, 0, 0)],
)
def test_equal_units_are_dealt_out_whole(units, per_warp, warps_each):
    """Would catch a unit that two blocks share without need, or blocks that get much less than others."""
    found, mode = slices(CONFIGS[0], [250] * (units // 8), 8, 132)
    assert (mode == "dealt") == (warps_each > 0)
    if mode == "dealt":
        blocks = [found[8 * i : 8 * i + 8] for i in range(132)]
        busy = [sum(map(bool, block)) for block in blocks]
        assert sum(busy) == units // per_warp * warps_each and max(busy) - min(busy) <= warps_each
        for number, block in enumerate(blocks):
            for warp, one in enumerate(block):
                turn, part = divmod(warp, warps_each)
                start = (132 * turn + number) * per_warp * 17
                whole = range(start, start + 17 * per_warp)
                assert not one or one == (whole if warps_each == 1 else range(start + part, start + 16, warps_each))
    # A fifth longer is too much.
    assert slices(CONFIGS[0], [250] * (units // 8 - 1) + [310], 8, 132)[1] == "cut"


@needs_compiler
@pytest.mark.parametrize(("tiles", "mode"), [(159, "dealt"), (160, "cut")])
def test_long_lines_are_cut(tiles, mode):
    """Would catch equal units dealt out where reads take so long that merges do not matter: 1-2 % slower."""
    # A unit for each of 16 warps, of one place more than its tiles.
    assert slices(CONFIGS[0], [16 * tiles] * 4, 4, 2)[1] == mode


def test_a_plan_holds_the_largest_batch():
    """Would catch a larger batch being allowed than the plan kernel has shared memory for."""
    assert f"constexpr int MAX_BATCH = {MAX_BATCH};" in loader.source("plan.cu")


def test_the_first_launch_behind_a_plan_waits_for_it():
    """Would catch attention that reads a plan which is still being made: the others read it before they wait."""
    # Nor may it let the next one start before: that would read the plan at once.
    kernel = loader.source("attention.cu").partition('extern "C"')[2]
    waits = kernel.index("if (!is_plan_done) wait_for_inputs();")
    assert waits < kernel.index("let_next_start();") < kernel.index("copy_line(")
    launches = []
    attention = object.__new__(SpanAttention)
    shapes = {"batch": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 64, "max_spans": 3}
    for name, value in (shapes | {"dtype": torch.bfloat16, "device": torch.device("cpu"), "debug": False}).items():
        setattr(attention, name, value)
    attention._num_blocks, attention._num_threads, attention._shared_bytes = 4, 256, 1024
    attention._plan, attention._attend = "plan", "attend"
    attention._is_planned_for, attention._is_plan_done = None, False
    attention._allocate(KernelConfig(64, 2, True, 8))
    attention._launch = lambda kernel, blocks, threads, arguments, *_: launches.append((kernel, int(arguments[-1])))
    query = torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    cache = torch.zeros(2, 1, 16, 64, dtype=torch.bfloat16)
    for _ in range(2):
        attention.plan(torch.zeros(2, 3, 2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 16)
        for _ in range(3):
            attention(query, cache, cache)
    assert [done for kernel, done in launches if kernel == "attend"] == 2 * [0, 1, 1]


def results_of(points: dict[str, list[tuple[float, float]]], dense_us: float) -> dict:
    """Benchmark results of one shape: per selection, (share kept, microseconds)."""
    cases = [
        {
            "selection": name,
            "density": kept,
            "ours": {"us": us, "us_with_plan": us, "kept": kept, "bytes": 1e6, "times_cudnn_dense": dense_us / us},
            "flashinfer": {"unavailable": "ModuleNotFoundError"},
        }
        for name, pairs in points.items()
        for kept, us in pairs
    ]
    shape = {"shape": {"name": "8/8, 32 x 64", "batch": 32}, "dense": {"cudnn": {"us": dense_us}}, "cases": cases}
    origin = {
        "machine": {"gpu": "some GPU"},
        "commit": "abc",
        "dirty": False,
        "command": "python -m cuda_kernels.bench",
    }
    return {"read_stream_tb_per_s": 4.0, "shapes": [shape]} | origin


def test_break_even_is_where_dense_attention_is_as_fast():
    """Would catch a break-even that is read off a point which is already slower."""
    results = results_of(
        {"random 16": [(0.25, 30.0), (0.5, 60.0)], "spans 4": [(0.25, 130.0)], "all": [(1.0, 120.0)]}, 100
    )
    found = {one["selection"]: one["density"] for one in bench.break_even(results["shapes"])}
    assert found == {"random 16": pytest.approx(0.833), "spans 4": None}
    results = results_of({"random 16": [(0.5, 60.0)], "all": [(1.0, 99.0)]}, 100)
    assert bench.break_even(results["shapes"])[0]["density"] == 1.0


def test_a_picture_can_be_drawn_where_peers_are_missing(tmp_path):
    """Would catch a benchmark whose picture needs every peer."""
    points = {name: [(0.25, 30.0), (0.5, 60.0)] for name in ("random 16", "spans 16", "spans 4")}
    picture.draw(results_of(points | {"all": [(1.0, 110.0)]}, 100), tmp_path / "kernel.png")
    assert (tmp_path / "kernel.png").stat().st_size > 5000


def exit_of(monkeypatch, main, *arguments) -> str | int:
    """What a command exits with: a status, or the error that it prints (status 1)."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_a_picture_that_cannot_be_made_says_why(monkeypatch, tmp_path):
    """Would catch a traceback where a name is mistyped, or a picture under another name than is printed."""
    results = results_of({"random 16": [(0.5, 60.0)], "all": [(1.0, 110.0)]}, 100)
    good, no_json, other = (tmp_path / name for name in ("good.json", "none.json", "other.json"))
    good.write_text(json.dumps(results))
    no_json.write_text("{")
    picture_main = functools.partial(picture.command_line, "a picture", picture.draw_checked)
    failed = lambda *arguments: exit_of(monkeypatch, picture_main, *arguments)  # noqa: E731
    assert failed(tmp_path / "missing.json") == f"error: {tmp_path / 'missing.json'}: No such file or directory"
    assert failed(no_json).startswith(f"error: {no_json}: no JSON")
    for wrong in ([], 3, {"contexts": []}, results | {"shapes": []}, results | {"shapes": [{"cases": [{}]}]}):
        other.write_text(json.dumps(wrong))
        assert failed(other) == f"error: {other}: these are no results of cuda_kernels.bench.attention"
    assert "there is no folder" in failed(good, "--out", tmp_path / "nowhere" / "a.png")
    for name in ("a.docx", "a"):
        assert "the name has to end in one of ." in failed(good, "--out", tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert failed(good) == "error: a picture needs matplotlib: pip install matplotlib"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "0", len(bench.SHAPES)), f"--shapes: invalid choice: {len(bench.SHAPES)}"),
        (("--shapes", "-1"), "--shapes"),
        (("--selections", "random 16", "random 17"), "--selections: invalid choice: 'random 17'"),
        (("--replays", "0"), "--replays: 0 is less than 1"),
    ],
)
def test_the_benchmark_refuses_what_it_cannot_measure(monkeypatch, capsys, arguments, message):
    """Would catch a wrong argument that shows after minutes, or never: a selection left out, the last shape for -1."""
    assert exit_of(monkeypatch, bench.main, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_benchmark_needs_a_gpu_and_says_so(monkeypatch):
    """Would catch a traceback out of CuPy or torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert exit_of(monkeypatch, bench.main) == "error: the CUDA kernels need a CUDA device, and torch finds none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert exit_of(monkeypatch, bench.main) == "error: the CUDA kernels need CuPy: pip install cupy-cuda13x"


def test_help_says_what_the_largest_shape_takes():
    """Would catch a figure that forgets a set of inputs or the copies: 32 x 8192 tokens of 32 heads are 4.3 GB."""
    largest = bench.Shape(32, 32, 32, 8192)
    assert bench.num_sets(largest) == 2
    assert re.search(f"{bench.SHAPES.index(largest)}  {largest.name} +17.4 GB", bench.memory_text())


@pytest.mark.parametrize("refusing", [True, False, None])
def test_the_faster_of_flashinfers_kernels_counts(monkeypatch, refusing):
    """Would catch one that is never tried for grouped heads, or one's refusal that hides the other's figure."""
    grouped = bench.Bench.__new__(bench.Bench)
    grouped.shape = bench.Shape(32, 8, 1, 1024)
    figures = {way: {"unavailable": "no"} if way == refusing else {"us": 10.0 + way} for way in (True, False)}
    monkeypatch.setattr(bench.Bench, "_flashinfer", lambda self, selection, density, way: figures[way])
    assert grouped.flashinfer(SELECTIONS[0], 0.5) == {"us": 11.0 if refusing is False else 10.0}


def test_the_kernels_import_nothing_of_the_rest():
    """Would catch an import that takes the kernels' folder for more than it is: it can be used alone."""
    for file in loader.FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"selfspan_core", "training", "app"}, file


def test_the_table_shows_the_slowest_selection():
    """Would catch a table of the best cases."""
    points = {
        "random 16": [(0.25, 40.0), (0.5, 70.0)],
        "clustered 256": [(0.25, 30.0), (0.5, 80.0)],
        "all": [(1.0, 110.0)],
    }
    text = report.kernel_on(results_of(points, 100), "assets/results/kernel_x.json")
    assert "| 8/8, 32 x 64 | 100.0 | 0.91x | 1.25x | 2.50x | – | – | – | – |" in text
    assert "FlashInfer over" not in text


def test_the_remarks_count_every_case():
    """Would catch cases that FlashInfer wins being left out."""
    results = results_of({"random 16": [(0.25, 40.0), (0.5, 70.0)]}, 100)
    for row, theirs in zip(results["shapes"][0]["cases"], (50.0, 56.0), strict=True):
        row["flashinfer"] = {"us": theirs, "plan_us": 90.0}
        row["ours"] |= {"plan_us": 3.0, "spans_per_row": 32}
    results["shapes"][0]["cases"][0]["flex"] = {"us": 44.0}
    results["shapes"][0]["cases"][1]["flex"] = {"unavailable": "InductorError"}
    results["break_even_context"] = [
        {"num_heads": 8, "num_kv_heads": 8, "batch": 1, "from_context": {"0.25": 1024, "0.5": None}}
    ]
    text = report.kernel_remarks(results)
    assert "faster in 1 of 2 cases, 0.80 to 1.25 times as fast, 1.02 times in the median" in text
    assert "by more than 2 % slower in 1." in text and "3.00 us in the median, 3.00 us at most" in text
    assert "planning on the host, per step: 90 us in the median" in text
    assert "same blocks: 40 against 44 us (8/8, 32 x 64, random 16, 25 % kept).\n" in text
    assert "8/8 heads, batch 1: at 25 % kept from 1,024 tokens on, at 50 % kept nowhere measured." in text


def test_first_context_is_faster_from_there_on():
    """Would catch a lucky short context that counts although a longer one is slower."""
    points = [
        {"context": c, "cudnn_us": 10.0, "0.5": us} for c, us in ((512, 9.0), (1024, 11.0), (2048, 9.0), (4096, 8.0))
    ]
    assert bench.first_context(points, "0.5") == 2048
    points[-1]["0.5"] = 10.0
    assert bench.first_context(points, "0.5") is None


# ---- the code, for every architecture, without a GPU


# Where the test requirements install NVRTC, its absence is a failure and no reason to skip.
needs_nvrtc = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="needs NVRTC, which is for Linux on x86_64"
)


def compiles(config: KernelConfig, architecture: int, name: str) -> str:
    return loader.compile_for(config.macros(), architecture, name)[1]


@needs_nvrtc
@pytest.mark.parametrize("name", ["plan.cu", "attention.cu", "read_stream.cu"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for_every_architecture(architecture, name):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    for is_bf16 in (False, True)[: 1 if architecture < 80 else 2]:
        assert "spill" in compiles(KernelConfig(128, 4, is_bf16, 8), architecture, name)


def assert_nothing_spilled(config: KernelConfig, architecture: int) -> None:
    report = compiles(config, architecture, "attention.cu")
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert found == [("0", "0", "0")]


@needs_nvrtc
@pytest.mark.parametrize("is_bf16", [True, False], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", loader.HEAD_DIMS)
@pytest.mark.parametrize("group_size", [1, 4, 8, 9, 16])
def test_nothing_is_spilled_on_hopper(head_dim, group_size, is_bf16):
    """Would catch registers that go to memory: the kernel would read more than the intervals name."""
    for limit_kib in (99, 227):
        assert_nothing_spilled(loader.choose_config(head_dim, group_size, is_bf16, 256, limit_kib * 1024), 90)


@needs_nvrtc
@pytest.mark.parametrize("head_dim", [64, 96])
@pytest.mark.parametrize(("architecture", "is_bf16"), [(75, False), (86, True), (86, False), (120, True), (120, False)])
def test_short_heads_elsewhere(architecture, is_bf16, head_dim):
    """Would catch a head_dim that compiles, or stays in registers, on Hopper only."""
    assert_nothing_spilled(KernelConfig(head_dim, 4, is_bf16, 8), architecture)


def test_digest_changes_with_any_source(tmp_path, monkeypatch):
    """Would catch CuPy's disk cache serving yesterday's kernel after an included file has changed."""
    before = loader.digest()
    for file in loader.FOLDER.glob("*.cu*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(loader, "FOLDER", tmp_path)
    loader.digest.cache_clear()
    assert loader.digest() == before
    with (tmp_path / "tile.cuh").open("a") as file:
        file.write("// changed\n")
    loader.digest.cache_clear()
    assert loader.digest() != before
    monkeypatch.undo()
    loader.digest.cache_clear()


@pytest.mark.parametrize("limit_kib", [64, 99, 163, 227])
@pytest.mark.parametrize("group_size", range(1, 17))
def test_every_group_fits_every_gpu(group_size, limit_kib):
    """Would catch a shape that a GPU with little shared memory (Turing: 64 KiB a block) cannot launch."""
    config = loader.choose_config(128, group_size, False, 256, limit_kib * 1024)
    assert config.shared_bytes(256) <= limit_kib * 1024


# ---- misuse

SHAPE = {"batch": 2, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128, "max_spans": 4, "dtype": BF16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 1 to 256, not 0"),
        ({"batch": 257}, "batch is 1 to 256, not 257"),
        ({"num_heads": 9}, "num_heads (9) is no multiple of num_kv_heads (2)"),
        ({"num_heads": 34}, "num_heads: at most 16 per key/value head, not 17"),
        ({"num_kv_heads": 0}, "no multiple of num_kv_heads (0)"),
        ({"head_dim": 80}, "head_dim is one of 64, 96, 128, not 80"),
        ({"max_spans": 0}, "max_spans is 1 to 262144, not 0"),
        ({"max_spans": 262_145}, "max_spans is 1 to 262144, not 262145"),
        ({"batch": 2.0}, "batch is an int, not 2.0"),
        ({"num_heads": "8"}, "num_heads is an int, not '8'"),
        ({"num_kv_heads": True}, "num_kv_heads is an int, not True"),
        ({"head_dim": None}, "head_dim is an int, not None"),
        ({"max_spans": 4.5}, "max_spans is an int, not 4.5"),
        ({"dtype": torch.float32}, "dtype is torch.bfloat16 or torch.float16, not torch.float32"),
        ({"dtype": "bfloat16"}, "dtype is torch.bfloat16 or torch.float16, not 'bfloat16'"),
        ({"dtype": []}, "dtype is torch.bfloat16 or torch.float16, not []"),
    ],
)
def test_shapes_that_cannot_be_served_are_named(change, message):
    """Would catch a launch that reads past its arguments instead of an error before it."""
    check_shape(**SHAPE)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_shape(**(SHAPE | change))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 4, 64), "keys is torch.float32, and has to be torch.bfloat16"),
        (torch.zeros(2, 5, 64, dtype=BF16), "keys has shape (2, 5, 64), and has to have (2, 4, 64)"),
        (torch.zeros(2, 64, 4, dtype=BF16).transpose(1, 2), "keys: the last dimension is not contiguous"),
        (torch.zeros(2, 4, 68, dtype=BF16)[..., :64], "keys: strides are multiples of 8 elements"),
        (torch.zeros(2, 4, 72, dtype=BF16)[..., 4:68], "keys: strides are multiples of 8 elements"),
        (torch.zeros(2, 4, 64, dtype=BF16, device="meta"), "keys is on meta, and the kernels run on cpu"),
        ([1, 2], "keys is a tensor, not list"),
    ],
)
def test_tensors_that_cannot_be_served_are_named(tensor, message):
    """Would catch a misaligned or foreign tensor that crashes the process, or is read as something else."""
    cpu = torch.device("cpu")
    check_tensor("keys", torch.zeros(2, 4, 64, dtype=BF16), (2, 4, 64), BF16, cpu)
    check_tensor("keys", torch.zeros(2, 4, 72, dtype=BF16)[..., 8:], (2, 4, 64), BF16, cpu)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tensor("keys", tensor, (2, 4, 64), BF16, cpu)
    for numbers in (torch.zeros(4, dtype=torch.int32)[::2], torch.zeros(4, dtype=torch.int32)[1:3]):
        with pytest.raises(ValueError, match="counts is not contiguous from an address"):
            check_tensor("counts", numbers, (2,), torch.int32, cpu, contiguous=True)


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (0, "capacity is 1 to 262144, not 0"),
        (262_145, "capacity is 1 to 262144, not 262145"),
        (9.0, "capacity is an int, not 9.0"),
        (262_144, "capacity: 256 x 32 x 262144 are too many tokens for one plan"),
    ],
)
def test_capacities_that_cannot_be_planned_are_named(capacity, message):
    """Would catch places on the line that overflow 31 bits."""
    check_capacity(256, 8, 262_144)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_capacity(256, 32, capacity)


@pytest.mark.parametrize(
    "out",
    [
        torch.zeros(1, 4, 8).expand(2, 4, 8),
        torch.zeros(100).as_strided((2, 4, 8), (8, 8, 1)),  # the second row is the first one's second head
        torch.zeros(100).as_strided((2, 4, 8), (24, 8, 1)),
        torch.zeros(200).as_strided((2, 4, 16), (64, 8, 1)),
    ],
    ids=["one row for all", "rows a head apart", "a head too short", "heads too short"],
)
def test_answers_that_lie_on_each_other_are_refused(out):
    """Would catch two blocks that write to one place: whose answer stays there would be chance."""
    for fine in (torch.zeros(2, 4, 8), torch.zeros(4, 2, 8).transpose(0, 1), torch.zeros(2, 9, 24)[:, ::2, :8]):
        check_no_overlap("out", fine)
    check_no_overlap("out", torch.zeros(100).as_strided((1, 4, 8), (0, 8, 1)))
    with pytest.raises(ValueError, match="out: rows or heads lie on each other"):
        check_no_overlap("out", out)


def test_a_plan_that_debug_mode_refuses_is_none(monkeypatch):
    """Would catch attention over a table that was refused, or over the one before, which is overwritten."""
    served = SpanAttention.__new__(SpanAttention)
    served.batch, served.num_kv_heads, served.max_spans, served.debug = 2, 1, 1, True
    served.device, served._num_blocks, served._plan, served._is_planned_for = torch.device("cpu"), 1, None, None
    served._allocate(KernelConfig(64, 1, True, 8))
    intervals, counts = table_of([[(0, 5)], [(0, 5)]], 1)
    served._launch = lambda *_: None
    served.plan(intervals, counts, 9)
    assert served._is_planned_for == 9
    served._launch = lambda *_: served._errors.fill_(4)
    with pytest.raises(BadIntervals, match="row 0: intervals not sorted"):
        served.plan(intervals, counts, 9)
    with pytest.raises(ValueError, match="nothing is planned"):
        served(*[torch.zeros(2, 1, 64)] * 3)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("gpu", ValueError, "device: 'gpu' is none that torch knows"),
        ("cuda:x", ValueError, "device: 'cuda:x' is none that torch knows"),
        (None, ValueError, "device is a torch.device or a string, not None"),
        (0, ValueError, "device is a torch.device or a string, not 0"),
        ("cuda:7", CudaUnavailable, "device: there is no cuda:7, torch finds 1 CUDA device(s)"),
    ],
)
def test_devices_that_are_none_are_named(monkeypatch, device, error, message):
    """Would catch an error out of torch or CuPy that does not say which argument is wrong."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(error, match=re.escape(message)):
        cuda_device(device)


def test_without_a_gpu_the_reason_is_given():
    """Would catch a silent fallback, or a crash inside CuPy."""
    with pytest.raises(CudaUnavailable, match="need a CUDA device, not 'cpu'"):
        SpanAttention(**SHAPE, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(CudaUnavailable, match="torch finds none"):
            SpanAttention(**SHAPE)


# ---- the kernels themselves


def on_gpu(config, rows, num_kv_heads, capacity, max_spans, seed, **arguments):
    """A problem on the GPU: the instance, planned, and its tensors."""
    query, keys, values = (x.cuda() for x in problem(seed, rows, config, num_kv_heads, capacity))
    served = SpanAttention(
        batch=len(rows),
        num_heads=query.shape[1],
        num_kv_heads=num_kv_heads,
        head_dim=config.head_dim,
        max_spans=max_spans,
        dtype=query.dtype,
        **arguments,
    )
    intervals, counts = (x.cuda() for x in table_of(rows, max_spans))
    served.plan(intervals, counts, capacity)
    return served, (query, keys, values), (intervals, counts)


def called(served, tensors):
    query = tensors[0]
    out = torch.full_like(query, float("nan"))
    lse = torch.full(query.shape[:2], float("nan"), device="cuda")
    served(*tensors, scale=0.1, out=out, lse=lse)
    return out.cpu(), lse.cpu()


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
        served, tensors, _ = on_gpu(config, rows, num_kv_heads, capacity, 300, seed)
        out, lse = called(served, tensors)
        assert_close(out, lse, *(x.cpu() for x in tensors), rows, 0.1)
        again, lse_again = called(served, tensors)
        assert torch.equal(out, again) and torch.equal(lse, lse_again)


@pytest.mark.gpu
@needs_cuda
def test_gpu_long_lines():
    """Would catch a slice that begins a place too early or too late where there are many: a lost or doubled token."""
    config = KernelConfig(64, 1, True, 0)
    rows = [[(0, 16_384)]] * 40 + random_rows(3, 8, 16_384, 300)
    served, tensors, _ = on_gpu(config, rows, 4, 16_384, 300, 3)
    for _ in range(3):  # the counters are back at zero each time
        out, lse = called(served, tensors)
        assert_close(out, lse, *(x.cpu() for x in tensors), rows, 0.1)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("config", [KernelConfig(128, 4, True, 0), KernelConfig(96, 12, False, 0)], ids=str)
@pytest.mark.parametrize(("batch", "num_kv_heads"), [(32, 8), (64, 16), (130, 16), (256, 1)])
def test_gpu_equal_rows(config, batch, num_kv_heads):
    """Would catch what goes wrong only where whole units are dealt out: on GPUs of any size one of these is."""
    rows = [[(i % 7, 100 + i % 7), (150, 250 + i % 3)] for i in range(batch)]
    rows[batch // 2] = []
    served, tensors, _ = on_gpu(config, rows, num_kv_heads, 260, 2, batch)
    for _ in range(2):
        out, lse = called(served, tensors)
        assert_close(out, lse, *(x.cpu() for x in tensors), rows, 0.1)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("length", [1, 15, 16, 17, 97, 1025, 131_072, 262_144])
def test_gpu_lengths(length):
    """Would catch an index that overflows, or a split over all blocks that loses a part."""
    config = KernelConfig(128, 4, True, 0)
    rows = [[(0, length)], [(length - 1, length)]]
    served, tensors, _ = on_gpu(config, rows, 1, length, 1, length)
    out, lse = called(served, tensors)
    assert_close(out, lse, *(x.cpu() for x in tensors), rows, 0.1)


@pytest.mark.gpu
@needs_cuda
def test_gpu_graph_replays_see_new_intervals():
    """Would catch a value that is baked into a captured graph: intervals, counts, queries and cache change, and with
    them the way the work is handed out."""
    config = KernelConfig(128, 8, True, 0)
    batch, capacity, max_spans = 32, 700, 12
    tables = {
        "random": random_rows(1, batch, capacity, max_spans),
        "equal": [[(i, i + 300), (400, 420)] for i in range(batch)],
        "one row": [[(3, 690)]] + [[]] * (batch - 1),
        "nothing": [[]] * batch,
    }
    served, tensors, given = on_gpu(config, tables["random"], 8, capacity, max_spans, 1)
    out = torch.empty_like(tensors[0])
    served(*tensors, scale=0.1, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        served.plan(*given, capacity)
        # Two layers share a plan.
        served(*tensors, scale=0.1, out=torch.empty_like(out))
        served(*tensors, scale=0.1, out=out)
    for seed, name in enumerate(("random", "equal", "nothing", "one row", "equal", "random")):
        rows = tables[name]
        fresh = [*problem(seed, rows, config, 8, capacity), *table_of(rows, max_spans)]
        for kept, new in zip((*tensors, *given), fresh, strict=True):
            kept.copy_(new)
        out.fill_(float("nan"))
        graph.replay()
        expected, _ = exact(*(x.cpu() for x in tensors), rows, 0.1)
        assert (out.cpu().double() - expected).abs().max() < 0.02


@pytest.mark.gpu
@needs_cuda
def test_gpu_more_spans_than_threads():
    """Would catch a plan that loses count where a row has more spans than a block of it has threads."""
    config = KernelConfig(64, 2, True, 0)
    rows = [[(2 * i, 2 * i + 1) for i in range(2000)], [(3 * i, 3 * i + 2) for i in range(1300)]]
    served, tensors, _ = on_gpu(config, rows, 2, 4099, 2000, 3)
    out, lse = called(served, tensors)
    assert_close(out, lse, *(x.cpu() for x in tensors), rows, 0.1)
    with pytest.raises(ValueError, match="out: rows or heads lie on each other"):
        served(*tensors, out=tensors[0][:1].expand_as(tensors[0]))


@pytest.mark.gpu
@needs_cuda
def test_gpu_debug_mode_names_bad_intervals():
    """Would catch a debug mode that lets overlapping intervals pass: tokens would weigh twice."""
    config = KernelConfig(64, 1, True, 0)
    with pytest.raises(BadIntervals, match="row 1: intervals not sorted or overlapping"):
        on_gpu(config, [[(0, 5)], [(0, 5), (4, 9)]], 1, 20, 2, 0, debug=True)
