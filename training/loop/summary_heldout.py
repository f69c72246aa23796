"""Figures on held-out summaries by teacher forcing, while an adapter is trained.

Is the right sentence named first, and is a step written word for word as annotated?
"""

from collections.abc import Mapping

import numpy as np
import torch

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from training.data.summary_format import MAX_LONG_TOKENS
from training.data.summary_source import MixturePart, among_others
from training.loop import heldout as metrics
from training.loop.loss import LanguageModelLoss
from training.loop.packing import Row, Sample, pack, sample_of
from training.loop.trainer import LoopConfig

MAX_SUMMARIES = 64

Range = tuple[int, int]


class SummaryHeldout:
    """Held-out summaries per key of a mixture, never trained on; calling it gives their figures.

    Args:
        parts: of the mixture, by key, of the held-out split.

    Raises:
        ValueError: a summary does not fit into `loop.row_tokens`.
    """

    def __init__(
        self, parts: Mapping[str, MixturePart], tokenizer: SpanTokenizer, annotated: bool, loop: LoopConfig
    ) -> None:
        self._row = (loop.row_tokens, loop.max_intervals, tokenizer.pad_id)
        self._samples: dict[str, list[Sample]] = {}
        self._rows: dict[str, list[Row]] = {}
        self._bodies: dict[str, list[list[Range]]] = {}
        self._first_reads: dict[str, list[list[Range]]] = {}
        for kind, part in parts.items():
            separator, rendered = part.layout.separator, examples_of(part)
            if not rendered:
                continue
            metrics.require_room((len(r.ids) for r in rendered), loop.row_tokens, f"the held-out summaries ({kind})")
            self._samples[kind] = [sample_of(r) for r in rendered]
            self._rows[kind] = list(pack(self._samples[kind], *self._row))
            self._bodies[kind] = [bodies(r, tokenizer.markers, separator if not annotated else None) for r in rendered]
            if annotated:
                self._first_reads[kind] = [first_reads(r, tokenizer.markers) for r in rendered]

    def __call__(self, module: LanguageModelLoss, device: torch.device, micro_rows: int) -> dict[str, float]:
        """Figures `loss/<kind>`, `exact_step/<kind>` and, for a span adapter, `first_read/<kind>`."""
        figures = {}
        for kind, samples in self._samples.items():
            figures[f"loss/{kind}"] = metrics.heldout_loss(module, device, self._rows[kind], micro_rows)
            for name, ranges in (("exact_step", self._bodies), ("first_read", self._first_reads)):
                if kind in ranges:
                    figures[f"{name}/{kind}"] = metrics.exact_answers(
                        module, device, samples, ranges[kind], self._row, micro_rows
                    )
        return figures


def examples_of(part: MixturePart) -> list[Rendered]:
    """The first MAX_SUMMARIES summaries of a part, always the same; among pieces of others, as long as they come."""
    rendered = []
    for number in part.packed.of_kind(part.kind)[:MAX_SUMMARIES].tolist():
        summary = part.packed.summary(number)
        if part.among:
            summary = among_others(summary, number, part.packed, MAX_LONG_TOKENS, np.random.default_rng(number))
        rendered.append(part.layout.render(summary, offset=7 * number))
    return rendered


def bodies(rendered: Rendered, markers: Markers, separator: int | None) -> list[Range]:
    """Token ranges of the steps' sentences, with what ends each; `separator` opens the steps of a plain layout."""
    first, ids = rendered.prompt.num_tokens, rendered.ids
    opening = markers.go if separator is None else separator
    starts = [i + 1 for i in range(first, len(ids)) if ids[i] == opening]
    if separator is not None:
        return list(zip(starts, [*starts[1:], len(ids)], strict=True))
    ends = [i + 1 for i in range(first, len(ids)) if ids[i] == markers.end]
    return list(zip(starts, ends, strict=True))


def first_reads(rendered: Rendered, markers: Markers) -> list[Range]:
    """Token ranges of the first name in each header."""
    return [
        (i + 1, i + 2) for i in range(rendered.prompt.num_tokens, len(rendered.ids)) if rendered.ids[i] == markers.ref
    ]
