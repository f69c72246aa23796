"""The device's tracker compiled for the CPU (see kernel_on_cpu)."""

import ctypes
import functools
from collections.abc import Sequence

import numpy as np
import torch

from cuda_kernels.tracker import Grammar
from tests.support.kernel_on_cpu import compiled, pointer


@functools.cache
def library(grammar: Grammar) -> ctypes.CDLL:
    """The tracker of one grammar; compiled once per test run."""
    loaded = compiled("tracker.cpp", grammar.macros())
    assert loaded.num_track_words() == grammar.track_words
    return loaded


def stream(
    grammar: Grammar, start: tuple[torch.Tensor, torch.Tensor], ids: Sequence[int], index: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Push ids in one row: intervals `[N, max_spans, 2]`, counts and reports `[N]`."""
    track, segments = (x.clone() for x in start)
    max_spans, index = grammar.max_spans(index is not None), None if index is None else index.clone()
    kinds = grammar.kinds()[torch.tensor(ids, dtype=torch.int64)].contiguous()
    intervals = np.full((len(ids), max_spans, 2), -7, dtype=np.int32)
    counts, reports = np.full(len(ids), -7, dtype=np.int32), np.full(len(ids), -7, dtype=np.int32)
    as_pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)  # noqa: E731
    library(grammar).run_stream(
        pointer(kinds),
        len(ids),
        pointer(track),
        pointer(segments),
        pointer(index),
        as_pointer(intervals),
        max_spans,
        as_pointer(counts),
        as_pointer(reports),
    )
    return intervals, counts, reports


def push(
    grammar: Grammar,
    tracks: torch.Tensor,
    segments: torch.Tensor,
    ids: torch.Tensor,
    max_spans: int,
    is_dense: bool,
    indexes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One id per row through the kernel: intervals `[B, max_spans, 2]`, counts, positions, reports; state changes."""
    batch, kinds = len(ids), grammar.kinds()
    intervals = torch.full((batch, max_spans, 2), -7, dtype=torch.int32)
    counts, positions, reports = torch.full((3, batch), -7, dtype=torch.int32)
    library(grammar).run_track(
        pointer(ids),
        pointer(kinds),
        pointer(tracks),
        pointer(segments),
        pointer(indexes),
        batch,
        int(is_dense),
        pointer(intervals),
        max_spans,
        pointer(counts),
        pointer(positions),
        pointer(reports),
    )
    return intervals, counts, positions, reports


class Follower:
    """`cuda_kernels.follower.SpanFollower`, as strict about its arguments."""

    def __init__(self, grammar: Grammar, num_slots: int, device: torch.device | str = "cpu") -> None:
        self.grammar, self.kinds = grammar, grammar.kinds()
        self.tracks = torch.full((num_slots, grammar.track_words), -7, dtype=torch.int32)
        self.segments = torch.full((num_slots, len(grammar.anchors), 2), -7, dtype=torch.int32)

    def set(self, slot: int, track: torch.Tensor, segments: torch.Tensor) -> None:
        self.tracks[slot], self.segments[slot] = track, segments

    def push(self, ids: torch.Tensor, queries: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        num = queries.shape[1]
        assert ids.dtype == queries.dtype == torch.int32 and ids.dim() == 1 and queries.shape[0] == 3
        assert intervals.shape == (num, intervals.shape[1], 2) and counts.shape == (num,)
        assert all(x.is_contiguous() for x in (ids, queries, intervals, counts))
        places, slots, lengths = (row.contiguous() for row in queries)
        used = slots[slots >= 0].tolist()
        assert len(set(used)) == len(used) and max(used, default=0) < len(self.tracks)
        library(self.grammar).run_follow(
            *map(pointer, (ids, places, slots, lengths, self.kinds)),
            self.grammar.vocab_size,
            *map(pointer, (self.tracks, self.segments)),
            num,
            pointer(intervals),
            intervals.shape[1],
            pointer(counts),
            -(-num // 32),
        )


def advance(
    grammar: Grammar,
    ids: torch.Tensor,
    tracks: torch.Tensor,
    scripts: torch.Tensor,
    limits: torch.Tensor,
    ring: torch.Tensor,
    step: torch.Tensor,
) -> None:
    """Write ids, or what the scripts say, down in the ring `[num_slots, B]`; rows at their end go idle."""
    kinds = grammar.kinds()
    library(grammar).run_advance(
        pointer(ids),
        pointer(kinds),
        pointer(tracks),
        pointer(scripts),
        scripts.shape[1],
        pointer(limits),
        len(ids),
        pointer(ring),
        len(ring),
        pointer(step),
    )
