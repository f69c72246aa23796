"""Packed summaries (`training.summary_data`) as training examples, laid out as the task lays out a user's text.

Reads ids: no sentence splitter and no text is needed where a model is trained.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import Example, Rendered
from selfspan_core.tasks.summarize.form import CUE, MAX_SEGMENTS, MAX_STEPS, STEP_SEPARATOR, Form, Length
from selfspan_core.tasks.summarize.task import example_of, render_example, scaffold_of
from training.data.summary_format import MAX_LONG_TOKENS, read
from training.summary_data import EVALUATION, KINDS, META, NO_READ
from training.text_data import SPLITS

MIN_AMONG_TOKENS = 2_048
PIECE_SENTENCES = (2, 6)


@dataclass(frozen=True)
class Summary:
    """One article with one summary, as ids.

    Attributes:
        segments: ids of the article's sentences.
        steps: (places of the segments read, ids of the body).
    """

    segments: list[np.ndarray]
    steps: list[tuple[tuple[int, ...], np.ndarray]]

    @property
    def length(self) -> Length:
        """The length that the prompt asks for."""
        return "short" if len(self.steps) <= MAX_STEPS["short"] else "medium"


class PackedSummaries:
    """One split of a folder that `training.summary_data` wrote, in memory.

    Attributes:
        form: of all of its summaries.
        ids: of the documents.

    Raises:
        FileNotFoundError: the folder holds no finished data.
        ValueError: it was made with another tokenizer, or has no such split.
    """

    def __init__(self, folder: str | Path, tokenizer: SpanTokenizer, split: str = "train") -> None:
        folder = Path(folder)
        if not (folder / META).is_file():
            raise FileNotFoundError(f"no packed summaries in {folder}; python -m training.summary_data makes them")
        if split not in (*SPLITS, EVALUATION):
            raise ValueError(f"no split '{split}' of packed summaries; there are {', '.join((*SPLITS, EVALUATION))}")
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if meta["vocab_size"] != tokenizer.vocab_size:
            raise ValueError(
                f"the summaries in {folder} have {meta['vocab_size']} ids, the tokenizer has {tokenizer.vocab_size}"
            )
        self.form: Form = meta["form"]
        data = read(folder / f"{split}.npz.xz")
        self._arrays = {name: data[name] for name in data}
        self.ids: list[str] = self._arrays["ids"].tolist()
        starts = lambda name: np.concatenate([[0], np.cumsum(self._arrays[name], dtype=np.int64)])  # noqa: E731
        self._token_starts = starts("segment_lengths")
        self._segment_starts = starts("document_segments")
        self._step_starts = starts("target_steps")
        self._body_starts = starts("step_lengths")

    def of_kind(self, kind: str) -> np.ndarray:
        """Numbers of the summaries of a kind.

        Raises:
            ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"there are no summaries of kind '{kind}'; kinds: {', '.join(KINDS)}")
        return np.flatnonzero(self._arrays["target_kinds"] == KINDS.index(kind))

    def longest(self, kind: str) -> int:
        """Most tokens of a document that has a summary of a kind, its sentences' names included."""
        documents = np.unique(self._arrays["target_documents"][self.of_kind(kind)]).astype(np.int64)
        segments = self._segment_starts[documents + 1] - self._segment_starts[documents]
        starts, ends = (self._token_starts[self._segment_starts[documents + behind]] for behind in (0, 1))
        return int((ends - starts + segments).max(initial=0))

    def document_of(self, number: int) -> int:
        """The document that a summary is of."""
        return int(self._arrays["target_documents"][number])

    def segments(self, document: int) -> list[np.ndarray]:
        """Ids of a document's sentences."""
        first, last = self._segment_starts[document : document + 2]
        bounds = self._token_starts[first : last + 1]
        tokens = self._arrays["tokens"]
        return [tokens[start:end] for start, end in itertools.pairwise(bounds)]

    def summary(self, number: int) -> Summary:
        """One summary."""
        steps = []
        for step in range(*self._step_starts[number : number + 2].tolist()):
            reads = tuple(int(read) for read in self._arrays["step_reads"][step] if read != NO_READ)
            start, end = self._body_starts[step : step + 2]
            steps.append((reads, self._arrays["step_tokens"][start:end]))
        return Summary(self.segments(self.document_of(number)), steps)


