"""The span protocol: which ids mark a step, and how a worked example becomes ids, loss mask and visibility.

    prompt   <bos> scaffold  <|a0|>79 * <|a1|>36 + <|a2|>63 =
    step     <|ref|> <|a0|> <|a1|> <|a3|> <|go|> 79*36=2370+474= <|res|> 2844 <|end|>
    step     <|ref|> <|a3|> <|a2|> <|a4|> <|go|> 2844+63= <|res|> 2907 <|end|> <eos>
              header: who is read ... new name      body: sees only what is read, and itself

Markers are ids, never text. `render` is the one function that lays out an example, for training and for serving
alike; it knows token ids only and asks the tracker who sees what. No torch here.
Source: "Self-Selected Attention Span", arXiv 2404.09336, section 3.
"""

from dataclasses import dataclass, field

from selfspan_core.intervals import Interval, merge

NUM_ANCHORS = 256
REF, GO, RES, END = "<|ref|>", "<|go|>", "<|res|>", "<|end|>"
ANCHORS = tuple(f"<|a{i}|>" for i in range(NUM_ANCHORS))
MARKER_PIECES = (REF, GO, RES, END, *ANCHORS)


@dataclass(frozen=True)
class Markers:
    """Token ids of the markers in one tokenizer.

    Attributes:
        bos, eos: begin and end of a sequence (bos is None where a tokenizer has none).
        ref, go, res, end: open a step, end its header, open its citable part, end it.
        anchors: ids of `<|a0|>` ... in order.
    """

    bos: int | None
    eos: int
    ref: int
    go: int
    res: int
    end: int
    anchors: tuple[int, ...]
    anchor_index: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_index", {token: i for i, token in enumerate(self.anchors)})
        ids = self.ids
        if len(set(ids)) != len(ids):
            raise ValueError("two markers share an id")

    @property
    def ids(self) -> tuple[int, ...]:
        """All marker ids, in the order of MARKER_PIECES (bos and eos are not markers)."""
        return (self.ref, self.go, self.res, self.end, *self.anchors)

    def name(self, offset: int, index: int) -> int:
        """Id of the `index`-th name of an example whose names start at anchor `offset`; names wrap around."""
        return self.anchors[(offset + index) % len(self.anchors)]


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

    `scaffold` is everything that all tokens always see: `<bos>` and the instruction.
    """

    scaffold: tuple[int, ...]
    parts: tuple[Part, ...]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class PromptLayout:
    """Where things lie in a rendered prompt; what a tracker starts from.

    Attributes:
        num_tokens: length of the prompt.
        scaffold_end: the scaffold is `[0, scaffold_end)`.
        segments: anchor id -> interval, its anchor token included.
    """

    num_tokens: int
    scaffold_end: int
    segments: dict[int, Interval]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive queries, from `first` up to the next run's, that see `context` and `[own_start, themselves]`."""

    first: int
    context: tuple[Interval, ...]
    own_start: int


@dataclass(frozen=True)
class Rendered:
    """A laid-out example.

    Attributes:
        ids: all token ids, the prompt first.
        prompt: where the prompt's pieces lie.
        loss_mask: 1 where a token is to be learned (as a prediction target), 0 on the prompt.
        runs: who sees what, one entry wherever it changes; the first starts at position 0.
    """

    ids: list[int]
    prompt: PromptLayout
    loss_mask: list[int]
    runs: list[Run]

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
    return ids, PromptLayout(len(ids), len(example.scaffold), segments)


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
    # The tracker is the one authority on visibility; it needs Markers and PromptLayout from this module.
    from selfspan_core.tracker import Tracker

    ids, prompt = layout(example)
    runs = [Run(0, (), 0)]
    if example.steps:
        tracker = Tracker(markers, prompt)
        for step in example.steps:
            for token in step_ids(step, markers):
                state = tracker.push(token)
                last = runs[-1]
                if state.own_start != last.own_start or state.context is not last.context:
                    runs.append(Run(state.position, state.context, state.own_start))
                ids.append(token)
        if tracker.num_malformed:
            raise ValueError(f"malformed step in an example: {tracker.problem}")
        if runs[-1].own_start:
            runs.append(Run(len(ids), (), 0))
        ids.append(markers.eos)
    loss_mask = [0] * prompt.num_tokens + [1] * (len(ids) - prompt.num_tokens)
    return Rendered(ids, prompt, loss_mask, runs)


def render_plain(example: Example, markers: Markers, separator: tuple[int, ...]) -> Rendered:
    """The same worked text without a single marker: `separator` opens each step, everything sees everything."""
    ids = [*example.scaffold, *(token for part in example.parts for token in part.ids)]
    prompt = PromptLayout(len(ids), len(example.scaffold), {})
    for step in example.steps:
        ids += [*separator, *step.work, *step.result]
    if example.steps:
        ids.append(markers.eos)
    loss_mask = [0] * prompt.num_tokens + [1] * (len(ids) - prompt.num_tokens)
    return Rendered(ids, prompt, loss_mask, [Run(0, (), 0)])
