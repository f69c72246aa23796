"""A batch of rows, decoded a step at a time: on CUDA captured graphs, which the host replays ahead of the device.

Everything that changes from step to step lives in device memory: ids, what every row sees, lengths, stop flags, the
rows' settings. A step is: the tracker takes in every row's last ids, drafts are proposed, attention is planned, the
model runs, the next ids are drawn, those that count are written to a ring in host memory, and rows that are at their
end go idle. The host never waits for a step to launch the next: it reads the ring behind the device. Only a row whose
rules the host keeps, or that it drafts, has it wait.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.engine.batch_parts import Parts
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.cuda_parts import CudaParts
from selfspan_core.engine.decoder import Decoder
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.followed_rows import FollowedRows
from selfspan_core.engine.pass_sizes import PassSizes
from selfspan_core.engine.prefill import PromptPass, to_device
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rounds import NUM_SLOTS, BatchState, DraftRounds, Rounds, SingleRounds
from selfspan_core.engine.row_rules import RowRules
from selfspan_core.engine.rules import Limits
from selfspan_core.engine.step import Clock, First, Stepped, Timer
from selfspan_core.engine.step_graphs import StepGraphs
from selfspan_core.engine.tabled_rules import TabledRules
from selfspan_core.engine.torch_parts import TorchParts
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers, PromptLayout

NUM_AHEAD = 4
"""Steps that the host launches ahead of the one whose ids it reads."""


Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, queries `[B, H, D]`) -> attention's output `[B, H, D]`, over what each row sees of the cache."""


