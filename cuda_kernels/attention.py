"""Decode attention over intervals of a cache in one piece: check the arguments, plan, then launch the kernels on
torch's current stream; see `planned` for what a launch needs."""

import torch

from cuda_kernels.checks import AttentionShape, check_capacity
from cuda_kernels.launcher import int32s, pointers
from cuda_kernels.planned import PlannedAttention

MAX_PLAN_THREADS = 1024
MAX_ROWS_PER_PLAN_BLOCK = 64
MAX_SPANS_PER_PLAN_WARP = 32
# With several queries a warp may take two turns, where it has one row.
MAX_SPANS_OF_SEVERAL_QUERIES = 64
MAX_ROWS_OF_SEVERAL_QUERIES = 32


class SpanAttention(PlannedAttention):
    """Decode attention of one query token per sequence over the intervals that it sees; or of up to 16 consecutive
    tokens, each with intervals of its own: what any of them sees is read once.

    Keys and values are `[batch, num_kv_heads, capacity, head_dim]`. Holds the buffers that the kernels share, so one
    instance serves one stream at a time.

    Args:
        shape: the supported shapes.
        device: a CUDA device.
        debug: check intervals on the device in `plan`, which then waits for the device (not for CUDA graphs).
        carveout_percent: share of a multiprocessor's fast memory that launches request as shared memory, the same as
            that of the kernels which run before and after (`DecodeOps.carveout_percent`); None: the driver chooses,
            which is best for attention alone.

    Raises:
        ValueError: an argument that the kernels cannot serve; the message names it.
        CudaUnavailable: no such CUDA device, or CuPy is missing.
    """

    def __init__(
        self,
        shape: AttentionShape,
        *,
        device: torch.device | str = "cuda",
        debug: bool = False,
        carveout_percent: int | None = None,
    ) -> None:
        super().__init__(shape, ("plan.cu", "selfspan_plan"), device, debug, carveout_percent)

    def plan(
        self,
        intervals: torch.Tensor,
        counts: torch.Tensor,
        capacity: int,
        masks: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> None:
        """Plan for the intervals of every sequence; once per decode step, for all layers.

        If captured in a CUDA graph, the plan has to be in the same graph as the calls that follow it: the first call
        waits until the plan is complete, and the later calls rely on that.

        With several queries per sequence, query q sees a token if an interval with bit q has it, and if it is not
        behind the query's own position, `positions[row] + q`. What no query sees is not read.

        Args:
            intervals: int32 `[batch, max_spans, 2]` on the device, contiguous: half-open `[start, end)`, sorted,
                disjoint. Entries from the count on are ignored.
            counts: int32 `[batch]` on the device; 0 for padding rows.
            capacity: tokens per row of the cache; nothing beyond it is ever read.
            masks: only with several queries: int32 `[batch, max_spans]` on the device, contiguous: bit q is set if
                query q sees the interval.
            positions: only with several queries: int32 `[batch]` on the device: the cache position of query 0.

        Raises:
            ValueError: a wrong argument, named.
            BadIntervals: debug mode only; nothing is planned then.
        """
        shape = self.shape
        self._check("intervals", intervals, (shape.batch, shape.max_spans, 2), torch.int32, contiguous=True)
        self._check("counts", counts, (shape.batch,), torch.int32, contiguous=True)
        check_capacity(shape.batch, shape.num_kv_heads, capacity)
        self._check_of_several("masks", masks, (shape.batch, shape.max_spans))
        self._check_of_several("positions", positions, (shape.batch,))
        arguments = (
            *pointers(intervals, counts),
            *int32s(shape.batch, shape.max_spans, capacity),
            *pointers(self._spans, self._schedule, self._arrived, self._num_done),
            *int32s(shape.num_kv_heads, self._num_blocks),
            *pointers(self._errors if self.debug else None, masks, positions),
        )
        self._launch_plan(plan_grid(shape.batch, shape.max_spans, shape.num_queries), arguments, capacity)

    def _check_cache(self, name: str, tensor: torch.Tensor) -> None:
        assert self._planned_capacity is not None
        self._check(name, tensor, self.shape.cache(self._planned_capacity), self.shape.dtype)

    def _check_of_several(self, name: str, numbers: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        """Arguments that come with several queries, and only with them."""
        if self.shape.num_queries > 1:
            if numbers is None:
                raise ValueError(f"{name} is missing: {self.shape.num_queries} queries per row need it")
            self._check(name, numbers, shape, torch.int32, contiguous=True)
        elif numbers is not None:
            raise ValueError(f"{name} is for several queries per row; this instance has num_queries = 1")


def plan_grid(batch: int, max_spans: int, num_queries: int = 1) -> tuple[int, int]:
    """The grid of the plan kernel: its blocks, and threads of each.

    Small plans use one block with a warp per row: with several blocks, the last one has to learn that all others have
    finished, which takes a microsecond. Larger plans use a block per row and a thread per span.
    """
    is_small = batch <= MAX_ROWS_PER_PLAN_BLOCK and max_spans <= MAX_SPANS_PER_PLAN_WARP
    if num_queries > 1 and batch <= MAX_ROWS_OF_SEVERAL_QUERIES:
        is_small = max_spans <= MAX_SPANS_OF_SEVERAL_QUERIES
    if batch > 1 and is_small:
        return 1, 32 * min(batch, 32)
    return batch, min(MAX_PLAN_THREADS, -(-max_spans // 32) * 32)
