"""The one decode loop: many requests through the rows of a step; a free row takes the next request.

A row's events do not depend on the others. A request that fails, fails alone; if the device is lost, all do, and the
loop says so from then on. Seconds in events are of the step's clock; the time that the consumer spends between events
is in nobody's figures.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from selfspan_core.engine.events import Account, Event, Failed, Prefilled, PromptPart
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.step import First, Pending, Step, Stepped
from selfspan_core.errors import EngineLost, ImplUnavailable, PromptError


@dataclass
class _Active:
    """A row's request."""

    number: int
    account: Account | None  # of one that is watched
    room: int
    num_prompt: int
    begun: int  # the beginning that counts; and steps launched before it are not the row's
    num_pending: int = 1  # beginnings and steps on their way, each of which brings one id or more
    num_tokens: int = 0
    told_s: float = 0.0  # of its prompt, in events so far


class DecodeLoop:
    """Answers requests in the rows of a step.

    Args:
        step: makes the tokens.

    Attributes:
        batch, capacity: the step's.
        num_step_tokens: ids that the steps of the running `generate` drew so far, in all rows; all of a step's ids
            count before the first of them is reported.
        num_row_tokens: of these, by request, the ids of requests that are not finished.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.batch, self.capacity = step.batch, step.capacity
        self.num_step_tokens = 0
        self.num_row_tokens: Counter[int] = Counter()
        self._active: dict[int, _Active] = {}
        self._is_busy = False
        self._lost: EngineLost | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the device failed under this loop: it answers nothing any more."""
        return self._lost is not None

    def generate(self, requests: Iterable[PromptRequest]) -> Generator[tuple[int, Event], None, None]:
        """Answer requests, in their order as rows become free.

        Args:
            requests: any number; the next one is asked for when a row is free.

        Returns:
            (number of the request, event): Prefilled, then per token Token and its news, then Finished; or Failed in
            place of what would have followed. Before Prefilled, PromptPart for pieces of a long prompt. Of a request
            that nobody watches PromptPart and Prefilled alone, or Failed. Closing the iterator frees all rows.

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

    def _run(self, requests: Iterator[PromptRequest]) -> Generator[tuple[int, Event], None, None]:
        self._require_free()
        self._is_busy = True
        self.num_step_tokens = 0
        self.num_row_tokens.clear()
        waiting = enumerate(requests)
        is_more = True
        try:
            while is_more or self._active or self._step.num_outstanding:
                while is_more and len(self._active) < self.batch:
                    number, request = next(waiting, (None, None))
                    is_more = number is not None
                    if number is not None and request is not None:
                        failed = self._admit(number, request)
                        if self._lost is not None:
                            yield from self._fail_all(self._lost)
                        if failed is not None:
                            yield number, failed
                        if self._lost is not None:
                            raise self._lost
                outcome = self._next_outcome()
                if self._lost is not None:
                    yield from self._fail_all(self._lost)
                    raise self._lost
                if outcome is not None:
                    yield from self._report(outcome)
        finally:
            self._is_busy = False
            self._free_all()

    def _next_outcome(self) -> First | Stepped | Pending | None:
        """Launch what is to be launched, and take what is done first; nothing if the device is lost."""
        try:
            self._launch()
            return self._step.collect() if self._step.num_outstanding else None
        except ImplUnavailable:
            raise
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
        except Exception as error:
            if isinstance(error, RuntimeError) and not isinstance(error, ImplUnavailable | torch.OutOfMemoryError):
                self._lost = _lost(error)
                return Failed(self._lost)
            self._step.clear(row)  # it may have begun
            return Failed(error)
        step = self._step
        account = None
        if request.is_watched:
            account = Account(step.markers, layout, request.annotated, step.is_dense, step.clock)
        self._active[row] = _Active(number, account, room, layout.num_tokens, begun)
        return None

    def _room(self, request: PromptRequest) -> int:
        """Most ids that a request may draw."""
        num_prompt = request.prompt.prompt.num_tokens
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= self.capacity:
            raise PromptError(f"the prompt has {num_prompt} tokens, and a row holds {self.capacity}")
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
        """Steps ahead of the one that is read next, as long as a row may still need one."""
        while self._step.num_outstanding < self._step.num_ahead:
            if all(active.num_tokens + active.num_pending >= active.room for active in self._active.values()):
                return
            self._step.launch()
            for active in self._active.values():
                active.num_pending += 1

    def _report(self, outcome: First | Stepped | Pending) -> Iterator[tuple[int, Event]]:
        if not isinstance(outcome, Stepped):
            active = self._active.get(outcome.row)
            if active is not None and active.begun == outcome.begun:
                yield from _of(active, self._begun(active, outcome))
            return
        concerned = [(row, active) for row, active in self._active.items() if outcome.number > active.begun]
        for row, active in concerned:
            active.num_pending -= 1
            self.num_step_tokens += len(outcome.tokens[row])
            self.num_row_tokens[active.number] += len(outcome.tokens[row])
        for row, error in outcome.failures.items():
            failed = self._active.pop(row, None)
            if failed is not None:
                self.num_row_tokens.pop(failed.number, None)
                yield failed.number, Failed(error)
        for row, active in concerned:
            if self._active.get(row) is not active:  # the consumer may have closed others meanwhile
                continue
            if active.account is None:
                self._count(row, active, outcome.tokens[row])
            else:
                yield from _of(active, self._stepped(row, active, active.account, outcome))

    def _begun(self, active: _Active, outcome: First | Pending) -> Iterator[Event]:
        if isinstance(outcome, Pending):
            seconds, active.told_s = outcome.seconds - active.told_s, outcome.seconds
            yield PromptPart(outcome.num_done, seconds)
            return
        active.num_pending -= 1
        yield Prefilled(active.num_prompt, outcome.seconds, active.told_s)
        if active.account is None:
            self._count(outcome.row, active, [outcome.id])
            return
        active.account.seconds = outcome.seconds
        yield from self._token(outcome.row, active, active.account, outcome.id, 0.0, outcome.logits)

    def _count(self, row: int, active: _Active, tokens: Sequence[int]) -> None:
        """Take in the ids of a row that nobody watches: following what they mean takes longer than a step."""
        active.num_tokens += len(tokens)
        if self._step.markers.eos in tokens[-1:] or active.num_tokens >= active.room:
            self._is_done(row, active)

    def _is_done(self, row: int, active: _Active) -> None:
        """A request is at its end; the step has made the row idle by itself."""
        del self._active[row]
        self.num_row_tokens.pop(active.number, None)

    def _stepped(self, row: int, active: _Active, account: Account, outcome: Stepped) -> Iterator[Event]:
        tokens, logits = outcome.tokens[row], outcome.logits[row]
        account.passed(outcome.num_drafted[row])
        for place, token in enumerate(tokens):
            seconds, is_draft = outcome.seconds / len(tokens), place < outcome.num_accepted[row]
            yield from self._token(row, active, account, token, seconds, logits[place] if logits else None, is_draft)

    def _token(
        self,
        row: int,
        active: _Active,
        account: Account,
        token: int,
        seconds: float,
        logits: torch.Tensor | None,
        is_draft: bool = False,
    ) -> Iterator[Event]:
        account.follow(token)
        active.num_tokens += 1
        yield account.token(token, seconds, logits, is_draft)
        yield from account.news()
        if account.is_at_end or active.num_tokens >= active.room:
            self._is_done(row, active)
            yield account.finished("eos" if account.is_at_end else "length")

    def _free(self, row: int) -> None:
        del self._active[row]
        if self._lost is None:
            self._step.clear(row)

    def _fail_all(self, lost: EngineLost) -> Iterator[tuple[int, Event]]:
        active, self._active = self._active, {}
        for one in active.values():
            yield one.number, Failed(lost)


def _of(active: _Active, events: Iterator[Event]) -> Iterator[tuple[int, Event]]:
    """Events with the number of their request."""
    for event in events:
        yield active.number, event


def _lost(error: RuntimeError) -> EngineLost:
    lost = EngineLost(f"a step failed on the device, and this engine cannot go on: {error}")
    lost.__cause__ = error
    return lost
