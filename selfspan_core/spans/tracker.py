"""The tracker: generated ids in, visible intervals out. Plain Python, no torch: this file is the specification.

One id at a time, O(1) per id (a header names at most `MAX_READS` segments). States:

    BETWEEN  after the prompt, after `<|end|>`: the model decides what comes next; sees everything
    HEADER   from `<|ref|>` to `<|go|>`, both included: sees everything, or an index
    BODY     up to the token before `<|end|>`: sees the scaffold, the named segments and its own step
    BROKEN   a malformed step up to its `<|end|>`, or text outside any step: sees everything
    DONE     after `<eos>`

`<|end|>` itself is already BETWEEN: its query predicts what follows, and that needs the whole context. Nothing here
raises on bad ids; a step that breaks the grammar is flagged, sees everything, and never becomes citable. Every state
has a length bound: past it a header or body is broken, and a broken step is closed.

Where the prompt says so (`PromptLayout.head_tokens`), what sees everything in BETWEEN and HEADER sees an index: what
the prompt names, of every step its name and the beginning of its citable part; and the last step whole, since it has
just been written (so that one pass can hold its end and the header behind it).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from selfspan_core.spans.intervals import Interval, merge
from selfspan_core.spans.protocol import Markers, PromptLayout

MAX_READS = 8
MAX_BODY_TOKENS = 512


class Phase(Enum):
    """State of the grammar at the token just pushed."""

    BETWEEN = "between"
    HEADER = "header"
    BODY = "body"
    BROKEN = "broken"
    DONE = "done"


class State(NamedTuple):
    """The tracker's output after one id.

    Attributes:
        phase: state of the token just pushed, as a query.
        position: its cache position.
        context: intervals that a BODY token sees before its own step, merged; of a header with an index, that index
            before the last step; else empty.
        own_start: first position of the final visible interval, which ends at `position + 1`.
        step: index of the step that the token belongs to, or -1.
        header_closed: True on the `<|go|>` of a well-formed header: `context` of the body is now known.
        malformed: True on the token that broke the step.
    """

    phase: Phase
    position: int
    context: tuple[Interval, ...]
    own_start: int
    step: int
    header_closed: bool = False
    malformed: bool = False

    @property
    def visible(self) -> tuple[Interval, ...]:
        """The intervals that this token's query sees: sorted, disjoint, half-open, the token itself included."""
        if not self.context:
            return ((self.own_start, self.position + 1),)
        last_start, last_end = self.context[-1]
        if last_end == self.own_start:
            return (*self.context[:-1], (last_start, self.position + 1))
        return (*self.context, (self.own_start, self.position + 1))

    @property
    def sees_everything(self) -> bool:
        """Whether its query sees all tokens up to itself."""
        return not self.context and self.own_start == 0

    @property
    def num_visible(self) -> int:
        """Number of visible tokens."""
        return sum(end - start for start, end in self.visible)


