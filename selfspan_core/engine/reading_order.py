"""The order in which steps read segments that are read once each, as an expression's operands are. No torch here."""

from collections import Counter
from collections.abc import Sequence

from selfspan_core.spans.tracker import StepRecord, Tracker

MAX_OFFSET = 15
"""Places in the order of reading over which a read may jump and still be learned from."""


class ReadingOrder:
    """Segments that were not read yet, in order; a step's result stands where the first segment stood that it read.

    Args:
        num_reads: segments that a header is likely to name, before any was written.
    """

    def __init__(self, num_reads: int) -> None:
        self._live: list[int] = []
        self._extents: dict[int, tuple[int, int]] = {}
        self._literals: frozenset[int] = frozenset()
        self._num_steps = 0
        self._newest: int | None = None
        self._offsets: dict[str, Counter[int]] = {}
        self._counts: Counter[int] = Counter({num_reads: 1})

    @property
    def num_reads(self) -> int:
        """Segments that a header is likely to name."""
        return _likeliest(self._counts)

    def follow(self, tracker: Tracker) -> None:
        """Account for the steps that were closed since the last call."""
        if not self._extents:
            self._extents, self._literals = dict(tracker.segments), frozenset(tracker.segments)
            self._live = sorted(tracker.segments, key=lambda name: tracker.segments[name])
        while self._num_steps < len(tracker.steps) and tracker.steps[self._num_steps].end is not None:
            self._close(tracker.steps[self._num_steps])
            self._num_steps += 1

    def behind(self, record: StepRecord) -> "ReadingOrder":
        """The order as it is once a step has ended."""
        after = ReadingOrder(1)
        after._live, after._newest = self._live, self._newest
        after._extents, after._counts = dict(self._extents), self._counts.copy()
        after._offsets, after._literals = self._offsets, self._literals
        after._close(record, is_certain=False)
        return after

    @property
    def situation(self) -> str:
        """The neighbours of the newest result, on which the next read depends: of the prompt, a result, or none."""
        live = self._live
        if self._newest not in live:
            return "first"
        at = live.index(self._newest)
        beside = (live[place] if 0 <= place < len(live) else None for place in (at - 1, at + 1))
        return "".join("n" if one is None else "p" if one in self._literals else "r" for one in beside)

    def _close(self, record: StepRecord, is_certain: bool = True) -> None:
        name, reads, live = record.name, record.reads, self._live
        if record.malformed or name is None or not reads:
            return
        self._counts[len(reads)] += 1
        if is_certain and self._newest in live and reads[0] in live:
            offset = live.index(reads[0]) - live.index(self._newest)
            if abs(offset) <= MAX_OFFSET:
                self._offsets.setdefault(self.situation, Counter())[offset] += 1
        at = min((live.index(read) for read in reads if read in live), default=len(live))
        extents = [self._extents[read] for read in reads if read in self._extents]
        if extents:
            self._extents[name] = (min(start for start, _ in extents), max(end for _, end in extents))
        self._live = [*live[:at], name, *[one for one in live[at:] if one not in reads]]
        self._newest = name

    def next_read(self, reads: Sequence[int]) -> int | None:
        """The segment that a header is likely to name behind those that it names already."""
        live = self._live
        if reads:
            if reads[-1] not in live:
                return None
            at = live.index(reads[-1]) + 1
        elif self._newest in live:
            seen = self._offsets.get(self.situation)
            # Nothing seen yet: a result between two others is joined to the one before it, else it is read first.
            guess = -1 if self.situation[0] == "r" else 0
            at = live.index(self._newest) + (_likeliest(seen) if seen else guess)
        else:
            at = 0
        return live[at] if 0 <= at < len(live) else None

    def gap(self, left: int, right: int) -> tuple[int, int] | None:
        """Positions between two segments in the prompt; a result stands where what it comes of stands."""
        if left not in self._extents or right not in self._extents:
            return None
        start, end = self._extents[left][1], self._extents[right][0]
        return (start, end) if start <= end else None


def _likeliest(counts: Counter[int]) -> int:
    """The number that was counted most often; of several the one next to 0, of two such the lower."""
    return min(counts, key=lambda number: (-counts[number], abs(number), number))
