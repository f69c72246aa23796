"""Payloads for the browser: whatever subset of them arrives, what is shown is right, and whole at the end."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.serve.feed import FULL_EVERY, FULL_FIRST, KINDS, RESEND_TICKS, Feed
from selfspan_core.tasks.registry import get_task
from tests.support.fake_session import FakeLane

PROBLEM = get_task("arithmetic").parse("79*36+63-(45-12)*8")
OPTIONS = {"num_tokens": 900, "extra_text": "<script>", "wrong": (), "malformed_step": None}
START = {"kind": "start", "lanes": [{"id": "dense"}], "prompt": []}


def played(tokens_per_tick: list[int]) -> tuple[list[dict], list[dict]]:
    """Payloads of one lane that writes that many tokens a tick, then all that are left; and its items."""
    lane, feed = FakeLane(PROBLEM, "dense", "span", 100, OPTIONS), Feed("7")
    payloads = [feed.add(START)]
    for count in [*tokens_per_tick, len(lane.items)]:
        lane.done = min(lane.done + count, len(lane.items))
        payloads.append(feed.add({"kind": "tick", "lanes": {"dense": lane.delta()}}))
    payloads.append(feed.add({"kind": "end", "lanes": {"dense": lane.result()}}))
    return [json.loads(payload) for payload in payloads], lane.items


class Reader:
    """What steps.js does: it appends what it can and ignores what does not connect."""

    def __init__(self) -> None:
        self.items: list[list] = []
        self.steps: dict[int, dict] = {}

    def read(self, payload: dict) -> None:
        lane = payload.get("lanes", {}).get("dense")
        if lane and lane["from"] <= len(self.items):
            self.items += lane["items"][len(self.items) - lane["from"] :]
        for step in lane["steps"] if lane else []:
            self.steps[step["index"]] = step


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), max_size=80), st.randoms(use_true_random=False), st.floats(0, 0.95))
def test_any_losses_but_the_last_payload_are_made_good(tokens_per_tick, random, loss):
    """A lost delta that is never sent again would leave a hole in the text."""
    payloads, items = played(tokens_per_tick)
    reader = Reader()
    wanted = [[item["text"], KINDS.index(item["kind"]), item["step"]] for item in items]
    for payload in payloads[:-1]:
        if random.random() >= loss:
            reader.read(payload)
            assert reader.items == wanted[: len(reader.items)]
    reader.read(payloads[-1])
    assert reader.items == wanted
    assert all(step["closed"] for step in list(reader.steps.values())[:-1])


def test_a_run_can_be_joined_at_any_full_payload():
    """The start is dropped whenever the first tick follows within one frame."""
    payloads, _ = played([10] * (2 * FULL_EVERY))
    full = [number for number, payload in enumerate(payloads) if "start" in payload]
    assert full[: FULL_FIRST + 1] == list(range(FULL_FIRST + 1)) and FULL_EVERY in full and 2 * FULL_EVERY in full
    assert full[-1] == len(payloads) - 1
    assert all(payloads[number]["lanes"]["dense"]["from"] == 0 for number in full[1:])


def test_what_was_asked_comes_with_the_start():
    """A page that lost the first payload would keep a run without its settings; small ones need not repeat them."""
    feed = Feed("7", {"text": "</script>", "seed": 3})
    lane = FakeLane(PROBLEM, "dense", "span", 100, OPTIONS)
    payloads = [feed.add(START), *(feed.add({"kind": "tick", "lanes": {"dense": lane.delta()}}) for _ in range(60))]
    assert not any("<" in payload for payload in payloads)
    for payload in map(json.loads, payloads):
        assert payload.get("asked") == ({"text": "</script>", "seed": 3} if "start" in payload else None)


def test_a_payload_stays_small():
    """Payloads that grow with the text would end in a browser that falls behind."""
    payloads, _ = played([10] * 80)
    sizes = [len(payload["lanes"]["dense"]["items"]) for payload in payloads[FULL_FIRST + RESEND_TICKS : FULL_EVERY]]
    assert set(sizes) == {10 * RESEND_TICKS}


def test_text_cannot_become_a_tag():
    """A payload is a string in a gr.HTML component: a tag in it might be one in the page some day."""
    feed = Feed("1")
    assert "<" not in feed.note("failed", "<script>alert(1)</script>")
    assert json.loads(feed.note("failed", "<b>"))["message"] == "<b>"
