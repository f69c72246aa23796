"""A session without a model: it writes the right steps at a pace of its choice, as the ticks of the real one.

Fast, exact and the same on every machine, so the app's own behaviour (streaming, stopping, queueing) can be tested
without weights, and at speeds that no model here has.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

from selfspan_core.compare.headline import headline
from selfspan_core.compare.lanes import LABELS, TITLES, require_load
from selfspan_core.compare.read_rows import ReadRows
from selfspan_core.compare.verdict import Compared, compare_line
from selfspan_core.engine.events import Token
from selfspan_core.errors import TooLongError
from selfspan_core.params import Request
from selfspan_core.spans.intervals import merge
from selfspan_core.spans.tracker import Phase
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.examples import EXAMPLES

TICK_SECONDS = 1 / 15
SCAFFOLD = (0, 4)
PIECE_TOKENS = 3


def worked(problem) -> tuple:
    """The steps of a problem's answer; an article's first sentences are its summary."""
    if hasattr(problem, "reductions"):
        return problem.reductions
    count = len(problem.segments)
    return tuple(
        SimpleNamespace(reads=(number,), name=count + number, work="", result=f" {problem.segments[number]}")
        for number in range(3)
    )


def script(problem, annotated: bool, extra_text: str = "") -> list[dict]:
    """The items of one lane, with what a tick says beside them: `phase`, `reading` and the step's name and reads."""
    items = []

    def put(text: str, kind: str, step: int, phase: str, reading=()) -> None:
        items.append({"text": text, "kind": kind, "step": step, "phase": phase, "reading": reading})

    steps = worked(problem)
    for index, step in enumerate(steps):
        reads = [f"a{read}" for read in step.reads]
        if annotated:
            put("ref", "ref", index, "header", "all")
            for name in [*reads, f"a{step.name}"]:
                put(name, "anchor", index, "header", "all")
            put("go", "go", index, "header", "all")
        for character in step.work + (extra_text if index == 0 else ""):
            put(character, "text", index, "body", reads)
        if annotated and step.work:
            put("res", "res", index, "body", reads)
        for character in step.result:
            put(character, "text", index, "body", reads)
        if annotated:
            put("end", "end", index, "between", ())
        if annotated or index + 1 < len(steps):
            put("\n", "newline", index, "between", ())
    return items


def layout(problem) -> tuple[int, dict[str, tuple[int, int]]]:
    """Length of a prompt in which every piece takes PIECE_TOKENS, and where its named pieces lie."""
    at, segments = SCAFFOLD[1], {}
    for _, name in problem.display:
        if name is not None:
            segments[f"a{name}"] = (at, at + PIECE_TOKENS)
        at += PIECE_TOKENS
    return at, segments


