"""The benchmark of whole answers, tiny: it measures what it says, and its file can be traced back."""

import json
import sys

from selfspan_core import bench_answers
from selfspan_core.engine.model_store import ModelStore
from tests.support.tiny_models import save_tiny


def test_a_tiny_run_writes_its_figures(tmp_path, monkeypatch):
    """Would catch lanes that are mixed up, drafts that change an answer in silence, figures that do not add up."""
    base, adapters = save_tiny(tmp_path, max_context=128)
    store = ModelStore(base, adapters, device="cpu")
    monkeypatch.setattr(bench_answers, "ModelStore", lambda base, device: store)
    result = tmp_path / "answers.json"
    argv = ["bench", "--operands", "3", "--lengths", "--n", "2", "--repeats", "2", "--output", str(result)]
    monkeypatch.setattr(sys, "argv", argv)
    bench_answers.main()
    written = json.loads(result.read_text())
    assert {"commit", "dirty", "command", "machine", "versions", "seed", "repeats"} <= set(written)
    lanes = written["answers"]["3 operands"]
    assert list(lanes) == [lane.name for lane in bench_answers.LANES]
    assert lanes["plain dense"]["plain_dense_over_this"] == 1 and lanes["plain dense"]["tokens_per_pass"] == 1
    drafted = lanes["span sparse + drafts"]
    assert drafted["answers_that_drafts_changed"] == 0 == lanes["plain dense + lookup"]["answers_that_drafts_changed"]
    assert drafted["tokens"] == lanes["span sparse"]["tokens"] and drafted["tokens_per_pass"] >= 1
    assert lanes["span sparse"]["kv_read_percent"] <= 100 == lanes["plain dense"]["kv_read_percent"]


def test_inputs():
    """Would catch inputs that training saw, or fewer than were asked for."""
    assert len({problem.text for problem in bench_answers.expressions(5, 6, 0)}) == 6
    articles = bench_answers.articles(5, 0, "short")
    assert len({problem.text for problem in articles}) == 5
