"""An engine whose tokens come from a vLLM server: the same events, by the same account of ids. No torch here."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import KeptRules
from selfspan_core.engine.drafts import Drafter
from selfspan_core.engine.events import Account, Clock, Event, Measured, OtherRows, Prefilled, Waiting
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.engine.stores import Attention
from selfspan_core.errors import ImplUnavailable, PromptError, ServerError
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import Drafts
from selfspan_core.serve.http_engine.answer import LOOK_S, NOTHING, Answer, Part
from selfspan_core.serve.http_engine.beside import Beside
from selfspan_core.serve.http_engine.served import Served
from selfspan_core.serve.vllm_plugin.client import Asked
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered

IMPL = "vllm"
Ask = Callable[[], Answer]
"""Begins a request."""


@dataclass(frozen=True)
class ServedModel:
    """What is known here of a model that is served elsewhere; see `engine.stores.LaneModel`."""

    tokenizer: SpanTokenizer
    max_context: int
    bytes_per_token: int | None = None


class ServedEngine:
    """Generates on a server; see `engine.stores.LaneEngine`.

    Args:
        served: the server and its model.
        tokenizer: of that model.
        clock: of the seconds in its events: "server" or "arrival".
    """

    def __init__(self, served: Served, tokenizer: SpanTokenizer, clock: Clock) -> None:
        self.model = ServedModel(tokenizer, served.max_context)
        self.markers: Markers = tokenizer.markers
        self._served, self._clock = served, clock

    def rules(self, rules: Rules | None, impl: str = IMPL) -> KeptRules:
        """None are kept."""
        return KeptRules(None)

    def drafter(
        self,
        request: PromptRequest,
        hints: DraftHints,
        drafts: Drafts,
        attention: Attention = "dense",
        impl: str = IMPL,
    ) -> Drafter | DeviceDrafts | None:
        """Nothing is drafted."""
        return None

    def generate(self, request: PromptRequest, attention: Attention = "dense", impl: str = IMPL) -> Iterator[Event]:
        """Answer a prompt, one event at a time; closing the iterator ends the request on the server.

        Args:
            request: what is asked, without rules, drafts, forced tokens and logits.
            attention: "dense" reads everything; "sparse" reads what the answer declares.
            impl: the server's.

        Raises:
            PromptError: the prompt is empty or leaves no room in the context.
            ImplUnavailable: the request asks for what a server does not do.
            ServerError: while iterating, of the server, or of a stream that goes wrong.
        """
        self._check(request)
        self._room(request)
        return self._events(request, attention, None)

    def generate_among(
        self, request: PromptRequest, others: Iterable[Rendered], num_rows: int, attention: Attention = "dense"
    ) -> Iterator[Event]:
        """Answer a prompt while the server answers others; it begins when all of those are under way.

        Arguments and errors as for `generate`; besides:

        Args:
            others: prompts of the other requests, endless; one at a time, as requests end.
            num_rows: requests at once, this one included.

        Returns:
            The events of `request`, and OtherRows for what the others drew. What their prompts cost cannot be told
            apart: it is in this one's times.
        """
        self._check(request)
        self._room(request)
        asks = (self._ask(request.beside(number, other), attention) for number, other in enumerate(others, start=1))
        return self._among(request, attention, asks, num_rows - 1)

    def _among(
        self, request: PromptRequest, attention: Attention, asks: Iterator[Ask], num_others: int
    ) -> Iterator[Event]:
        with Beside(asks, num_others) as beside:
            while not beside.begun_within(LOOK_S):
                yield Waiting()
            beside.taken()
            yield from self._events(request, attention, beside)

    def _ask(self, request: PromptRequest, attention: Attention) -> Ask:
        """What begins a request."""
        room = self._room(request)
        served, asked, run = self._served, Asked(request.prompt, attention), uuid.uuid4().hex
        body = asked.to_stream_json(
            served.name, request.sampling, room, self.markers.eos, run, with_seed=served.takes_seeds
        )
        return lambda: served.server.answer(body, room)

    def _room(self, request: PromptRequest) -> int:
        """Most tokens to write."""
        num_prompt, limit, most = request.prompt.prompt.num_tokens, self.model.max_context, request.most_tokens
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= limit:
            raise PromptError(f"the prompt has {num_prompt} tokens, and the served model's context holds {limit}")
        return limit - num_prompt if most is None else min(limit - num_prompt, most)

    def _check(self, request: PromptRequest) -> None:
        wanted = {
            "rules while decoding": request.rules is not None,
            "drafts": request.drafter is not None,
            "forced tokens": request.forced_tokens is not None,
            "logits": request.with_logits,
            "headers that see an index": request.prompt.prompt.head_tokens is not None,
        }
        for name, is_wanted in wanted.items():
            if is_wanted:
                raise ImplUnavailable(f"a vLLM server is not asked for {name}: run this model here, without an engine")

    def _events(self, request: PromptRequest, attention: Attention, beside: Beside | None) -> Iterator[Event]:
        layout = request.prompt.prompt
        account = Account(self.markers, layout, request.annotated, attention == "dense", self._clock)
        at, finish, last = 0.0, None, None
        with closing(self._ask(request, attention)()) as answer:
            for part in answer:
                if part is NOTHING:
                    yield Waiting()
                    continue
                self._check_part(part, request.prompt_ids, account)
                num_others = 0 if beside is None else beside.taken()
                seconds, is_first = part.at - at, account.num_tokens == 0
                if part.ids:
                    at = part.at
                if part.ids and is_first:
                    account.seconds = seconds
                    yield Prefilled(layout.num_tokens, seconds)
                elif num_others:
                    yield OtherRows(num_others, 0.0)
                for token in part.ids:
                    account.follow(token)
                    yield account.token(token, 0.0 if is_first else seconds / len(part.ids))
                    yield from account.news()
                finish, last = part.finish or finish, part
        yield from self._end(account, finish, last)

    def _check_part(self, part: Part, prompt_ids: list[int], account: Account) -> None:
        """Raise ServerError on ids that cannot be of this request."""
        if part.prompt is not None and list(part.prompt) != prompt_ids:
            raise ServerError("the vLLM server answers another prompt than the one that was sent")
        if (part.ids and account.is_at_end) or self.markers.eos in part.ids[:-1]:
            raise ServerError("the vLLM server went on behind the end of the answer")
        wrong = next((token for token in part.ids if token >= self.model.tokenizer.vocab_size), None)
        if wrong is not None:
            raise ServerError(f"the vLLM server wrote an id that its model does not have: {wrong}")

    def _end(self, account: Account, finish: str | None, last: Part | None) -> Iterator[Event]:
        """The events behind the last token; a server that ended the answer for any other reason failed."""
        num = account.num_tokens
        if not (account.is_at_end and finish == "stop") and finish != "length":
            raise ServerError(f"the vLLM server ended the answer after {num} tokens, and not at its end ({finish})")
        if last is None or last.num_tokens != num:
            raise ServerError(f"the vLLM server wrote other tokens than the {num} that arrived: run it again")
        if self._clock == "server":
            if last.times is None:
                raise ServerError(
                    "the vLLM server said nothing of this answer's times, and did of others: start this anew"
                )
            account.seconds = sum(last.times)
            yield Measured(*last.times)
        yield account.finished("eos" if account.is_at_end else "length")
