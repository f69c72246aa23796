"""A step that is decided on the host: for CPUs, for implementations of attention without a captured graph, for the
reference.

All rows' tokens go through the decoder together; attention goes row by row, through a reader each. A row feeds the id
that it drew last and, behind it, the drafts of its request's drafter, if any. Every draft's query sees what the tracker
would let it see had the drafts before it been written. Ids are drawn one after the other, under the row's rules, from
the logits of the query before; the first one that differs from its draft ends the row's step. So drafts never change
what is written, but for ties that the rounding of a GEMM of more rows may decide otherwise: a draw depends on logits,
seed and position alone.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.readers import Reader, make_reader
from selfspan_core.engine import sampling
from selfspan_core.engine.acceptance import Acceptance
from selfspan_core.engine.cpu_ops import host_ops
from selfspan_core.engine.decoder import Decoder, StepOps
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.drafts import DraftState, PassCosts, verifiable
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import num_allowed, rules_speak
from selfspan_core.engine.step import Clock, First, Pending, Stepped, Timer
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import MAX_DRAFTS
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import State, Tracker

PIECE_PRODUCTS = 35 * 10**9
LEAST_PIECE = 64
"""Weights times tokens, and tokens at least, of a piece of a prompt. On a CPU a prompt of more than two of them goes
through the decoder piece by piece, so that a run can be stopped in between: 6,000 tokens take a model of 135 million
parameters and two cores 20 seconds, a piece of 256 at most one."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class HostKept:
    """What the steps of one model keep from run to run.

    Attributes:
        ops: operations of a step; packed matrices are theirs.
        costs: times of forward passes by number of tokens.
        acceptance: of drafts.
    """

    ops: StepOps
    costs: PassCosts
    acceptance: Acceptance = field(default_factory=Acceptance)


