"""A batch of rows, decoded one token per step: on CUDA one captured graph, which the host replays ahead of the device.

Everything that changes from step to step lives in device memory: ids, what every row sees, lengths, stop flags, the
rows' settings. A step is: the tracker takes in every row's last id, attention is planned, the model runs, the next
ids are drawn and written to a ring in host memory, and rows that are at their end go idle. The host never waits for
a step to launch the next: it reads the ring behind the device.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import DenseReader
from selfspan_core.engine.batch_parts import MAX_SPANS, CudaParts, TorchParts
from selfspan_core.engine.decoder import Attend, Decoder
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers

NUM_SLOTS = 16
"""Steps whose ids the ring holds; so many may be on their way at most."""


@dataclass(frozen=True, slots=True)
class First:
    """A row's prompt is processed, and its first id drawn; `seconds` of the device. `begun`: what `begin` returned."""

    row: int
    begun: int
    id: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """Step `number` is done: every row's next id, -1 in rows without a sequence; `seconds` of the device."""

    number: int
    ids: list[int]
    seconds: float


class BatchStep:
    """Rows of one model in one attention.

    Args:
        weights: the model's.
        markers: the tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row.
        is_dense: every query reads everything, whatever is declared.
        parts: what the step is made of; None: by the device, the kernels on CUDA, PyTorch's operations elsewhere.
        cache: keys and values, where they are not to be the step's own.
        attend: the attention, where it is not to be the parts'.

    Attributes:
        batch, capacity: as given.
        num_launched: steps launched so far.
        num_outstanding: what is launched and not collected.
        logits: `[batch, vocab_size]` of the last step that is done.

    Raises:
        ImplUnavailable: the kernels cannot serve this model on its CUDA device.
        torch.OutOfMemoryError: the cache does not fit.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        batch: int,
        capacity: int,
        is_dense: bool,
        parts: type[CudaParts] | type[TorchParts] | None = None,
        cache: KVCache | None = None,
        attend: Attend | None = None,
    ) -> None:
        self.batch, self.capacity = batch, capacity
        self.model = weights.model
        device = self.model.device
        if parts is None:
            parts = CudaParts if device.type == "cuda" else TorchParts
        self.cache = self.model.new_cache(capacity, batch) if cache is None else cache
        self._parts = parts(weights, markers, self.cache, is_dense)
        self._decoder = Decoder(weights, self.cache, self._parts.ops)
        self._attend = self._parts.attend if attend is None else attend
        self._make_state(device)
        self._outstanding: deque = deque()
        self.num_launched = self._num_numbered = 0
        self._graph = self.capture(self._one_step) if parts is CudaParts else None

    def _make_state(self, device: torch.device) -> None:
        batch = self.batch
        zeros = lambda *shape, dtype: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
        self._settings = [zeros(batch, dtype=dtype) for dtype in (torch.float32, torch.float32, torch.int64)]
        self._positions, self._counts, self._limits = (zeros(batch, dtype=torch.int32) for _ in range(3))
        self._intervals = zeros(batch, MAX_SPANS, 2, dtype=torch.int32)
        self._ids, self._step = zeros(batch, dtype=torch.int64), zeros(1, dtype=torch.int32)
        # The id behind a row's last place is drawn, too.
        self._scripts = torch.full((batch, self.capacity + 1), -1, dtype=torch.int32, device=device)
        # Of a row that begins.
        self._first_settings = [torch.empty_like(setting[:1]) for setting in self._settings]
        self._first_position, self._first_step = zeros(1, dtype=torch.int32), zeros(1, dtype=torch.int32)
        self._first_id = zeros(1, dtype=torch.int64)
        on_host = {"dtype": torch.int64, "pin_memory": device.type == "cuda"}
        self._ring = torch.full((NUM_SLOTS, batch), -1, **on_host)
        self._firsts = torch.full((batch, 1, 1), -1, **on_host)

    def _one_step(self) -> None:
        parts = self._parts
        parts.push(self._ids, self._intervals, self._counts, self._positions)
        parts.plan(self._intervals, self._counts)
        self.logits = self._decoder(self._ids, self._positions, self._attend)
        parts.sample(self.logits, *self._settings, self._positions, self._ids)
        parts.advance(self._ids, self._scripts, self._limits, self._ring, self._step)

    @torch.inference_mode()
    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What a step does, as a graph. While no row has a sequence, `work` changes nothing but the count of steps."""
        stream, current = torch.cuda.Stream(self.model.device), torch.cuda.current_stream(self.model.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        self._step.zero_()
        return graph

    @property
    def num_outstanding(self) -> int:
        """What is launched and not collected."""
        return len(self._outstanding)

    @torch.inference_mode()
    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """Process a prompt and draw the first id; the row takes part in steps launched from now on.

        Args:
            row: without a sequence.
            request: what it answers.
            max_new_tokens: most ids to draw, however many the request allows.

        Returns:
            The number of this beginning; beginnings and steps are numbered in one sequence.

        Raises:
            torch.OutOfMemoryError: the prompt's forward pass does not fit; the row has no sequence then.
        """
        num_prompt, device, drawn = request.prompt.prompt.num_tokens, self.model.device, request.sampling
        timer = Timer(device)
        logits = self._prefill(row, request.prompt_ids)
        first_settings = (drawn.temperature, drawn.top_p, drawn.seed)
        for all_rows, first, value in zip(self._settings, self._first_settings, first_settings, strict=True):
            all_rows[row].fill_(value)
            first.fill_(value)
        self._limits[row].fill_(num_prompt + max_new_tokens - 1)
        self._scripts[row].fill_(-1)
        if request.forced_tokens:
            script = torch.tensor(request.forced_tokens[: self.capacity + 1 - num_prompt], dtype=torch.int32)
            self._scripts[row, num_prompt : num_prompt + len(script)].copy_(_to(script, device))
        self._first_position.fill_(num_prompt - 1)
        self._parts.begin(row, request.prompt.prompt, request.annotated)
        self._parts.sample(logits[None], *self._first_settings, self._first_position, self._first_id)
        self._ids[row].copy_(self._first_id[0])
        first = self._firsts[row]
        self._parts.advance(self._ids, self._scripts, self._limits, first, self._first_step, row=row)
        timer.stop()
        number = self._next_number()
        self._outstanding.append((timer, lambda seconds: First(row, number, int(first), seconds)))
        return number

    def _next_number(self) -> int:
        self._num_numbered += 1
        return self._num_numbered

    def _prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        reader = DenseReader(self.cache.row(row))
        reader.plan(0, None)
        on_device = _to(torch.tensor([list(ids)]), self.model.device)
        with length_free_kernels(self.model.device):
            return self.model.forward_logits(on_device, 0, reader)

    def clear(self, row: int) -> None:
        """A row ends: it takes no part in steps launched from now on."""
        self._parts.clear(row)

    @torch.inference_mode()
    def launch(self) -> int:
        """One step of all rows; its number. Does not wait for it."""
        if len(self._outstanding) >= NUM_SLOTS:
            raise RuntimeError(f"at most {NUM_SLOTS} steps can be on their way: collect some first")
        number, slot = self._next_number(), self._ring[self.num_launched % NUM_SLOTS]
        self.num_launched += 1
        timer = Timer(self.model.device)
        self.replay()
        timer.stop()
        self._outstanding.append((timer, lambda seconds: Stepped(number, slot.tolist(), seconds)))
        return number

    def replay(self) -> None:
        """One step, of which nobody keeps account."""
        if self._graph is None:
            self._one_step()
        else:
            self._graph.replay()

    def collect(self) -> First | Stepped:
        """The oldest of what is on its way; waits for it."""
        timer, outcome = self._outstanding.popleft()
        return outcome(timer.seconds())


class Timer:
    """Seconds that the device spends between its making and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
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


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy from the host that waits for nothing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
