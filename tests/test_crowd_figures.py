"""What a crowd's figures are held to: alike in `make load` and in the benchmark of the app."""

import contextlib
import json

import pytest

from tests.support import load
from training import bench_app
from training.bench import visitors
from training.reports import visitors as visitors_report

FINE = {
    "clients": 50,
    "requests": 4,
    "answered": 4,
    "right": 4,
    "told_their_place": 3,
    "unheard": 0,
    "median_wait_s": 1.0,
    "longest_wait_s": 2.0,
    "errors": [],
    "fairness": {"long_alone_s": 2.0, "short_waited_s": 2.1, "short_waited_alone_s": 0.2, "short_whole_s": 2.3},
    "memory_mb": {"before": {"resident": 100.0}, "after": {"resident": 101.0}},
}
LEAVING = {"left": 2, "stayed": 4, "answered": 4}
WRONG = {
    "a long run kept a short one waiting for 2.50 s, and takes 2.00 s itself": {
        "fairness": FINE["fairness"] | {"short_waited_s": 2.7}
    },
    "1 requests were not answered: ['full']": {"answered": 3, "errors": ["full"]},
    "2 waited without a word": {"unheard": 2},
}


@pytest.mark.parametrize(("said", "change"), WRONG.items(), ids=["unfair", "unanswered", "unheard"])
def test_both_say_what_is_wrong(said, change):
    """Would catch a benchmark that passes where `make load` fails: a long run that keeps short ones waiting, beside the
    time that a short one takes to begin by itself.
    """
    assert load.wrong({"crowds": {"1": FINE | change}, "leaving": LEAVING}) == [said]
    assert bench_app.wrong({"16": FINE, "64": FINE | change}) == [f"crowd at load 64: {said}"]
    assert not load.wrong({"crowds": {"1": FINE}, "leaving": LEAVING}) and not bench_app.wrong({"1": FINE})


def test_the_benchmark_fails_after_it_has_written(tmp_path, monkeypatch):
    """Would catch an unfair crowd that ends with status 0, and figures that are lost for it."""
    unfair = FINE | next(iter(WRONG.values()))
    monkeypatch.setattr(bench_app, "running_app", lambda _: contextlib.nullcontext(("http://nowhere", 1)))
    monkeypatch.setattr(bench_app, "measure", lambda *_: {})
    for name in ("first_request", "loads", "together"):
        monkeypatch.setattr(visitors, name, lambda *_: {})
    monkeypatch.setattr(visitors, "crowd", lambda *_: unfair)
    out = tmp_path / "app.json"
    with pytest.raises(SystemExit, match="kept a short one waiting"):
        bench_app.main(["--out", str(out), "--load", "1"])
    assert json.loads(out.read_text())["crowds"]["1"]["fairness"] == unfair["fairness"]


def test_a_part_alone_is_measured_and_told(tmp_path, monkeypatch):
    """Would catch a crowd that cannot be measured without all else, and a report that wants what was not measured."""
    monkeypatch.setattr(bench_app, "running_app", lambda _: contextlib.nullcontext(("http://nowhere", 1)))
    asked: list[int] = []
    monkeypatch.setattr(visitors, "crowd", lambda address, pid, load, *_: asked.append(load) or FINE)
    out = tmp_path / "app.json"
    bench_app.main(["--out", str(out), "--parts", "crowds", "--crowd-loads", "16"])
    results = json.loads(out.read_text())
    assert asked == [16] and "drafts" not in results
    assert "| 16 | 50 |" in visitors_report.machine_table(results, "app.json")


def test_old_crowds_make_way_for_new_ones():
    """Would catch figures of a day's first run beside those of its last, of the same machine and number of requests."""
    machine = {"gpu": "G"}
    old = {"machine": machine, "date": "2026-01-02", "together": {}, "crowds": {"16": "old", "64": "only"}}
    new = {"machine": machine, "date": "2026-01-02", "crowds": {"16": "new"}}
    other = {"machine": {"cpu": "C", "cores": 2}, "date": "2026-01-01", "crowds": {"16": "a CPU's"}}
    kept = visitors_report.newest_crowds({"a": old, "b": new, "c": other})
    assert [one["crowds"] for one in kept.values()] == [{"64": "only"}, {"16": "new"}, {"16": "a CPU's"}]
    alone = visitors_report.newest_crowds({"a": old | {"crowds": {"16": "old"}}, "b": new})
    assert "crowds" not in alone["a"] and "together" in alone["a"]
