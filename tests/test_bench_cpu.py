"""The CPU benchmark, tiny: it measures what it says, and its file can be traced back."""

import json
import random
import sys

import pytest

from selfspan_core import bench_cpu
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.tracker import Phase, Tracker
from tests.support.paths import SHIPPED
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def tokenizer():
    return SpanTokenizer.load(SHIPPED)


@pytest.mark.parametrize("context", [512, 1024, 4096])
def test_windows_are_real_protocol(tokenizer, context):
    """A window starts at a step boundary and goes on without a malformed step: would catch lost segments."""
    rendered = bench_cpu.worked_example(context, tokenizer, random.Random(0))
    window = bench_cpu.window_before(context, 128, rendered, tokenizer.markers)
    assert len(window.prompt.ids) + len(window.forced) == context
    assert len(window.forced) >= 128
    assert window.prompt.ids + window.forced == rendered.ids[:context]
    tracker = Tracker(tokenizer.markers, window.prompt.prompt)
    states = [tracker.push(token) for token in window.forced]
    assert tracker.num_malformed == 0
    start = len(window.prompt.ids)
    assert [state.visible for state in states] == rendered.visibility[start:context]
    assert sum(state.phase is Phase.BODY for state in states) > 30


def test_a_tiny_run_writes_its_figures(tmp_path, monkeypatch):
    """Would catch a result file without its commit, machine or lanes, or with figures that contradict each other."""
    base, _ = save_tiny(tmp_path)
    result = tmp_path / "result.json"
    argv = ["bench", "--base", str(base), "--contexts", "160", "--window", "40", "--replays", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "--output", str(result)])
    monkeypatch.setattr(bench_cpu, "read_bandwidth", lambda: 1e10)
    bench_cpu.main()
    written = json.loads(result.read_text())
    assert {"commit", "dirty", "command", "machine", "versions", "seed", "weight_bytes_per_token"} <= set(written)
    (row,) = written["contexts"]
    assert row["context"] == 160
    assert row["sparse"]["kv_tokens_read"] < row["dense"]["kv_tokens_read"] < 160
    assert row["dense_over_sparse"] == pytest.approx(
        row["dense"]["ms_per_token"] / row["sparse"]["ms_per_token"], abs=1e-3
    )
    assert row["dense"]["floor_ms"] > row["sparse"]["floor_ms"] > 0
    again = tmp_path / "again.json"
    monkeypatch.setattr(sys, "argv", [*argv, "--before", str(result), "--output", str(again)])
    bench_cpu.main()
    assert json.loads(again.read_text())["before"]["contexts"] == written["contexts"]
