"""A lane for display: engine events (ids, intervals, milliseconds) in; text, steps and figures out.

No torch and no clock here: figures are sums of the times that the engine measured, so displaying them adds nothing to a
lane's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from selfspan_core.compare.lanes import LaneSpec
from selfspan_core.compare.read_rows import ReadRows
from selfspan_core.compare.text_stream import TextStream
from selfspan_core.engine.events import (
    Event,
    Finished,
    HeaderClosed,
    Measured,
    OtherRows,
    Prefilled,
    PromptPart,
    StepEnded,
    Token,
)
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Phase, StepRecord
from selfspan_core.tasks.base import Problem, Task


@dataclass
class StepView:
    """One step for display; `intervals` are those that its body reads outside its own step, `segment` what later steps
    may read of it.
    """

    index: int
    start: int
    name: str | None = None
    reads: tuple[str, ...] = ()
    malformed: bool = False
    closed: bool = False
    intervals: tuple[Interval, ...] = ()
    segment: Interval | None = None
    text: list[str] = field(default_factory=list)

    def as_tick(self) -> dict[str, Any]:
        """The fields that a tick carries."""
        return {
            "index": self.index,
            "name": self.name,
            "reads": list(self.reads),
            "malformed": self.malformed,
            "closed": self.closed,
            **({"segment": list(self.segment)} if self.segment else {}),
        }

    def as_result(self) -> dict[str, Any]:
        """The fields that a result carries."""
        return {
            "reads": list(self.reads),
            "name": self.name,
            "text": "".join(self.text),
            "intervals": [list(interval) for interval in self.intervals],
        }


class LaneView:
    """Follows one lane's events.

    `items` is the text as pieces for display: markers apart from text, each step closed by a newline. Text comes from
    a model and is always treated as data.

    Args:
        spec: attention, adapter and model of the lane.
        tokenizer: of the lane's model.
        prompt_tokens: length of the prompt.
        load: number of requests that the lane answers at once; this view is of the first of them.
    """

    def __init__(self, spec: LaneSpec, tokenizer: SpanTokenizer, prompt_tokens: int, load: int = 1) -> None:
        self.spec, self.load = spec, load
        self.items: list[dict[str, Any]] = []
        self.rows = ReadRows()
        self.steps: list[StepView] = []
        self.finish: str | None = None
        self.num_tokens = 0
        self.attended_tokens = 0
        self.dense_tokens = 0
        self.num_malformed = 0
        self.num_passes = self.num_drafted = self.num_accepted = 0
        self.first_token_s: float | None = None
        self.decode_s = 0.0
        self.others_s = 0.0
        self.num_other_tokens = 0
        self._tokenizer = tokenizer
        self._markers: Markers = tokenizer.markers
        self._stream = TextStream(tokenizer)
        self._position = prompt_tokens
        self._prefill_s = 0.0
        self._num_prompt_done: int | None = None  # of a long prompt, while it is processed
        self._phase = "prefill"
        self._reading: tuple[str, ...] | str = ()
        self._newest: Token | None = None
        self._num_items_sent = 0
        self._is_draft = False
        self._changed_steps: dict[int, StepView] = {}

    # ---- figures

    @property
    def seconds(self) -> float:
        """The lane's own clock: prefill, every step so far, and the time that this request waited for others."""
        first_s = self._prefill_s if self.first_token_s is None else self.first_token_s
        return first_s + self.decode_s + self.others_s

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds per token while decoding; None before a second token, since prefill yields the first."""
        return 1000 * self.decode_s / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; 0 while there is none."""
        return 1000 / self.ms_per_token if self.ms_per_token else 0.0

    @property
    def total_tokens_per_second(self) -> float | None:
        """Decoding speed of all the lane's requests together, by the time of its steps; None before the first step."""
        return (self.num_tokens - 1 + self.num_other_tokens) / self.decode_s if self.decode_s else None

    @property
    def share(self) -> float:
        """Keys read as a share of what dense attention would have read for the same tokens."""
        return self.attended_tokens / self.dense_tokens if self.dense_tokens else 1.0

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens that a forward pass behind the prompt's brought; None before the first."""
        return (self.num_tokens - 1) / self.num_passes if self.num_passes else None

    @property
    def accepted_share(self) -> float | None:
        """The share of drafts that were right; None where none were verified."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def output(self) -> str:
        """All text, markers dropped, each step on its own line."""
        return "".join(item["text"] for item in self.items if item["kind"] in ("text", "newline")).strip("\n")

    # ---- events

    def apply(self, event: Event) -> None:
        """Account for the lane's next event."""
        if isinstance(event, Token):
            self._token(event)
        elif isinstance(event, HeaderClosed):
            self._header_closed(event)
        elif isinstance(event, StepEnded):
            self._step_ended(event)
        elif isinstance(event, PromptPart):
            self._prefill_s += event.seconds
            self._num_prompt_done = event.num_done
        elif isinstance(event, Prefilled):
            self._prefill_s, self._num_prompt_done = event.seconds, None
            self._phase = Phase.BETWEEN.value
        elif isinstance(event, OtherRows):
            self.num_other_tokens += event.num_tokens
            self.others_s += event.seconds
        elif isinstance(event, Measured):
            self._prefill_s = self.first_token_s = event.prefill_s
            self.decode_s, self.others_s = event.decode_s, 0.0
        elif isinstance(event, Finished):
            self._finished(event)

    def _token(self, event: Token) -> None:
        seconds = event.step_ms / 1000
        if self.first_token_s is None:
            self.first_token_s = self._prefill_s + seconds
        else:
            self.decode_s += seconds
        self.num_tokens += 1
        self.num_passes, self.num_drafted, self.num_accepted = event.num_passes, event.num_drafted, event.num_accepted
        self._is_draft = event.is_draft
        if self._newest is not None:  # a token reads keys only once it is fed to predict the next
            self.attended_tokens += self._newest.num_visible
            self.dense_tokens += self._newest.num_context
        self._newest = event
        self._position = event.position
        self._phase = event.phase.value
        self._follow_phase(event)
        self._write(event.id)
        self.rows.add(event, self.steps[-1].index if self.steps else -1, self.spec.annotated)

    def _follow_phase(self, event: Token) -> None:
        if event.step >= 0:
            if not self.steps or self.steps[-1].index != event.step:
                self._open_step(event.step, event.position)
            if event.malformed or event.phase is Phase.BROKEN:
                self._mark(self.steps[-1], malformed=True)
        if event.phase is Phase.BODY:
            return
        sees_all = event.phase in (Phase.HEADER, Phase.BROKEN) and self.spec.sparse and len(event.visible) == 1
        self._reading = "all" if sees_all else ()

    def _open_step(self, index: int, start: int) -> None:
        self._end_line()
        step = StepView(index, start, intervals=((0, start),) if start else ())
        self.steps.append(step)
        self._changed_steps[index] = step

    def _mark(self, step: StepView, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(step, name, value)
        self._changed_steps[step.index] = step

    def _header_closed(self, event: HeaderClosed) -> None:
        step = self.steps[-1]
        self._mark(step, name=self._name(event.record.name), reads=self._names(event.record.reads))
        if self.spec.sparse:
            step.intervals = event.record.intervals
            self._reading = step.reads

    def _step_ended(self, event: StepEnded) -> None:
        step = next(step for step in reversed(self.steps) if step.index == event.step)
        record: StepRecord = event.record
        self._mark(step, closed=True, name=self._name(record.name), reads=self._names(record.reads))
        if record.malformed:
            # A part of the step saw everything, so the step counts as having read everything.
            self._mark(step, malformed=True, intervals=((0, step.start),))
        elif record.end is not None and record.body_start is not None:
            citable = record.body_start if record.result_start is None else record.result_start
            self._mark(step, segment=(citable, record.end - 1))

    def _finished(self, event: Finished) -> None:
        self._add_text(self._stream.flush())
        self.finish = event.reason
        self._phase = Phase.DONE.value
        self._reading = ()
        self.attended_tokens, self.dense_tokens = event.attended_tokens, event.dense_tokens
        self.num_malformed = event.num_malformed
        if not self.spec.annotated and self.steps:
            self._mark(self.steps[-1], closed=event.reason == "eos")

    # ---- text

    def _name(self, anchor: int | None) -> str | None:
        return None if anchor is None else self._named(anchor)

    def _named(self, anchor: int) -> str:
        return f"a{self._markers.anchor_index[anchor]}"

    def _names(self, anchors: Sequence[int]) -> tuple[str, ...]:
        return tuple(map(self._named, anchors))

    def _write(self, token: int) -> None:
        kind = self._tokenizer.marker_kind(token)
        if kind is None and token not in (self._markers.eos, self._markers.bos):
            self._add_text(self._stream.push(token))
            return
        self._add_text(self._stream.flush())
        if kind == "anchor":
            self._add_item(self._named(token), kind)
        elif kind is not None:
            self._add_item(kind, kind)
        if kind == "end":
            self._end_line()

    def _add_text(self, text: str) -> None:
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if i:
                self._end_line()
            if not line:
                continue
            if not self.spec.annotated and self._at_line_start:
                self._open_step(len(self.steps), self._position)
            self._add_item(line, "text")
            if self.steps:
                self.steps[-1].text.append(line)

    def _add_item(self, text: str, kind: str) -> None:
        item = {"text": text, "kind": kind, "step": self.steps[-1].index if self.steps else -1}
        self.items.append({**item, "drafted": True} if self._is_draft else item)

    @property
    def _at_line_start(self) -> bool:
        return not self.items or self.items[-1]["kind"] == "newline"

    def _end_line(self) -> None:
        """A newline for display, never an empty line: plain text opens each step with one, a step ends with one."""
        if self._at_line_start:
            return
        self._add_item("\n", "newline")
        if not self.spec.annotated and self.steps:
            self._mark(self.steps[-1], closed=True)

    # ---- output for the session

    def delta(self) -> dict[str, Any]:
        """The pieces added since the last call, and all current figures."""
        start, self._num_items_sent = self._num_items_sent, len(self.items)
        changed, self._changed_steps = self._changed_steps, {}
        return {
            "from": start,
            "items": [dict(item) for item in self.items[start:]],
            **self.rows.delta(),
            "tokens": self.num_tokens,
            "tokens_per_second": self.tokens_per_second,
            "ms_per_token": self.ms_per_token or 0.0,
            "first_token_ms": None if self.first_token_s is None else 1000 * self.first_token_s,
            "elapsed_s": self.seconds,
            "attended_tokens": self.attended_tokens,
            "dense_tokens": self.dense_tokens,
            "share": self.share,
            "reading": "all" if self._reading == "all" else list(self._reading),
            "phase": self._phase,
            "steps": [step.as_tick() for step in changed.values()] if self.spec.annotated else [],
            "done": self.finish is not None,
            "finish": self.finish,
            **({} if self._num_prompt_done is None else {"prompt_done": self._num_prompt_done}),
            **self._draft_figures(),
            **self._load_figures(),
        }

    def _draft_figures(self) -> dict[str, Any]:
        if not self.num_drafted:
            return {}
        return {"tokens_per_pass": self.tokens_per_pass, "accepted_share": self.accepted_share}

    def _load_figures(self) -> dict[str, Any]:
        if self.load == 1:
            return {}
        return {"load": self.load, "total_tokens_per_second": self.total_tokens_per_second}

    def result(self, task: Task, problem: Problem) -> dict[str, Any]:
        """The lane's outcome, without what was typed.

        Only a sequence that the model ended itself has an answer; a truncated one has none.

        For tasks without a single right answer, `expected` and `correct` are None, and there may be a `remark`.
        """
        answer = task.answer(self.output) if self.finish == "eos" else None
        remark = task.remark(problem, answer) if answer is not None else ""
        return {
            "canonical": problem.text,
            "attention": self.spec.attention,
            "adapter": self.spec.adapter,
            "output": self.output,
            "answer": answer,
            "expected": problem.expected if task.has_right_answer else None,
            "correct": task.check(problem, answer) if task.has_right_answer else None,
            "tokens": self.num_tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "attended_tokens": self.attended_tokens,
            "dense_tokens": self.dense_tokens,
            "malformed_steps": self.num_malformed,
            "steps": [step.as_result() for step in self.steps],
            **({"remark": remark} if remark else {}),
            **self._draft_figures(),
            **self._load_figures(),
        }
