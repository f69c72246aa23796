"""The rows of a read map: exactly what every query read, however the ticks fall."""

import dataclasses
import json
import random

import pytest

from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import lane_specs
from selfspan_core.engine.events import Token
from selfspan_core.serve.feed import Feed, packed_row
from selfspan_core.spans.tracker import Phase
from tests.support.scripted import replay, right_output
from tests.support.session_tools import TASK, TOKENIZER

PROBLEM = TASK.parse("79*36+63-(45-12)*8")


def expanded(runs: list[dict]) -> dict[int, tuple]:
    """Position -> kind, visible intervals, whether it was drafted."""
    rows: dict[int, tuple] = {}
    for run in runs:
        position = run["start"]
        for number, length in enumerate(run["lengths"]):
            for _ in range(length):
                assert position not in rows
                reads = [tuple(interval) for interval in run["reads"]]
                rows[position] = (run["kind"], (*reads, (run["own"], position + 1)), number % 2 == 1)
                position += 1
    return rows


def events(adapter: str, ids: list[int], attention: str) -> list:
    """Of one lane, with every third token of a body drafted."""
    prompt = TASK.render(PROBLEM, TOKENIZER, annotated=adapter == "span")
    made = list(replay(TOKENIZER, prompt, ids, attention, adapter == "span", 1.0))
    return [
        dataclasses.replace(event, is_draft=event.position % 3 == 0) if isinstance(event, Token) else event
        for event in made
    ]


@pytest.mark.parametrize("lane", ["dense", "sparse", "plain", "broken"])
def test_rows_are_what_was_read(lane):
    """A map that shows other intervals than were read, loses a row between two ticks, or draws one twice."""
    adapter = "plain" if lane == "plain" else "span"
    ids = right_output(TOKENIZER, PROBLEM, annotated=adapter == "span")
    if lane == "broken":
        ids = [ids[0], *ids[5:]]  # a header without names
    spec = lane_specs("sparse" if lane in ("sparse", "broken") else "dense", adapter)[0]
    happened = events(adapter, ids, spec.attention)
    prompt = TASK.render(PROBLEM, TOKENIZER, annotated=spec.annotated)
    view, rng, runs = LaneView(spec, TOKENIZER, prompt.prompt.num_tokens), random.Random(3), []
    for event in happened:
        view.apply(event)
        if rng.random() < 0.3:
            delta = view.delta()
            runs[delta["rows_from"] :] = delta["rows"]
    delta = view.delta()
    runs[delta["rows_from"] :] = delta["rows"]
    wanted = {
        token.position: (token.visible, token.is_draft)
        for token in happened
        if isinstance(token, Token) and token.phase is not Phase.DONE
    }
    rows = expanded(runs)
    assert {at: (visible, drafted) for at, (_, visible, drafted) in rows.items()} == wanted
    kinds = {"dense": {"body", "header"}, "sparse": {"body", "header"}, "plain": {"body"}}
    assert {kind for kind, _, _ in rows.values()} == kinds.get(lane, {"body", "header", "broken"})
    assert view.num_tokens - 1 == len(rows)


def test_a_step_costs_a_few_bytes():
    """Rows sent one by one would outweigh the text, and slow phones would fall behind."""
    spec = lane_specs("sparse", "span")[0]
    prompt = TASK.render(PROBLEM, TOKENIZER, annotated=True)
    view = LaneView(spec, TOKENIZER, prompt.prompt.num_tokens)
    for event in replay(TOKENIZER, prompt, right_output(TOKENIZER, PROBLEM), "sparse", True, 1.0):
        view.apply(event)
    runs = view.delta()["rows"]
    packed = json.dumps([packed_row(run) for run in runs], separators=(",", ":"))
    assert 0 < len(packed) < 80 * len(view.steps)


def test_a_lost_payload_leaves_no_hole():
    """Rows that are sent once would be missing in a browser that skips payloads."""
    feed, rng, got = Feed("1"), random.Random(5), []
    spec = lane_specs("sparse", "span")[0]
    prompt = TASK.render(PROBLEM, TOKENIZER, annotated=True)
    view = LaneView(spec, TOKENIZER, prompt.prompt.num_tokens)
    feed.add({"kind": "start", "lanes": [{"id": "sparse"}], "prompt": []})
    for event in replay(TOKENIZER, prompt, right_output(TOKENIZER, PROBLEM), "sparse", True, 1.0):
        view.apply(event)
        sent = json.loads(feed.add({"kind": "tick", "lanes": {"sparse": view.delta()}}))["lanes"]["sparse"]
        if rng.random() < 0.4 and sent["rows_from"] <= len(got):
            got[sent["rows_from"] :] = sent["rows"]
    got[sent["rows_from"] :] = sent["rows"]
    assert got == [packed_row(run.as_tick()) for run in view.rows.runs]
