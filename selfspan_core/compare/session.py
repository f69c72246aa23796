"""A session: text in, a stream of plain dicts out, for the app, the API and the command line alike.

A run is a `start`, any number of `tick`s and an `end`, all JSON-serializable. A tick holds the deltas and figures of
every lane. There is at most about one tick per `tick_seconds`; events in between are collected, never dropped. Text
from users and models is treated as data throughout.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfspan_core.attention.impls import CAPTURED
from selfspan_core.compare.headline import headline
from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import TITLES, LaneSpec, lane_specs, require_load
from selfspan_core.compare.race import Race
from selfspan_core.compare.verdict import Compared, compare_line, lane_line, ratio
from selfspan_core.engine.device_rules import DeviceRules, KeptRules
from selfspan_core.engine.events import Event
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.stores import EngineStore, LaneEngine
from selfspan_core.errors import InputError, LaneError, ModelError, SettingError
from selfspan_core.models.learned import Learned, common
from selfspan_core.models.registry import models_that_learned
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import MAX_NEW_TOKENS, Drafts, Request, whole_number
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.base import Cleaned, Problem, Task, not_learned, read_pasted
from selfspan_core.tasks.registry import get_task

TICK_SECONDS = 1 / 15
WARMED_TOKENS = 512
"""Longest prompt that is processed once before its run on a CPU."""


def tokenizer_of(engine: LaneEngine) -> SpanTokenizer:
    """The tokenizer of an engine's model. Raises ModelError where the model was made without one."""
    tokenizer = engine.model.tokenizer
    if tokenizer is None:
        raise ModelError("the model was made without its tokenizer")
    return tokenizer


@dataclass(frozen=True)
class PreparedLane:
    """One lane of a prepared run; `kept` says how captured steps keep its rules, if it has any."""

    spec: LaneSpec
    engine: LaneEngine
    prompt: Rendered
    kept: KeptRules | None = None

    @property
    def tokenizer(self) -> SpanTokenizer:
        """The tokenizer of the lane's own model: another model has other ids."""
        return tokenizer_of(self.engine)


@dataclass(frozen=True)
class PreparedRun:
    """A checked request with everything that its run needs; see Session.prepare.

    `most_tokens` is the most tokens that a lane may write; `cleaned` is the text that was parsed; `notice` says why
    another model than the usual one answers, and what of the request or the task does not hold where it runs; `drafts`
    are those of both lanes.
    """

    request: Request
    task: Task
    problem: Problem
    lanes: tuple[PreparedLane, ...]
    impl: str
    most_tokens: int
    cleaned: Cleaned
    notice: str = ""
    drafts: Drafts = "off"

    @property
    def load(self) -> int:
        """Number of requests that each lane answers at once."""
        return self.request.load


