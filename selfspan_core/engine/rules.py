"""What a run's decoding may be held to, id by id. A task makes rules; the engine keeps them. No torch here."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Limits(NamedTuple):
    """What may be written next: one of the ids `only` (any, if None), and none of `banned`."""

    only: Sequence[int] | None
    banned: Sequence[int]


class Rules(Protocol):
    """What one run's decoding is held to, id by id; one object per lane and run (see `tasks.summarize.rules`)."""

    def limits(self) -> Limits:
        """What may come next."""
        ...

    def push(self, token: int) -> None:
        """Account for the id that came; whether `limits` was asked for before makes no difference."""
        ...

    def fork(self) -> "Rules":
        """An independent copy, cheap: ids pushed on one of the two do not change the other."""
        ...
