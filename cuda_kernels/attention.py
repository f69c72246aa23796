"""Decode attention over intervals: check the arguments, then launch the kernels on torch's current stream.

Nothing here waits for the device, copies to the host or allocates (apart from `out` where none is given, and in debug
mode): `plan` and the call itself can be captured in a CUDA graph, and intervals, counts, queries and cache may change
between replays. Kernels are compiled in the constructor: about a second per configuration, once per machine.
"""

import math
from typing import Any

import numpy as np
import torch

from cuda_kernels.checks import AttentionShape, check_capacity, check_no_overlap, check_tensor
from cuda_kernels.compile import KernelConfig, choose_config, columns_of_warp, load, on_device, schedule_words
from cuda_kernels.device import cuda_device, require_dtype
from cuda_kernels.launcher import Launcher, int32s, pointer_and_strides, pointers

LOG2_E = math.log2(math.e)
MAX_PLAN_THREADS = 1024
MAX_ROWS_PER_PLAN_BLOCK = 64
MAX_SPANS_PER_PLAN_WARP = 32
# With several queries a warp may take two turns, where it has one row.
MAX_SPANS_OF_SEVERAL_QUERIES = 64
MAX_ROWS_OF_SEVERAL_QUERIES = 32
INTERVAL_ERRORS = {
    1: "count outside [0, max_spans]",
    2: "interval outside [0, capacity) or empty",
    4: "intervals not sorted or overlapping",
    8: "masks with bits at or above num_queries",
    16: "position outside [0, capacity)",
}
"""Bits that the plan kernel sets in debug mode (plan.cu)."""


class BadIntervals(ValueError):
    """Debug mode found intervals that break the contract."""


