"""Headers of steps that recur, as in a loop: what a step reads is guessed from the last one that read the same segment.

A step's first read, if it is a segment of the prompt, is its *place*. The place behind a step is the one that followed
the last step with this place and result, else with this place. The reads at a place are those of the last step there,
each result among them replaced by the newest that begins with the same id or has the same place. No torch here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from selfspan_core.spans.tracker import StepRecord, Tracker

OUTCOME_IDS = 3
"""Ids of a result that tell what follows, as a branch's do."""


class Seen(NamedTuple):
    """A step's name, its place, and the first ids of its result."""

    name: int
    place: int | None
    outcome: tuple[int, ...]


class Recurrence:
    """What followed what, and who wrote what, so far in one row."""

    def __init__(self) -> None:
        self._prompt: frozenset[int] | None = None
        self._num_steps = 0
        self._last: Seen | None = None
        self._known: dict[int, Seen] = {}
        self._reads: dict[int, tuple[int, ...]] = {}
        self._behind: dict[tuple[int | None, tuple[int, ...] | None], int] = {}
        self._by_first: dict[int, int] = {}
        self._by_place: dict[int | None, int] = {}
        self._order: dict[int, int] = {}
        self._bodies: dict[int, tuple[int, ...]] = {}

    def follow(self, tracker: Tracker, ids: Sequence[int]) -> None:
        """Account for the steps that were closed since the last call."""
        if self._prompt is None:
            self._prompt = frozenset(tracker.segments)
        while self._num_steps < len(tracker.steps) and tracker.steps[self._num_steps].end is not None:
            record = tracker.steps[self._num_steps]
            self._num_steps += 1
            if record.malformed or record.name is None or record.end is None:
                self._last = None
                continue
            step = self.seen(record, ids[: record.end - 1])
            self._close(step, record.reads)
            if step.place is not None:
                self._bodies[step.place] = tuple(ids[record.body_start : record.end - 1])

    def seen(self, record: StepRecord, ids: Sequence[int]) -> Seen:
        """A step as far as it is written; `ids`: up to its end, which is left out."""
        start = record.body_start if record.result_start is None else record.result_start + 1
        place = record.reads[0] if record.reads and record.reads[0] in (self._prompt or ()) else None
        assert record.name is not None
        return Seen(record.name, place, tuple(ids[start : (start or 0) + OUTCOME_IDS]))

    def _close(self, step: Seen, reads: tuple[int, ...]) -> None:
        if self._last is not None and step.place is not None:
            for outcome in (self._last.outcome, None):
                self._behind[self._last.place, outcome] = step.place
        if step.place is not None:
            self._reads[step.place] = reads
        self._last, self._known[step.name] = step, step
        self._order[step.name] = len(self._order)
        self._by_place[step.place] = step.name
        if step.outcome:
            self._by_first[step.outcome[0]] = step.name

    def body(self, reads: Sequence[int]) -> Sequence[int]:
        """The body of the last step at the place where a step with these reads stands; none: nothing was there."""
        return self._bodies.get(reads[0], ()) if reads else ()

    def header(self, named: Sequence[int], closing: Seen | None = None) -> list[int]:
        """The reads that are likely in a header which names these already; empty where nothing is known.

        Args:
            closing: the step that must end before, if it has not.
        """
        last = closing or self._last
        if named:
            place: int | None = named[0]
        elif last is None:
            return []
        else:
            place = self._behind.get((last.place, last.outcome)) or self._behind.get((last.place, None))
        if place is None or place not in self._reads:
            return []
        likely = list(dict.fromkeys(self._newest(read, closing) for read in self._reads[place]))
        return likely if likely[: len(named)] == list(named) else []

    def _newest(self, read: int, closing: Seen | None) -> int:
        """The newest result that stands for what an older one stood for."""
        old = self._known.get(read)
        if old is None:
            return read
        if closing is not None and (closing.place == old.place or closing.outcome[:1] == old.outcome[:1]):
            return closing.name
        alike = [self._by_place[old.place]]
        if old.outcome:
            alike.append(self._by_first[old.outcome[0]])
        return max(alike, key=self._order.__getitem__)