class Layout:
    """Lays out summaries for one tokenizer, as `selfspan_core.tasks.summarize.task.Summarize` does from text.

    Args:
        form: that the prompt asks for.

    Attributes:
        separator: the id that opens a plain layout's steps.
        num_names: names that there are.
    """

    def __init__(self, tokenizer: SpanTokenizer, annotated: bool, form: Form = "shorten") -> None:
        self._tokenizer, self._annotated = tokenizer, annotated
        self._scaffolds = {length: scaffold_of(tokenizer, length, form) for length in MAX_STEPS}
        self._cue = tuple(tokenizer.encode(CUE))
        self.separator = tokenizer.encode(STEP_SEPARATOR)[-1]
        self.num_names = len(tokenizer.markers.anchors)

    def render(self, summary: Summary, offset: int = 0, length: Length | None = None) -> Rendered:
        """Prompt and steps; the prompt alone where there are none."""
        return render_example(
            self._example(summary, offset, length or summary.length), self._tokenizer, self._annotated
        )

    def _example(self, summary: Summary, offset: int, length: str) -> Example:
        segments = [ids.tolist() for ids in summary.segments]
        steps = [(reads, ids.tolist()) for reads, ids in summary.steps]
        return example_of(self._scaffolds[length], segments, self._cue, steps, self._tokenizer.markers, offset)


@dataclass(frozen=True)
class MixturePart:
    """Summaries of one kind, how they are laid out, and whether their articles stand among pieces of others."""

    packed: PackedSummaries
    kind: str
    layout: Layout
    among: bool = False

    @property
    def longest_document(self) -> int:
        """Most tokens of its documents, names included; where articles stand among others, about so many."""
        own = self.packed.longest(self.kind)
        return max(own, MAX_LONG_TOKENS) if self.among else own


def without_some(summary: Summary, share: float, rng: np.random.Generator) -> Summary:
    """A summary whose article lost about so great a share of the sentences that no step reads.

    The same article is then a new one, and no place in it is always the right one.
    """
    read = {place for reads, _ in summary.steps for place in reads}
    kept = [place for place in range(len(summary.segments)) if place in read or rng.random() >= share]
    places = {place: new for new, place in enumerate(kept)}
    steps = [(tuple(places[place] for place in reads), ids) for reads, ids in summary.steps]
    return Summary([summary.segments[place] for place in kept], steps)


def among_others(
    summary: Summary, number: int, packed: PackedSummaries, num_tokens: int, rng: np.random.Generator
) -> Summary:
    """A summary whose article stands somewhere among pieces of other articles, as on a page full of teasers.

    The article is the one text that stands there whole. Pieces are some sentences in a row of a document of the same
    split. So first reads are as often in the middle and at the end of a document as at its beginning.

    Args:
        summary, number: a summary of `packed`.
        num_tokens: about how long the document becomes, names included; the article, if it is longer.
    """
    own = packed.document_of(number)
    room = num_tokens - sum(len(ids) + 1 for ids in summary.segments)
    names = MAX_SEGMENTS - len(summary.segments)
    pieces: list[list[np.ndarray]] = []
    others = [document for document in rng.permutation(len(packed.ids)).tolist() if document != own]
    for document in others:
        segments = packed.segments(document)
        size = int(rng.integers(PIECE_SENTENCES[0], PIECE_SENTENCES[1] + 1))
        first = int(rng.integers(max(1, len(segments) - size + 1)))
        piece = segments[first : first + size]
        room -= sum(len(ids) + 1 for ids in piece)
        names -= len(piece)
        if room < 0 or names < 0:
            break
        pieces.append(piece)
    num_before = int(rng.integers(len(pieces) + 1))
    before = [ids for piece in pieces[:num_before] for ids in piece]
    behind = [ids for piece in pieces[num_before:] for ids in piece]
    steps = [(tuple(len(before) + read for read in reads), ids) for reads, ids in summary.steps]
    return Summary([*before, *summary.segments, *behind], steps)


def summary_examples(
    part: MixturePart,
    seed: int,
    worker: int = 0,
    num_workers: int = 1,
    sentence_dropout: float = 0.0,
) -> Iterator[Rendered]:
    """Rendered examples of a part without end, shuffled anew each epoch; names start at a random anchor.

    Documents in which articles stand among pieces of others have MIN_AMONG_TOKENS to MAX_LONG_TOKENS tokens.

    The same arguments give the same summaries whether the layout is annotated or not; workers' shares of an epoch are
    disjoint.

    Raises:
        ValueError: there are fewer summaries of this kind than workers.
    """
    packed, layout = part.packed, part.layout
    numbers = packed.of_kind(part.kind)
    if len(numbers) < num_workers:
        raise ValueError(f"there are {len(numbers)} summaries of kind '{part.kind}' for {num_workers} workers")
    rng = np.random.default_rng((seed, worker, 1))
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(numbers)
        for number in order[worker::num_workers].tolist():
            summary = without_some(packed.summary(number), sentence_dropout, rng)
            if part.among:
                num_tokens = int(rng.integers(MIN_AMONG_TOKENS, MAX_LONG_TOKENS))
                summary = among_others(summary, number, packed, num_tokens, rng)
            yield layout.render(summary, int(rng.integers(layout.num_names)))
        epoch += 1
