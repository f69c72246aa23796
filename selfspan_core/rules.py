"""Rules for what may be written next: a task's, applied to a model's logits before an id is drawn.

A task that has some gives one object per lane and run; see `selfspan_core.tasks.summarize_rules`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class Limits(NamedTuple):
    """What may come next: one of `only` (any id, if None), and none of `banned`."""

    only: Sequence[int] | None
    banned: Sequence[int]


class Rules(Protocol):
    """What narrows a run's choice, id by id."""

    def limits(self) -> Limits:
        """What may come next."""
        ...

    def push(self, token: int) -> None:
        """Account for what came."""
        ...


def narrow(logits: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Logits `[V]` with minus infinity at every id that may not come next; the same tensor where all may.

    Raises:
        ValueError: the limits leave nothing.
    """
    only, banned = limits
    if only is None:
        if not banned:
            return logits
        return logits.index_fill(0, torch.tensor(list(banned), device=logits.device), -torch.inf)
    allowed = sorted(set(only) - set(banned))
    if not allowed:
        raise ValueError("the rules leave nothing to write")
    at = torch.tensor(allowed, device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(0, at, logits[at])
