"""The engine: prefill once, then one token per step; yields typed events; knows ids, not text.

A run token by token reads top to bottom in `_Generation.events`; a captured one is the batch engine's. A run's clock
covers its own work only (forward, gather, drawing the token, tracker); time that the consumer spends between events is
in nobody's figures. Closing the generator frees everything that is not kept for the next run.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from selfspan_core.attention.backends import CAPTURED, require_impl
from selfspan_core.attention.fused import length_free_kernels
from selfspan_core.attention.readers import make_reader
from selfspan_core.engine import sampling
from selfspan_core.engine.batch_engine import MAX_SEEDS, PromptError, Request
from selfspan_core.engine.batch_pool import BatchEngines, events_of_first
from selfspan_core.engine.events import Account, Event, Prefilled, Token
from selfspan_core.engine.rules import Rules
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
        self,
        prompt: Rendered,
        attention: Literal["dense", "sparse"] = "dense",
        impl: str = "gather",
        annotated: bool = True,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        forced_tokens: Sequence[int] | None = None,
        with_logits: bool = False,
        rules: Rules | None = None,
    ) -> Iterator[Event]:
        """Answer a prompt, one event at a time.

        Args:
            prompt: a rendered prompt; only `ids` up to `prompt.num_tokens` are used.
            attention: "dense" reads everything, and uses the tracker for reporting only; "sparse" reads what the
                tracker says.
            impl: one of `backends.ENGINE_IMPLS`: "captured" for either lane; the others are implementations of the
                sparse lane, and the dense lane has one only.
            annotated: whether the model is to write steps (a plain adapter does not: its text is not malformed).
            max_new_tokens: most tokens to write; None: up to the context limit.
            temperature: 0 is greedy, above it tokens are sampled.
            top_p: draw only from the likeliest ids that hold so much of the probability, 1 for all; see `sampling`.
            seed: of the run's own random generator.
            forced_tokens: write these ids instead of drawing, for tests and measurements.
            with_logits: attach to each Token the logits that it was drawn from; not where `impl` is "captured".
            rules: what may be written next, id by id; not where `impl` is "captured". Of this run alone.

        Returns:
            The events: Prefilled, then per token Token and its news, then Finished. Arguments are checked before the
            first event.

        Raises:
            PromptError: the prompt is empty or leaves no room in the context.
            ValueError: an argument that makes no sense.
            ImplUnavailable: `impl` cannot run on the model's device, or not with this model.
            RuntimeError: while iterating a captured run: another one of this engine with this attention is not over.
        """
        self._check(attention, impl, temperature, top_p)
        room = self._room(prompt.prompt.num_tokens, max_new_tokens, forced_tokens)
        if impl == CAPTURED:
            if with_logits:
                raise ValueError("with_logits: a captured step keeps no logits")
            if rules is not None:
                raise ValueError("rules: a captured step draws on the device, several ids ahead of the host")
            request = Request(prompt, annotated, room, temperature, top_p, seed, forced_tokens)
            rows = self._batch_engines.get(attention, 1, prompt.prompt.num_tokens + room)
            return events_of_first(rows, [request])
        draw = _Draw(self.model.device, temperature, top_p, seed, forced_tokens, rules)
        account = Account(self.markers, prompt.prompt, annotated, attention == "dense")
        run = _Generation(self.model, account, attention, impl, draw, with_logits)
        return run.events(prompt.ids[: prompt.prompt.num_tokens], room)

    def generate_among(
        self,
        prompt: Rendered,
        others: Iterable[Rendered],
        num_rows: int,
        attention: Literal["dense", "sparse"] = "dense",
        annotated: bool = True,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Event]:
        """Answer a prompt while other rows of the same captured steps answer other prompts.

        Arguments and errors as for `generate`; besides:

        Args:
            others: prompts that keep the other rows busy, with the same settings; one at a time, as rows become free.
            num_rows: prompts answered at once, this one included.

        Returns:
            The events of `prompt`, and OtherRows for what the others drew and cost; it ends when `prompt` is answered.

        Raises:
            ImplUnavailable: this device or model cannot be captured, or has no memory for so many rows.
        """
        self._check(attention, CAPTURED, temperature, top_p)
        num_prompt = prompt.prompt.num_tokens
        room = self._room(num_prompt, max_new_tokens, None)
        longest = min(max(num_prompt, MAX_OTHER_PROMPT) + room, self.model.max_context)
        rows = self._batch_engines.get(attention, num_rows, longest)
        requests = (
            Request(one, annotated, max_new_tokens, temperature, top_p, (seed + number) % MAX_SEEDS)
            for number, one in enumerate(itertools.chain([prompt], others))
        )
        return events_of_first(rows, requests)

    def _check(self, attention: str, impl: str, temperature: float, top_p: float) -> None:
        if attention not in ("dense", "sparse"):
            raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
        if attention == "sparse" or impl == CAPTURED:
            require_impl(impl, self.model.device)
        sampling.check(temperature, top_p)

    def _room(self, num_prompt: int, max_new_tokens: int | None, forced_tokens: Sequence[int] | None) -> int:
        """Most tokens to write."""
        limit = self.model.max_context
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= limit:
            raise PromptError(f"the prompt has {num_prompt} tokens, and the model's context holds {limit}")
        room = limit - num_prompt
        if max_new_tokens is not None:
            if max_new_tokens < 1:
                raise ValueError(f"max_new_tokens is 1 or more, not {max_new_tokens}")
            room = min(room, max_new_tokens)
        if forced_tokens is not None:
            if not forced_tokens:
                raise ValueError("forced_tokens is empty")
            room = min(room, len(forced_tokens))
        return room


class _Draw:
    """Logits to the next id: greedy, sampled from an own random generator, or replayed; within rules, if any."""

    def __init__(
        self,
        device: torch.device,
        temperature: float,
        top_p: float,
        seed: int,
        forced: Sequence[int] | None,
        rules: Rules | None = None,
    ) -> None:
        self._device = device
        self._temperature, self._top_p = temperature, top_p
        self._forced = iter(forced) if forced is not None else None
        self._rules = rules
        self._generator = None if sampling.is_greedy(temperature) else torch.Generator(device).manual_seed(seed)

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
            probabilities = sampling.probabilities(logits, self._temperature, self._top_p)
            ids = torch.multinomial(probabilities, 1, generator=self._generator).view(1, 1)
        token = ids.item()
        if self._rules is not None:
            self._rules.push(token)
        return token, ids


class _Generation:
    """One generation: cache, account, and the token that is the next query."""

    def __init__(
        self, model: SpanModel, account: Account, attention: str, impl: str, draw: _Draw, with_logits: bool
    ) -> None:
        self._model = model
        self._account = account
        self._attention, self._impl = attention, impl
        self._draw = draw
        self._with_logits = with_logits

    def events(self, prompt_ids: list[int], room: int) -> Iterator[Event]:
        """See Engine.generate. `room`: most tokens to write."""
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
        return self._account.token(token, seconds, self._logits if self._with_logits else None)

    def _forward(self, ids: torch.Tensor, start: int) -> None:
        with length_free_kernels(self._model.device):
            self._logits = self._model.forward_logits(ids, start, self._reader)