class SpanAttention:
    """Decode attention of one query token per sequence over the intervals that it sees; or of up to 16 consecutive
    tokens, each with intervals of its own: what any of them sees is read once.

    Holds the buffers that the kernels share, so one instance serves one stream at a time.

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
        self.shape, self.debug, self.device = shape, debug, cuda_device(device)
        require_dtype(shape.dtype, self.device)
        properties: Any = torch.cuda.get_device_properties(self.device)  # its stub lacks a field
        num_sms, limit = properties.multi_processor_count, properties.shared_memory_per_block_optin
        is_bf16 = shape.dtype is torch.bfloat16
        columns = columns_of_warp(shape.batch * shape.num_kv_heads, num_sms)
        config = choose_config(
            shape.head_dim, shape.group_size, is_bf16, shape.batch, limit, shape.num_queries, columns
        )
        self._shared_bytes = config.shared_bytes(shape.batch)
        # A persistent grid: as many blocks as run at the same time. Several queries may take several of them side by
        # side; the schedule counts those as one.
        by_memory = properties.shared_memory_per_multiprocessor // (self._shared_bytes + 1024)
        self._num_blocks = max(1, num_sms * max(1, min(by_memory, config.blocks_per_sm)) // config.column_blocks)
        self._num_threads = 32 * config.num_warps
        self._plan = load("plan.cu", "selfspan_plan", config.macros(), self.device.index)
        self._attend = load("attention.cu", "selfspan_attention", config.macros(), self.device.index)
        self._launch = Launcher(self.device, carveout_percent)
        with on_device(self.device.index):
            # The kernel is shared by all instances: it gets the greatest limit, a launch requests what it needs.
            self._attend.max_dynamic_shared_size_bytes = limit
        self._planned_capacity: int | None = None
        self._is_plan_done = False
        self._allocate(config)

    def _allocate(self, config: KernelConfig) -> None:
        shape = self.shape
        integers: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
        self._column_blocks = config.column_blocks
        self._spans = torch.zeros(shape.batch, shape.max_spans, 2 if shape.num_queries == 1 else 4, **integers)
        self._schedule = torch.zeros(schedule_words(shape.batch), **integers)
        num_row_heads = shape.batch * shape.num_kv_heads
        self._arrived = torch.zeros(config.column_blocks * num_row_heads, **integers)
        self._num_done = torch.zeros(1, **integers)
        self._errors = torch.zeros(shape.batch, **integers)
        num_partials = config.num_partials(num_row_heads, self._num_blocks)
        self._partials = torch.zeros(num_partials, config.partial_floats, dtype=torch.float32, device=self.device)

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
        # From here on the last plan is being overwritten.
        self._planned_capacity, self._is_plan_done = None, False
        arguments = (
            *pointers(intervals, counts),
            *int32s(shape.batch, shape.max_spans, capacity),
            *pointers(self._spans, self._schedule, self._arrived, self._num_done),
            *int32s(shape.num_kv_heads, self._num_blocks),
            *pointers(self._errors if self.debug else None, masks, positions),
        )
        self._launch(self._plan, *plan_grid(shape.batch, shape.max_spans, shape.num_queries), arguments)
        if self.debug:
            self._raise_errors()
        self._planned_capacity = capacity

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention over the planned intervals.

        Args:
            query: `[batch, num_heads, head_dim]`, or with several queries `[batch, num_queries, num_heads, head_dim]`.
            keys, values: `[batch, num_kv_heads, capacity, head_dim]`; any strides that are multiples of 8 elements, the
                last dimension contiguous.
            scale: multiplies the scores; None: head_dim ** -0.5.
            out: to write to, of the query's shape, of strides that give each row and head room of its own; None
                allocates.
            lse: float32 `[batch, num_heads]` (`[batch, num_queries, num_heads]`), contiguous: takes the log-sum-exp of
                the scaled scores.

        Returns:
            `out`; zeros (and an lse of minus infinity) for sequences without intervals and for queries that see
            nothing.

        Raises:
            ValueError: a wrong argument, named; or nothing is planned.
        """
        shape = self.shape
        self._check_tensors(query, keys, values, out, lse)
        scale = shape.head_dim**-0.5 if scale is None else scale
        if not math.isfinite(scale):
            raise ValueError(f"scale is a finite number, not {scale}")
        if out is None:
            out = torch.empty(shape.queries, dtype=shape.dtype, device=self.device)
        query_arguments, query_step = vectors(query)
        out_arguments, out_step = vectors(out)
        arguments = (
            *query_arguments,
            *pointer_and_strides(keys),
            *pointer_and_strides(values),
            *out_arguments,
            *pointers(lse, self._spans, self._schedule),
            *int32s(shape.batch, shape.max_spans),
            np.float32(scale * LOG2_E),
            *pointers(self._partials, self._arrived),
            np.int32(self._is_plan_done),
            query_step,
            out_step,
        )
        self._launch(
            self._attend, self._num_blocks * self._column_blocks, self._num_threads, arguments, self._shared_bytes
        )
        self._is_plan_done = True
        return out

    def _check_tensors(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor | None,
        lse: torch.Tensor | None,
    ) -> None:
        shape, capacity = self.shape, self._planned_capacity
        if capacity is None:
            raise ValueError("nothing is planned: call plan(intervals, counts, capacity) first")
        self._check("query", query, shape.queries, shape.dtype)
        self._check("keys", keys, shape.cache(capacity), shape.dtype)
        self._check("values", values, shape.cache(capacity), shape.dtype)
        if out is not None:
            self._check("out", out, shape.queries, shape.dtype)
            check_no_overlap("out", out)
        if lse is not None:
            self._check("lse", lse, shape.queries[:-1], torch.float32, contiguous=True)

    def _check(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, contiguous: bool = False
    ) -> None:
        check_tensor(name, tensor, shape, dtype, self.device, contiguous)

    def _check_of_several(self, name: str, numbers: torch.Tensor | None, shape: tuple[int, ...]) -> None:
        """Arguments that come with several queries, and only with them."""
        if self.shape.num_queries > 1:
            if numbers is None:
                raise ValueError(f"{name} is missing: {self.shape.num_queries} queries per row need it")
            self._check(name, numbers, shape, torch.int32, contiguous=True)
        elif numbers is not None:
            raise ValueError(f"{name} is for several queries per row; this instance has num_queries = 1")

    def _raise_errors(self) -> None:
        for row, code in enumerate(self._errors.tolist()):
            if code:
                reasons = "; ".join(text for bit, text in INTERVAL_ERRORS.items() if code & bit)
                raise BadIntervals(f"intervals of row {row}: {reasons}")


def vectors(tensor: torch.Tensor) -> tuple[tuple[np.uint64 | np.int64, ...], np.int64]:
    """Queries or outputs as the kernel takes them: address and strides of row and head; and the stride of a query, 0
    where rows have one."""
    start, row, *query, head = pointer_and_strides(tensor)
    return (start, row, head), np.int64(query[0] if query else 0)


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