@dataclass(frozen=True)
class Script:
    """What a row is to write, and what drafts it, in steps that verify drafts."""

    ids: Sequence[int]
    drafts: DeviceDrafts | None = None


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
        batch, capacity, sizes = shape.batch, shape.capacity, shape.sizes
        self.batch, self.capacity, self.is_dense = batch, capacity, shape.is_dense
        self.model, self.markers = weights.model, markers
        device = self.model.device
        if parts is None:
            parts = CudaParts if device.type == "cuda" else TorchParts
        self.cache = self.model.new_cache(capacity, batch) if cache is None else cache
        self._parts: Parts = parts(weights, markers, self.cache, shape.is_dense, sizes, shape.rounds)
        self._decoder = Decoder(weights, batch * max(sizes), self._parts.ops)
        self._attend = self._parts.attend if attend is None else attend
        self._rotary = weights.rotary(capacity)
        is_drafted, self._keeps_rules = shape.is_drafted, shape.rounds == "rules"
        self._sees_indexes = shape.is_dense or shape.with_index
        self._state = BatchState(batch, capacity, device, max(sizes) + 1 if is_drafted else 1)
        self._rounds: Rounds = (DraftRounds if is_drafted else SingleRounds)(self._parts, self._state)
        self._sizes = PassSizes(sizes)
        queries = (batch * max(sizes), weights.num_heads, self.model.head_dim)
        self._queries = torch.zeros(queries, dtype=self.model.dtype, device=device)
        self._positions = torch.empty(0)  # of the step that is being run or captured
        self._rules = RowRules(batch, self.model.vocab_size, device, max(sizes)) if shape.with_rules else None
        self._followed = FollowedRows(markers, self.model.vocab_size, self._rules)
        self._outstanding: deque[tuple[Timer, Callable[[float], First | Stepped]]] = deque()
        self.num_launched = self._num_numbered = 0
        self._logits: dict[int, torch.Tensor] = {}
        self._graphs = StepGraphs(device, parts is CudaParts)
        self._prefill = PromptPass(weights, self.cache, self._graphs)
        for size in sizes:
            self._prepare(size)

    def _prepare(self, size: int) -> None:
        """Capture a step, and time it: of rows without a sequence, all that it reads is the weights."""
        work = functools.partial(self._one_step, size)
        self._graphs.warm_up(work)
        seconds = self._graphs.seconds(("step", size), work)
        if seconds is not None:
            self._sizes.prime(size, seconds)
        self._state.step.zero_()

    def _one_step(self, size: int) -> None:
        """Of `size` queries per row."""
        ids, self._positions = self._rounds.take_in(size)
        logits = self._decoder(ids, self._attention)
        self._logits[size] = logits = logits if self._rules is None else self._rules.narrowed(logits)
        if self._keeps_rules:
            self._parts.narrow(size, logits)
        temperatures, top_ps, seeds = self._state.settings
        self._parts.sample(logits, temperatures, top_ps, seeds, self._positions, self._rounds.drawn(size))
        self._rounds.keep(size)

    def _one_skipped(self, size: int) -> None:
        """The same without the model."""
        self._rounds.take_in(size)
        self._rounds.keep(size)

    def _attention(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `decoder.Attention`; what has no token has a negative position, and its results mean nothing."""
        keys, values, queries = self.cache.keys[layer], self.cache.values[layer], self._queries[: len(qkv)]
        self._parts.ops.rotary_write(qkv, self._rotary, self._positions, queries, keys, values)
        return self._attend(layer, queries)

    @property
    def num_ahead(self) -> int:
        """See Step: the host has to see every id before the next step while it follows a row."""
        return 1 if self._followed else NUM_AHEAD

    @property
    def num_outstanding(self) -> int:
        """See Step."""
        return len(self._outstanding)

    @torch.inference_mode()
    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """See Step."""
        self._check(request)
        if self.batch == 1:  # in larger batches texts come and go, and means are of many
            self._sizes.expect_new_text()
        layout, device = request.prompt.prompt, self.model.device
        self._prefill.prepare(row, layout.num_tokens)
        timer = Timer(device)
        logits = self._prefill(row, request.prompt_ids)
        self._place(row, layout, request.annotated, request.forced_tokens or (), max_new_tokens)
        own = request.drafter if isinstance(request.drafter, DeviceDrafts) else None
        self._rounds.begin(row, request.prompt_ids, layout, own)
        logits = self._begin_rules(row, request, logits)
        slot = self._draw_first(row, request, logits)
        timer.stop()
        self._followed.begin(row, request, max_new_tokens)
        kept = logits[0] if request.with_logits else None
        number = self._next_number()
        self._outstanding.append((timer, lambda seconds: self._first(First(row, number, int(slot), seconds, kept))))
        return number

    def _check(self, request: PromptRequest) -> None:
        """Raises ValueError where this batch cannot do what a request asks for."""
        if request.host_rules is not None and self._rules is None:
            raise ValueError("rules: this batch was made without")
        if request.device_rules is not None and not self._keeps_rules:
            raise ValueError("rules: this batch was made without any that it keeps by itself")
        if request.sees_index and not self._sees_indexes:
            raise ValueError("headers that see an index: this batch was made without")
        if request.drafter is not None and self._sizes.sizes == (1,):
            raise ValueError("drafter: this batch was made without drafts")

    def _begin_rules(self, row: int, request: PromptRequest, logits: torch.Tensor) -> torch.Tensor:
        """The rules of a row that begins, and the logits `[1, vocab_size]` of its first id, narrowed by them."""
        rules = None if request.forced_tokens else request.rules
        if self._keeps_rules:
            self._parts.begin_rules(row, rules if isinstance(rules, DeviceRules) else None)
        if isinstance(rules, DeviceRules):
            return _only(logits, TabledRules(rules, self.markers).limits())
        if rules is not None and self._rules is not None:
            return self._rules.begin(row, rules, logits)
        return logits

    def _draw_first(self, row: int, request: PromptRequest, logits: torch.Tensor) -> torch.Tensor:
        """Draw a row's first id from `[1, vocab_size]`; where it will stand in host memory."""
        state, drawn = self._state, request.sampling
        first_settings = (drawn.temperature, drawn.top_p, drawn.seed)
        for all_rows, first, value in zip(state.settings, state.first_settings, first_settings, strict=True):
            all_rows[row].fill_(value)
            first.fill_(value)
        state.first_position.fill_(request.prompt.prompt.num_tokens - 1)
        temperatures, top_ps, seeds = state.first_settings
        self._parts.sample(logits, temperatures, top_ps, seeds, state.first_position, state.first_id)
        state.ids[row].copy_(state.first_id[0])
        slot = state.firsts[row]
        self._parts.advance(state.ids, state.scripts, state.limits, slot, state.first_step, row=row)
        self._rounds.take_first(row)
        return slot

    @torch.inference_mode()
    def follow(self, row: int, prompt: Sequence[int], layout: PromptLayout, annotated: bool, script: Script) -> None:
        """A row is to write given ids behind a prompt that nobody processes: the cache is taken as it is.

        Args:
            row: of the batch.
            prompt: its ids.
            layout: of the prompt.
            annotated: whether the script has steps.
            script: what is written, and what drafts it.
        """
        self._place(row, layout, annotated, script.ids, len(script.ids))
        if self._keeps_rules:
            self._parts.begin_rules(row, None)
        self._rounds.begin(row, prompt, layout, script.drafts)
        self._state.ids[row].fill_(script.ids[0])
        self._rounds.take_first(row)

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
        start, scripts = layout.num_tokens, self._state.scripts
        self._state.limits[row].fill_(start + max_new_tokens - 1)
        scripts[row].fill_(-1)
        if script:
            ids = torch.tensor(script[: self.capacity + 1 - start], dtype=torch.int32)
            scripts[row, start : start + len(ids)].copy_(to_device(ids, self.model.device))
        self._parts.begin(row, layout, annotated)

    def _first(self, first: First) -> First:
        """A row's first id is in host memory. What its rules raise ends the row with the next step."""
        try:
            self._followed.push(first.row, first.id)
        except Exception as error:
            self.clear(first.row)
            self._followed.fail(first.row, error)
        return first

    def _next_number(self) -> int:
        self._num_numbered += 1
        return self._num_numbered

    def clear(self, row: int) -> None:
        """See Step."""
        self._parts.clear(row)
        self._followed.forget(row)

    @torch.inference_mode()
    def launch(self) -> int:
        """See Step; does not wait for it."""
        if len(self._outstanding) >= NUM_SLOTS:
            raise RuntimeError(f"at most {NUM_SLOTS} steps can be on their way: collect some first")
        number, slot = self._next_number(), self._state.ring[self.num_launched % NUM_SLOTS]
        self.num_launched += 1
        size = self._sizes.choose()
        # Before the host's part: the device waits for that of rows which the host follows.
        timer = Timer(self.model.device)
        prepared = self._followed.prepare(size)
        if isinstance(self._rounds, DraftRounds):
            for row, ids in prepared.drafts.items():
                self._rounds.inject(row, ids)
        for row in prepared.failures:
            self.clear(row)
        self._graphs.run(("step", size), functools.partial(self._one_step, size))
        timer.stop()
        outcome = functools.partial(self._stepped, number, size, slot, prepared.failures)
        self._outstanding.append((timer, outcome))
        return number

    @torch.inference_mode()
    def _stepped(
        self, number: int, size: int, slot: torch.Tensor, failures: dict[int, Exception], seconds: float
    ) -> Stepped:
        """A step's ids are in host memory: none in rows without a sequence."""
        started = time.perf_counter()
        ids, num_drafted = self._rounds.kept(slot)
        kept: list[list[torch.Tensor]] = [[] for _ in ids]
        has_followed = bool(self._followed)
        for row in self._followed:
            if self._followed.with_logits(row):
                kept[row] = [self._logits[size][size * row + place].clone() for place in range(len(ids[row]))]
            try:
                for token in ids[row]:
                    self._followed.push(row, token)
            except Exception as error:  # of its rules
                failures[row] = error
                self.clear(row)
        if has_followed:  # the next step waits for this, too
            seconds += time.perf_counter() - started
        self._sizes.record(size, seconds, [len(one) for one in ids if one])
        # All but the last, which the step would have brought without drafts, too.
        num_accepted = [max(0, len(one) - 1) for one in ids]
        return Stepped(number, ids, seconds, kept, num_drafted, num_accepted, failures)

    @torch.inference_mode()
    def skip(self, num_steps: int) -> None:
        """So many steps without the model, which only rows that follow a script can take.

        Nobody hears of their ids; and those of steps on their way may be lost, since the ring's slots are used again.
        """
        size = self._sizes.sizes[-1]
        for _ in range(num_steps):
            self._graphs.run(("skip", size), functools.partial(self._one_skipped, size))
        self.num_launched += num_steps

    @torch.inference_mode()
    def skip_one(self) -> list[list[int]]:
        """One step without the model; waits for it, and says which ids it brought."""
        slot = self._state.ring[self.num_launched % NUM_SLOTS]
        self.skip(1)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return self._rounds.kept(slot)[0]

    @property
    def num_planned(self) -> torch.Tensor:
        """Tokens that the last step read of the cache, of all rows, each once; a new tensor on the device."""
        return self._rounds.num_planned()

    def collect(self) -> First | Stepped:
        """See Step."""
        timer, outcome = self._outstanding.popleft()
        return outcome(timer.seconds())


def _only(logits: torch.Tensor, limits: Limits) -> torch.Tensor:
    """Logits `[1, V]` with minus infinity at all but the few ids that may begin a row; waits for nothing."""
    narrowed = torch.full_like(logits, -torch.inf)
    for token in limits.only or ():
        narrowed[:, token].copy_(logits[:, token])
    return narrowed
