"""What the decode loop drives: a step of a fixed number of rows, which yields a list of tokens per row.

Two kinds: `batch_step.BatchStep` keeps everything that changes in device memory and runs ahead of the host;
`host_step.HostStep` decides on the host, token by token or draft by draft. Seconds are of the clock that the step
names: "device" (CUDA events around a step's kernels, and whatever the host does before and behind them that the next
step has to wait for; the wall clock around the step where there is no CUDA) or "host"
(the wall clock from the launch to the ids in host memory). The start of a run says which clock its figures are of.
"""

import time
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.protocol import Markers

Clock = Literal["device", "host"]


@dataclass(frozen=True, slots=True)
class First:
    """A row's prompt is processed, and its first id drawn.

    Attributes:
        row: of the step.
        begun: what `begin` returned.
        id: the first id.
        seconds: of prefill and draw.
        logits: `[vocab_size]` that the id was drawn from, if the request asks for them.
    """

    row: int
    begun: int
    id: int
    seconds: float
    logits: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step is done.

    Attributes:
        number: what `launch` returned.
        tokens: every row's next ids, none in rows without a sequence.
        seconds: of the step.
        logits: per row and id `[vocab_size]`, in rows whose request asks for them; other rows' lists are empty.
        num_drafted: per row, the drafts that were verified.
        num_accepted: per row, how many of its ids, from the first on, are drafts.
        failures: by row, why its request cannot go on; the row has become idle.
    """

    number: int
    tokens: list[list[int]]
    seconds: float
    logits: list[list[torch.Tensor]]
    num_drafted: list[int]
    num_accepted: list[int]
    failures: dict[int, Exception] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pending:
    """A piece of a row's prompt is processed, and not the last one.

    Attributes:
        row: of the step.
        begun: what `begin` returned.
        num_done: tokens of the prompt so far.
        seconds: that the prompt has taken so far.
    """

    row: int
    begun: int
    num_done: int
    seconds: float


class Step(Protocol):
    """Rows of one model in one attention; rows begin and end on their own.

    Attributes:
        model: the model.
        markers: its tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row, prompt and answer together.
        is_dense: every query reads everything, whatever is declared.
        clock: the clock of all seconds.
    """

    model: SpanModel
    markers: Markers
    batch: int
    capacity: int
    is_dense: bool
    clock: Clock

    @property
    def num_ahead(self) -> int:
        """Steps that may be launched ahead of the one whose ids the host reads."""
        ...

    @property
    def num_outstanding(self) -> int:
        """Beginnings and steps that were launched and not collected."""
        ...

    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """Process a prompt and draw the first id; the row takes part in steps launched from now on.

        Args:
            row: one without a sequence.
            request: what it answers.
            max_new_tokens: most ids to draw, however many the request allows.

        Returns:
            The number of this beginning; beginnings and steps are numbered in one sequence.

        Raises:
            ValueError: the step cannot do what the request asks for.
            ImplUnavailable: the attention cannot run here.
            torch.OutOfMemoryError: the prompt's forward pass does not fit; the row has no sequence then.
        """
        ...

    def launch(self) -> int:
        """One step of all rows; its number."""
        ...

    def collect(self) -> First | Stepped | Pending:
        """The oldest of what is outstanding; waits for it, or for a piece of it, and then it stays outstanding. A row
        that is at its end, by `<eos>` or because it has all the ids that it may draw, has become idle by itself."""
        ...

    def clear(self, row: int) -> None:
        """A row ends: it takes no part in steps launched from now on."""
        ...


class Timer:
    """Seconds between the timer's making and `stop`: of the device on CUDA, of the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._begin = self._end = time.perf_counter()

    def stop(self) -> None:
        """The end of what is timed."""
        if self._events is not None:
            self._events[1].record()
        self._end = time.perf_counter()

    def seconds(self) -> float:
        """Waits for the device."""
        if self._events is None:
            return self._end - self._begin
        begin, end = self._events
        end.synchronize()
        return begin.elapsed_time(end) / 1000
