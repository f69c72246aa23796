"""The page that answers what the paper left open: its figures are those of the results files."""

import pytest

from cuda_kernels.bench.pictures import PictureError, save_picture
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import BASE
from selfspan_core.spans.tracker import Tracker
from training import header_cost, picture_anchors
from training.reports import anchors, findings, quantization, shares

ORIGIN = {"machine": {"gpu": "some GPU"}, "commit": "abc", "dirty": False, "command": "python -m x"}


def cell(text, batch, **seconds):
    """Plain dense takes a second."""
    lanes = {
        name: {
            "plain_dense_over_this": 1 / took,
            "lookup_over_this": seconds["lookup"] / took,
            "tokens_per_step": 2.0,
        }
        for name, took in zip(
            (findings.PLAIN, findings.LOOKUP, findings.SPAN, findings.DRAFTED),
            (1.0, seconds["lookup"], seconds["span"], seconds["drafted"]),
            strict=True,
        )
    }
    return {"text": text, "batch": batch, "lanes": lanes}


@pytest.fixture
def drafts(monkeypatch):
    cells = [
        cell("64 operands", 1, lookup=0.8, span=1.25, drafted=0.5),
        cell("64 operands", 32, lookup=0.9, span=1.1, drafted=0.8),
        cell("64 operands", 128, lookup=1.0, span=0.5, drafted=0.4),
        {"text": "64 operands", "batch": 256, "unavailable": "does not fit"},
    ]
    results = {**ORIGIN, "shapes": {"tiny": {"answers": cells}}}
    monkeypatch.setattr(findings, "read_all", lambda name: {"d.json": results} if name == "drafts" else {})


def test_speculation_and_break_even(drafts):
    """Would catch a ratio upside down, a cell that was not measured, a batch that pays only by chance."""
    told = findings.findings_speculation()
    assert "up to 2.5 times as fast to the answer as plain dense decoding (64 operands, batch 128)" in told
    assert "it is 1.12 (64 operands, batch 32) to 2.50 times as fast" in told
    assert "| 64 operands, batch 1 | 2.0 | 2.0 | 1.25x | 0.80x | 2.00x |" in told and "256" not in told
    even = findings.findings_break_even()
    assert "| tiny, 64 operands | 128 | 1, 32, 128 | 1, 32, 128 |" in even
    assert "| tiny, 64 operands, batch 32 | 0.91x | 1.11x | 1.25x |" in findings._shapes()


def test_a_batch_at_which_a_lane_is_behind_is_not_told(drafts):
    """Would catch one slower batch that hides all others, or a lane told to be sooner that only draws level."""
    cells = {("tiny", "x", n): cell("x", n, lookup=1, span=span, drafted=1) for n, span in ((8, 2), (1, 0.5))}
    assert "| tiny, x | 1 | – | 1, 8 |" in findings._batches_that_pay(cells)


def test_a_cell_that_was_measured_twice_is_told_once(drafts, monkeypatch):
    """Would catch two rows of one cell that disagree, or a file that nothing comes from among the sources."""
    other = {**ORIGIN, "shapes": {"tiny": {"answers": [cell("64 operands", 1, lookup=1, span=9, drafted=9)]}}}
    third = {**ORIGIN, "shapes": {"tiny": {"answers": [cell("64 operands", 8, lookup=1, span=2, drafted=1)]}}}
    files = {**findings.read_all("drafts"), "e.json": other, "f.json": third}
    monkeypatch.setattr(findings, "read_all", lambda _: files)
    cells, sources = findings._measured()
    assert [key[2] for key in cells] == [1, 32, 128, 8] and "e.json" not in sources and "f.json" in sources
    assert cells["tiny", "64 operands", 1]["lanes"][findings.SPAN]["plain_dense_over_this"] == 1 / 1.25


def test_clustered_over_scattered(monkeypatch):
    """Would catch cases of different shares that are compared with each other."""
    us = {("clustered 16", 0.5): 30.0, ("random 16", 0.5): 20.0, ("random 16", 0.1): 1.0, ("random 256", 0.5): 10.0}
    cases = [{"selection": name, "density": density, "ours": {"us": one}} for (name, density), one in us.items()]
    results = {**ORIGIN, "shapes": [{"cases": cases}]}
    monkeypatch.setattr(findings, "read_all", lambda _: {"k.json": results})
    told = findings.findings_clustered()
    assert "over 1 pairs" in told and "| 16 | 1 | 1.500 | 1.500 | 1.500 |" in told
    assert "16 tokens take 2.000 times as long as 256" in told


