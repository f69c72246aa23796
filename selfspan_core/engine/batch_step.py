"""A batch of rows, decoded one token per step: on CUDA one captured graph, which the host replays ahead of the device.

Everything that changes from step to step lives in device memory: ids, what every row sees, lengths, stop flags, the
rows' settings. A step is: the tracker takes in every row's last id, attention is planned, the model runs, the next
ids are drawn and written to a ring in host memory, and rows that are at their end go idle. The host never waits for
a step to launch the next: it reads the ring behind the device.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.readers import DenseReader
from selfspan_core.engine.batch_parts import MAX_SPANS, CudaParts, TorchParts
from selfspan_core.engine.decoder import Decoder
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.row_rules import RowRules
from selfspan_core.engine.step import Clock, First, Stepped, Timer
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers, PromptLayout

NUM_SLOTS = 16
"""Steps whose ids the ring holds; so many may be on their way at most."""
NUM_AHEAD = 4
"""Steps that the host launches ahead of the one whose ids it reads."""


Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, queries `[B, H, D]`) -> attention's output `[B, H, D]`, over what each row sees of the cache."""


@dataclass(frozen=True)
class BatchShape:
    """What a batch is to hold.

    Attributes:
        batch: rows.
        capacity: positions of each row, prompt and answer together.
        is_dense: every query reads everything, whatever is declared.
        with_rules: whether requests may have rules; a step then narrows its logits to what each row may write.
    """

    batch: int
    capacity: int
    is_dense: bool
    with_rules: bool = False


@dataclass
class _Followed:
    """A row whose ids the host has to see one by one."""

    num_left: int
    with_logits: bool


