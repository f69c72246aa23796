"""Drafts: ids that are likely to come next, proposed without the model; a step verifies them in one forward pass.

A draft changes nothing but the time: an id is kept only if it is the one that would have been drawn in its place, and
what follows the first other one is forgotten. No torch here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfspan_core.spans.tracker import State, Tracker


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