@pytest.mark.parametrize("task", ["arithmetic", "trace"])
def test_what_headers_cost_is_counted_by_the_tracker(task):
    """Would catch the last id counted as a query, names counted as text, or a lane compared with another's input."""
    tokenizer = SpanTokenizer.load(BASE)
    texts = header_cost.worked(task, {"arithmetic": 8, "trace": 10}[task], 2, 1, tokenizer)
    found = header_cost.counted(texts, tokenizer.markers)
    num = len(texts.span[0].ids) + len(texts.span[1].ids)
    assert 2 * sum(found["tokens"].values()) == num > 2 * found["plain_tokens"]
    seen = 0
    for one in texts.span:
        tracker = Tracker(tokenizer.markers, one.layout)
        seen += sum(tracker.push(token).num_visible for token in one.ids[:-1])
        assert tracker.num_malformed == 0
    assert 2 * sum(found["reads"].values()) == seen < 2 * found["dense_reads"]
    assert found["plain_reads"] < found["dense_reads"] and found["tracker_us_per_token"] > 0


def test_headers_as_a_table(monkeypatch):
    """Would catch shares of the wrong whole."""
    one = {
        "task": "arithmetic",
        "size": "8 operands",
        "tokens": {"header": 10, "body": 30},
        "plain_tokens": 25,
        "reads": {"header": 60, "body": 40},
        "dense_reads": 400,
        "plain_reads": 200,
        "tracker_us_per_token": 2.04,
    }
    monkeypatch.setattr(findings, "read", lambda _: {**ORIGIN, "texts": [one]})
    monkeypatch.setattr(findings, "read_all", lambda _: {})
    told = findings.findings_overhead()
    assert "| arithmetic, 8 operands | 25 | 40 | 25 % | 25 % | 60 % | 50 % | 2.0 |" in told
    monkeypatch.setattr(findings, "read", lambda _: None)
    assert findings.findings_overhead() == findings.findings_models() == findings.MISSING


def test_answers_with_fewer_bits(monkeypatch):
    """Would catch a lane that was not measured and fails the table, and an interval that leaves 0 to 1."""
    cell = {"right": 20, "n": 20, "malformed_steps": 1}
    results = {
        "operands": {size: {"floats": {"span-sparse": cell}, "cache fp8": {}} for size in ("8", "64")},
        **{"n": 20, "commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x"},
    }
    monkeypatch.setattr(quantization, "read", lambda path: results)
    assert "| floats, self-selected | 100.0 % (84–100) | 100.0 % (84–100) | 2 |" in quantization.findings_quantization()
    assert shares.wilson(0, 10)[0] == 0 and 0.2 < shares.wilson(0, 10)[1] < 0.3
    assert shares.wilson(50, 100) == pytest.approx((0.404, 0.596), abs=0.001)


def test_anchors_are_told_by_variant(monkeypatch):
    """Would catch seeds that are told as variants, and a share of malformed steps in the place of right answers."""
    figures = {"malformed_percent_of_steps": 0.25, "kv_read_percent": 31.0, "mean_tokens": 200.0}
    cells = [
        {
            "variant": variant,
            "training_seed": seed,
            "training": {"tokens": 2e6},
            "figures": {"8": figures | {"exact_percent": right, "right": int(right), "n": 100}},
        }
        for variant, seed, right in (("usual", 1, 90.0), ("digits", 1, 60.0), ("usual", 2, 94.0))
    ]
    files = {
        f"{at}.json": {**ORIGIN, "task": "arithmetic", "cells": part}
        for at, part in (("a", cells[:2]), ("b", cells[2:]))
    }
    monkeypatch.setattr(anchors, "read_all", lambda name: files if name == "anchors" else {})
    told = anchors.findings_anchors()
    assert "| usual | 2 | 92.0 % (87–95), 90.0 to 94.0 | 0.25 (0.25 to 0.25) | 31.0 | 200 |" in told
    assert "| digits | 1 | 60.0 % (50–69) | 0.25 | 31.0 | 200 |" in told
    assert "8 operands: exact" in told and "2 M tokens" in told and "a.json" in told and "b.json" in told
    for one in cells:
        for name in ("exact_percent", "right", "n"):
            del one["figures"]["8"][name]
    assert "ROUGE-L" in anchors.findings_anchors() and "| usual | 2 | – |" in anchors.findings_anchors()
    monkeypatch.setattr(anchors, "read_all", lambda name: {})
    assert anchors.findings_anchors() == anchors.MISSING


def test_a_picture_of_anchors(tmp_path):
    """Would catch seeds of the second file that are left out, and scores that are not known drawn as 0."""
    cells = [
        {"variant": "usual", "figures": {"8": {"kv_read_percent": 31.0, "exact_percent": right}}}
        for right in (90.0, 94.0)
    ]
    files = [{"task": "arithmetic", "cells": [one]} for one in cells]
    assert picture_anchors.places_of(*files) == {"8": {"usual": [(31.0, 90.0), (31.0, 94.0)]}}
    save_picture(picture_anchors.draw(*files), tmp_path / "picture.png", {})
    unscored = {"variant": "usual", "figures": {"dev_cnndm": {"kv_read_percent": 31.0, "rouge_l": None}}}
    for wrong in ({}, {"cells": []}, {"cells": [unscored]}):
        with pytest.raises(PictureError):
            picture_anchors.places_of(wrong)
