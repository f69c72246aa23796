"""Where drafts come from: what a header names, the protocol's grammar, and text that came before. No torch here.

A header that names what its body reads also says what the body is likely to copy. `SpanSource` proposes bodies from
the segments that are named, and headers from the grammar and from the order of reading so far. `LookupSource` is
prompt lookup (Saxena, 2023: the tokens behind the newest place where the last few tokens stood before): it needs no
spans, and a lane without steps drafts with it. `Paced` decides how many drafts are worth verifying.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from selfspan_core.engine.acceptance import Acceptance
from selfspan_core.engine.drafts import DraftState, PassCosts
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.reading_order import ReadingOrder
from selfspan_core.engine.recurring import Recurrence
from selfspan_core.params import Drafts
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Phase, StepRecord, Tracker

LONGEST_NGRAM = 3
MAX_COPIED = 1024
"""Tokens of a body that are looked at, so that the device needs no more room."""
LONGEST_RESULT = 8
"""Tokens of a result up to which its likely end is learned by its length."""


class Draft(NamedTuple):
    """One id that may come next, and the kind of reason to think so; acceptance is learned by kind."""

    token: int
    kind: str


class Source(Protocol):
    """Candidates for what comes next."""

    def candidates(self, state: DraftState, most: int) -> Iterator[Sequence[Draft]]:
        """Continuations of what is written, of at most `most` ids that anybody looks at."""
        ...


def drafter(
    markers: Markers,
    annotated: bool,
    hints: DraftHints,
    drafts: Drafts,
    costs: PassCosts | None,
    acceptance: Acceptance | None = None,
) -> "Paced | None":
    """The drafter of one run, or None.

    Args:
        markers: the tokenizer's marker ids.
        annotated: whether the lane writes steps.
        hints: of the task.
        drafts: "off"; "auto": as many as pay; a number: at most so many, whether they pay or not.
        costs: of the lane's forward passes; None: every draft is worth verifying.
        acceptance: what the lane has learned in earlier runs; None: nothing.
    """
    if drafts == "off":
        return None
    source: Source = SpanSource(markers, hints) if annotated else LookupSource()
    return Paced(source, costs, acceptance=acceptance) if drafts == "auto" else Paced(source, limit=drafts)


class Paced:
    """A drafter that proposes as many drafts of its source's best candidate as pay for their verification.

    It learns by kind of draft which share is right, from its own last proposal and what was written since.

    Args:
        source: of candidates.
        costs: of forward passes by number of tokens; None: every draft is worth verifying.
        limit: most drafts; None: as many as a step verifies.
        acceptance: what is known of such drafts; None: nothing yet.
    """

    def __init__(
        self,
        source: Source,
        costs: PassCosts | None = None,
        limit: int | None = None,
        acceptance: Acceptance | None = None,
    ) -> None:
        self._source, self._costs, self.limit = source, costs, limit
        self._acceptance = acceptance or Acceptance()
        self._acceptance.begin()
        self._proposed: Sequence[Draft] = ()
        self._at = 0

    def propose(self, state: DraftState, most: int) -> Sequence[int]:
        """See `drafts.Drafter`."""
        self._learn(state.ids)
        if self.limit is not None:
            most = min(most, self.limit)
        best: Sequence[Draft] = ()
        best_value = 1.0
        for candidate in self._source.candidates(state, most) if most > 0 else ():
            for length, value in enumerate(self._values(candidate[:most]), start=1):
                if value > best_value:
                    best, best_value = candidate[:length], value
        self._proposed, self._at = best, len(state.ids)
        return [draft.token for draft in best]

    def _learn(self, ids: Sequence[int]) -> None:
        """Compare the last proposal with what was written."""
        for draft, token in zip(self._proposed, ids[self._at : self._at + len(self._proposed)], strict=False):
            self._acceptance.record(draft.kind, draft.token == token)
            if draft.token != token:
                break
        self._proposed = ()

    def _values(self, candidate: Sequence[Draft]) -> Iterator[float]:
        """Tokens per pass over the cost of the pass, by the number of drafts, 1 being a pass without any."""
        tokens = share = 1.0
        for number, draft in enumerate(candidate, start=1):
            share *= self._acceptance.share_right(draft.kind)
            tokens += share
            yield tokens / (1.0 if self._costs is None else self._costs.relative(1 + number))


class LookupSource:
    """Prompt lookup: n-grams of 3 to 1 tokens over all text so far, the newest occurrence first.

    Args:
        never: ids that are not proposed.
    """

    def __init__(self, never: Collection[int] = ()) -> None:
        self._never = frozenset(never)
        # Where the newest occurrence of each n-gram ends, but for the one at the very end.
        self._ends: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in range(LONGEST_NGRAM))
        self._num_indexed = 0

    def candidates(self, state: DraftState, most: int) -> Iterator[Sequence[Draft]]:
        """See Source."""
        ids = state.ids
        self._index(ids)
        for size in range(LONGEST_NGRAM, 0, -1):
            end = self._ends[size - 1].get(tuple(ids[-size:])) if len(ids) >= size else None
            if end is None:
                continue
            found = ids[end : end + most]
            stop = next((place for place, token in enumerate(found) if token in self._never), len(found))
            # Behind the first draft the n-gram is longer.
            yield [
                Draft(token, f"lookup {min(size + place, LONGEST_NGRAM + 1)}")
                for place, token in enumerate(found[:stop])
            ]

    def _index(self, ids: Sequence[int]) -> None:
        for end in range(self._num_indexed + 1, len(ids)):
            for size in range(1, min(LONGEST_NGRAM, end) + 1):
                self._ends[size - 1][tuple(ids[end - size : end])] = end
        self._num_indexed = max(self._num_indexed, len(ids) - 1)


class SpanSource:
    """Drafts of a lane that writes steps.

    Args:
        markers: the tokenizer's marker ids.
        hints: of the task.
    """

    def __init__(self, markers: Markers, hints: DraftHints) -> None:
        self._markers, self._hints = markers, hints
        self._structural = frozenset((*markers.ids, markers.eos))
        self._order = ReadingOrder(hints.num_reads)
        self._recurrence = Recurrence() if hints.recurs else None
        self._lookup = LookupSource((markers.ref, markers.go, markers.eos, *markers.anchors))

    def candidates(self, state: DraftState, most: int) -> Iterator[Sequence[Draft]]:
        """See Source."""
        tracker, phase = state.tracker, state.state.phase
        self._order.follow(tracker)
        if self._recurrence is not None:
            self._recurrence.follow(tracker, state.ids)
        if phase is Phase.BODY or state.state.header_closed:
            yield from self._bodies(state, most)
        elif phase is Phase.HEADER:
            yield from self._recurring(state, tracker.named, None)
            yield self._header(state, self._order, tracker.named, None)
        elif phase is Phase.BETWEEN:
            yield from ([Draft(self._markers.ref, "ref"), *one] for one in self._recurring(state, (), None))
            yield [Draft(self._markers.ref, "ref"), *self._header(state, self._order, (), None)]

    # ---- headers

    def _header(
        self, state: DraftState, order: "ReadingOrder", named: Sequence[int], closing: StepRecord | None
    ) -> list[Draft]:
        """The rest of a header behind the names that it has, and its body; `closing`: a step that must end before."""
        segments = state.tracker.segments
        go = Draft(self._markers.go, "go")
        if named and named[-1] not in segments:  # the step's own name is there
            return [go, *self._copies(state, named[:-1])]
        reads = list(named)
        while len(reads) < order.num_reads:
            likely = order.next_read(reads)
            if likely is None:
                break
            reads.append(likely)
        kinds = [f"read 0 {order.situation}", *[f"read {place}" for place in range(1, len(reads))]]
        guessed = [Draft(read, kind) for read, kind in zip(reads, kinds, strict=False)][len(named) :]
        name = self._next_name(state.tracker, closing)
        if not reads or len(reads) < order.num_reads or name is None:
            return guessed
        body = [] if closing is not None and closing.name in reads else self._copies(state, reads)
        return [*guessed, Draft(name, "name"), go, *body]

    def _recurring(self, state: DraftState, named: Sequence[int], closing: StepRecord | None) -> Iterator[list[Draft]]:
        """The rest of a header and of its body, as the last step was that stood where this one stands, if there was."""
        if self._recurrence is None or (named and named[-1] not in state.tracker.segments):
            return
        ending = None if closing is None else self._recurrence.seen(closing, state.ids)
        reads = self._recurrence.header(named, ending)
        name = self._next_name(state.tracker, closing)
        if not reads or name is None:
            return
        kinds = ["next place", *["next read"] * (len(reads) - 1)]
        guessed = [Draft(read, kind) for read, kind in zip(reads, kinds, strict=True)][len(named) :]
        body = [Draft(token, "body") for token in self._recurrence.body(reads)]
        yield [*guessed, Draft(name, "name"), Draft(self._markers.go, "go"), *body]

    def _next_name(self, tracker: Tracker, closing: StepRecord | None) -> int | None:
        """The name behind the one that was given last."""
        last = next(reversed(tracker.segments), None) if closing is None else closing.name
        if last is None:
            return None
        anchors = self._markers.anchors
        name = anchors[(self._markers.anchor_index[last] + 1) % len(anchors)]
        return None if name in tracker.segments else name

    # ---- bodies

    def _bodies(self, state: DraftState, most: int) -> Iterator[Sequence[Draft]]:
        record = state.tracker.steps[-1]
        assert record.body_start is not None
        written = state.ids[record.body_start :]
        whole = self._copies(state, record.reads)
        for at, kind in _places(whole, written):
            rest = whole[at:]
            if kind != "copy" and rest:
                rest = [Draft(rest[0].token, kind), *rest[1:]]
            is_whole = bool(rest) and self._hints.behind[-1:] == (self._markers.end,)
            yield [*rest, *self._next_step(state, record)] if is_whole else rest
        if record.result_start is not None and len(state.ids) > record.result_start + 1:
            length = min(len(state.ids) - record.result_start - 1, LONGEST_RESULT)
            yield [Draft(self._markers.end, f"end {length}"), *self._next_step(state, record)]
        if self._recurrence is not None:
            before = [Draft(token, "body") for token in self._recurrence.body(record.reads)]
            before.append(Draft(self._markers.end, "body"))
            for at, kind in _places(before, written):
                first = [Draft(before[at].token, f"body {kind}")] if at < len(before) else []
                yield self._with_next(state, record, [*first, *before[at + 1 :]])
        for found in self._lookup.candidates(state, most):
            yield self._with_next(state, record, found)

    def _with_next(self, state: DraftState, record: StepRecord, found: Sequence[Draft]) -> Sequence[Draft]:
        """Text from elsewhere up to the end of a step, and, where steps recur, the header behind it."""
        ends = [place for place, draft in enumerate(found) if draft.token == self._markers.end]
        if self._recurrence is None or not ends:
            return found
        written = [*state.ids, *(draft.token for draft in found[: ends[0]])]
        return [*found[: ends[0] + 1], *self._next_step(replace(state, ids=written), record)]

    def _next_step(self, state: DraftState, record: StepRecord) -> list[Draft]:
        """The header behind a step that ends."""
        for recurring in self._recurring(state, (), record):
            return [Draft(self._markers.ref, "ref"), *recurring]
        order = self._order.behind(record)
        return [Draft(self._markers.ref, "ref"), *self._header(state, order, (), record)]

    def _copies(self, state: DraftState, reads: Sequence[int]) -> list[Draft]:
        """A body that copies what it reads, segment after segment."""
        drafts: list[Draft] = []
        for place, name in enumerate(reads):
            interval = state.tracker.segments.get(name)
            if interval is None:
                return drafts[:MAX_COPIED]
            if place:
                drafts += self._glue(state, reads[place - 1], name)
            text = state.ids[interval[0] : interval[1]]
            drafts += [Draft(token, "copy") for token in text if token not in self._structural]
        drafts += [Draft(token, f"behind {place}") for place, token in enumerate(self._hints.behind)]
        return drafts[:MAX_COPIED]

    def _glue(self, state: DraftState, left: int, right: int) -> list[Draft]:
        """What stands between two segments in the prompt and may stand between their copies."""
        gap = self._order.gap(left, right)
        found = [] if gap is None else [token for token in state.ids[gap[0] : gap[1]] if token in self._hints.between]
        return [Draft(token, "between") for token in found[:1]]


def _places(whole: Sequence[Draft], written: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Where a text goes on of which something was written already, and how that is known."""
    tokens = [draft.token for draft in whole]
    if len(written) <= len(tokens) and tokens[: len(written)] == list(written):
        yield len(written), "copy"
        return
    for size in range(LONGEST_NGRAM, 0, -1):
        last = list(written[-size:])
        if len(last) == size:
            places = [at + size for at in range(len(tokens) - size + 1) if tokens[at : at + size] == last]
            if places:
                yield places[0], f"again {size}"
                return
