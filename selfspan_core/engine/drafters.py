"""Drafters: from what a header names, from the protocol's grammar, and from text that came before. No torch here.

A header that names what its body reads also says what the body is likely to copy. `SpanDrafter` proposes bodies from the
segments that are named, headers from the grammar and from the order in which the run has read so far, and falls back to
`LookupDrafter`: prompt lookup (Saxena, 2023: the tokens behind the newest place where the last few tokens stood before),
which needs no spans and is what a dense lane drafts with.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from selfspan_core.engine.drafts import DraftState
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Phase, StepRecord, Tracker

LONGEST_NGRAM = 3


class LookupDrafter:
    """Prompt lookup: n-grams of 3 to 1 tokens over all text so far, the newest occurrence first.

    Args:
        never: ids that are not proposed.
    """

    def __init__(self, never: Collection[int] = ()) -> None:
        self._never = frozenset(never)
        # Where the newest occurrence of each n-gram ends, but for the one at the very end.
        self._ends: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in range(LONGEST_NGRAM))
        self._num_indexed = 0

    def propose(self, state: DraftState, most: int) -> Sequence[int]:
        """See `drafts.Drafter`."""
        ids = state.ids
        self._index(ids)
        for size in range(LONGEST_NGRAM, 0, -1):
            end = self._ends[size - 1].get(tuple(ids[-size:]))
            if end is not None:
                found = list(ids[end : end + most])
                stop = next((place for place, token in enumerate(found) if token in self._never), len(found))
                return found[:stop]
        return ()

    def _index(self, ids: Sequence[int]) -> None:
        for end in range(self._num_indexed + 1, len(ids)):
            for size in range(1, min(LONGEST_NGRAM, end) + 1):
                self._ends[size - 1][tuple(ids[end - size : end])] = end
        self._num_indexed = max(self._num_indexed, len(ids) - 1)


class SpanDrafter:
    """Drafts of a span lane.

    Args:
        markers: the tokenizer's marker ids.
        between: ids that may stand between the copies of two segments, if they stand between them in the prompt, too: a
            task's operators.
    """

    def __init__(self, markers: Markers, between: Collection[int] = ()) -> None:
        self._markers, self._between = markers, frozenset(between)
        self._structural = frozenset((*markers.ids, markers.eos))
        self._order = ReadingOrder()
        self._lookup = LookupDrafter((markers.ref, markers.eos, *markers.anchors))

    def propose(self, state: DraftState, most: int) -> Sequence[int]:
        """See `drafts.Drafter`."""
        tracker = state.tracker
        self._order.follow(tracker)
        phase = state.state.phase
        if phase is Phase.BETWEEN:
            return (self._markers.ref, *self._header(state, ()))[:most]
        if phase is Phase.HEADER and not state.state.header_closed:
            return self._header(state, tracker.named)[:most]
        if phase is Phase.BODY or state.state.header_closed:
            return self._body(state, most)
        return ()

    # ---- headers

    def _header(self, state: DraftState, named: Sequence[int]) -> list[int]:
        """The rest of a header behind the names that it has, and the beginning of its body."""
        tracker = state.tracker
        segments = tracker.segments
        if named and named[-1] not in segments:  # the step's own name is there
            return [self._markers.go, *self._beginning(state, list(named[:-1]))]
        reads = list(named)
        wanted = self._order.num_reads
        while wanted is not None and len(reads) < wanted:
            likely = self._order.next_read(reads)
            if likely is None:
                return reads[len(named) :]
            reads.append(likely)
        if not reads or (wanted is None):
            return reads[len(named) :]
        name = self._next_name(tracker)
        if name is None:
            return reads[len(named) :]
        return [*reads[len(named) :], name, self._markers.go, *self._beginning(state, reads)]

    def _next_name(self, tracker: Tracker) -> int | None:
        """The name behind the last one that was given."""
        if not tracker.segments:
            return None
        last = next(reversed(tracker.segments))
        anchors = self._markers.anchors
        name = anchors[(self._markers.anchor_index[last] + 1) % len(anchors)]
        return None if name in tracker.segments else name

    # ---- bodies

    def _beginning(self, state: DraftState, reads: list[int]) -> list[int]:
        """A body from its start."""
        return self._copied(state, reads, [])

    def _body(self, state: DraftState, most: int) -> Sequence[int]:
        record = state.tracker.steps[-1]
        assert record.body_start is not None
        written = list(state.ids[record.body_start :])
        found = self._copied(state, list(record.reads), written)
        if found:
            return found[:most]
        if record.result_start is not None and len(state.ids) > record.result_start + 1:
            return (self._markers.end, self._markers.ref, *self._header_after(state, record))[:most]
        return self._lookup.propose(state, most)

    def _header_after(self, state: DraftState, record: StepRecord) -> list[int]:
        """The names of the header behind a step that is about to end."""
        return []

    def _copied(self, state: DraftState, reads: list[int], written: list[int]) -> list[int]:
        """How a body goes on that copies what it reads, from the segments' start or from where it was last in them."""
        sources = [self._text(state, name) for name in reads]
        whole: list[int] = []
        starts: list[int] = []
        for place, source in enumerate(sources):
            if place:
                whole += self._glue(state, reads[place - 1], reads[place])
            starts.append(len(whole))
            whole += source
        if not written:
            return whole
        at = _aligned(whole, written)
        return whole[at:] if at is not None else []

    def _text(self, state: DraftState, name: int) -> list[int]:
        """A segment's tokens, its marker left out."""
        interval = state.tracker.segments.get(name)
        if interval is None:
            return []
        start, end = interval
        return [token for token in state.ids[start:end] if token not in self._structural]

    def _glue(self, state: DraftState, left: int, right: int) -> list[int]:
        """What stands between two segments in the prompt and may stand between their copies."""
        gap = self._order.gap(left, right)
        if gap is None:
            return []
        return [token for token in state.ids[gap[0] : gap[1]] if token in self._between][:1]


