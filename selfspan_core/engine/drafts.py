"""Drafts: ids that are likely to come next, proposed without the model; a step verifies them in one forward pass.

A draft changes nothing but the time: an id is kept only if it is the one that would have been drawn in its place, and
what follows the first other one is forgotten. No torch here.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from selfspan_core.spans.tracker import State, Tracker

NUM_PASSES = 9
"""Passes of one size whose times are kept."""


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


class PassCosts:
    """What a forward pass of several tokens of a row costs over one of a single token, as measured while decoding.

    A pass of n tokens reads the weights once and multiplies n times; from which n on that shows depends on the machine
    and on the model, so every pass that is timed goes into a running median of passes of its size.

    Args:
        first_guess: cost of every token behind the first, before anything was measured.
    """

    def __init__(self, first_guess: float = 0.06) -> None:
        self._first_guess = first_guess
        self._seconds: dict[int, deque[float]] = {}

    def record(self, num_tokens: int, seconds: float) -> None:
        """A pass was timed."""
        self._seconds.setdefault(num_tokens, deque(maxlen=NUM_PASSES)).append(seconds)

    def relative(self, num_tokens: int) -> float:
        """The cost of a pass of so many tokens; 1 is that of a single one."""
        guess = 1 + self._first_guess * (num_tokens - 1)
        alone, several = self._seconds.get(1, ()), self._seconds.get(num_tokens, ())
        if len(alone) < NUM_PASSES or len(several) < NUM_PASSES:
            return guess
        # A quarter up and down is noise, more is not believed of one size alone.
        return min(max(median(several) / median(alone), 0.75 * guess), 4 * guess)
