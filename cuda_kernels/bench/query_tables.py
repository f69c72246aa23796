"""What the queries of drafts see in a benchmark: intervals, which queries see each, and where the queries stand."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cuda_kernels.bench.selections import Selection, choose
from cuda_kernels.bench.shapes import Shape

PATTERNS = ("dense", "shared", "mixed")
# Of the sparse patterns, besides the queries' own tokens.
DENSITY, NUM_SPANS, MAX_SPANS = 0.25, 32, 48


@dataclass(frozen=True)
class Table:
    """What the queries of every row see: int32 `intervals [B, MAX_SPANS, 2]`, `counts [B]`, `masks [B, MAX_SPANS]` and
    `positions [B]`, as `SpanAttention.plan` takes them."""

    intervals: torch.Tensor
    counts: torch.Tensor
    masks: torch.Tensor
    positions: torch.Tensor
    num_queries: int
    context: int

    def seen(self, row: int) -> torch.Tensor:
        """Bool `[num_queries, context]`."""
        token, query = torch.arange(self.context), torch.arange(self.num_queries)[:, None]
        seen = torch.zeros(self.num_queries, self.context, dtype=torch.bool)
        for i in range(int(self.counts[row])):
            start, end = self.intervals[row, i].tolist()
            seen |= (token >= start) & (token < end) & (self.masks[row, i] >> query & 1).bool()
        return seen & (token <= self.positions[row] + query)

    def num_read(self) -> int:
        """Tokens that any query of their row sees."""
        return sum(int(self.seen(row).any(0).sum()) for row in range(len(self.counts)))

    def as_rows(self, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Intervals and counts of one row per query, `stride` tokens behind one another for the rows of the batch."""
        intervals = torch.zeros(len(self.counts), self.num_queries, MAX_SPANS, 2, dtype=torch.int32)
        counts = torch.zeros(len(self.counts), self.num_queries, dtype=torch.int32)
        for row, count in enumerate(self.counts.tolist()):
            for query in range(self.num_queries):
                own = self.intervals[row, :count][(self.masks[row, :count] >> query & 1).bool()]
                own = own.clamp(max=int(self.positions[row]) + query + 1)
                own = own[own[:, 0] < own[:, 1]]
                intervals[row, query, : len(own)], counts[row, query] = own + row * stride, len(own)
        return intervals.flatten(0, 1), counts.flatten()


def make_table(pattern: str, shape: Shape, num_queries: int, generator: torch.Generator) -> Table:
    """What the last tokens of every row's context see.

    Args:
        pattern: "dense": everything before them; "shared": a quarter of it in 32 spans, which all queries see; "mixed":
            the same, and each query sees a span with a chance of one half (some query sees it).
        generator: on the CPU, as is the table.
    """
    batch, context, everyone = shape.batch, shape.context, 2**num_queries - 1
    intervals, masks = torch.tensor([[[0, context]]] * batch), torch.full((batch, 1), everyone)
    if pattern != "dense":
        free = context - num_queries
        spans, _ = choose(Selection("spans", int(DENSITY * context / NUM_SPANS)), DENSITY, batch, free, generator)
        intervals = torch.cat([spans, torch.tensor([[[context - num_queries, context]]] * batch)], 1)
        masks = torch.full(intervals.shape[:2], everyone)
    if pattern == "mixed":
        drawn = torch.randint(1, everyone + 1, masks.shape, generator=generator)  # no span that none sees
        masks[:, :-1] = drawn[:, :-1]
    counts = torch.full((batch,), intervals.shape[1], dtype=torch.int32)
    missing = MAX_SPANS - intervals.shape[1]
    padded = F.pad(intervals, (0, 0, 0, missing)).to(torch.int32), F.pad(masks, (0, missing)).to(torch.int32)
    positions = torch.full_like(counts, context - num_queries)
    return Table(padded[0], counts, padded[1], positions, num_queries, context)