def _aligned(whole: list[int], written: list[int]) -> int | None:
    """Where a text goes on behind what was written of it: behind the last tokens of `written`, as many as possible."""
    if len(written) <= len(whole) and whole[: len(written)] == written:
        return len(written)
    for size in range(LONGEST_NGRAM, 0, -1):
        last = written[-size:]
        if len(last) < size:
            continue
        places = [at + size for at in range(len(whole) - size + 1) if whole[at : at + size] == last]
        if places:
            return places[0]
    return None


class ReadingOrder:
    """Segments that were not read yet, in order; a step's result stands where the first segment stood that it read.

    Attributes:
        num_reads: segments that a header is likely to name; None before the first header.
    """

    def __init__(self) -> None:
        self._live: list[int] = []
        self._extents: dict[int, tuple[int, int]] = {}
        self._num_steps = 0
        self._newest: int | None = None
        self._offsets: Counter[int] = Counter()
        self._counts: Counter[int] = Counter()

    @property
    def num_reads(self) -> int | None:
        """See the class."""
        return self._counts.most_common(1)[0][0] if self._counts else None

    def follow(self, tracker: Tracker) -> None:
        """Account for the steps that were closed since the last call."""
        if not self._extents:
            self._extents = dict(tracker.segments)
            self._live = sorted(tracker.segments, key=lambda name: tracker.segments[name])
        while self._num_steps < len(tracker.steps) and tracker.steps[self._num_steps].end is not None:
            record = tracker.steps[self._num_steps]
            self._num_steps += 1
            if not record.malformed and record.name is not None and record.reads:
                self._close(record.name, record.reads)

    def _close(self, name: int, reads: tuple[int, ...]) -> None:
        live = self._live
        self._counts[len(reads)] += 1
        places = [live.index(read) for read in reads if read in live]
        if places and self._newest in live:
            self._offsets[live.index(reads[0]) - live.index(self._newest) if reads[0] in live else 0] += 1
        at = min(places, default=len(live))
        extents = [self._extents[read] for read in reads if read in self._extents]
        if extents:
            self._extents[name] = (min(start for start, _ in extents), max(end for _, end in extents))
        self._live = [*live[:at], name, *[one for one in live[at:] if one not in reads]]
        self._live = [one for one in self._live if one == name or one not in reads]
        self._newest = name

    def next_read(self, reads: Sequence[int]) -> int | None:
        """The segment that a header is likely to name behind those that it names already."""
        live = self._live
        if reads:
            if reads[-1] not in live:
                return None
            at = live.index(reads[-1]) + 1
        else:
            if self._newest not in live or not self._offsets:
                return None
            at = live.index(self._newest) + self._offsets.most_common(1)[0][0]
        return live[at] if 0 <= at < len(live) else None

    def gap(self, left: int, right: int) -> tuple[int, int] | None:
        """Positions between two segments in the prompt; a result stands where what it comes of stands."""
        if left not in self._extents or right not in self._extents:
            return None
        start, end = self._extents[left][1], self._extents[right][0]
        return (start, end) if start <= end else None
