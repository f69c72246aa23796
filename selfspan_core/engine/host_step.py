"""A step that is decided on the host: for CPUs, for implementations of attention without a captured graph, for the
reference.

All rows' tokens go through the decoder together; attention goes row by row, through a reader each. A row feeds the id
that it drew last and, behind it, the drafts of its request's drafter, if any. Every draft's query sees what the tracker
would let it see had the drafts before it been written. Ids are drawn one after the other, under the row's rules, from
the logits of the query before; the first one that differs from its draft ends the row's step. So drafts never change
what is written: a draw depends on logits, seed and position alone.
"""

from collections import deque
from collections.abc import Sequence

import torch

from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.readers import Reader, make_reader
from selfspan_core.engine import sampling
from selfspan_core.engine.cpu_ops import host_ops
from selfspan_core.engine.decoder import Decoder
from selfspan_core.engine.drafts import DraftState, PassCosts
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.step import Clock, First, Stepped, Timer
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import MAX_DRAFTS
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import State, Tracker


class HostStep:
    """Rows of one model in one attention; see `step.Step`.

    Args:
        weights: the model's.
        markers: the tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row; a row's cache is as large as its request needs.
        is_dense: every query reads everything, whatever is declared.
        impl: how self-selected attention runs, one of `backends.IMPLS`.
        costs: where the times of forward passes are noted down, if anywhere.
    """

    clock: Clock = "host"
    num_ahead = 1

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        batch: int,
        capacity: int,
        is_dense: bool,
        impl: str = "gather",
        costs: PassCosts | None = None,
    ) -> None:
        self.model, self.markers = weights.model, markers
        self.batch, self.capacity, self.is_dense = batch, capacity, is_dense
        self._impl, self._costs = impl, costs
        self._decoder = Decoder(weights, batch * (1 + MAX_DRAFTS), host_ops(weights))
        self._attention = RowsAttention(weights, capacity)
        self._rows: dict[int, _Row] = {}
        self._outstanding: deque[First | Stepped] = deque()
        self._num_numbered = 0

    @property
    def num_outstanding(self) -> int:
        """See Step."""
        return len(self._outstanding)

    @torch.inference_mode()
    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """See Step."""
        timer = self._timer()
        self._num_numbered += 1
        if self._costs is not None:
            self._costs.begin()
        model, prompt_ids = self.model, request.prompt_ids
        cache = model.new_cache(len(prompt_ids) + max_new_tokens)
        attention = "dense" if self.is_dense else "sparse"
        reader = make_reader(attention, self._impl, cache, model.device)
        begun = _Row(self.markers, request, reader, max_new_tokens)
        reader.plan(0, None)
        with length_free_kernels(model.device):
            logits = model.forward_logits(torch.tensor([prompt_ids], device=model.device), 0, reader)
        (token,), kept = begun.draw(logits[None], ())
        if not begun.is_done:
            self._rows[row] = begun
        first = First(row, self._num_numbered, token, self._seconds(timer), kept[0] if kept else None)
        self._outstanding.append(first)
        return self._num_numbered

    @torch.inference_mode()
    def launch(self) -> int:
        """See Step; it is done when this returns."""
        timer = self._timer()
        self._num_numbered += 1
        rows = list(self._rows.items())
        drafts = [one.propose() for _, one in rows]
        tokens: list[list[int]] = [[] for _ in range(self.batch)]
        kept: list[list[torch.Tensor]] = [[] for _ in range(self.batch)]
        drafted = [0] * self.batch
        if rows:
            fed = [(one.ids[-1], *mine) for (_, one), mine in zip(rows, drafts, strict=True)]
            self._attention.plan([one.plan(mine) for (_, one), mine in zip(rows, drafts, strict=True)])
            ids = torch.tensor([token for feed in fed for token in feed], device=self.model.device)
            with length_free_kernels(self.model.device):
                logits = self._decoder(ids, self._attention)
            for (row, one), mine, own in zip(rows, drafts, logits.split([len(feed) for feed in fed]), strict=True):
                tokens[row], kept[row] = one.draw(own, mine)
                drafted[row] = len(mine)
                if one.is_done:
                    del self._rows[row]
        seconds = self._seconds(timer)
        if self._costs is not None and len(rows) == 1:
            self._costs.record(1 + len(drafts[0]), seconds)
        self._outstanding.append(Stepped(self._num_numbered, tokens, seconds, kept, drafted))
        return self._num_numbered

    def collect(self) -> First | Stepped:
        """See Step."""
        return self._outstanding.popleft()

    def clear(self, row: int) -> None:
        """See Step."""
        self._rows.pop(row, None)

    def _timer(self) -> Timer:
        return Timer(torch.device("cpu"))

    def _seconds(self, timer: Timer) -> float:
        """By the host's clock: what a row waits for, the device included."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        timer.stop()
        return timer.seconds()


class _Row:
    """One row's request: what it has written, and what may come next.

    Attributes:
        ids: the prompt and what was written.
        is_done: it is at its end.
    """

    def __init__(self, markers: Markers, request: PromptRequest, reader: Reader, max_new_tokens: int) -> None:
        layout = request.prompt.prompt
        self._eos, self._request, self._reader = markers.eos, request, reader
        self._tracker = Tracker(markers, layout, request.annotated)
        self._num_prompt, self._end = layout.num_tokens, layout.num_tokens + max_new_tokens
        self._state: State | None = None
        self.ids = list(request.prompt_ids)
        self.is_done = False

    def propose(self) -> Sequence[int]:
        """Drafts to verify behind the last id."""
        drafter, state = self._request.drafter, self._state
        most = min(MAX_DRAFTS, self._end - len(self.ids) - 1)
        if drafter is None or state is None or most < 1:
            return ()
        drafts = drafter.propose(DraftState(self.ids, self._num_prompt, self._tracker, state), most)[:most]
        return drafts[: self._num_verifiable(drafts)]

    def _num_verifiable(self, drafts: Sequence[int]) -> int:
        """How many of the drafts can go through one forward pass: a body's segments must be in the cache before it."""
        start = len(self.ids) - 1
        for number, state in enumerate(self._tracker.preview(drafts)):
            if state.context and state.context[-1][1] > start:
                return number
        return len(drafts)

    def plan(self, drafts: Sequence[int]) -> tuple[Reader, int, int]:
        """Prepare the reader for the last id and its drafts; the reader, the first position, and how many tokens."""
        assert self._state is not None
        start = len(self.ids) - 1
        states = [self._state, *self._tracker.preview(drafts)] if drafts else [self._state]
        self._reader.plan(start, states)
        return self._reader, start, len(states)

    def draw(self, logits: torch.Tensor, drafts: Sequence[int]) -> tuple[list[int], list[torch.Tensor]]:
        """The next ids, and what they were drawn from if the request asks for that.

        Args:
            logits: `[1 + len(drafts), vocab_size]`, behind the last id and behind every draft.
            drafts: verified one after the other, up to the first that is not drawn.
        """
        drawn: list[int] = []
        likeliest = logits.argmax(-1).tolist() if self._is_plain else None
        for place in range(len(logits)):
            token = likeliest[place] if likeliest is not None else self._next(logits[place])
            self._state = self._tracker.push(token)
            self.ids.append(token)
            drawn.append(token)
            self.is_done = token == self._eos or len(self.ids) >= self._end
            if self.is_done or place == len(drafts) or drafts[place] != token:
                break
        return drawn, list(logits[: len(drawn)]) if self._request.with_logits else []

    @property
    def _is_plain(self) -> bool:
        """Whether the likeliest id is taken, whatever it is."""
        request = self._request
        is_free = request.rules is None and request.forced_tokens is None
        return is_free and sampling.is_greedy(request.sampling.temperature)

    def _next(self, logits: torch.Tensor) -> int:
        """The next id, from logits `[vocab_size]`."""
        request = self._request
        if request.forced_tokens is not None:
            return request.forced_tokens[len(self.ids) - self._num_prompt]
        if request.rules is not None:
            logits = sampling.narrow(logits, request.rules.limits())
        drawn = request.sampling
        token = sampling.draw(logits, drawn.temperature, drawn.top_p, drawn.seed, len(self.ids) - 1)
        if request.rules is not None:
            request.rules.push(token)
        return token


