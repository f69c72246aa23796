"""The span protocol's tracker on the device: ids in, intervals out, for every row of a batch, inside a captured graph.

The tracker in plain Python is its specification. This module does not import it: `Grammar` carries the protocol's
numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cuda_kernels.checks import check_tensor
from cuda_kernels.compile import load
from cuda_kernels.device import cuda_device
from cuda_kernels.launcher import Launcher, int32s, pointer, pointers

IDLE = 5
"""Phase of a row without a sequence (PHASE_IDLE in tracker.cu)."""
PHASES = ("between", "header", "body", "broken", "done", "idle")
"""Names of the phases in the lower three bits of a report."""
MALFORMED, HEADER_CLOSED = 8, 16
"""Flags in a report."""
THREADS = 32
NO_STEP = 2**31 - 1
"""Where the last step begins before there is one: behind every position."""


@dataclass(frozen=True)
class Grammar:
    """The protocol's numbers and one tokenizer's ids.

    Attributes:
        ref, go, res, end, eos: marker ids.
        anchors: ids of the names, in order.
        vocab_size: of the model; ids are below it.
        max_reads: segments that a header may name.
        max_body_tokens: longest body, and longest broken step.
    """

    ref: int
    go: int
    res: int
    end: int
    eos: int
    anchors: tuple[int, ...]
    vocab_size: int
    max_reads: int
    max_body_tokens: int

    @property
    def max_intervals(self) -> int:
        """Most intervals that a query sees: the scaffold, the segments read, and the step itself."""
        return self.max_reads + 2

    @property
    def track_words(self) -> int:
        """Length of a row's state in words of 32 bits (struct Track in tracker.cu)."""
        return 14 + 3 * (self.max_reads + 1)

    @property
    def max_index(self) -> int:
        """Most intervals of an index (MAX_INDEX in tracker.cuh)."""
        return 2 * len(self.anchors) + 1

    def max_spans(self, with_index: bool) -> int:
        """Most intervals that a query sees where headers see an index, or where none does."""
        return self.max_index + 1 if with_index else self.max_intervals

    def kinds(self) -> torch.Tensor:
        """The kind of every id, int16 `[vocab_size]`: an anchor's index, -1 for text, or a marker's number."""
        kinds = torch.full((self.vocab_size,), -1, dtype=torch.int16)
        for number, token in enumerate((*self.anchors, self.ref, self.go, self.res, self.end, self.eos)):
            kinds[token] = number
        return kinds

    def macros(self) -> tuple[str, ...]:
        """The source's macros, as compiler options."""
        return (
            f"-DNUM_ANCHORS={len(self.anchors)}",
            f"-DMAX_READS={self.max_reads}",
            f"-DMAX_BODY_TOKENS={self.max_body_tokens}",
        )

    def start(
        self, num_prompt: int, scaffold_end: int, segments: Mapping[int, tuple[int, int]], annotated: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A row's state after its prompt: track, int32 `[track_words]`, and segments, int32 `[num_anchors, 2]`.

        Args:
            num_prompt: tokens of the prompt.
            scaffold_end: everyone sees `[0, scaffold_end)`.
            segments: anchor id -> interval.
            annotated: whether text outside of steps breaks the grammar.
        """
        track = torch.zeros(self.track_words, dtype=torch.int32)
        track[0], track[2], track[3] = num_prompt - 1, int(annotated), scaffold_end
        track[4] = NO_STEP
        table = torch.zeros(len(self.anchors), 2, dtype=torch.int32)
        index = {token: i for i, token in enumerate(self.anchors)}
        for token, interval in segments.items():
            table[index[token]] = torch.tensor(interval, dtype=torch.int32)
        return track, table

    def see_index(self, track: torch.Tensor, index: Sequence[tuple[int, int]], head_tokens: int) -> torch.Tensor:
        """A row whose headers see an index: its state, from `start`, is changed; the index, int32 `[max_index, 2]`.

        Args:
            track: of the row.
            index: what headers see of the prompt.
            head_tokens: of each segment behind its name, 1 or more.
        """
        track[-4:] = torch.tensor([head_tokens, len(index), len(index), -1], dtype=torch.int32)
        table = torch.zeros(self.max_index, 2, dtype=torch.int32)
        table[: len(index)] = torch.tensor(index, dtype=torch.int32).view(-1, 2)
        return table


class SpanTracker:
    """State and launcher for one batch.

    Args:
        grammar: the protocol's numbers.
        batch: rows.
        device: a CUDA device.
        with_index: whether rows may have headers that see an index.

    Raises:
        CudaUnavailable: no CUDA device, or CuPy is missing.
    """

    def __init__(
        self, grammar: Grammar, batch: int, device: torch.device | str = "cuda", with_index: bool = False
    ) -> None:
        self.grammar, self.batch, self.device = grammar, batch, cuda_device(device)
        self._track, self._advance = (
            load("tracker.cu", name, grammar.macros(), self.device.index)
            for name in ("selfspan_track", "selfspan_advance")
        )
        self._launch = Launcher(self.device)
        self.kinds = grammar.kinds().to(self.device)
        self.tracks = torch.zeros(batch, grammar.track_words, dtype=torch.int32, device=self.device)
        self.segments = torch.zeros(batch, len(grammar.anchors), 2, dtype=torch.int32, device=self.device)
        index_shape = (batch, grammar.max_index, 2)
        self.indexes = torch.zeros(index_shape, dtype=torch.int32, device=self.device) if with_index else None
        self.clear(range(batch))

    def clear(self, rows: Sequence[int]) -> None:
        """These rows have no sequence: they see nothing."""
        for row in rows:
            self.tracks[row, 1].fill_(IDLE)

    def set(self, row: int, track: torch.Tensor, segments: torch.Tensor, index: torch.Tensor | None = None) -> None:
        """Begin a sequence in one row, with the state made by `Grammar.start`, and by `see_index` if it has one.

        Raises:
            ValueError: an index, and this tracker was made without.
        """
        if index is not None:
            if self.indexes is None:
                raise ValueError("index: this tracker was made without")
            self.indexes[row].copy_(index, non_blocking=True)
        self.tracks[row].copy_(track, non_blocking=True)
        self.segments[row].copy_(segments, non_blocking=True)

    def push(
        self,
        ids: torch.Tensor,
        intervals: torch.Tensor,
        counts: torch.Tensor,
        positions: torch.Tensor,
        reports: torch.Tensor,
        is_dense: bool = False,
    ) -> None:
        """Push one id per row; writes the intervals that its query sees, in the form that SpanAttention.plan takes.

        Args:
            ids: int64 `[batch]`.
            intervals: int32 `[batch, max_spans, 2]`, max_spans at least `grammar.max_spans(with_index)`; is written.
            counts: int32 `[batch]`; is written; 0 for rows without a sequence.
            positions: int32 `[batch]`; is written: the id's position, or -1 in rows without a sequence.
            reports: int32 `[batch]`; is written: phase in the lower three bits, and flags.
            is_dense: everything is visible, whatever the headers name.

        Raises:
            ValueError: a wrong argument, named.
        """
        batch = (self.batch,)
        check_tensor("ids", ids, batch, torch.int64, self.device, contiguous=True)
        spans = tuple(intervals.shape[1:2]) if isinstance(intervals, torch.Tensor) and intervals.dim() == 3 else (0,)
        check_tensor("intervals", intervals, (*batch, *spans, 2), torch.int32, self.device, contiguous=True)
        if spans[0] < (needed := self.grammar.max_spans(self.indexes is not None)):
            raise ValueError(f"intervals has room for {spans[0]} a row, and {needed} are needed")
        check_tensor("counts", counts, batch, torch.int32, self.device, contiguous=True)
        check_tensor("positions", positions, batch, torch.int32, self.device, contiguous=True)
        check_tensor("reports", reports, batch, torch.int32, self.device, contiguous=True)
        arguments = (
            *pointers(ids, self.kinds, self.tracks, self.segments, self.indexes),
            *int32s(self.batch, is_dense),
            pointer(intervals),
            np.int32(spans[0]),
            *pointers(counts, positions, reports),
        )
        self._launch(self._track, -(-self.batch // THREADS), THREADS, arguments)

    def advance(
        self,
        ids: torch.Tensor,
        scripts: torch.Tensor,
        limits: torch.Tensor,
        ring: torch.Tensor,
        step: torch.Tensor,
        row: int | None = None,
    ) -> None:
        """Record the id that was drawn for every row; rows at their end become idle.

        Args:
            ids: int64 `[batch]`, the next ids; overwritten where a script forces another id.
            scripts: int32 `[batch, script_length]`: the id that a row has to take at a position, or -1.
            limits: int32 `[batch]`, positions that a row may take.
            ring: int64 `[num_slots, batch]` on the device, or pinned on the host; slot `step % num_slots` is written,
                with -1 for rows without a sequence.
            step: int32 `[1]` on the device; is incremented.
            row: only this row, and `ring` is `[num_slots, 1]`; None: all.

        Raises:
            ValueError: a wrong argument, named.
        """
        check_tensor("ids", ids, (self.batch,), torch.int64, self.device, contiguous=True)
        check_tensor("scripts", scripts, (self.batch, scripts.shape[1]), torch.int32, self.device, contiguous=True)
        check_tensor("limits", limits, (self.batch,), torch.int32, self.device, contiguous=True)
        check_tensor("step", step, (1,), torch.int32, self.device, contiguous=True)
        first, count = (0, self.batch) if row is None else (row, 1)
        where = ring.device if ring.device.type == "cpu" and ring.is_pinned() else self.device
        check_tensor("ring", ring, (ring.shape[0], count), torch.int64, where, contiguous=True)
        arguments = (
            *pointers(ids[first:], self.kinds, self.tracks[first:], scripts[first:]),
            np.int32(scripts.shape[1]),
            pointer(limits[first:]),
            np.int32(count),
            pointer(ring),
            np.int32(ring.shape[0]),
            pointer(step),
        )
        self._launch(self._advance, 1, THREADS, arguments)
