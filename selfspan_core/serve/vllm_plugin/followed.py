"""One request inside a worker: its tracker, and what each id of its answer saw as a query. No torch, no vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import Tracker


class Followed:
    """Follows the ids of a request with self-selected attention.

    What every id saw is kept: after a preemption vLLM computes keys and values of the answer so far once more, in
    pieces of any length, and each id has to see again what it saw.

    Args:
        markers: the tokenizer's marker ids.
        prompt: layout of the prompt.
        output_ids: ids of the answer, a list that vLLM goes on filling.
    """

    def __init__(self, markers: Markers, prompt: PromptLayout, output_ids: Sequence[int]) -> None:
        self._markers, self._prompt = markers, prompt
        self._output_ids = output_ids
        self._restart()

    def _restart(self) -> None:
        self._tracker = Tracker(self._markers, self._prompt)
        self._visible: list[tuple[Interval, ...] | None] = []

    def catch_up(self) -> None:
        """Follow the ids that came since the last call.

        Raises:
            RuntimeError: the list holds a placeholder in place of an id.
        """
        if len(self._output_ids) < len(self._visible):  # vLLM took ids back
            self._restart()
        for token in self._output_ids[len(self._visible) :]:
            if token < 0:
                raise RuntimeError("an id of the answer is not known before the step that reads it")
            state = self._tracker.push(token)
            everything = ((0, state.position + 1),)
            visible = state.visible
            self._visible.append(None if visible == everything else visible)

    def visible(self, position: int) -> tuple[Interval, ...] | None:
        """The intervals that the query at a cache position sees, itself included; None: everything before it.

        Raises:
            RuntimeError: the id at this position has not been followed.
        """
        index = position - self._prompt.num_tokens
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
        num_queries: queries so far that read less than everything.
        num_read: tokens that they read, in one layer.
    """

    followed: dict[int, Followed] = field(default_factory=dict)
    num_queries: int = 0
    num_read: int = 0