class RowsAttention:
    """A decoder's attention, row by row: turns queries and keys by their positions, and asks the row's reader.

    Args:
        weights: the model's.
        capacity: positions that a row can have.
    """

    def __init__(self, weights: DecodeWeights, capacity: int) -> None:
        self._num_heads, self._num_kv_heads = weights.num_heads, weights.num_kv_heads
        self._scale = weights.model.head_dim**-0.5
        rotary = weights.rotary(capacity)
        # A half turn of a head's numbers, times the sine with its sign, is what transformers calls rotate_half.
        self._cosine = rotary[:, 0].repeat(1, 2)[:, None]
        self._sine = torch.cat([-rotary[:, 1], rotary[:, 1]], 1)[:, None]
        self._half = weights.model.head_dim // 2
        self._rows: Sequence[tuple[Reader, int, int]] = ()
        self._turn: tuple[torch.Tensor, torch.Tensor] | None = None

    def plan(self, rows: Sequence[tuple[Reader, int, int]]) -> None:
        """The next forward pass holds, row after row, so many tokens from a position on, for which a reader is planned.

        Args:
            rows: reader, first position, number of tokens.
        """
        self._rows = rows
        cosine, sine = ([table[start : start + num] for _, start, num in rows] for table in (self._cosine, self._sine))
        self._turn = (cosine[0], sine[0]) if len(rows) == 1 else (torch.cat(cosine), torch.cat(sine))

    def __call__(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `decoder.Attention`."""
        assert self._turn is not None
        cosine, sine = self._turn
        turned, values = qkv.split([self._num_heads + self._num_kv_heads, self._num_kv_heads], 1)
        turned = turned * cosine + turned.roll(self._half, -1) * sine
        queries, keys = (x.transpose(0, 1)[None] for x in turned.split([self._num_heads, self._num_kv_heads], 1))
        values = values.transpose(0, 1)[None]
        out, first = [], 0
        for reader, _, num in self._rows:
            mine = slice(first, first + num)
            out.append(reader.attend(layer, queries[:, :, mine], keys[:, :, mine], values[:, :, mine], self._scale))
            first += num
        attended = out[0] if len(out) == 1 else torch.cat(out, 2)
        return attended[0].transpose(0, 1)
