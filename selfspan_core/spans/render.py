"""Renders a worked example into ids, loss mask and visibility: one function for both training and serving.

It works on token ids only and takes visibility from the tracker, its only source. No torch here.
"""

from dataclasses import dataclass

from selfspan_core.spans.intervals import Interval, merge
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import Phase, Tracker


@dataclass(frozen=True)
class Part:
    """A run of prompt tokens; `name` is the anchor id that makes it a segment, or None for plain text."""

    ids: tuple[int, ...]
    name: int | None = None


@dataclass(frozen=True)
class Step:
    """One step: the names that it reads, its own name, its working and its citable result (token ids).

    Without working the whole body is the result, and no marker is spent on where it starts.
    """

    reads: tuple[int, ...]
    name: int
    work: tuple[int, ...]
    result: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A prompt and, for training, the steps that answer it.

    `scaffold` is the part that all tokens always see: `<bos>` and the instruction. `head_tokens`: see `PromptLayout`.
    """

    scaffold: tuple[int, ...]
    parts: tuple[Part, ...]
    steps: tuple[Step, ...] = ()
    head_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class VisibleRun:
    """Consecutive queries, from `first` up to the next run's, that see `context` and `[own_start, themselves]`.

    With `reads_index` the context is that part of the example's index which lies before `own_start`.
    """

    first: int
    context: tuple[Interval, ...]
    own_start: int
    reads_index: bool = False


@dataclass(frozen=True)
class Rendered:
    """A laid-out example.

    Attributes:
        ids: all token ids, the prompt first.
        prompt: where the prompt's pieces lie.
        loss_mask: 1 where a token is to be learned (as a prediction target), 0 on the prompt.
        runs: visibility, one entry wherever it changes; the first starts at position 0.
        index: of an example whose headers see an index, all of it; else empty.
    """

    ids: list[int]
    prompt: PromptLayout
    loss_mask: list[int]
    runs: list[VisibleRun]
    index: tuple[Interval, ...] = ()

    @property
    def visibility(self) -> list[tuple[Interval, ...]]:
        """For every position, the intervals that its query sees: sorted, disjoint, itself included."""
        ends = [run.first for run in self.runs[1:]] + [len(self.ids)]
        return [
            merge([*run.context, (run.own_start, query + 1)])
            for run, end in zip(self.runs, ends, strict=True)
            for query in range(run.first, end)
        ]


def layout(example: Example) -> tuple[list[int], PromptLayout]:
    """Prompt ids (scaffold, then parts, each named one behind its anchor) and where they lie.

    Raises:
        ValueError: two parts of the prompt share a name.
    """
    ids = list(example.scaffold)
    segments: dict[int, Interval] = {}
    for part in example.parts:
        start = len(ids)
        if part.name is not None:
            if part.name in segments:
                raise ValueError(f"two segments of the prompt share the name with id {part.name}")
            ids.append(part.name)
            segments[part.name] = (start, start + 1 + len(part.ids))
        ids.extend(part.ids)
    return ids, PromptLayout(len(ids), len(example.scaffold), segments, example.head_tokens)


def step_ids(step: Step, markers: Markers) -> list[int]:
    """Ids of one step, header and body."""
    header = [markers.ref, *step.reads, step.name, markers.go]
    working = [*step.work, markers.res] if step.work else []
    return [*header, *working, *step.result, markers.end]


def render(example: Example, markers: Markers) -> Rendered:
    """Lay out an example: the prompt alone for serving, prompt, steps and `<eos>` for training.

    Raises:
        ValueError: two segments share a name, or a step's ids are not well formed (reads an unknown name, takes a
            name that is taken, exceeds a bound): training data must never teach malformed steps.
    """
    ids, prompt = layout(example)
    runs = [VisibleRun(0, (), 0)]
    index: tuple[Interval, ...] = ()
    if example.steps:
        tracker = Tracker(markers, prompt)
        for step in example.steps:
            for token in step_ids(step, markers):
                state = tracker.push(token)
                last = runs[-1]
                if state.own_start != last.own_start or state.context is not last.context:
                    reads_index = bool(state.context) and state.phase is not Phase.BODY
                    runs.append(VisibleRun(state.position, state.context, state.own_start, reads_index))
                ids.append(token)
        index = tracker.index
        if tracker.num_malformed:
            raise ValueError(f"malformed step in an example: {tracker.problem}")
        if runs[-1].own_start or runs[-1].context:
            runs.append(VisibleRun(len(ids), (), 0))
        ids.append(markers.eos)
    loss_mask = [0] * prompt.num_tokens + [1] * (len(ids) - prompt.num_tokens)
    return Rendered(ids, prompt, loss_mask, runs, index)


def render_plain(example: Example, markers: Markers, separator: tuple[int, ...]) -> Rendered:
    """The same worked text without a single marker: `separator` opens each step, everything sees everything."""
    ids = [*example.scaffold, *(token for part in example.parts for token in part.ids)]
    prompt = PromptLayout(len(ids), len(example.scaffold), {})
    for step in example.steps:
        ids += [*separator, *step.work, *step.result]
    if example.steps:
        ids.append(markers.eos)
    loss_mask = [0] * prompt.num_tokens + [1] * (len(ids) - prompt.num_tokens)
    return Rendered(ids, prompt, loss_mask, [VisibleRun(0, (), 0)])
