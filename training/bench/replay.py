"""Replay: recorded tokens forced through a model of any shape, so that it reads what the recorded text declares.

The model's weights may be random, and what stands in its cache, too: shapes, visibility, lengths and timing are those
of the real text. Between two steps that are looked at, a row's tracker is moved on without the model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_step import BatchStep, Script
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.step import Stepped
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import Tracker


@dataclass(frozen=True)
class Recording:
    """What a model wrote behind a prompt.

    Attributes:
        layout: of the prompt.
        ids: what was written.
        annotated: whether it has steps.
        prompt: its ids.
    """

    layout: PromptLayout
    ids: tuple[int, ...]
    annotated: bool
    prompt: tuple[int, ...]

    def num_visible(self, markers: Markers, is_dense: bool) -> list[int]:
        """Tokens that the query of each id reads, itself included."""
        tracker = Tracker(markers, self.layout, self.annotated)
        states = [tracker.push(token) for token in self.ids]
        return [state.position + 1 if is_dense else state.num_visible for state in states]


@dataclass(frozen=True)
class Recorded:
    """Recordings of one lane, and what it took to make them."""

    recordings: list[Recording]
    tokens_per_second: float
    seconds: float


def record(engine: BatchEngine, prompts: Sequence[Rendered], annotated: bool) -> Recorded:
    """Let a model answer prompts, greedily; tokens per second are those of the whole batch, by the wall clock.

    Raises:
        RuntimeError: one of the requests failed.
    """
    return record_requests(engine, [PromptRequest(prompt, annotated) for prompt in prompts])


def record_requests(engine: BatchEngine, requests: Sequence[PromptRequest]) -> Recorded:
    """See `record`; of any requests."""
    written: dict[int, list[int]] = {number: [] for number in range(len(requests))}
    started = time.perf_counter()
    for number, event in engine.generate(requests):
        if isinstance(event, Token):
            written[number].append(event.id)
        elif isinstance(event, Failed):
            raise RuntimeError(f"request {number} failed") from event.error
    recordings = [
        Recording(one.prompt.prompt, tuple(ids), one.annotated, tuple(one.prompt_ids))
        for one, ids in zip(requests, written.values(), strict=True)
    ]
    seconds = time.perf_counter() - started
    return Recorded(recordings, sum(map(len, written.values())) / seconds, seconds)


class Replay:
    """Rows of a step that follow recordings: some steps run whole and are timed, those between them without the model.

    Whole steps are launched and collected as the decode loop does it, a few ahead of the one that is waited for.

    Args:
        step: whose rows are free.
        drafts: what drafts the recordings, in a step that verifies drafts.
    """

    def __init__(self, step: BatchStep, drafts: DeviceDrafts | None = None) -> None:
        self.step, self._drafts = step, drafts
        self._steps: list[Stepped] = []

    def follow(self, row: int, recording: Recording) -> None:
        """A row stands behind its prompt, about to take in the recording's first id."""
        script = Script(recording.ids, self._drafts)
        self.step.follow(row, recording.prompt, recording.layout, recording.annotated, script)

    def move(self, num_steps: int) -> None:
        """All rows go on by so many steps, without the model."""
        self.step.skip(num_steps)

    def rehearse(self, recordings: Sequence[Recording]) -> list[int]:
        """How many steps every row takes to write its recording but for the first id; rows are free afterwards."""
        for row, recording in enumerate(recordings):
            self.follow(row, recording)
        num_left = [len(recording.ids) - 1 for recording in recordings]
        num_steps = [0] * len(recordings)
        while any(num_left):
            kept = self.step.skip_one()
            for row, ids in enumerate(kept):
                num_left[row] -= len(ids)
                num_steps[row] += bool(ids)
        return num_steps

    def launch(self) -> None:
        """One whole step, timed."""
        while self.step.num_outstanding >= self.step.num_ahead:
            self._collect()
        self.step.launch()

    def _collect(self) -> None:
        stepped = self.step.collect()
        assert isinstance(stepped, Stepped)  # rows that follow a script begin with their second id
        self._steps.append(stepped)

    def seconds(self) -> list[float]:
        """Of every whole step so far, in their order; waits for them."""
        while self.step.num_outstanding:
            self._collect()
        return [stepped.seconds for stepped in self._steps]

    def run(self, recordings: Sequence[Recording]) -> list[float]:
        """Every step whole, up to the end of all recordings; seconds up to each row's last id."""
        for row, recording in enumerate(recordings):
            self.follow(row, recording)
        num_left = [len(recording.ids) - 1 for recording in recordings]
        ends, elapsed, num_seen = [0.0] * len(recordings), 0.0, 0
        while any(num > 0 for num in num_left):
            self.launch()
            for stepped in self._steps[num_seen:]:
                elapsed += stepped.seconds
                for row, ids in enumerate(stepped.tokens):
                    num_left[row] -= len(ids)
                    ends[row] = elapsed if ids else ends[row]
            num_seen = len(self._steps)
        self.seconds()
        return ends
