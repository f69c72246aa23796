"""Session ticks in, browser payloads out: a stream that stays correct when a browser drops some payloads.

A browser keeps only the newest value of a component when two arrive within one frame, and a tab in the background
draws nothing at all. So a payload never counts on the one before it: it resends the tokens of the last
`RESEND_TICKS` ticks with the index of the first, the first payloads and every `FULL_EVERY`-th hold everything so far,
and so does the last. Repeats are harmless, a gap closes with the next full payload. No torch here.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from selfspan_core.compare.read_rows import ROW_KINDS

KINDS = ("text", "ref", "go", "res", "end", "anchor", "newline")
"""Item kinds; a payload holds the index. The order is known to `assets/app/race/steps.js`."""

RESEND_TICKS = 15
FULL_EVERY = 45
FULL_FIRST = 8


def dumps(payload: dict) -> str:
    """JSON that is safe inside HTML: `<` is escaped, so that it cannot contain a tag."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def outcome(result: dict) -> dict:
    """The part of a lane's result that the page shows, without the text, which the page already has."""
    shown = {key: result[key] for key in ("answer", "expected", "correct", "malformed_steps")}
    return shown | ({"remark": result["remark"]} if "remark" in result else {})


def packed_item(item: dict) -> list:
    """An item as a list: text, index of its kind, step, and 1 if it was drafted."""
    return [item["text"], KINDS.index(item["kind"]), item["step"], *([1] if item.get("drafted") else [])]


def packed_row(run: dict) -> list:
    """Rows that read the same as a list; see `compare.read_rows.RowRun`. Of each interval, how far it lies behind the
    one before it, and its length.
    """
    gaps, at = [], 0
    for start, end in run["reads"]:
        gaps += [start - at, end - start]
        at = end
    return [run["step"], run["start"], ROW_KINDS.index(run["kind"]), run["own"], gaps, run["lengths"]]


class _Sent:
    """A list that grows at its end, and how long it was at each of the last ticks."""

    def __init__(self) -> None:
        self.all: list[list] = []
        self._lengths: deque[int] = deque([0], maxlen=RESEND_TICKS)

    def add(self, start: int, new: list[list]) -> None:
        """Entries from index `start` on, which replace those that are there; entries before it stay as they are."""
        self._lengths.append(min(start, len(self.all)))
        self.all[start:] = new

    def since(self, full: bool) -> int:
        """Index from which on it is sent again."""
        return 0 if full else self._lengths[0]


class _LaneFeed:
    """All output of one lane so far."""

    def __init__(self) -> None:
        self.items, self.rows = _Sent(), _Sent()
        self.steps: dict[int, dict] = {}
        self.changed: dict[int, int] = {}
        self.figures: dict = {}

    def add(self, tick: dict, number: int) -> None:
        self.items.add(tick["from"], [packed_item(item) for item in tick["items"]])
        self.rows.add(tick["rows_from"], [packed_row(run) for run in tick["rows"]])
        for step in tick["steps"]:
            self.steps[step["index"]] = step
            self.changed[step["index"]] = number
        sent_apart = ("from", "items", "rows_from", "rows", "steps")
        self.figures = {key: value for key, value in tick.items() if key not in sent_apart}

    def payload(self, number: int, full: bool) -> dict:
        start, first_row = self.items.since(full), self.rows.since(full)
        since = 0 if full else number - RESEND_TICKS
        steps = [step for index, step in self.steps.items() if self.changed[index] >= since]
        items, rows = self.items.all[start:], self.rows.all[first_row:]
        return {**self.figures, "from": start, "items": items, "rows_from": first_row, "rows": rows, "steps": steps}


class Feed:
    """Turns the ticks of one run into payloads.

    Args:
        run: name of the run; the browser ignores payloads of any run but its newest.
        asked: the request's settings and text, for a page that keeps its runs; sent with every full payload.
    """

    def __init__(self, run: str, asked: Mapping[str, Any] | None = None) -> None:
        self._run, self._asked = run, asked
        self._number = 0
        self._start: dict | None = None
        self._lanes: dict[str, _LaneFeed] = {}

    def add(self, tick: dict) -> str:
        """One session tick (`start`, `tick` or `end`) as a payload, a JSON object in a string."""
        payload: dict = {"run": self._run, "kind": tick["kind"]}
        if tick["kind"] == "start":
            self._start = tick
            self._lanes = {lane["id"]: _LaneFeed() for lane in tick["lanes"]}
        elif tick["kind"] == "tick":
            self._number += 1
            for name, lane in tick["lanes"].items():
                self._lanes[name].add(lane, self._number)
        else:
            payload["end"] = {**tick, "lanes": {name: outcome(result) for name, result in tick["lanes"].items()}}
        full = tick["kind"] != "tick" or self._number <= FULL_FIRST or self._number % FULL_EVERY == 0
        if full:
            payload["start"] = self._start
            if self._asked:
                payload["asked"] = self._asked
        if self._number:
            payload["lanes"] = {name: lane.payload(self._number, full) for name, lane in self._lanes.items()}
        return dumps(payload)

    def note(self, kind: str, message: str = "", **more: str) -> str:
        """A payload without content: the run is `waiting`, `starting`, `halted` or has `failed`."""
        return dumps({"run": self._run, "kind": kind, "message": message, **more})
