"""Drafts: ids that are likely to come next, proposed without the model; a step verifies them in one forward pass.

A draft changes nothing but the time: an id is kept only if it is the one that would have been drawn in its place, and
what follows the first other one is forgotten. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfspan_core.spans.tracker import State, Tracker

MAX_AGE = 64
"""Passes after which a pass of one token is too long ago to be compared with."""
WEIGHT_OF_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class DraftState:
    """What a drafter may look at; none of it may be changed.

    Attributes:
        ids: the prompt and all that was written; the last id is the next query.
        num_prompt: ids of the prompt.
        tracker: of the row, the last id included.
        state: the tracker's word on the last id.
    """

    ids: Sequence[int]
    num_prompt: int
    tracker: Tracker
    state: State


class Drafter(Protocol):
    """Proposes what comes next in one row; one object per lane and run, so it may keep what it has seen."""

    def propose(self, state: DraftState, most: int) -> Sequence[int]:
        """At most `most` ids that are likely to follow; none where nothing is likely enough to be worth verifying."""
        ...


def verifiable(
    drafts: Sequence[int], tracker: Tracker, last: State, vocab_size: int, max_bodies: int | None = None
) -> tuple[Sequence[int], Sequence[State]]:
    """As many of the drafts as can go through one pass behind the last id, and the tracker's word on them.

    Args:
        drafts: proposed ids.
        tracker: of the row, the last id included; as before afterwards.
        last: the tracker's word on the last id.
        vocab_size: ids of the model; another one cannot be fed.
        max_bodies: most bodies that the queries may stand in, the last id's own included; None: any number.
    """
    num_known = next((n for n, token in enumerate(drafts) if not 0 <= token < vocab_size), len(drafts))
    states = tracker.preview(drafts[:num_known])
    bodies = [] if last.sees_everything else [(last.context, last.own_start)]
    for place, state in enumerate(states):
        # What a body reads must be in the cache before the pass.
        if state.context and state.context[-1][1] > last.position:
            return drafts[:place], states[:place]
        if not state.sees_everything and (state.context, state.own_start) not in bodies:
            bodies.append((state.context, state.own_start))
        if max_bodies is not None and len(bodies) > max_bodies:
            return drafts[:place], states[:place]
    return drafts[:num_known], states


class PassCosts:
    """What a forward pass of several tokens of a row costs over one of a single token, as measured while decoding.

    A pass of n tokens reads the weights once and multiplies n times; from which n on that shows depends on the machine
    and on the model. Passes are compared within a run only: those of a longer text take longer, whatever their size.

    Args:
        second, further: cost of the second token and of every token behind it, before anything was measured.
    """

    def __init__(self, second: float = 0.15, further: float = 0.06) -> None:
        self._second, self._further = second, further
        self._alone: float | None = None  # seconds of a pass of one token, in the run that goes on
        self._age = 0
        self._ratios: dict[int, float] = {}

    def begin(self) -> None:
        """A run begins."""
        self._alone = None

    def record(self, num_tokens: int, seconds: float) -> None:
        """A pass was timed."""
        if num_tokens == 1:
            self._alone, self._age = _moved(self._alone, seconds), 0
            return
        self._age += 1
        if self._alone and self._age <= MAX_AGE:
            mean = self._ratios.get(num_tokens, self._guess(num_tokens))
            self._ratios[num_tokens] = _moved(mean, seconds / self._alone)

    def _guess(self, num_tokens: int) -> float:
        return 1 + self._second + self._further * (num_tokens - 2)

    def relative(self, num_tokens: int) -> float:
        """The cost of a pass of so many tokens; 1 is that of a single one."""
        if num_tokens == 1:
            return 1.0
        guess = self._guess(num_tokens)
        # Half and twice are believed of a measurement, more is another process that had the machine.
        return min(max(self._ratios.get(num_tokens, guess), 1 + (guess - 1) / 2, 1.02), 2 * guess)


def _moved(mean: float | None, value: float) -> float:
    """A moving mean, on which a single pass that was disturbed has little weight."""
    if mean is None:
        return value
    return mean + WEIGHT_OF_NEWEST * (min(value, 2 * mean) - mean)
