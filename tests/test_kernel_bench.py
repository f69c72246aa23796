"""The attention benchmark: what it measures, its break-even points, its picture and its table."""

import functools
import hashlib
import json
import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import picture
from cuda_kernels.bench import attention as bench
from cuda_kernels.bench import pictures
from cuda_kernels.bench.break_even import break_even, first_context
from cuda_kernels.bench.selections import ALL, SELECTIONS, choose
from cuda_kernels.bench.shape_bench import ShapeBench
from cuda_kernels.bench.shapes import SHAPES, Shape, memory_text, num_sets
from training import report


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
    found = {one["selection"]: one["density"] for one in break_even(results["shapes"])}
    assert found == {"random 16": pytest.approx(0.833), "spans 4": None}
    results = results_of({"random 16": [(0.5, 60.0)], "all": [(1.0, 99.0)]}, 100)
    assert break_even(results["shapes"])[0]["density"] == 1.0


def test_a_picture_can_be_drawn_where_peers_are_missing(tmp_path):
    """Would catch a benchmark whose picture needs every peer."""
    points = {name: [(0.25, 30.0), (0.5, 60.0)] for name in ("random 16", "spans 16", "spans 4")}
    figure = picture.draw(results_of(points | {"all": [(1.0, 110.0)]}, 100))
    pictures.save_picture(figure, tmp_path / "kernel.png", {})
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
    picture_main = functools.partial(pictures.command_line, "a picture", picture.draw_checked)
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


def test_a_picture_says_of_which_file_it_was_drawn(monkeypatch, tmp_path):
    """Would catch a note that is left out or of another file, and a format without notes that cannot be drawn."""
    file = tmp_path / "good.json"
    file.write_text(json.dumps(results_of({"random 16": [(0.5, 60.0)], "all": [(1.0, 110.0)]}, 100)))
    for name in ("good.png", "good.svg"):
        monkeypatch.setattr(sys, "argv", ["command", str(file), "--out", str(tmp_path / name)])
        pictures.command_line("a picture", picture.draw_checked)
    written = hashlib.sha256(file.read_bytes()).hexdigest()
    assert pictures.drawn_from(tmp_path / "good.png") == {"good.json": written}
    assert (tmp_path / "good.svg").stat().st_size > 5000
    pictures.save_picture(
        picture.draw(json.loads(file.read_text())), tmp_path / "good.png", {"a b.json": b"", "c": b"1"}
    )
    assert list(pictures.drawn_from(tmp_path / "good.png")) == ["a b.json", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "0", len(SHAPES)), f"--shapes: invalid choice: {len(SHAPES)}"),
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
    largest = Shape(32, 32, 32, 8192)
    assert num_sets(largest) == 2
    assert re.search(f"{SHAPES.index(largest)}  {largest.name} +17.4 GB", memory_text())


@pytest.mark.parametrize("refusing", [True, False, None])
def test_the_faster_of_flashinfers_kernels_counts(monkeypatch, refusing):
    """Would catch one that is never tried for grouped heads, or one's refusal that hides the other's figure."""
    grouped = ShapeBench.__new__(ShapeBench)
    grouped.shape = Shape(32, 8, 1, 1024)
    figures = {way: {"unavailable": "no"} if way == refusing else {"us": 10.0 + way} for way in (True, False)}
    monkeypatch.setattr(ShapeBench, "_flashinfer", lambda self, selection, density, way: figures[way])
    assert grouped.flashinfer(SELECTIONS[0], 0.5) == {"us": 11.0 if refusing is False else 10.0}


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
    assert first_context(points, "0.5") == 2048
    points[-1]["0.5"] = 10.0
    assert first_context(points, "0.5") is None
