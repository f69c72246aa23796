"""A session: text in, a stream of plain dicts out, for the app, the API and the command line alike.

A run is a `start`, any number of `tick`s and an `end`, all JSON-able. Ticks are deltas and figures of every lane: at
most about one per `tick_seconds`, and nothing is ever dropped, only gathered up. What users type and models write is
data throughout.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from selfspan_core.attention.backends import CAPTURED
from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import (
    TITLES,
    LaneSpec,
    brief,
    check_int,
    check_load,
    check_temperature,
    check_top_p,
    lane_specs,
)
from selfspan_core.compare.race import Race
from selfspan_core.compare.verdict import compare_line, lane_line, ratio
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Event
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.base import InputError, Problem, Task
from selfspan_core.tasks.registry import get_task

TICK_SECONDS = 1 / 15


@dataclass(frozen=True)
class PreparedLane:
    """One lane of a prepared run."""

    spec: LaneSpec
    engine: Engine
    prompt: Rendered


@dataclass(frozen=True)
class PreparedRun:
    """A checked input with everything that a run needs; see Session.prepare."""

    task: Task
    problem: Problem
    adapter: str
    lanes: tuple[PreparedLane, ...]
    max_new_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    load: int = 1


class Session:
    """Runs inputs on the models of a store.

    Args:
        models: where engines come from.
        clock: wall clock in seconds; paces ticks and measures nothing.
    """

    def __init__(self, models: ModelStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = models
        self._clock = clock

    @property
    def can_load(self) -> bool:
        """Whether `load` may be more than 1 here."""
        return self._models.can_load

    def compare(
        self,
        task: str,
        text: str,
        adapter: Literal["span", "plain"] = "span",
        max_new_tokens: int | None = None,
        tick_seconds: float = TICK_SECONDS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        load: int = 1,
        length: Literal["short", "medium"] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Race dense against self-selected attention on one input.

        With adapter "span" both lanes run it, with the mask off and on; with "plain" the dense lane runs the plain
        adapter and pays for no annotations. Closing the iterator frees both lanes.

        Args:
            task: name of the task.
            text: what the user typed.
            adapter: see above.
            max_new_tokens: most tokens a lane may write; None: as many as a worked example may have, or the context
                holds.
            tick_seconds: least time between ticks.
            temperature, seed: 0 is greedy; above it both lanes sample, each from its own generator with this seed.
            top_p: sample only from the likeliest tokens that hold so much of the probability; 1: from all.
            load: requests that each lane answers at once: this input, and others of about its size, made up from the
                seed, the same ones in both lanes. Above 1, start, ticks, results and end have figures of all of them.
                A task whose decoding is held to rules answers one at a time.
            length: of a summary; None: medium. Other tasks have none.

        Returns:
            The dicts of the run. Everything is checked before this returns.

        Raises:
            InputError: the input cannot be used; the message is meant for the user.
            ModelError: a model is missing.
        """
        run = self.prepare(task, text, "both", adapter, max_new_tokens, temperature, top_p, seed, load, length)
        return self.stream(run, tick_seconds)

    def prepare(
        self,
        task: str,
        text: str,
        attention: Literal["dense", "sparse", "both"] = "both",
        adapter: Literal["span", "plain"] = "span",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        load: int = 1,
        length: Literal["short", "medium"] | None = None,
    ) -> PreparedRun:
        """Check one input, cheapest check first, and load what its run needs. Arguments and errors: see `compare`.

        Raises:
            ImplUnavailable: besides, the store's implementation does not take this model.
        """
        for name, value in (("task", task), ("input", text)):
            if not isinstance(value, str):
                raise InputError(f"The {name} is a text, not {brief(value)}.")
        known_task = get_task(task, length)
        specs = lane_specs(attention, adapter)
        temperature = check_temperature(temperature)
        top_p = check_top_p("top_p", top_p)
        seed = check_int("seed", seed, 0, 2**63 - 1)
        load = check_load("load", load, self.can_load, self._models.device_name)
        if load > 1 and known_task.rules_text:
            raise InputError(f"The task {known_task.name} answers one request at a time: load is 1, not {load}.")
        problem = known_task.parse(text)
        lanes = []
        for spec in specs:
            engine = self._models.engine(known_task.name, spec.adapter)
            prompt = known_task.render(problem, self._models.tokenizer, annotated=spec.annotated)
            lanes.append(PreparedLane(spec, engine, prompt))
        context = min(lane.engine.model.max_context for lane in lanes)
        if max_new_tokens is not None:
            max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1, context)
        longest = max(lane.prompt.prompt.num_tokens for lane in lanes)
        if longest >= context:
            raise InputError(f"The input takes {longest:,} tokens; the model's context holds {context:,}.")
        return PreparedRun(known_task, problem, adapter, tuple(lanes), max_new_tokens, temperature, top_p, seed, load)

    def stream(self, run: PreparedRun, tick_seconds: float = TICK_SECONDS) -> Iterator[dict[str, Any]]:
        """The dicts of a prepared run. Closing the iterator frees its lanes."""
        yield self._start(run)
        tokenizer = self._models.tokenizer
        views = {
            lane.spec.id: LaneView(lane.spec, tokenizer, lane.prompt.prompt.num_tokens, run.load) for lane in run.lanes
        }
        self._warm(run)
        with Race({lane.spec.id: self._events(run, lane) for lane in run.lanes}) as race:
            last_tick = self._clock()
            for lane_id, event in race:
                views[lane_id].apply(event)
                if self._clock() - last_tick >= tick_seconds:
                    yield _tick(views)
                    # From here, not from before: a slow consumer must not leave the lanes one token per tick.
                    last_tick = self._clock()
        yield _tick(views)
        yield self._end(run, views)

    def _warm(self, run: PreparedRun) -> None:
        """Each lane's prefill once, in nobody's clock.

        The first forward of a new length is a little slower than the next: without this the lane that steps first pays
        for both. Median time to the first token on two quiet CPU cores, dense over sparse, short expressions: 1.015 to
        1.031 without, 1.005 to 1.018 with.
        """
        for lane in run.lanes if len(run.lanes) > 1 else ():
            if run.load > 1:
                # Many prefills at once, of which the first is one: it is enough that the engines are made.
                self._events(run, lane).close()
                continue
            with Race({lane.spec.id: self._events(run, lane)}) as race:
                next(race, None)

    def _events(self, run: PreparedRun, lane: PreparedLane) -> Iterator[Event]:
        settings = {
            "attention": lane.spec.attention,
            "annotated": lane.spec.annotated,
            # A hub model's whole context would be gigabytes of keys and values; no worked example is that long.
            "max_new_tokens": run.task.max_tokens if run.max_new_tokens is None else run.max_new_tokens,
            "temperature": run.temperature,
            "top_p": run.top_p,
            "seed": run.seed,
        }
        if run.load == 1:
            rules = run.task.rules(lane.prompt, self._models.tokenizer, lane.spec.annotated)
            held_to = {} if rules is None else {"rules": rules}
            return lane.engine.generate(lane.prompt, impl=self._impl_of(run), **held_to, **settings)
        return lane.engine.generate_among(lane.prompt, self._others(run, lane), run.load, **settings)

    def _impl_of(self, run: PreparedRun) -> str:
        """How a run decodes: rules are kept by the host, which has to see every id before the next; no graph waits."""
        return "cuda" if run.task.rules_text and self._models.impl == CAPTURED else self._models.impl

    def _others(self, run: PreparedRun, lane: PreparedLane) -> Iterator[Rendered]:
        """What a lane answers beside the user's input, without end."""
        for problem in run.task.similar(run.problem, run.seed):
            yield run.task.render(problem, self._models.tokenizer, annotated=lane.spec.annotated)

    def _start(self, run: PreparedRun) -> dict[str, Any]:
        specs = [lane.spec for lane in run.lanes]
        longest = max(lane.prompt.prompt.num_tokens for lane in run.lanes)
        caution = run.task.caution(run.problem, longest, self._models.tokenizer)
        return {
            "kind": "start",
            "task": run.task.name,
            "input": run.problem.text,
            "adapter": run.adapter,
            "title": TITLES[run.adapter] if len(specs) > 1 else specs[0].label,
            "prompt": [
                {"text": text, "name": None if name is None else f"a{name}"} for text, name in run.problem.display
            ],
            "lanes": [
                {"id": spec.id, "label": spec.label, "attention": spec.attention, "adapter": spec.adapter}
                for spec in specs
            ],
            "expected": run.problem.expected if run.task.has_right_answer else None,
            "device": self._models.device_with(self._impl_of(run)),
            **({"rules": run.task.rules_text} if run.task.rules_text else {}),
            **({"caution": caution._asdict()} if caution else {}),
            **({} if run.load == 1 else {"load": run.load}),
        }

    def _end(self, run: PreparedRun, views: dict[str, LaneView]) -> dict[str, Any]:
        results = {lane_id: view.result(run.task, run.problem) for lane_id, view in views.items()}
        expected = run.problem.expected if run.task.has_right_answer else None
        end = {"kind": "end", "input": run.problem.text, "expected": expected, "lanes": results}
        return {**end, **_figures(results, views, run.adapter), **_load_figures(run, views)}