class Session:
    """Runs inputs on the models of a store.

    Args:
        models: provides the engines.
        clock: wall clock in seconds; paces the ticks and is not used for measurements.
    """

    def __init__(self, models: EngineStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = models
        self._clock = clock

    @property
    def can_load(self) -> bool:
        """Whether `load` may be more than 1 here."""
        return self._models.can_load

    @property
    def can_pause(self) -> bool:
        """Whether a run may rest while another goes on.

        Captured steps have no room for a second one; and a server goes on with an answer, whoever rests.
        """
        return not self.can_load and not self._models.terms.in_turn

    def compare(self, request: Request, tick_seconds: float = TICK_SECONDS) -> Iterator[dict[str, Any]]:
        """Answer one request with its lanes side by side. Closing the iterator frees the lanes.

        Args:
            request: the request. With a load above 1, start, ticks, results and end have figures of all requests.
            tick_seconds: least time between ticks.

        Returns:
            The dicts of the run. Everything is checked before this returns.

        Raises:
            InputError: the input cannot be used; the message is meant for the user.
            ModelError: a model is missing.
            ImplUnavailable: the store's implementation does not support this model.
        """
        return self.stream(self.prepare(request), tick_seconds)

    def prepare(self, request: Request) -> PreparedRun:
        """Check one request against task, device and models, cheapest check first, and load what its run needs.

        Errors: see `compare`.
        """
        task = get_task(request.task, **request.options)
        terms = self._models.terms
        require_load(request.load, self.can_load, self._models.device_name)
        if not terms.has_drafts and request.drafts not in ("auto", "off"):
            where = self._models.device_name
            raise SettingError(f"drafts is auto or off here, not {request.drafts}: {where} has none.", "drafts")
        if request.sampling.temperature > terms.most_temperature:
            bound = f"at most {terms.most_temperature:g} here: {self._models.device_name} takes no more"
            raise SettingError(f"temperature is {bound}.", "temperature")
        if request.load > 1 and task.rules_text:
            raise InputError(f"The task {task.name} answers one request at a time: load is 1, not {request.load}.")
        chosen = self._models.choose(task.name, request.model)  # before the text: a server answers one task
        problem, cleaned = read_pasted(task, request.text, request.clean)
        specs = lane_specs(request.attention, request.adapter, chosen.spec.name)
        learned = self._learned(task, request, specs, chosen.notice)
        engines = [self._models.engine(task.name, spec.adapter, spec.model) for spec in specs]
        context = min(engine.model.max_context for engine in engines)
        task = task.for_model(context, learned)
        lanes = []
        for spec, engine in zip(specs, engines, strict=True):
            prompt = task.render(problem, tokenizer_of(engine), annotated=spec.annotated)
            kept = None
            if self._models.impl == CAPTURED and request.load == 1:
                kept = engine.rules(task.rules(prompt, tokenizer_of(engine), spec.annotated), CAPTURED)
            lanes.append(PreparedLane(spec, engine, prompt, kept))
        most = request.sampling.max_new_tokens
        if most is not None:
            most = min(whole_number("max_new_tokens", most, 1, max(context, MAX_NEW_TOKENS)), context)
        longest = max(lane.prompt.prompt.num_tokens for lane in lanes)
        if longest >= context:
            raise InputError(f"The input takes {longest:,} tokens; the model's context holds {context:,}.")
        # A hub model's whole context would be gigabytes of keys and values; no answer is that long.
        most = min(task.max_tokens, MAX_NEW_TOKENS) if most is None else most
        drafts = self._drafts(request, lanes)
        notice = " ".join(filter(None, (chosen.notice, self._left_out(task, request, drafts))))
        return PreparedRun(request, task, problem, tuple(lanes), self._models.impl, most, cleaned, notice, drafts)

    def _drafts(self, request: Request, lanes: Sequence[PreparedLane]) -> Drafts:
        """Those of all lanes: where one has none by itself, the others have none either, or they could not be compared.

        Captured steps verify none where headers see an index.
        """
        has_index = any(
            lane.spec.annotated and lane.spec.attention == "sparse" and lane.prompt.prompt.head_tokens is not None
            for lane in lanes
        )
        is_without = has_index and self._models.impl == CAPTURED and request.drafts == "auto"
        return "off" if is_without or not self._models.terms.has_drafts else request.drafts

    def _left_out(self, task: Task, request: Request, drafts: Drafts) -> str:
        """What of a request and its task does not hold where it runs, in a sentence; empty where all does."""
        rules = ["the task's rules"] if task.rules_text and not self._models.terms.keeps_rules else []
        drawn = request.sampling.temperature > 0 and not self._models.terms.takes_seeds
        seed = ["a seed, so that each run draws other tokens"] if drawn else []
        named = " and without ".join(rules + (["drafts"] if drafts == "off" != request.drafts else []) + seed)
        return f"{self._models.device_name} decodes without {named}." if named else ""

    def _learned(self, task: Task, request: Request, specs: Sequence[LaneSpec], notice: str) -> Learned:
        """What the adapters of all lanes learned.

        Raises:
            SettingError: the request asks for anything else; `notice` is told then, too.
        """
        model = specs[0].model
        adapters = dict.fromkeys(spec.adapter for spec in specs)
        learned = common(self._models.learned(task.name, adapter, model) for adapter in adapters)
        for option in task.options:
            value = request.options.get(option.name)
            if value is not None and value not in option.values(learned):
                others = [name for name in models_that_learned(task.name, option.name, value) if name != model]
                reason = not_learned(option, value, learned, model, others)
                raise SettingError(f"{reason} {notice}" if notice else reason)
        return learned

    def stream(self, run: PreparedRun, tick_seconds: float = TICK_SECONDS) -> Iterator[dict[str, Any]]:
        """The dicts of a prepared run. Closing the iterator frees its lanes."""
        yield self._start(run)
        views = {
            lane.spec.id: LaneView(lane.spec, lane.tokenizer, lane.prompt.prompt.num_tokens, run.load)
            for lane in run.lanes
        }
        self._warm(run)
        with Race({lane.spec.id: self._events(run, lane) for lane in run.lanes}, self._models.terms.in_turn) as race:
            last_tick = self._clock()
            try:
                for lane_id, event in race:
                    views[lane_id].apply(event)
                    if self._clock() - last_tick >= tick_seconds:
                        yield _tick(views)
                        # The pause starts after the consumer's work: else a slow consumer would get one token per tick.
                        last_tick = self._clock()
            except LaneError:  # what was written before stays in sight
                yield _tick(views)
                raise
        yield _tick(views)
        yield self._end(run, views)

    def _warm(self, run: PreparedRun) -> None:
        """Run each lane's prefill once, outside of all clocks.

        The first forward of a new length is a little slower than the next: without this the lane that steps first pays
        for both. Median time to the first token on two quiet CPU cores, dense over sparse, short expressions: 1.015 to
        1.031 without, 1.005 to 1.018 with. A long prompt, which a CPU takes seconds for, is not worth it.
        """
        longest = max(lane.prompt.prompt.num_tokens for lane in run.lanes)
        is_soon_done = run.impl == CAPTURED or longest <= WARMED_TOKENS
        for lane in run.lanes if len(run.lanes) > 1 and is_soon_done and not self._models.terms.in_turn else ():
            with Race({lane.spec.id: self._events(run, lane)}) as race:
                # With several requests, many prefills run anyway: it is enough to create the engines.
                if run.load == 1:
                    next(race, None)

    def _events(self, run: PreparedRun, lane: PreparedLane) -> Iterator[Event]:
        sampling = replace(run.request.sampling, max_new_tokens=run.most_tokens)
        rules = None if lane.kept is None else lane.kept.rules
        is_free = run.load > 1 or not self._models.terms.keeps_rules
        if not is_free and not isinstance(rules, DeviceRules):  # the others are of one run alone
            rules = run.task.rules(lane.prompt, lane.tokenizer, lane.spec.annotated)
        request = PromptRequest(lane.prompt, lane.spec.annotated, sampling, rules)
        hints = run.task.draft_hints(lane.tokenizer)
        drafter = lane.engine.drafter(request, hints, run.drafts, lane.spec.attention, run.impl)
        request = replace(request, drafter=drafter)
        if run.load > 1:
            return lane.engine.generate_among(request, self._others(run, lane), run.load, lane.spec.attention)
        return lane.engine.generate(request, lane.spec.attention, run.impl)

    def _others(self, run: PreparedRun, lane: PreparedLane) -> Iterator[Rendered]:
        """An endless stream of the requests that a lane answers beside the user's input."""
        for problem in run.task.similar(run.problem, run.request.sampling.seed):
            yield run.task.render(problem, lane.tokenizer, annotated=lane.spec.annotated)

    def _start(self, run: PreparedRun) -> dict[str, Any]:
        specs, terms = [lane.spec for lane in run.lanes], self._models.terms
        longest = max(run.lanes, key=lambda lane: lane.prompt.prompt.num_tokens)
        caution = run.task.caution(run.problem, longest.prompt.prompt.num_tokens, longest.tokenizer)
        return {
            "kind": "start",
            "view": asdict(run.task.view),
            "task": run.task.name,
            "input": run.request.text,
            "canonical": run.problem.text,
            "adapter": run.request.adapter,
            "title": _title(run, terms.in_turn),
            "prompt": [
                {"text": text, "name": None if name is None else f"a{name}"} for text, name in run.problem.display
            ],
            "lanes": [self._described(lane, run) for lane in run.lanes],
            "expected": run.problem.expected if run.task.has_right_answer else None,
            "device": self._models.device_with(run.impl, specs[0].model),
            "clock": terms.clock,
            "drafts": run.drafts,
            "bytes_per_token": run.lanes[0].engine.model.bytes_per_token,
            **({"in_turn": True} if terms.in_turn and len(specs) > 1 else {}),
            **({"rules": run.task.rules_text} if run.task.rules_text and terms.keeps_rules else {}),
            **({"caution": caution._asdict()} if caution else {}),
            **notice_of(run),
            **cleaning_of(run.cleaned),
            **({} if run.load == 1 else {"load": run.load}),
        }

    def _described(self, lane: PreparedLane, run: PreparedRun) -> dict[str, Any]:
        """A lane's entry in the `start` dict; its model is named unless it is the task's usual one."""
        spec, layout, names = lane.spec, lane.prompt.prompt, lane.tokenizer.markers.anchor_index
        described = {
            "id": spec.id,
            "label": spec.label,
            "attention": spec.attention,
            "adapter": spec.adapter,
            "prompt_tokens": layout.num_tokens,
            "segments": {f"a{names[anchor]}": list(interval) for anchor, interval in layout.segments.items()},
        }
        if lane.kept is not None and lane.kept.rules is not None:
            because = lane.kept.on_host_because
            described |= {"rules_on": "host", "rules_on_host_because": because} if because else {"rules_on": "device"}
        is_usual = spec.model == self._models.usual(run.task.name).name
        return described if is_usual else {**described, "model": spec.model}

    def _end(self, run: PreparedRun, views: dict[str, LaneView]) -> dict[str, Any]:
        typed = {"input": run.request.text}
        results = {lane_id: typed | view.result(run.task, run.problem) for lane_id, view in views.items()}
        expected = run.problem.expected if run.task.has_right_answer else None
        end = {"kind": "end", **typed, "canonical": run.problem.text, "expected": expected, "lanes": results}
        return {
            **end,
            **notice_of(run),
            **cleaning_of(run.cleaned),
            **_figures(results, views, run),
            **_load_figures(run, views),
        }


def _title(run: PreparedRun, in_turn: bool) -> str:
    """What is compared, or which lane runs."""
    if len(run.lanes) == 1:
        return run.lanes[0].spec.label
    return TITLES[run.request.adapter] + (", one lane after the other" if in_turn else "")


def cleaning_of(cleaned: Cleaned) -> dict[str, Any]:
    """The entry of `start` and `end` about the cleaning of a pasted text; none where nothing was done."""
    return {"cleaning": {"done": list(cleaned.done), "text": cleaned.text}} if cleaned.done else {}


def notice_of(run: PreparedRun) -> dict[str, str]:
    """The entry of `start` and `end` about a model that answers in place of the usual one; none where that answers."""
    return {"notice": run.notice} if run.notice else {}


def _tick(views: dict[str, LaneView]) -> dict[str, Any]:
    return {"kind": "tick", "lanes": {lane_id: view.delta() for lane_id, view in views.items()}}


def _load_figures(run: PreparedRun, views: dict[str, LaneView]) -> dict[str, Any]:
    """How the lanes compare over all their requests, if they answer several; None where a lane was not measured."""
    if run.load == 1:
        return {}
    totals = {lane_id: view.total_tokens_per_second for lane_id, view in views.items()}
    return {"load": run.load, "speedup_total": ratio(totals.get("sparse"), totals.get("dense"))}


def _figures(results: dict[str, Any], views: dict[str, LaneView], run: PreparedRun) -> dict[str, Any]:
    """Speed-ups and the share of keys read; None where there is nothing to compare, or a lane has no answer to time.

    The share is relative to what dense attention would have read for the same tokens. Against the plain adapter, whose
    text differs, it is relative to what the dense lane actually read, so that the cost of annotations is included.
    """
    if len(views) < 2:
        (lane_id, view), *_ = views.items()
        line = lane_line(results[lane_id], view.share, run.task.view)
        return {"speedup_ms_per_token": None, "speedup_time_to_answer": None, "read_share": view.share, "line": line}
    dense, sparse = views["dense"], views["sparse"]
    per_token = ratio(dense.ms_per_token, sparse.ms_per_token)
    both_answered = all(result["answer"] is not None for result in results.values())
    to_answer = ratio(dense.seconds, sparse.seconds) if both_answered else None
    share = sparse.share
    is_paid_for = run.request.adapter == "plain"
    if is_paid_for and dense.attended_tokens:
        share = sparse.attended_tokens / dense.attended_tokens
    compared = Compared(results, per_token, to_answer, share, is_paid_for)
    return {
        "speedup_ms_per_token": per_token,
        "speedup_time_to_answer": to_answer,
        "read_share": share,
        "line": compare_line(compared, run.task.view),
        "headline": headline(compared, run.task.view),
    }
