"""The engine: prefill once, then one token per step; yields typed events; knows ids, not text.

A run token by token reads top to bottom in `_Generation.events`; a captured one is the batch engine's. A run's clock
covers its own work only (forward, gather, drawing the token, tracker); time that the consumer spends between events is
in nobody's figures. Closing the generator frees everything that is not kept for the next run.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Literal

import torch

from selfspan_core.attention.backends import CAPTURED, require_impl
from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.readers import make_reader
from selfspan_core.engine import sampling
from selfspan_core.engine.batch_pool import BatchEngines, events_of_first
from selfspan_core.engine.events import Account, Event, Prefilled, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered

MAX_OTHER_PROMPT = 1024
"""Tokens of the prompts that are answered beside a shown one; they come one by one, so their rows are made for it."""


class Engine:
    """Generates with one model, dense or self-selected.

    Args:
        model: the model; never changed.
        markers: its tokenizer's marker ids.
    """

    def __init__(self, model: SpanModel, markers: Markers) -> None:
        self.model = model
        self.markers = markers
        self._batch_engines = BatchEngines(model, markers)

    def generate(
        self, request: PromptRequest, attention: Literal["dense", "sparse"] = "dense", impl: str = "gather"
    ) -> Iterator[Event]:
        """Answer a prompt, one event at a time.

        Args:
            request: what is asked; logits and rules not where `impl` is "captured".
            attention: "dense" reads everything, and uses the tracker for reporting only; "sparse" reads what the
                tracker says.
            impl: one of `backends.ENGINE_IMPLS`: "captured" for either lane; the others are implementations of the
                sparse lane, and the dense lane has one only.

        Returns:
            The events: Prefilled, then per token Token and its news, then Finished. Arguments are checked before the
            first event.

        Raises:
            PromptError: the prompt is empty or leaves no room in the context.
            ValueError: an argument that makes no sense.
            ImplUnavailable: `impl` cannot run on the model's device, or not with this model.
            RuntimeError: while iterating a captured run: another one of this engine with this attention is not over.
        """
        self._check(attention, impl)
        room = self._room(request)
        if impl == CAPTURED:
            if request.with_logits:
                raise ValueError("with_logits: a captured step keeps no logits")
            if request.rules is not None:
                raise ValueError("rules: a captured step draws on the device, several ids ahead of the host")
            rows = self._batch_engines.get(attention, 1, request.prompt.prompt.num_tokens + room)
            return events_of_first(rows, [request])
        account = Account(self.markers, request.prompt.prompt, request.annotated, attention == "dense")
        run = _Generation(self.model, account, attention, impl, request)
        return run.events(room)

    def generate_among(
        self,
        request: PromptRequest,
        others: Iterable[Rendered],
        num_rows: int,
        attention: Literal["dense", "sparse"] = "dense",
    ) -> Iterator[Event]:
        """Answer a prompt while other rows of the same captured steps answer other prompts.

        Arguments and errors as for `generate`; besides:

        Args:
            others: prompts that keep the other rows busy, with the same settings; one at a time, as rows become free.
            num_rows: prompts answered at once, this one included.

        Returns:
            The events of `request`, and OtherRows for what the others drew and cost; it ends when `request` is
            answered.

        Raises:
            ImplUnavailable: this device or model cannot be captured, or has no memory for so many rows.
        """
        self._check(attention, CAPTURED)
        num_prompt, room = request.prompt.prompt.num_tokens, self._room(request)
        longest = min(max(num_prompt, MAX_OTHER_PROMPT) + room, self.model.max_context)
        rows = self._batch_engines.get(attention, num_rows, longest)
        beside = (request.beside(number, other) for number, other in enumerate(others, start=1))
        return events_of_first(rows, itertools.chain([request], beside))

    def _check(self, attention: str, impl: str) -> None:
        if attention not in ("dense", "sparse"):
            raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
        if attention == "sparse" or impl == CAPTURED:
            require_impl(impl, self.model.device)

    def _room(self, request: PromptRequest) -> int:
        """Most tokens to write."""
        limit, num_prompt = self.model.max_context, request.prompt.prompt.num_tokens
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= limit:
            raise PromptError(f"the prompt has {num_prompt} tokens, and the model's context holds {limit}")
        most = request.most_tokens
        return limit - num_prompt if most is None else min(limit - num_prompt, most)


class _Draw:
    """Logits to the next id: greedy, sampled from an own random generator, or replayed; within rules, if any."""

    def __init__(self, device: torch.device, request: PromptRequest) -> None:
        self._device = device
        self._sampling, self._rules = request.sampling, request.rules
        self._forced = iter(request.forced_tokens) if request.forced_tokens is not None else None
        is_greedy = sampling.is_greedy(request.sampling.temperature)
        self._generator = None if is_greedy else torch.Generator(device).manual_seed(request.sampling.seed)

    def __call__(self, logits: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The next id, for the tracker and, int64 `[1, 1]` on the device, for the model. Waits for the device."""
        if self._forced is not None:
            token = next(self._forced)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            return token, torch.tensor([[token]], device=self._device)
        if self._rules is not None:
            logits = sampling.narrow(logits, self._rules.limits())
        if self._generator is None:
            ids = logits.argmax().view(1, 1)
        else:
            probabilities = sampling.probabilities(logits, self._sampling.temperature, self._sampling.top_p)
            ids = torch.multinomial(probabilities, 1, generator=self._generator).view(1, 1)
        token = ids.item()
        if self._rules is not None:
            self._rules.push(token)
        return token, ids


class _Generation:
    """One generation: cache, account, and the token that is the next query."""

    def __init__(self, model: SpanModel, account: Account, attention: str, impl: str, request: PromptRequest) -> None:
        self._model = model
        self._account = account
        self._attention, self._impl = attention, impl
        self._request = request
        self._draw = _Draw(model.device, request)

    def events(self, room: int) -> Iterator[Event]:
        """See Engine.generate. `room`: most tokens to write."""
        prompt_ids = self._request.prompt_ids
        self._prefill(prompt_ids, room)
        account = self._account
        yield Prefilled(len(prompt_ids), account.seconds)
        while account.num_tokens < room and not account.is_at_end:
            yield self._step()
            yield from account.news()
        yield account.finished("eos" if account.is_at_end else "length")

    @torch.inference_mode()
    def _prefill(self, prompt_ids: list[int], room: int) -> None:
        started = time.perf_counter()
        model = self._model
        cache = model.new_cache(len(prompt_ids) + room)
        self._reader = make_reader(self._attention, self._impl, cache, model.device)
        self._reader.plan(0, None)
        ids = torch.tensor([prompt_ids], device=model.device)
        self._forward(ids, 0)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        self._account.seconds += time.perf_counter() - started

    @torch.inference_mode()
    def _step(self) -> Token:
        """Feed the last token, if there is one, and draw the next."""
        started = time.perf_counter()
        state = self._account.state
        if state is not None:
            self._reader.plan(state.position, state)
            self._forward(self._ids, state.position)
        token, self._ids = self._draw(self._logits)
        self._account.follow(token)
        seconds = time.perf_counter() - started
        return self._account.token(token, seconds, self._logits if self._request.with_logits else None)

    def _forward(self, ids: torch.Tensor, start: int) -> None:
        with length_free_kernels(self._model.device):
            self._logits = self._model.forward_logits(ids, start, self._reader)