class BatchStep:
    """Rows of one model in one attention; see `step.Step`.

    Args:
        weights: the model's.
        markers: the tokenizer's marker ids.
        shape: of the batch.
        parts: what the step is made of; None: by the device, the kernels on CUDA, PyTorch's operations elsewhere.
        cache: keys and values, where they are not to be the step's own.
        attend: the attention, where it is not to be the parts'.

    Attributes:
        num_launched: steps launched so far.
        logits: `[batch, vocab_size]` of the last step that is done.

    Raises:
        ImplUnavailable: the kernels cannot serve this model on its CUDA device.
        torch.OutOfMemoryError: the cache does not fit.
    """

    clock: Clock = "device"

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        shape: BatchShape,
        parts: type[CudaParts] | type[TorchParts] | None = None,
        cache: KVCache | None = None,
        attend: Attend | None = None,
    ) -> None:
        batch, capacity = shape.batch, shape.capacity
        self.batch, self.capacity, self.is_dense = batch, capacity, shape.is_dense
        self.model, self.markers = weights.model, markers
        device = self.model.device
        if parts is None:
            parts = CudaParts if device.type == "cuda" else TorchParts
        self.cache = self.model.new_cache(capacity, batch) if cache is None else cache
        self._parts = parts(weights, markers, self.cache, shape.is_dense)
        self._decoder = Decoder(weights, batch, self._parts.ops)
        self._attend = self._parts.attend if attend is None else attend
        self._rotary = weights.rotary(capacity)
        self._make_state(device)
        self._queries = torch.zeros(
            batch, weights.num_heads, self.model.head_dim, dtype=self.model.dtype, device=device
        )
        self._rules = RowRules(batch, self.model.vocab_size, device) if shape.with_rules else None
        self._followed: dict[int, _Followed] = {}
        self._outstanding: deque[tuple[Timer, Callable[[float], First | Stepped]]] = deque()
        self.num_launched = self._num_numbered = 0
        self._is_captured = parts is CudaParts
        self._graph: torch.cuda.CUDAGraph | None = None
        self._skip_graph: torch.cuda.CUDAGraph | None = None
        if self._is_captured:
            self._warm_up(self._one_step)
            self._graph = self._capture(self._one_step)

    def _make_state(self, device: torch.device) -> None:
        batch = self.batch
        zeros = lambda *shape, dtype: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
        temperatures, top_ps = (zeros(batch, dtype=torch.float32) for _ in range(2))
        self._settings = (temperatures, top_ps, zeros(batch, dtype=torch.int64))
        self._positions, self._counts, self._limits = (zeros(batch, dtype=torch.int32) for _ in range(3))
        self._intervals = zeros(batch, MAX_SPANS, 2, dtype=torch.int32)
        self._ids, self._step = zeros(batch, dtype=torch.int64), zeros(1, dtype=torch.int32)
        # The id behind a row's last place is drawn, too.
        self._scripts = torch.full((batch, self.capacity + 1), -1, dtype=torch.int32, device=device)
        # Of a row that begins.
        self._first_settings = tuple(torch.empty_like(setting[:1]) for setting in self._settings)
        self._first_position, self._first_step = zeros(1, dtype=torch.int32), zeros(1, dtype=torch.int32)
        self._first_id = zeros(1, dtype=torch.int64)
        is_pinned = device.type == "cuda"
        self._ring = torch.full((NUM_SLOTS, batch), -1, dtype=torch.int64, pin_memory=is_pinned)
        self._firsts = torch.full((batch, 1, 1), -1, dtype=torch.int64, pin_memory=is_pinned)

    def _one_step(self) -> None:
        parts = self._parts
        parts.push(self._ids, self._intervals, self._counts, self._positions)
        parts.plan(self._intervals, self._counts)
        self.logits = self._decoder(self._ids, self._attention)
        if self._rules is not None:
            self.logits = self._rules.narrowed(self.logits)
        temperatures, top_ps, seeds = self._settings
        parts.sample(self.logits, temperatures, top_ps, seeds, self._positions, self._ids)
        parts.advance(self._ids, self._scripts, self._limits, self._ring, self._step)

    def _attention(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `decoder.Attention`; rows without a token have a negative position, and their results mean nothing."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        self._parts.ops.rotary_write(qkv, self._rotary, self._positions, self._queries, keys, values)
        return self._attend(layer, self._queries)

    @torch.inference_mode()
    def _warm_up(self, work: Callable[[], None]) -> None:
        """What has to happen once before a capture; while no row has a sequence, `work` only counts steps."""
        stream, current = torch.cuda.Stream(self.model.device), torch.cuda.current_stream(self.model.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        current.wait_stream(stream)
        self._step.zero_()

    @torch.inference_mode()
    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What a step does, as a graph; its kernels have run before. Nothing runs now."""
        graph = torch.cuda.CUDAGraph()
        # Another thread may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph

    @property
    def num_ahead(self) -> int:
        """See Step: the host has to see every id before the next step while a row has rules or asks for logits."""
        return 1 if self._followed else NUM_AHEAD

    @property
    def num_outstanding(self) -> int:
        """See Step."""
        return len(self._outstanding)

    @torch.inference_mode()
    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """See Step."""
        if request.rules is not None and self._rules is None:
            raise ValueError("rules: this batch was made without")
        if request.drafter is not None:
            raise ValueError("drafter: a step that runs ahead of the host verifies no drafts")
        num_prompt, device, drawn = request.prompt.prompt.num_tokens, self.model.device, request.sampling
        timer = Timer(device)
        logits = self._prefill(row, request.prompt_ids)[None]
        first_settings = (drawn.temperature, drawn.top_p, drawn.seed)
        for all_rows, first, value in zip(self._settings, self._first_settings, first_settings, strict=True):
            all_rows[row].fill_(value)
            first.fill_(value)
        self._first_position.fill_(num_prompt - 1)
        self._place(row, request.prompt.prompt, request.annotated, request.forced_tokens or (), max_new_tokens)
        rules = None if request.forced_tokens else request.rules
        if rules is not None and self._rules is not None:
            logits = self._rules.begin(row, rules, logits)
        temperatures, top_ps, seeds = self._first_settings
        self._parts.sample(logits, temperatures, top_ps, seeds, self._first_position, self._first_id)
        self._ids[row].copy_(self._first_id[0])
        slot = self._firsts[row]
        self._parts.advance(self._ids, self._scripts, self._limits, slot, self._first_step, row=row)
        timer.stop()
        if request.with_logits or rules is not None:
            self._followed[row] = _Followed(max_new_tokens, request.with_logits)
        kept = logits[0] if request.with_logits else None
        number = self._next_number()
        self._outstanding.append((timer, lambda seconds: self._first(First(row, number, int(slot), seconds, kept))))
        return number

    @torch.inference_mode()
    def follow(self, row: int, layout: PromptLayout, annotated: bool, script: Sequence[int]) -> None:
        """A row is to write these ids behind a prompt that nobody processes: the cache is taken as it is.

        Args:
            row: of the batch.
            layout: of the prompt.
            annotated: whether the script has steps.
            script: one id or more.
        """
        self._place(row, layout, annotated, script, len(script))
        self._ids[row].fill_(script[0])

    def _place(
        self, row: int, layout: PromptLayout, annotated: bool, script: Sequence[int], max_new_tokens: int
    ) -> None:
        """A row stands behind its prompt, about to take in its first id; waits for nothing.

        Args:
            row: of the batch.
            layout: of the prompt.
            annotated: whether steps are to be written.
            script: ids that are written, whatever is drawn, as far as there are any.
            max_new_tokens: most ids.
        """
        start = layout.num_tokens
        self._limits[row].fill_(start + max_new_tokens - 1)
        self._scripts[row].fill_(-1)
        if script:
            ids = torch.tensor(script[: self.capacity + 1 - start], dtype=torch.int32)
            self._scripts[row, start : start + len(ids)].copy_(_to(ids, self.model.device))
        self._parts.begin(row, layout, annotated)

    def _first(self, first: First) -> First:
        """A row's first id is in host memory."""
        self._follow(first.row, first.id)
        return first

    def _follow(self, row: int, token: int) -> None:
        """Tell the row's rules of its next id, and forget what the host keeps of a row that is at its end."""
        followed = self._followed.get(row)
        if followed is None or token < 0:
            return
        if self._rules is not None:
            self._rules.push(row, token)
        followed.num_left -= 1
        if token == self.markers.eos or followed.num_left == 0:
            self._forget(row)

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
        """See Step."""
        self._parts.clear(row)
        self._forget(row)

    def _forget(self, row: int) -> None:
        """What the host keeps of a row that is at its end."""
        self._followed.pop(row, None)
        if self._rules is not None:
            self._rules.end(row)

    @torch.inference_mode()
    def launch(self) -> int:
        """See Step; does not wait for it."""
        if len(self._outstanding) >= NUM_SLOTS:
            raise RuntimeError(f"at most {NUM_SLOTS} steps can be on their way: collect some first")
        number, slot = self._next_number(), self._ring[self.num_launched % NUM_SLOTS]
        self.num_launched += 1
        failures = {} if self._rules is None else self._rules.write()
        for row in failures:
            self.clear(row)
        timer = Timer(self.model.device)
        self._replay()
        timer.stop()
        self._outstanding.append((timer, lambda seconds: self._stepped(number, slot.tolist(), seconds, failures)))
        return number

    @torch.inference_mode()
    def _stepped(self, number: int, ids: list[int], seconds: float, failures: dict[int, Exception]) -> Stepped:
        """A step's ids are in host memory: -1 in rows without a sequence."""
        kept: list[list[torch.Tensor]] = [[] for _ in ids]
        for row in list(self._followed):
            if self._followed[row].with_logits and ids[row] >= 0:
                kept[row] = [self.logits[row].clone()]
            self._follow(row, ids[row])
        none = [0] * self.batch
        return Stepped(number, [[token] if token >= 0 else [] for token in ids], seconds, kept, none, none, failures)

    def _replay(self) -> None:
        if self._graph is None:
            self._one_step()
        else:
            self._graph.replay()

    @torch.inference_mode()
    def skip(self, num_steps: int) -> None:
        """So many steps without the model, which only rows that follow a script can take; nobody hears of their ids."""
        if self._is_captured and self._skip_graph is None:
            self._skip_graph = self._capture(self._one_skipped)
        for _ in range(num_steps):
            if self._skip_graph is None:
                self._one_skipped()
            else:
                self._skip_graph.replay()
        self.num_launched += num_steps

    def _one_skipped(self) -> None:
        self._parts.push(self._ids, self._intervals, self._counts, self._positions)
        self._parts.advance(self._ids, self._scripts, self._limits, self._ring, self._step)

    def collect(self) -> First | Stepped:
        """See Step."""
        timer, outcome = self._outstanding.popleft()
        return outcome(timer.seconds())


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy from the host that waits for nothing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