class FakeLane:
    """One lane's script, played at `rate` tokens per second of its own clock."""

    def __init__(self, problem, attention: str, adapter: str, rate: float, options: dict) -> None:
        self.problem, self.attention, self.adapter, self.rate = problem, attention, adapter, rate
        self.annotated = adapter == "span"
        self.items = script(problem, self.annotated, options["extra_text"])
        if options["num_tokens"]:
            words = self.items
            while len(self.items) < options["num_tokens"]:
                shift = self.items[-1]["step"] + 1
                self.items = self.items + [dict(word, step=word["step"] + shift) for word in words]
            self.items = self.items[: options["num_tokens"]]
        self.malformed_step = options["malformed_step"]
        self.typed = options.get("typed", problem.text)
        self.load = options.get("load", 1)
        self.wrong, self.missing = attention in options["wrong"], attention in options.get("missing", ())
        self.done = 0
        self.sent = 0
        self.told_done = False
        self.rows = ReadRows()
        self.num_prompt, self.segments = layout(problem)
        self.step_starts: dict[int, int] = {}

    def advance(self, seconds: float, hold_at: int | None) -> None:
        wanted = int(seconds * self.rate)
        self.done = min(wanted if hold_at is None else min(wanted, hold_at), len(self.items))

    @property
    def finished(self) -> bool:
        return self.done == len(self.items)

    @property
    def share(self) -> float:
        return 0.31 if self.attention == "sparse" else 1.0

    def read(self, start: int, stop: int) -> None:
        """The rows of some items."""
        for index in range(start, stop):
            item, at = self.items[index], self.num_prompt + index
            own = self.step_starts.setdefault(item["step"], at)
            if item["kind"] == "end":
                name = f"a{worked(self.problem)[item['step'] % len(worked(self.problem))].name}"
                self.segments.setdefault(name, (max(own + 1, at - 3), at))
            is_body = self.attention == "sparse" and item["phase"] == "body"
            known = [self.segments[name] for name in item["reading"] if name in self.segments] if is_body else []
            visible = merge([SCAFFOLD, *known, (own, at + 1)]) if is_body else ((0, at + 1),)
            phase = Phase(item["phase"])
            token = Token(0, at, 1.0, sum(b - a for a, b in visible), at + 1, phase, item["step"], visible)
            self.rows.add(token, item["step"], self.annotated)

    def delta(self) -> dict:
        start, self.sent = self.sent, self.done
        new = self.items[start : self.done]
        self.read(start, self.done)
        # As of an engine: that a lane is done may be told after its last token, with the same time.
        self.told_done = self.finished and start == self.done
        last = self.items[self.done - 1] if self.done else {"phase": "prefill", "reading": []}
        reading = last["reading"] if self.attention == "sparse" else []
        dense_tokens = 400 * self.done
        return {
            "from": start,
            "items": [{"text": item["text"], "kind": item["kind"], "step": item["step"]} for item in new],
            **self.rows.delta(),
            "tokens": self.done,
            "tokens_per_second": self.rate if self.done else 0.0,
            "ms_per_token": 1000 / self.rate if self.done else 0.0,
            "first_token_ms": 21.5 if self.done else None,
            "elapsed_s": self.done / self.rate,
            "attended_tokens": int(self.share * dense_tokens),
            "dense_tokens": dense_tokens,
            "share": self.share,
            "reading": reading if reading == "all" else list(reading),
            "phase": "done" if self.told_done else last["phase"],
            "steps": self.steps(start, self.done) if self.annotated else [],
            "done": self.told_done,
            "finish": "eos" if self.told_done else None,
            **self.load_figures(),
        }

    def load_figures(self) -> dict:
        if self.load == 1:
            return {}
        return {"load": self.load, "total_tokens_per_second": self.load * self.rate if self.done else None}

    def steps(self, start: int, stop: int) -> list[dict]:
        indices = sorted({item["step"] for item in self.items[start:stop]})
        ended = {item["step"] for item in self.items[:stop] if item["kind"] == "end"}
        steps = []
        for index in indices:
            reduction = worked(self.problem)[index % len(worked(self.problem))]
            reads = [f"a{read}" for read in reduction.reads]
            malformed = index == self.malformed_step
            step = {"index": index, "name": f"a{reduction.name}", "reads": reads}
            segment = self.segments.get(f"a{reduction.name}") if index in ended and not malformed else None
            where = {"segment": list(segment)} if segment else {}
            steps.append({**step, "malformed": malformed, "closed": index in ended, **where})
        return steps

    def result(self) -> dict:
        is_summary = not self.problem.expected
        right = "".join(step.result for step in worked(self.problem)).strip() if is_summary else self.problem.expected
        answer = None if self.missing else "13" if self.wrong else right
        remark = get_task("summarize").remark(self.problem, answer) if is_summary and answer else ""
        output = "".join(item["text"] for item in self.items if item["kind"] in ("text", "newline"))
        return {
            "input": self.typed,
            "canonical": self.problem.text,
            "attention": self.attention,
            "adapter": self.adapter,
            "output": output.strip("\n"),
            "answer": answer,
            "expected": None if is_summary else right,
            "correct": None if is_summary else answer == right,
            "tokens": len(self.items),
            "seconds": len(self.items) / self.rate,
            "tokens_per_second": self.rate,
            "attended_tokens": int(self.share * 400 * len(self.items)),
            "dense_tokens": 400 * len(self.items),
            "malformed_steps": int(self.malformed_step is not None and self.annotated),
            "steps": [
                {
                    "reads": [f"a{read}" for read in step.reads],
                    "name": f"a{step.name}",
                    "text": "13" if self.wrong and step is worked(self.problem)[-1] else step.work + step.result,
                }
                for step in worked(self.problem)
            ],
            **({"remark": remark} if remark else {}),
            **self.load_figures(),
        }