@dataclass(slots=True)
class StepRecord:
    """One step as it was written. Positions are cache positions; `end` is None while the step is open.

    `reads` and `name` are anchor ids; `intervals` are those that the body sees outside its own step.
    """

    start: int
    reads: tuple[int, ...] = ()
    name: int | None = None
    body_start: int | None = None
    result_start: int | None = None
    end: int | None = None
    intervals: tuple[Interval, ...] = ()
    malformed: bool = False

    def become(self, other: "StepRecord") -> None:
        """Take over what another record says; whoever holds this one sees it."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))


class Tracker:
    """Follows the ids that a model writes after a prompt.

    Args:
        markers: the tokenizer's marker ids.
        prompt: layout of the prompt, whose segments can be read from the start.
        annotated: whether the model is to write steps. False (a plain adapter): text outside steps is expected.
    """

    def __init__(self, markers: Markers, prompt: PromptLayout, annotated: bool = True) -> None:
        self._markers = markers
        self._position = prompt.num_tokens - 1
        self._scaffold: Interval = (0, prompt.scaffold_end)
        self._phase = Phase.BETWEEN
        self._named: list[int] = []
        # Of the open body.
        self._body_start = self._body_name = 0
        self._annotated = annotated
        # Of headers with an index: what they see, and where what they see whole begins; None: where they begin.
        self._head_tokens = prompt.head_tokens if annotated else None
        self._index = self._header_context = () if self._head_tokens is None else prompt.index
        self._header_start: int | None = None
        self.segments: dict[int, Interval] = dict(prompt.segments)
        self.steps: list[StepRecord] = []
        self.num_malformed = 0
        self.problem = ""

    @property
    def annotated(self) -> bool:
        """Whether the model is to write steps."""
        return self._annotated

    @property
    def index(self) -> tuple[Interval, ...]:
        """What headers see of prompt and finished steps; empty where they see everything."""
        return self._index

    @property
    def named(self) -> Sequence[int]:
        """The names that an open header holds so far."""
        return self._named

    def push(self, token: int) -> State:
        """Process the next id of the sequence; returns the state with its query's visibility."""
        self._position += 1
        if self._phase is Phase.DONE:
            return self._state(Phase.DONE)
        if token == self._markers.eos:
            return self._finish()
        if self._phase is Phase.HEADER:
            return self._in_header(token)
        if self._phase is Phase.BODY:
            return self._in_body(token)
        if self._phase is Phase.BROKEN:
            return self._in_broken(token)
        return self._in_between(token)

    def preview(self, tokens: Sequence[int]) -> list[State]:
        """What `push` would say of these ids, one after the other; the tracker is as before."""
        before = (self._position, self._phase, self._named, self._body_start, self._body_name)
        problem, num_malformed = self.problem, self.num_malformed
        headers = (self._index, self._header_context, self._header_start)
        num_segments, num_steps = len(self.segments), len(self.steps)
        last = replace(self.steps[-1]) if self.steps else None
        self._named = list(self._named)
        states = [self.push(token) for token in tokens]
        self._position, self._phase, self._named, self._body_start, self._body_name = before
        self.problem, self.num_malformed = problem, num_malformed
        self._index, self._header_context, self._header_start = headers
        while len(self.segments) > num_segments:  # a name that is taken is never given again: new ones are the last
            self.segments.popitem()
        del self.steps[num_steps:]
        if last is not None:
            self.steps[-1].become(last)
        return states

    def _state(self, phase: Phase, **flags: bool) -> State:
        in_step = phase in (Phase.HEADER, Phase.BODY, Phase.BROKEN)
        if phase is Phase.BODY:
            record = self.steps[-1]
            return State(phase, self._position, record.intervals, record.start, len(self.steps) - 1, **flags)
        number = len(self.steps) - 1 if in_step else -1
        if self._head_tokens is not None and phase in (Phase.HEADER, Phase.BETWEEN):
            start = self._header_start
            if start is None:
                start = self.steps[-1].start if self.steps else self._position
            return State(phase, self._position, self._header_context, start, number, **flags)
        return State(phase, self._position, (), 0, number, **flags)

    def _finish(self) -> State:
        was_open = self._phase in (Phase.HEADER, Phase.BODY)
        if was_open:
            self._flag("the sequence ended inside a step")
        if self.steps and self.steps[-1].end is None:
            self.steps[-1].end = self._position
        self._phase = Phase.DONE
        return self._state(Phase.DONE, malformed=was_open)

    def _in_between(self, token: int) -> State:
        if token == self._markers.ref:
            self._open(Phase.HEADER)
            return self._state(Phase.HEADER)
        if self._phase is Phase.BETWEEN and self._annotated:
            self._open(Phase.BROKEN)
            return self._break("text outside any step")
        return self._state(self._phase)

    def _open(self, phase: Phase) -> None:
        self._phase = phase
        self._named = []
        self.steps.append(StepRecord(start=self._position))

    def _in_header(self, token: int) -> State:
        if token in self._markers.anchor_index:
            self._named.append(token)
            if len(self._named) > MAX_READS + 1:
                return self._break(f"a header names more than {MAX_READS} segments")
            return self._state(Phase.HEADER)
        if token == self._markers.go:
            return self._close_header()
        return self._break("a header holds something other than names")

    def _close_header(self) -> State:
        if not self._named:
            return self._break("a header names nothing")
        *reads, name = self._named
        record = self.steps[-1]
        record.reads, record.name = tuple(reads), name
        unknown = [read for read in reads if read not in self.segments]
        if unknown:
            return self._break(f"a header reads a name that nothing has (id {unknown[0]})")
        if name in self.segments:
            return self._break(f"a header takes a name that is taken (id {name})")
        visible = merge([self._scaffold, *(self.segments[read] for read in reads)])
        record.intervals = visible
        record.body_start = self._body_start = self._position + 1
        self._body_name = name
        self._phase = Phase.BODY
        # <|go|> is the header's last token: it still sees what the header sees.
        return self._state(Phase.HEADER, header_closed=True)

    def _in_body(self, token: int) -> State:
        record = self.steps[-1]
        if token == self._markers.end:
            return self._close_step(record)
        if self._position - self._body_start >= MAX_BODY_TOKENS:
            return self._break(f"a body is longer than {MAX_BODY_TOKENS} tokens")
        if token == self._markers.res and record.result_start is None:
            record.result_start = self._position
            return self._state(Phase.BODY)
        if token in self._markers.anchor_index or token in (self._markers.ref, self._markers.go, self._markers.res):
            return self._break("a body holds a marker")
        return self._state(Phase.BODY)

    def _close_step(self, record: StepRecord) -> State:
        record.end = self._position + 1
        self._phase = Phase.BETWEEN
        has_result = record.result_start is not None
        citable_start = self._body_start if record.result_start is None else record.result_start
        if self._position - citable_start <= has_result:
            self._flag("a step has nothing to cite")
            return self._state(Phase.BETWEEN, malformed=True)
        self.segments[self._body_name] = (citable_start, self._position)
        if self._head_tokens is not None:
            self._take_into_index(record, citable_start + has_result + self._head_tokens)
        return self._state(Phase.BETWEEN)

    def _take_into_index(self, record: StepRecord, head_end: int) -> None:
        """A step is over: the next header sees it whole, those behind it its name and its citable part's beginning."""
        self._header_context, self._header_start = self._index, record.start
        citable_start, citable_end = self.segments[self._body_name]
        name_at = self._body_start - 2
        head = ((name_at, name_at + 1), (citable_start, min(head_end, citable_end)))
        self._index = (*self._index, *merge(head))

    def _in_broken(self, token: int) -> State:
        record = self.steps[-1]
        too_long = self._position - record.start >= MAX_BODY_TOKENS
        if token == self._markers.end or too_long:
            record.end = self._position + 1
            self._phase = Phase.BETWEEN
            return self._state(Phase.BETWEEN)
        if token == self._markers.ref:
            record.end = self._position
            return self._in_between(token)
        return self._state(Phase.BROKEN)

    def _flag(self, problem: str) -> None:
        self.steps[-1].malformed = True
        self.num_malformed += 1
        self.problem = problem

    def _break(self, problem: str) -> State:
        """Flag the open step; it sees everything until its `<|end|>`."""
        self._flag(problem)
        self._phase = Phase.BROKEN
        return self._state(Phase.BROKEN, malformed=True)
