"""The engine of one model: a prompt in, typed events out; knows ids, not text.

Whatever the implementation, the events are those of the decode loop (`decode_loop`): over a step that the host decides
(`host_step`), or over one that is captured in a CUDA graph (`batch_step`). Closing the generator frees everything that
is not kept for the next run.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

from selfspan_core.attention.backends import require_impl
from selfspan_core.attention.impls import CAPTURED
from selfspan_core.engine.batch_pool import BatchEngines, events_of_first
from selfspan_core.engine.cpu_ops import host_ops
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import HostOnly, KeptRules, Tabled
from selfspan_core.engine.drafters import drafter
from selfspan_core.engine.drafts import Drafter, PassCosts
from selfspan_core.engine.events import Event
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.host_step import HostKept, HostStep
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.errors import ImplUnavailable, PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.params import Drafts
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered

MAX_OTHER_PROMPT = 1024
"""Tokens of the prompts that are answered beside a shown one; they come one by one, so their rows are made for it."""


class Engine:
    """Generates with one model, dense or self-selected.

    Args:
        model: the model; never changed.
        markers: its tokenizer's marker ids.

    Raises:
        ModelError: the model has something that the decode step does not know.
    """

    def __init__(self, model: SpanModel, markers: Markers) -> None:
        self.model = model
        self.markers = markers
        self._batch_engines = BatchEngines(model.weights, markers)
        ops = host_ops(model.weights)
        self._kept = {attention: HostKept(ops, PassCosts()) for attention in ("dense", "sparse")}

    def rules(self, rules: Rules | None, impl: str = "gather") -> KeptRules:
        """A run's rules in the form in which `impl` keeps them: captured steps without the host, where that can be.

        Args:
            rules: of the run.
            impl: as for `generate`.
        """
        if rules is None or impl != CAPTURED:
            return KeptRules(rules)
        if not isinstance(rules, Tabled):
            return KeptRules(rules, "the task has no tables of them")
        form = rules.on_device()
        return KeptRules(rules, form.reason) if isinstance(form, HostOnly) else KeptRules(form)

    def drafter(
        self,
        request: PromptRequest,
        hints: DraftHints,
        drafts: Drafts,
        attention: Literal["dense", "sparse"] = "dense",
        impl: str = "gather",
    ) -> Drafter | DeviceDrafts | None:
        """What drafts one run of `generate`, or of `generate_among`: there all rows, unless they have rules.

        Captured steps draft by themselves; but where the host keeps a request's rules, it drafts, too. Where headers
        see an index they verify none.

        Args:
            request: what is asked, rules included, in the form that `rules` gives them.
            hints: of the task.
            drafts: "off"; "auto": as many as pay; a number: at most so many, whether they pay or not.
            attention, impl: as for `generate`.

        Raises:
            ImplUnavailable: a number of drafts, of which captured steps verify none.
        """
        if impl == CAPTURED and attention == "sparse" and request.sees_index:
            # The table of a drafted step has no room for an index yet.
            if drafts in ("off", "auto"):
                return None
            raise ImplUnavailable("drafts: captured steps verify none where headers see an index; choose off or auto")
        if impl == CAPTURED and drafts != "off" and request.host_rules is None:
            return DeviceDrafts(hints, None if drafts == "auto" else drafts)
        # A captured step's size is chosen for all rows: there every draft is worth verifying.
        kept = self._kept[attention]
        if impl == CAPTURED:
            return drafter(self.markers, request.annotated, hints, drafts, None)
        return drafter(self.markers, request.annotated, hints, drafts, kept.costs, kept.acceptance)

    def generate(
        self, request: PromptRequest, attention: Literal["dense", "sparse"] = "dense", impl: str = "gather"
    ) -> Iterator[Event]:
        """Answer a prompt, one event at a time.

        Args:
            request: what is asked.
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
        self._check(attention, impl, request)
        room = self._room(request)
        num_positions = request.prompt.prompt.num_tokens + room
        if impl == CAPTURED:
            return events_of_first(self._batch_engines.get(attention, 1, num_positions, request), [request])
        kept = self._kept[attention]
        step = HostStep(self.model.weights, self.markers, 1, num_positions, attention == "dense", impl, kept)
        return events_of_first(DecodeLoop(step), [request])

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
        self._check(attention, CAPTURED, request)
        num_prompt, room = request.prompt.prompt.num_tokens, self._room(request)
        longest = min(max(num_prompt, MAX_OTHER_PROMPT) + room, self.model.max_context)
        rows = self._batch_engines.get(attention, num_rows, longest, request)
        beside = (request.beside(number, other) for number, other in enumerate(others, start=1))
        return events_of_first(rows, itertools.chain([request], beside))

    def _check(self, attention: str, impl: str, request: PromptRequest) -> None:
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