def _tick(views: dict[str, LaneView]) -> dict[str, Any]:
    return {"kind": "tick", "lanes": {lane_id: view.delta() for lane_id, view in views.items()}}


def _load_figures(run: PreparedRun, views: dict[str, LaneView]) -> dict[str, Any]:
    """How the lanes compare over all their requests, where they answer several; None where one was not measured."""
    if run.load == 1:
        return {}
    totals = {lane_id: view.total_tokens_per_second for lane_id, view in views.items()}
    return {"load": run.load, "speedup_total": ratio(totals.get("sparse"), totals.get("dense"))}


def _figures(results: dict[str, Any], views: dict[str, LaneView], adapter: str) -> dict[str, Any]:
    """Speed-ups and the share read; None where there is nothing to compare or a lane has no answer to be timed to.

    The share is of what dense attention would have read for the same tokens; against the plain adapter, whose text is
    another, it is of what the dense lane did read, so that annotations are paid for here too.
    """
    if len(views) < 2:
        (lane_id, view), *_ = views.items()
        line = lane_line(results[lane_id], view.share)
        return {"speedup_ms_per_token": None, "speedup_time_to_answer": None, "read_share": view.share, "line": line}
    dense, sparse = views["dense"], views["sparse"]
    per_token = ratio(dense.ms_per_token, sparse.ms_per_token)
    both_answered = all(result["answer"] is not None for result in results.values())
    to_answer = ratio(dense.seconds, sparse.seconds) if both_answered else None
    share = sparse.share
    if adapter == "plain" and dense.attended_tokens:
        share = sparse.attended_tokens / dense.attended_tokens
    return {
        "speedup_ms_per_token": per_token,
        "speedup_time_to_answer": to_answer,
        "read_share": share,
        "line": compare_line(results, per_token, to_answer, share, paid_for=adapter == "plain"),
    }
