"""What each written token read, as runs of alike rows: a few numbers per step, whatever its length. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from selfspan_core.engine.events import Token
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.tracker import Phase

ROW_KINDS = ("body", "header", "broken")
"""A body reads what its header named; headers, and steps that broke the grammar, read everything."""


@dataclass
class RowRun:
    """Tokens one after the other that read the same, each also all from `own` up to itself.

    Attributes:
        step: index of the step that they belong to, or -1.
        start: cache position of the first.
        kind: one of ROW_KINDS.
        reads: intervals that all of them read, sorted and disjoint, before `own`.
        own: first position of the interval that ends with the token itself.
        lengths: how many were not drafted, how many then were, how many then were not, and so on.
    """

    step: int
    start: int
    kind: str
    reads: tuple[Interval, ...]
    own: int
    lengths: list[int] = field(default_factory=lambda: [0])

    def is_like(self, step: int, kind: str, visible: tuple[Interval, ...]) -> bool:
        """Whether another token with these intervals belongs to it."""
        return (self.step, self.kind, self.reads, self.own) == (step, kind, visible[:-1], visible[-1][0])

    def add(self, is_draft: bool) -> None:
        """One more token."""
        if is_draft == (len(self.lengths) % 2 == 1):
            self.lengths.append(0)
        self.lengths[-1] += 1

    def as_tick(self) -> dict[str, Any]:
        """The fields that a tick carries."""
        return {
            "step": self.step,
            "start": self.start,
            "kind": self.kind,
            "reads": [list(interval) for interval in self.reads],
            "own": self.own,
            "lengths": list(self.lengths),
        }


class ReadRows:
    """The rows of one lane's read map, in order."""

    def __init__(self) -> None:
        self.runs: list[RowRun] = []
        self._num_final = 0  # runs that were given away and have not grown since

    def add(self, token: Token, step: int, annotated: bool) -> None:
        """The row of the next token; the last one of a sequence is never read for, and has none.

        Args:
            token: the token.
            step: index of the step that it belongs to, or -1.
            annotated: whether its lane writes headers at all.
        """
        if token.phase is Phase.DONE:
            return
        kind = _kind(token.phase) if annotated else "body"
        if not self.runs or not self.runs[-1].is_like(step, kind, token.visible):
            self.runs.append(RowRun(step, token.position, kind, token.visible[:-1], token.visible[-1][0]))
        self.runs[-1].add(token.is_draft)
        self._num_final = min(self._num_final, len(self.runs) - 1)

    def delta(self) -> dict[str, Any]:
        """Runs that are new or have grown since the last call; they replace those from their index on."""
        start, self._num_final = self._num_final, len(self.runs)
        return {"rows_from": start, "rows": [run.as_tick() for run in self.runs[start:]]}


def _kind(phase: Phase) -> str:
    if phase is Phase.BODY:
        return "body"
    return "broken" if phase is Phase.BROKEN else "header"
