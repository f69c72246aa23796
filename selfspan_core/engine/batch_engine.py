"""Many requests through a fixed number of rows: whatever row is free takes the next request, and none disturbs another.

The same events as from the engine of one sequence, each with the number of its request. A request that fails, fails
alone; if the device is lost, all do, and the engine says so from then on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from selfspan_core.engine.batch_step import BatchStep, First, Stepped
from selfspan_core.engine.events import Account, Event, Failed, Prefilled
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import EngineLost, PromptError
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers

NUM_AHEAD = 4
"""Steps that the host launches ahead of the one whose ids it reads."""


@dataclass
class _Active:
    """A row's request."""

    number: int
    account: Account
    room: int
    num_prompt: int
    begun: int  # the beginning that counts; and steps launched before it are not the row's
    num_expected: int = 1  # ids drawn and on their way


class BatchEngine:
    """Answers requests in so many rows at a time.

    Args:
        weights: the model's.
        markers: its tokenizer's marker ids.
        batch: rows.
        capacity: positions of each row, prompt and answer together; at most the model's context.
        attention: "dense" or "sparse".

    Attributes:
        batch, capacity: as given.
        num_step_tokens: ids that the steps of the running `generate` drew so far, in all rows; all of a step's ids
            count before the first of them is reported.

    Raises:
        ValueError: an argument that makes no sense.
        ImplUnavailable: on CUDA, the kernels cannot serve this model.
        torch.OutOfMemoryError: the cache does not fit.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        batch: int,
        capacity: int,
        attention: Literal["dense", "sparse"] = "sparse",
    ) -> None:
        if attention not in ("dense", "sparse"):
            raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
        if batch < 1:
            raise ValueError(f"batch is 1 or more, not {batch}")
        if not 2 <= capacity <= weights.model.max_context:
            raise ValueError(f"capacity is 2 to {weights.model.max_context} for this model, not {capacity}")
        self.batch, self.capacity = batch, capacity
        self.num_step_tokens = 0
        self._markers, self._is_dense = markers, attention == "dense"
        self._step = BatchStep(weights, markers, batch, capacity, self._is_dense)
        self._active: dict[int, _Active] = {}
        self._is_busy = False
        self._lost: EngineLost | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the device failed under this engine: it answers nothing any more."""
        return self._lost is not None

    def generate(self, requests: Iterable[PromptRequest]) -> Iterator[tuple[int, Event]]:
        """Answer requests, in their order as rows become free.

        Args:
            requests: any number; the next one is asked for when a row is free.

        Returns:
            (number of the request, event): Prefilled, then per token Token and its news, then Finished; or Failed in
            place of what would have followed. Closing the iterator frees all rows.

        Raises:
            RuntimeError: another call of this method is not over yet.
            EngineLost: the device failed, before or meanwhile.
        """
        if self._lost is not None:
            raise self._lost
        self._require_free()
        return self._run(iter(requests))

    def _require_free(self) -> None:
        if self._is_busy:
            raise RuntimeError("this engine answers other requests already: close their iterator first")

    def _run(self, requests: Iterator[PromptRequest]) -> Iterator[tuple[int, Event]]:
        self._require_free()
        self._is_busy = True
        self.num_step_tokens = 0
        waiting = enumerate(requests)
        is_more = True
        try:
            while is_more or self._active or self._step.num_outstanding:
                while is_more and len(self._active) < self.batch:
                    number, request = next(waiting, (None, None))
                    is_more = number is not None
                    if is_more:
                        failed = self._admit(number, request)
                        if self._lost is not None:
                            yield from self._fail_all()
                        if failed is not None:
                            yield number, failed
                        if self._lost is not None:
                            raise self._lost
                outcome = self._next_outcome()
                if self._lost is not None:
                    yield from self._fail_all()
                    raise self._lost
                if outcome is not None:
                    yield from self._report(outcome)
        finally:
            self._is_busy = False
            self._free_all()

    def _next_outcome(self) -> First | Stepped | None:
        """Launch what is to be launched, and take what is done first; nothing if the device is lost."""
        try:
            self._launch()
            return self._step.collect() if self._step.num_outstanding else None
        except RuntimeError as error:
            self._lost = _lost(error)
            return None

    def _free_all(self) -> None:
        """All rows; what is on its way is waited for, so that nothing of it reaches the next requests."""
        try:
            for row in list(self._active):
                self._free(row)
            while self._lost is None and self._step.num_outstanding:
                self._step.collect()
        except RuntimeError as error:
            self._lost = _lost(error)
            self._active.clear()

    def _admit(self, number: int, request: PromptRequest) -> Failed | None:
        """Begin a request in a free row; or why not."""
        row = next(row for row in range(self.batch) if row not in self._active)
        layout = request.prompt.prompt
        try:
            room = self._room(request)
            begun = self._step.begin(row, request, room)
        except (ValueError, TypeError, KeyError, torch.OutOfMemoryError) as error:
            return Failed(error)
        except RuntimeError as error:
            self._lost = _lost(error)
            return Failed(self._lost)
        account = Account(self._markers, layout, request.annotated, self._is_dense)
        self._active[row] = _Active(number, account, room, layout.num_tokens, begun)
        return None

    def _room(self, request: PromptRequest) -> int:
        """Most ids that a request may draw."""
        num_prompt = request.prompt.prompt.num_tokens
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= self.capacity:
            raise PromptError(f"the prompt has {num_prompt} tokens, and a row holds {self.capacity}")
        if request.rules is not None or request.with_logits:
            raise ValueError("a step of many rows knows neither rules nor logits of one of them")
        self._check_ids("the prompt", request.prompt_ids)
        self._check_ids("forced_tokens", request.forced_tokens or ())
        most = request.most_tokens
        return self.capacity - num_prompt if most is None else min(self.capacity - num_prompt, most)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        vocab_size = self._step.model.vocab_size
        wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"{name} holds the id {wrong}, and the model's ids are 0 to {vocab_size - 1}")

    def _launch(self) -> None:
        """Steps ahead of the device, as long as a row may still need one."""
        while self._step.num_outstanding < NUM_AHEAD:
            if all(active.num_expected >= active.room for active in self._active.values()):
                return
            self._step.launch()
            for active in self._active.values():
                active.num_expected += 1

    def _report(self, outcome: First | Stepped) -> Iterator[tuple[int, Event]]:
        if isinstance(outcome, First):
            active = self._active.get(outcome.row)
            if active is not None and active.begun == outcome.begun:
                yield from _of(active, self._begun(active, outcome))
            return
        self.num_step_tokens += sum(outcome.number > active.begun for active in self._active.values())
        for row, token in enumerate(outcome.ids):
            active = self._active.get(row)
            if active is not None and outcome.number > active.begun:
                yield from _of(active, self._token(row, active, token, outcome.seconds))

    def _begun(self, active: _Active, outcome: First) -> Iterator[Event]:
        active.account.seconds = outcome.seconds
        yield Prefilled(active.num_prompt, outcome.seconds)
        yield from self._token(outcome.row, active, outcome.id, 0.0)

    def _token(self, row: int, active: _Active, token: int, seconds: float) -> Iterator[Event]:
        account = active.account
        account.follow(token)
        yield account.token(token, seconds)
        yield from account.news()
        if account.is_at_end or account.num_tokens >= active.room:
            # The device has made the row idle by itself.
            del self._active[row]
            yield account.finished("eos" if account.is_at_end else "length")

    def _free(self, row: int) -> None:
        del self._active[row]
        if self._lost is None:
            self._step.clear(row)

    def _fail_all(self) -> Iterator[tuple[int, Event]]:
        active, self._active = self._active, {}
        for one in active.values():
            yield one.number, Failed(self._lost)


def _of(active: _Active, events: Iterator[Event]) -> Iterator[tuple[int, Event]]:
    """Events with the number of their request."""
    for event in events:
        yield active.number, event


def _lost(error: RuntimeError) -> EngineLost:
    lost = EngineLost(f"the device failed, and this engine cannot go on: {error}")
    lost.__cause__ = error
    return lost
