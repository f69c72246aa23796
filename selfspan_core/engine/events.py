"""What happens in a generation, as typed events; and the account that makes them out of a row's ids. No torch here
beyond a type: every engine reports alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import Phase, State, StepRecord, Tracker

if TYPE_CHECKING:
    import torch

Clock = Literal["device", "host", "server", "arrival"]
"""What seconds are of: see `step` for the first two; a server's own clock; or when a server's tokens arrived here."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a long prompt is processed, and more is to come.

    Attributes:
        num_done: tokens of the prompt so far.
        seconds: of the work since the event before this one.
    """

    num_done: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is processed and the first token's logits are ready.

    Attributes:
        num_tokens: of the prompt.
        seconds: that all of it took.
        told_s: of these, the seconds that PromptPart events told already.
    """

    num_tokens: int
    seconds: float
    told_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, which is the next query.

    Attributes:
        id: token id.
        position: its cache position.
        step_ms: milliseconds of the work that produced it: the forward of the token before (its gather included) and
            the draw. Several tokens of one forward share its time equally. The first token comes with the prefill, so
            its `step_ms` is 0.
        num_visible: what its own query reads, itself included (everything, in a dense lane).
        num_context: what dense attention reads: `position + 1`.
        phase: where in the grammar it stands.
        step: index of the step that it belongs to, or -1.
        visible: the intervals that its own query reads.
        malformed: this token broke its step.
        is_draft: it was proposed before it was drawn, and came with others of one forward pass.
        num_passes, num_drafted, num_accepted: so far, forward passes behind the prompt's, drafts that they verified,
            and drafts that were right.
        logits: `[vocab]` that it was drawn from, if asked for.
    """

    id: int
    position: int
    step_ms: float
    num_visible: int
    num_context: int
    phase: Phase
    step: int
    visible: tuple[Interval, ...]
    malformed: bool = False
    is_draft: bool = False
    num_passes: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    logits: "torch.Tensor | None" = None


@dataclass(frozen=True, slots=True)
class HeaderClosed:
    """A well-formed header ended with the token just reported: what its body may read is known.

    `record` is the tracker's own and fills up as the step goes on.
    """

    step: int
    record: StepRecord


@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step ended with the token just reported (or was broken, and cut off by it)."""

    step: int
    record: StepRecord


@dataclass(frozen=True, slots=True)
class OtherRows:
    """What rows that answer other requests did beside this one, in the same lane.

    Attributes:
        num_tokens: ids that they drew in the step of the Token that follows; that Token's `step_ms` is the step's.
        seconds: of work that was theirs alone, their prefills, and that this one had to wait for.
    """

    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing came of a server for a moment: whoever wants to end the run can do so meanwhile."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server's own clock says of a whole run, once it is over: it takes the place of all seconds before it.

    Attributes:
        prefill_s: until the first token.
        decode_s: from there to the last one.
    """

    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over.

    Attributes:
        reason: "eos", or "length" (token limit, context limit, or no forced token left); "stopped" is for consumers
            that close the run themselves.
        seconds: prefill and all steps.
        num_tokens: tokens generated.
        attended_tokens, dense_tokens: what all decode queries read, and what dense attention reads. The last token
            never becomes a query.
        num_malformed: steps that broke the grammar.
        steps: the steps as written.
        clock: of all seconds of the run.
    """

    reason: Literal["eos", "length", "stopped"]
    seconds: float
    num_tokens: int
    attended_tokens: int
    dense_tokens: int
    num_malformed: int
    steps: tuple[StepRecord, ...] = ()
    clock: Clock = "host"


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot go on; `error` says why. Of a batch, the others do."""

    error: Exception


Event = PromptPart | Prefilled | Token | HeaderClosed | StepEnded | OtherRows | Waiting | Measured | Finished | Failed


class Account:
    """One sequence's tracker, sums and clock: ids in, events out.

    Args:
        markers: the tokenizer's marker ids.
        layout: of the prompt.
        annotated: whether the model is to write steps.
        is_dense: every query reads everything, whatever is declared.
        clock: of the seconds that it is told.
    """

    def __init__(
        self,
        markers: Markers,
        layout: PromptLayout,
        annotated: bool,
        is_dense: bool,
        clock: Clock = "host",
    ) -> None:
        self._tracker = Tracker(markers, layout, annotated)
        self._eos = markers.eos
        self._is_dense, self._clock = is_dense, clock
        self._last: Token | None = None
        self._state: State | None = None
        self._num_ended = 0
        self._attended_tokens = self._dense_tokens = 0
        self._num_passes = self._num_drafted = self._num_accepted = 0
        self.num_tokens = 0
        self.seconds = 0.0

    def passed(self, num_drafted: int) -> None:
        """Account for a forward pass that verified so many drafts; its ids follow."""
        self._num_passes += 1
        self._num_drafted += num_drafted

    @property
    def state(self) -> State | None:
        """The tracker's word on the last token, or None before the first."""
        return self._state

    @property
    def is_at_end(self) -> bool:
        """Whether the last token ends the sequence."""
        return self._last is not None and self._last.id == self._eos

    def _followed(self) -> State:
        if self._state is None:
            raise RuntimeError("no id has been followed yet")
        return self._state

    def follow(self, token: int) -> State:
        """Account for the next id; its event is made by `token`."""
        last = self._last
        if last is not None:  # it was a query meanwhile
            self._attended_tokens += last.num_visible
            self._dense_tokens += last.num_context
        self._state = self._tracker.push(token)
        self.num_tokens += 1
        return self._state

    def token(self, token: int, seconds: float, logits: "torch.Tensor | None" = None, is_draft: bool = False) -> Token:
        """The event of the id just followed; `seconds` is what it took."""
        self._num_accepted += is_draft
        state, self.seconds = self._followed(), self.seconds + seconds
        context = state.position + 1
        visible = ((0, context),) if self._is_dense else state.visible
        num_visible = context if self._is_dense else state.num_visible
        self._last = Token(
            token,
            state.position,
            1000 * seconds,
            num_visible,
            context,
            state.phase,
            state.step,
            visible,
            state.malformed,
            is_draft,
            self._num_passes,
            self._num_drafted,
            self._num_accepted,
            logits,
        )
        return self._last

    def news(self) -> Iterator[HeaderClosed | StepEnded]:
        """What the tracker has to say about the last token."""
        steps = self._tracker.steps
        if self._followed().header_closed:
            yield HeaderClosed(len(steps) - 1, steps[-1])
        while self._num_ended < len(steps) and steps[self._num_ended].end is not None:
            self._num_ended += 1
            yield StepEnded(self._num_ended - 1, steps[self._num_ended - 1])

    def finished(self, reason: Literal["eos", "length", "stopped"]) -> Finished:
        """The last event."""
        return Finished(
            reason,
            self.seconds,
            self.num_tokens,
            self._attended_tokens,
            self._dense_tokens,
            self._tracker.num_malformed,
            tuple(self._tracker.steps),
            self._clock,
        )
