"""Drafts that a step proposes by itself, on the device and without the host. No torch here.

A captured step pays for its drafts whether they are right or not, so nothing is weighed: a row proposes the first
candidate that there is. `FirstCandidate` is the specification of what `cuda_kernels/csrc/draft.cu` proposes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from selfspan_core.engine.drafters import LookupSource, Source, SpanSource
from selfspan_core.engine.drafts import DraftState
from selfspan_core.engine.hints import DraftHints
from selfspan_core.params import MAX_DRAFTS
from selfspan_core.spans.protocol import Markers


class FirstCandidate:
    """A drafter that proposes its source's first candidate; see `drafts.Drafter`.

    Args:
        source: of candidates.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def propose(self, state: DraftState, most: int) -> Sequence[int]:
        """See `drafts.Drafter`."""
        for candidate in self._source.candidates(state, most):
            if candidate:
                return [draft.token for draft in candidate[:most]]
        return ()


@dataclass(frozen=True)
class DeviceDrafts:
    """What a request tells a step that drafts by itself.

    Attributes:
        hints: of the task.
        most: most drafts of a pass, for which the batch has to be made (`BatchShape.drafts`); None: as many as pay.
    """

    hints: DraftHints
    most: int | None = None

    def __post_init__(self) -> None:
        if self.most is not None and not 1 <= self.most <= MAX_DRAFTS:
            raise ValueError(f"most is 1 to {MAX_DRAFTS}, not {self.most}")

    def drafter(self, markers: Markers, annotated: bool) -> FirstCandidate:
        """What the device proposes, in Python; of one run alone.

        Args:
            markers: the tokenizer's marker ids.
            annotated: whether the row writes steps.
        """
        return FirstCandidate(SpanSource(markers, self.hints) if annotated else LookupSource())
