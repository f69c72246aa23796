"""What a batch's decode step is made of beside the model: tracker, attention, small operations, sampling, drafts.

Two sets that do the same: `cuda_parts.CudaParts`, the kernels of `cuda_kernels`, which wait for nothing and can be
captured in a CUDA graph; and `torch_parts.TorchParts`, the tracker in Python and PyTorch's operations, which run
anywhere and say what the former have to compute.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from cuda_kernels.drafts import DraftBuffers, FixedWords
from cuda_kernels.tracker import Grammar
from selfspan_core.engine.decoder import StepOps
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.hints import DraftHints
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS


class Parts(Protocol):
    """Of one batch of rows; shapes as in `cuda_kernels.tracker`, `attention` and `layers`."""

    @property
    def ops(self) -> StepOps:
        """The operations between the GEMMs."""
        ...

    @property
    def buffers(self) -> DraftBuffers | None:
        """What rounds with drafts read and write, if there are any."""
        ...

    @property
    def max_spans(self) -> int:
        """Most intervals that a query sees where one id is taken in per step."""
        ...

    def begin(self, row: int, layout: PromptLayout, annotated: bool) -> None:
        """A sequence begins in a row; its prompt is in the cache."""

    def clear(self, row: int) -> None:
        """A row has no sequence any more: it sees nothing."""

    def push(self, ids: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor, positions: torch.Tensor) -> None:
        """Every row's next id; what its query sees, and where it stands, are written."""

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """Take in what every row sees, for all layers."""

    def begin_drafts(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """A sequence begins that is drafted: by itself, or with drafts that somebody writes to `buffers.injected`."""

    def take_first(self, row: int, ids: torch.Tensor) -> None:
        """The first id of a row that is drafted, in its place of `ids` `[batch]`."""

    def draft(self, num_queries: int, limits: torch.Tensor) -> None:
        """Take in what was kept, propose drafts, cut by a row's rules, and plan what `num_queries` queries of every row
        see; in `buffers`."""

    def begin_rules(self, row: int, rules: DeviceRules | None) -> None:
        """A sequence begins that is held to rules, or to none; in a batch that keeps rules by itself."""

    def narrow(self, num_queries: int, logits: torch.Tensor) -> None:
        """Minus infinity at what rules forbid behind every query of the last `draft`; `[batch * num_queries, V]`."""

    def accept(
        self, num_queries: int, scripts: torch.Tensor, limits: torch.Tensor, ring: torch.Tensor, step: torch.Tensor
    ) -> None:
        """Keep the drafts that are what was drawn, and the id behind them; see `SpanDrafter.accept`."""

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """Attention `[T, H, D]` over what was planned, of as many queries per row as were planned for."""

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_ps: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """The ids behind the tokens are written; see `DecodeOps.sample`."""

    def advance(
        self,
        ids: torch.Tensor,
        scripts: torch.Tensor,
        limits: torch.Tensor,
        ring: torch.Tensor,
        step: torch.Tensor,
        row: int | None = None,
    ) -> None:
        """What was drawn is written down, and rows at their end go idle; see `SpanTracker.advance`."""


def grammar_of(markers: Markers, vocab_size: int) -> Grammar:
    """The protocol's numbers and a tokenizer's ids, as the tracker on the device takes them."""
    return Grammar(
        ref=markers.ref,
        go=markers.go,
        res=markers.res,
        end=markers.end,
        eos=markers.eos,
        anchors=markers.anchors,
        vocab_size=vocab_size,
        max_reads=MAX_READS,
        max_body_tokens=MAX_BODY_TOKENS,
    )


def fixed_words(hints: DraftHints) -> FixedWords:
    """What a task knows of its steps, as the drafting kernels take it."""
    return FixedWords(hints.num_reads, tuple(sorted(hints.between)), hints.behind)
