"""An engine whose tokens come from a vLLM server: the same events, by the same account of ids. No torch here."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import KeptRules
from selfspan_core.engine.drafts import Drafter
from selfspan_core.engine.events import Account, Clock, Event, Measured, Prefilled
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.engine.stores import Attention
from selfspan_core.errors import ImplUnavailable, PromptError, ServerError
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import Drafts
from selfspan_core.serve.http_engine.answer import Part
from selfspan_core.serve.http_engine.served import Served
from selfspan_core.serve.vllm_plugin.client import Asked
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered

IMPL = "vllm"


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
        num_prompt, limit = request.prompt.prompt.num_tokens, self.model.max_context
        if num_prompt < 1:
            raise PromptError("the prompt is empty")
        if num_prompt >= limit:
            raise PromptError(f"the prompt has {num_prompt} tokens, and the served model's context holds {limit}")
        most = request.most_tokens
        return self._events(request, attention, limit - num_prompt if most is None else min(limit - num_prompt, most))

    def generate_among(
        self, request: PromptRequest, others: Iterable[Rendered], num_rows: int, attention: Attention = "dense"
    ) -> Iterator[Event]:
        """Not here: raises ImplUnavailable."""
        raise ImplUnavailable("a lane asks a vLLM server for one answer at a time")

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

    def _events(self, request: PromptRequest, attention: Attention, room: int) -> Iterator[Event]:
        layout = request.prompt.prompt
        account = Account(self.markers, layout, request.annotated, attention == "dense", self._clock)
        asked = Asked(request.prompt, attention)
        run = uuid.uuid4().hex
        body = asked.to_stream_json(self._served.name, request.sampling, room, self.markers.eos, run)
        at, finish, last = 0.0, None, None
        with closing(self._served.server.answer(body, room)) as answer:
            for part in answer:
                self._check_part(part, asked.prompt_ids, account)
                seconds, is_first = part.at - at, account.num_tokens == 0
                if part.ids:
                    at = part.at
                if part.ids and is_first:
                    account.seconds = seconds
                    yield Prefilled(layout.num_tokens, seconds)
                for token in part.ids:
                    account.follow(token)
                    yield account.token(token, 0.0 if is_first else seconds / len(part.ids))
                    yield from account.news()
                finish = part.finish or finish
                last = part
        yield from self._end(account, finish, last)

    def _check_part(self, part: Part, prompt_ids: list[int], account: Account) -> None:
        """Raise ServerError on ids that cannot be of this request."""
        if part.prompt is not None and list(part.prompt) != prompt_ids:
            raise ServerError("the vLLM server answers another prompt than the one that was sent")
        if part.ids and account.is_at_end:
            raise ServerError("the vLLM server went on behind the end of the answer")
        wrong = next((token for token in part.ids if token >= self.model.tokenizer.vocab_size), None)
        if wrong is not None or self.markers.eos in part.ids[:-1]:
            raise ServerError(
                f"the vLLM server wrote an id that its model does not have, or went on behind the end: {wrong}"
            )

    def _end(self, account: Account, finish: str | None, last: Part | None) -> Iterator[Event]:
        """The events behind the last token; a server that ended the answer for any other reason failed."""
        num = account.num_tokens
        if account.is_at_end != (finish == "stop") or finish not in ("stop", "length"):
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
