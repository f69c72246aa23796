"""Reads a model's output: the sentences of its summary, and the segments that each was drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.tracker import Tracker
from selfspan_core.tasks.base import Tokenizer
from selfspan_core.tasks.summarize.form import MAX_READS, STEP_SEPARATOR
from selfspan_core.tasks.summarize.text import is_sentence


@dataclass(frozen=True)
class WrittenStep:
    """One step of a written summary.

    Attributes:
        text: its sentence.
        reads: places of the article's segments that its header names, in its order; empty for a plain lane.
        malformed: it breaks the grammar of steps, or names no segment of the article, an unknown one, or too many.
        is_cut: its sentence has no end.
    """

    text: str
    reads: tuple[int, ...]
    malformed: bool
    is_cut: bool


def read_steps(ids: Sequence[int], layout: PromptLayout, tokenizer: Tokenizer) -> list[WrittenStep]:
    """Steps of a span lane.

    Args:
        ids: what was written after the prompt.
        layout: where the prompt's segments lie; their order is the article's.
    """
    tracker = Tracker(tokenizer.markers, layout)
    for token in ids:
        tracker.push(token)
    places = {name: place for place, name in enumerate(layout.segments)}
    steps = []
    for record in tracker.steps:
        start = record.start if record.body_start is None else record.body_start
        end = layout.num_tokens + len(ids) if record.end is None else record.end
        text = tokenizer.decode(ids[start - layout.num_tokens : end - layout.num_tokens]).strip()
        known = all(read in places for read in record.reads)
        reads = tuple(places[read] for read in record.reads if read in places)
        malformed = record.malformed or not known or not 1 <= len(reads) <= MAX_READS or not text
        # A header's names are no text, but a broken step may consist of nothing else.
        steps.append(WrittenStep(text, reads, malformed, record.end is None or not is_sentence(text)))
    return steps


def read_lines(ids: Sequence[int], tokenizer: Tokenizer) -> list[WrittenStep]:
    """Steps of a plain lane: a line each. An empty line is malformed, and so are markers."""
    markers = set(tokenizer.markers.ids)
    text = tokenizer.decode([token for token in ids if token not in markers])
    lines = text.removeprefix(STEP_SEPARATOR).split(STEP_SEPARATOR) if text.strip() else []
    has_markers = any(token in markers for token in ids)
    ended = bool(ids) and ids[-1] == tokenizer.markers.eos
    return [
        WrittenStep(line.strip(), (), has_markers or not line.strip(), not is_sentence(line.strip()))
        for number, line in enumerate(lines)
        # A line break at the very end opens a step that never came.
        if line.strip() or number + 1 < len(lines) or ended
    ]
