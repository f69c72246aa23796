"""One request inside a worker: its tracker, and what each id of its answer saw as a query. No torch, no vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import Tracker

if TYPE_CHECKING:
    import torch


class Followed:
    """Follows the ids of a request with self-selected attention, as far as the host has heard of them.

    What every id saw is kept: after a preemption vLLM computes keys and values of the answer so far once more, in
    pieces of any length, and each id has to see again what it saw.

    Args:
        markers: the tokenizer's marker ids.
        prompt: layout of the prompt.
        output_ids: ids of the answer, a list that vLLM goes on filling; with asynchronous scheduling a negative number
            stands at its end for the id that the host has not heard of yet.
    """

    def __init__(self, markers: Markers, prompt: PromptLayout, output_ids: Sequence[int]) -> None:
        self._markers, self.prompt = markers, prompt
        self._output_ids = output_ids
        self._restart()

    def _restart(self) -> None:
        self._tracker = Tracker(self._markers, self.prompt)
        self._visible: list[tuple[Interval, ...] | None] = []

    def catch_up(self) -> None:
        """Follow the ids that came since the last call."""
        if len(self._output_ids) < len(self._visible):  # vLLM took ids back
            self._restart()
        for token in self._output_ids[len(self._visible) :]:
            if token < 0:
                break
            state = self._tracker.push(token)
            everything = ((0, state.position + 1),)
            visible = state.visible
            self._visible.append(None if visible == everything else visible)

    def knows(self, index: int) -> bool:
        """Whether this id of the answer has been followed."""
        return index < len(self._visible)

    def ids(self, num: int) -> list[int]:
        """The first ids of the answer.

        Raises:
            RuntimeError: one of them has not been followed.
        """
        if num > 0 and not self.knows(num - 1):
            raise RuntimeError(f"of an answer's first {num} ids, only {len(self._visible)} have been followed")
        return list(self._output_ids[:num])

    def visible(self, position: int) -> tuple[Interval, ...] | None:
        """The intervals that the query at a cache position sees, itself included; None: everything before it.

        Raises:
            RuntimeError: the id at this position has not been followed.
        """
        index = position - self.prompt.num_tokens
        if index < 0:
            return None
        if index >= len(self._visible):
            raise RuntimeError(f"the id at position {position} has not been followed")
        return self._visible[index]


@dataclass
class SpanRows:
    """The requests with self-selected attention in a worker's batch.

    Attributes:
        followed: row of the batch -> its request; rows that are not in it read everything.
        next_ids: int32 on the device: the ids of the step that is planned, one for each of its queries; None where the
            host has heard of all ids by then.
        num_read: tokens so far that queries read which read less than everything, in one layer, as far as the host
            planned them.
    """

    followed: dict[int, Followed] = field(default_factory=dict)
    next_ids: "torch.Tensor | None" = None
    num_read: int = 0
