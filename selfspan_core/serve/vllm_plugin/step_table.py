"""What the queries of a step see, as tables for `cuda_kernels.paged`. Knows nothing of vLLM.

Filled on the host, which follows the requests, and copied without waiting: the host has the ids of the step before by
then, so what that copied is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfspan_core.serve.vllm_plugin.followed import SpanRows
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.tracker import MAX_READS

MAX_SPANS = MAX_READS + 2
"""Most intervals that a query sees: scaffold, what is read, and its own step."""


@dataclass(frozen=True)
class SelectedQuery:
    """A query that reads less than everything: its place among the step's, its row, and what it sees."""

    place: int
    row: int
    visible: tuple[Interval, ...]


def selected_queries(rows: SpanRows, query_starts: Sequence[int], seq_lens: Sequence[int]) -> list[SelectedQuery]:
    """The queries of a step that read less than everything, in the order of rows.

    Args:
        rows: the requests with self-selected attention; what this step reads is added to their sums.
        query_starts: where each row's queries begin among the step's, and where the last row's end.
        seq_lens: tokens of each row, those of this step included.
    """
    found: list[SelectedQuery] = []
    for row, followed in sorted(rows.followed.items()):
        if row >= len(seq_lens):
            continue
        first, end = query_starts[row], query_starts[row + 1]
        for place in range(first, end):
            visible = followed.visible(seq_lens[row] - end + place)
            if visible is not None:
                found.append(SelectedQuery(place, row, visible))
    rows.num_read += sum(end - start for one in found for start, end in one.visible)
    return found


class StepTable:
    """Intervals of so many queries, on the host and on the device.

    Args:
        max_queries: most of one step.
        device: of the copies.

    Attributes:
        intervals: int32 `[max_queries, MAX_SPANS, 2]` on the device.
        counts: int32 `[max_queries]` on the device.
    """

    def __init__(self, max_queries: int, device: torch.device) -> None:
        is_pinned = device.type == "cuda"
        make = lambda *shape: torch.zeros(shape, dtype=torch.int32, pin_memory=is_pinned)  # noqa: E731
        self._host_intervals, self._host_counts = make(max_queries, MAX_SPANS, 2), make(max_queries)
        self._intervals, self._counts = self._host_intervals.numpy(), self._host_counts.numpy()
        self.intervals, self.counts = (
            torch.zeros_like(x, device=device) for x in (self._host_intervals, self._host_counts)
        )

    def fill(self, lengths: Sequence[int], selected: Sequence[SelectedQuery]) -> None:
        """Write what queries see: everything, but for those that are selected; on the device without waiting.

        Args:
            lengths: of every query: tokens up to its own, itself included; 0 for one that is padding.
            selected: queries by their place.
        """
        num = len(lengths)
        self._intervals[:num, 0, 0] = 0
        self._intervals[:num, 0, 1] = lengths
        self._counts[:num] = self._intervals[:num, 0, 1] > 0
        for one in selected:
            self._intervals[one.place, : len(one.visible)] = one.visible
            self._counts[one.place] = len(one.visible)
        self.intervals[:num].copy_(self._host_intervals[:num], non_blocking=True)
        self.counts[:num].copy_(self._host_counts[:num], non_blocking=True)