class FakeSession:
    """Plays scripts.

    Args:
        dense, sparse: tokens per second.
        num_tokens: length of each lane's output; None: one pass over the right steps.
        extra_text: written into the first step's working.
        wrong, missing: lanes that answer 13, or nothing.
        read_share: what the end says of both lanes' reads.
        malformed_step: index of a step to be flagged.
        fail: raise after the start.
        beginning: the only article that is not too long.
        caution: what is said of the first example's length.
        notice: what is said of the model.
        can_load: whether several requests at once are possible; those beside the shown one are only figures.
    """

    def __init__(self, dense: float = 300, sparse: float = 480, **options) -> None:
        self.rates = {"dense": dense, "sparse": sparse}
        self.options = {"num_tokens": None, "extra_text": "", "wrong": (), "malformed_step": None, "fail": False}
        self.options |= {"missing": (), "read_share": 0.31, "can_load": False, "beginning": None, "caution": ""}
        self.options |= {"notice": ""}
        self.options.update(options)
        self.running = 0
        self.most_running = 0
        self.events: list[tuple[str, float]] = []
        self.ticks: list[dict] = []
        self.hold_at: int | None = None  # tokens that no lane goes beyond, until a test says otherwise
        self.prompt_done: dict[str, int] = {}  # tokens of long prompts, while they are processed, at ten a second
        self.sampling: tuple[float, float, int] | None = None  # of the last run
        self.model: str | None = None  # of the last run
        self.asked: dict = {}  # options of the last run

    @contextmanager
    def held(self, tokens: int) -> Iterator[None]:
        """No lane writes more than some tokens meanwhile: a short run stays under way for as long as a test looks."""
        self.hold_at = tokens
        try:
            yield
        finally:
            self.hold_at = None

    def can_load(self) -> bool:
        return self.options["can_load"]

    def can_pause(self) -> bool:
        return not self.can_load()

    def compare(self, request: Request) -> Iterator[dict]:
        problem, cleaned = read_pasted(get_task(request.task, **request.options), request.text, request.clean)
        self.cleaned, self.typed = cleaned, request.text
        if self.options["beginning"] and self.options["beginning"] != request.text:
            raise TooLongError("The article is too long.", self.options["beginning"])
        self.model, self.asked = request.model, dict(request.options)
        self.sampling = (request.sampling.temperature, request.sampling.top_p, request.sampling.seed)
        require_load(request.load, self.can_load(), "fake, float32")
        return self._stream(request.task, problem, request.adapter, request.load)

    def _note(self, event: str) -> None:
        self.events.append((event, time.monotonic()))

    def _stream(self, task: str, problem, adapter: str, load: int) -> Iterator[dict]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._note("started")
        try:
            for tick in self._ticks(task, problem, adapter, load):
                self.ticks.append(tick)
                yield tick
            self._note("finished")
        except GeneratorExit:
            self._note("closed")
            raise
        finally:
            self.running -= 1

    def _ticks(self, task: str, problem, adapter: str, load: int) -> Iterator[dict]:
        options = self.options | {"load": load, "typed": self.typed}
        lanes = {
            "dense": FakeLane(problem, "dense", adapter, self.rates["dense"], options),
            "sparse": FakeLane(problem, "sparse", "span", self.rates["sparse"], options),
        }
        yield self._start(task, problem, adapter, load, lanes)
        if self.options["fail"]:
            raise RuntimeError("the fake device fell over <b>")
        began = time.monotonic()
        while not all(lane.told_done for lane in lanes.values()):
            time.sleep(TICK_SECONDS)
            for lane in lanes.values():
                lane.advance(time.monotonic() - began, self.hold_at)
            told = {name: {"prompt_done": done, "elapsed_s": done / 10} for name, done in self.prompt_done.items()}
            yield {"kind": "tick", "lanes": {name: lane.delta() | told.get(name, {}) for name, lane in lanes.items()}}
        yield self._end(task, problem, adapter, load, {name: lane.result() for name, lane in lanes.items()})

    def _start(self, task: str, problem, adapter: str, load: int, lanes: dict) -> dict:
        described = [
            {
                "id": name,
                "label": f"{LABELS[name]}, {lane.adapter} adapter",
                "attention": name,
                "adapter": lane.adapter,
                "prompt_tokens": lane.num_prompt,
                "segments": {key: list(interval) for key, interval in lane.segments.items()} if lane.annotated else {},
            }
            for name, lane in lanes.items()
        ]
        start = {
            "kind": "start",
            "view": asdict(get_task(task).view),
            "task": task,
            "input": self.typed,
            "canonical": problem.text,
            "adapter": adapter,
            "title": TITLES[adapter],
            "prompt": [{"text": text, "name": None if name is None else f"a{name}"} for text, name in problem.display],
            "lanes": described,
            "expected": problem.expected or None,
            "device": "fake, float32",
            "bytes_per_token": 2048,
        }
        if get_task(task).rules_text:
            start["rules"] = get_task(task).rules_text
        if self.options["caution"] and problem.text == get_task("summarize").parse(EXAMPLES[0]).text:
            start["caution"] = {"text": self.options["caution"], "beginning": "The beginning."}
        if self.options["notice"]:
            start["notice"] = self.options["notice"]
        return start | self._cleaning() | ({} if load == 1 else {"load": load})

    def _cleaning(self) -> dict:
        done = list(self.cleaned.done)
        return {"cleaning": {"done": done, "text": self.cleaned.text}} if done else {}

    def _end(self, task: str, problem, adapter: str, load: int, results: dict) -> dict:
        ratio = results["dense"]["seconds"] / results["sparse"]["seconds"]
        per_token = self.rates["sparse"] / self.rates["dense"]
        compared = Compared(results, per_token, ratio, self.options["read_share"], adapter == "plain")
        return {
            "kind": "end",
            "input": self.typed,
            "canonical": problem.text,
            "expected": problem.expected,
            "lanes": results,
            **self._cleaning(),
            "speedup_ms_per_token": per_token,
            "speedup_time_to_answer": ratio,
            "read_share": compared.read_share,
            "line": compare_line(compared, get_task(task).view),
            "headline": headline(compared, get_task(task).view),
            **({} if load == 1 else {"load": load, "speedup_total": per_token}),
        }