class HostStep:
    """Rows of one model in one attention; see `step.Step`.

    Args:
        weights: the model's.
        markers: the tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row; a row's cache is as large as its request needs.
        is_dense: every query reads everything, whatever is declared.
        impl: how self-selected attention runs, one of `backends.IMPLS`.
        kept: what steps of one model share from run to run; None: nothing.
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
        kept: "HostKept | None" = None,
    ) -> None:
        self.model, self.markers = weights.model, markers
        self.batch, self.capacity, self.is_dense = batch, capacity, is_dense
        kept = kept or HostKept(host_ops(weights), PassCosts())
        self._impl, self._costs, self._weights, self._ops = impl, kept.costs, weights, kept.ops
        self._decoder = Decoder(weights, batch * (1 + MAX_DRAFTS), kept.ops)
        self._attention = RowsAttention(weights, capacity)
        self._piece_tokens = piece_tokens(weights)
        self._rows: dict[int, _Row] = {}
        self._outstanding: deque[First | Stepped | _Prompt] = deque()
        self._num_numbered = 0

    @property
    def num_outstanding(self) -> int:
        """See Step."""
        return len(self._outstanding)

    @torch.inference_mode()
    def begin(self, row: int, request: PromptRequest, max_new_tokens: int) -> int:
        """See Step."""
        if isinstance(request.drafter, DeviceDrafts):
            raise ValueError("drafter: a step on the host takes one that proposes in Python")
        if request.device_rules is not None:
            raise ValueError("rules: a step on the host takes those that are asked id by id")
        self._num_numbered += 1
        self._costs.begin()
        timer = self._timer()
        reader = self.new_reader(len(request.prompt_ids) + max_new_tokens)
        begun = _Row(self.markers, request, reader, max_new_tokens, self.model.vocab_size)
        prompt = _Prompt(row, self._num_numbered, begun, reader, request.prompt_ids, self._seconds(timer))
        self._outstanding.append(self._piece(prompt) or prompt)
        return self._num_numbered

    def new_reader(self, capacity: int) -> Reader:
        """What reads and writes a row's keys and values, of so many positions."""
        attention = "dense" if self.is_dense else "sparse"
        return make_reader(attention, self._impl, self.model.new_cache(capacity), self.model.device)

    def _piece(self, prompt: "_Prompt") -> First | None:
        """The next piece of a prompt; behind the last one its first id."""
        timer = self._timer()
        num = len(prompt.ids) - prompt.num_done
        if self.model.device.type == "cpu" and len(prompt.ids) > 2 * self._piece_tokens:
            num = min(num, self._piece_tokens)
        logits = self._prefill(prompt.ids[prompt.num_done :][:num], prompt.num_done, prompt.reader)
        prompt.num_done += num
        if prompt.num_done < len(prompt.ids):
            prompt.seconds += self._seconds(timer)
            return None
        begun = prompt.begun
        begun.draw(logits)
        if not begun.is_done:
            self._rows[prompt.row] = begun
        kept = begun.drawn_from[0] if begun.drawn_from else None
        return First(prompt.row, prompt.number, begun.drawn[0], prompt.seconds + self._seconds(timer), kept)

    def _prefill(self, ids: Sequence[int], start: int, reader: Reader) -> torch.Tensor:
        """Process a piece of a prompt from a position on; logits `[1, vocab_size]` of its last token."""
        reader.plan(start, None)
        self._attention.plan([(reader, start, len(ids))])
        decoder = Decoder(self._weights, len(ids), self._ops)
        with length_free_kernels(self.model.device):
            return decoder(torch.tensor(ids, device=self.model.device), self._attention, only_last=True)

    @torch.inference_mode()
    def launch(self) -> int:
        """See Step; it is done when this returns."""
        timer = self._timer()
        self._num_numbered += 1
        failures: dict[int, Exception] = {}
        drafts = {row: self._attempt(row, one.propose, failures) for row, one in list(self._rows.items())}
        rows = list(self._rows.items())
        tokens: list[list[int]] = [[] for _ in range(self.batch)]
        kept: list[list[torch.Tensor]] = [[] for _ in range(self.batch)]
        drafted, accepted = [0] * self.batch, [0] * self.batch
        if rows:
            sizes = [1 + len(drafts[row]) for row, _ in rows]
            ids = torch.tensor([token for row, one in rows for token in (one.ids[-1], *drafts[row])])
            self._attention.plan([one.plan() for _, one in rows])
            with length_free_kernels(self.model.device):
                logits = self._decoder(ids.to(self.model.device), self._attention)
            for (row, one), own in zip(rows, logits.split(sizes), strict=True):
                self._attempt(row, functools.partial(one.draw, own), failures)
                tokens[row], kept[row] = one.drawn, one.drawn_from
                drafted[row], accepted[row] = len(drafts[row]), one.num_accepted
                if one.is_done:
                    self._rows.pop(row, None)
        seconds = self._seconds(timer)
        if len(rows) == 1:
            self._costs.record(sizes[0], seconds)
        self._outstanding.append(Stepped(self._num_numbered, tokens, seconds, kept, drafted, accepted, failures))
        return self._num_numbered

    def _attempt(self, row: int, work: Callable[[], _T], failures: dict[int, Exception]) -> _T | tuple[()]:
        """What a row's drafter and rules have to say; what they raise ends that row alone."""
        try:
            return work()
        except torch.AcceleratorError:  # the device failed, not the row: drawing is the first that waits for it
            raise
        except Exception as error:
            failures[row] = error
            self._rows.pop(row, None)
            return ()

    @torch.inference_mode()
    def collect(self) -> First | Stepped | Pending:
        """See Step."""
        oldest = self._outstanding[0]
        if not isinstance(oldest, _Prompt):
            return self._outstanding.popleft()  # type: ignore[return-value]
        failures: dict[int, Exception] = {}
        first = self._attempt(oldest.row, functools.partial(self._piece, oldest), failures)
        if first is None:
            return Pending(oldest.row, oldest.number, oldest.num_done, oldest.seconds)
        self._outstanding.popleft()
        if isinstance(first, First):
            return first
        none: list[int] = [0] * self.batch
        return Stepped(0, [[] for _ in none], 0.0, [[] for _ in none], none, none, failures)

    def clear(self, row: int) -> None:
        """See Step."""
        self._rows.pop(row, None)
        for pending in [one for one in self._outstanding if isinstance(one, _Prompt) and one.row == row]:
            self._outstanding.remove(pending)

    def _timer(self) -> Timer:
        return Timer(torch.device("cpu"))

    def _seconds(self, timer: Timer) -> float:
        """By the host's clock: what a row waits for, the device included."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        timer.stop()
        return timer.seconds()


def piece_tokens(weights: DecodeWeights) -> int:
    """Tokens of a piece of a long prompt, a multiple of LEAST_PIECE: as many as take any model about as long."""
    num_weights = sum(num_out * depth for num_out, depth in (matrix.shape for matrix in weights.matrices))
    return max(PIECE_PRODUCTS // num_weights // LEAST_PIECE, 1) * LEAST_PIECE


@dataclass(eq=False)
class _Prompt:
    """A prompt that is processed piece by piece.

    Attributes:
        row, number: its row, and the number of its beginning.
        begun, reader: what it will be a row of, and what its keys and values go to.
        ids: all of it.
        seconds: that it has taken so far.
        num_done: tokens so far.
    """

    row: int
    number: int
    begun: "_Row"
    reader: Reader
    ids: Sequence[int]
    seconds: float
    num_done: int = 0


class _Row:
    """One row's request: what it has written, and what may come next.

    Attributes:
        ids: the prompt and what was written.
        is_done: it is at its end.
        drawn, drawn_from, num_accepted: of the last pass: ids, what they were drawn from if the request asks for that,
            and how many of the ids are drafts.
    """

    def __init__(
        self, markers: Markers, request: PromptRequest, reader: Reader, max_new_tokens: int, vocab_size: int
    ) -> None:
        layout = request.prompt.prompt
        self._eos, self._request, self._reader, self._vocab_size = markers.eos, request, reader, vocab_size
        self._drafter = None if isinstance(request.drafter, DeviceDrafts) else request.drafter
        self._tracker = Tracker(markers, layout, request.annotated)
        self._num_prompt, self._end = layout.num_tokens, layout.num_tokens + max_new_tokens
        self._state: State | None = None
        self._drafts: Sequence[int] = ()
        self._draft_states: Sequence[State] = ()
        self.ids = list(request.prompt_ids)
        self.is_done = False
        self.drawn: list[int] = []
        self.drawn_from: list[torch.Tensor] = []
        self.num_accepted = 0

    def propose(self) -> Sequence[int]:
        """Drafts to verify behind the last id: as many as can go through one forward pass."""
        self._drafts, self._draft_states = (), ()
        drafter, state = self._drafter, self._state
        most = min(MAX_DRAFTS, self._end - len(self.ids) - 1)
        if drafter is None or state is None or most < 1:
            return ()
        drafts = drafter.propose(DraftState(self.ids, self._num_prompt, self._tracker, state), most)[:most]
        drafts, states = verifiable(drafts, self._tracker, state, self._vocab_size)
        rules = self._request.host_rules
        if rules is not None and self._request.forced_tokens is None:
            num = num_allowed(rules, drafts)
            drafts, states = drafts[:num], states[:num]
        self._drafts, self._draft_states = drafts, states
        return drafts

    def plan(self) -> tuple[Reader, int, int]:
        """Prepare the reader for the last id and its drafts; the reader, the first position, and how many tokens."""
        assert self._state is not None
        start, states = len(self.ids) - 1, [self._state, *self._draft_states]
        self._reader.plan(start, states)
        return self._reader, start, len(states)

    def draw(self, logits: torch.Tensor) -> None:
        """The next ids, up to the first that is not the draft in its place.

        Args:
            logits: `[1 + number of drafts, vocab_size]`, behind the last id and behind every draft.
        """
        self.drawn, self.drawn_from, self.num_accepted = [], [], 0
        likeliest = logits.argmax(-1).tolist() if self._is_plain else None
        for place in range(len(logits)):
            token, drawn_from = (likeliest[place], logits[place]) if likeliest else self._next(logits[place])
            self._state = self._tracker.push(token)
            self.ids.append(token)
            self.drawn.append(token)
            if self._request.with_logits:
                self.drawn_from.append(drawn_from)
            is_right = place < len(self._drafts) and self._drafts[place] == token
            self.is_done = token == self._eos or len(self.ids) >= self._end
            if self.is_done or not is_right:
                break
        # All but the last, which the pass would have brought without drafts, too.
        self.num_accepted = len(self.drawn) - 1

    @property
    def _is_plain(self) -> bool:
        """Whether the likeliest id is taken, whatever it is."""
        request = self._request
        is_free = request.host_rules is None and request.forced_tokens is None
        return is_free and sampling.is_greedy(request.sampling.temperature)

    def _next(self, logits: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The next id, and what it was drawn from, given logits `[vocab_size]`."""
        request = self._request
        if request.forced_tokens is not None:
            return request.forced_tokens[len(self.ids) - self._num_prompt], logits
        rules = request.host_rules
        if rules is not None:
            with rules_speak():
                limits = rules.limits()
            logits = sampling.narrow(logits, limits)
        drawn = request.sampling
        token = sampling.draw(logits, drawn.temperature, drawn.top_p, drawn.seed, len(self.ids) - 1)
        if rules is not None:
            with rules_speak():
                rules.push(token)
        return token, logits


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
        self._halves = (2, weights.model.head_dim // 2)
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
        num_turned = self._num_heads + self._num_kv_heads
        turned = qkv[:, :num_turned]
        other_halves = turned.unflatten(-1, self._halves).flip(-2).flatten(-2)
        turned = (turned * cosine + other_halves * sine).transpose(0, 1)[None]
        queries, keys = turned[:, : self._num_heads], turned[:, self._num_heads :]
        values = qkv[:, num_turned:].transpose(0, 1)[None]
        if len(self._rows) == 1:
            attended = self._rows[0][0].attend(layer, queries, keys, values, self._scale)
            return attended[0].transpose(0, 1)
        out, first = [], 0
        for reader, _, num in self._rows:
            mine = slice(first, first + num)
            out.append(reader.attend(layer, queries[:, :, mine], keys[:, :, mine], values[:, :, mine], self._scale))
            first += num
        return torch.cat(out, 2)[0].transpose(0, 1)
