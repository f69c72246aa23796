"""What a run's decoding may be held to, id by id. A task makes rules; the engine keeps them. No torch here."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Limits(NamedTuple):
    """What may be written next: one of the ids `only` (any, if None), and none of `banned`."""

    only: Sequence[int] | None
    banned: Sequence[int]

    def allow(self, token: int) -> bool:
        """Whether an id may come."""
        return (self.only is None or token in self.only) and token not in self.banned


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


class RulesError(ValueError):
    """A task's rules failed; what they raised is the cause."""


@contextlib.contextmanager
def rules_speak() -> Iterator[None]:
    """A RuntimeError in here is the rules', and no sign of a lost device.

    Raises:
        RulesError: in place of a RuntimeError; anything else comes through as it is.
    """
    try:
        yield
    except RuntimeError as error:
        raise RulesError(f"the rules failed: {error}") from error


def num_allowed(rules: Rules, drafts: Sequence[int]) -> int:
    """How many drafts, from the first on, the rules do not forbid where they stand; the rules are as before.

    What they raise behind a draft ends the drafts there: it comes up again, and ends the row, if that draft is right.
    """
    ahead = rules.fork()
    for place, draft in enumerate(drafts):
        try:
            if not ahead.limits().allow(draft):
                return place
            ahead.push(draft)
        except Exception:
            return place
    return len(drafts)
