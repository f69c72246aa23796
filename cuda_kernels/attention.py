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
from cuda_kernels.compile import KernelConfig, choose_config, load, on_device, schedule_words
from cuda_kernels.device import cuda_device, require_dtype
from cuda_kernels.launcher import Launcher, int32s, pointer, pointer_and_strides, pointers

LOG2_E = math.log2(math.e)
MAX_PLAN_THREADS = 1024
MAX_ROWS_PER_PLAN_BLOCK = 64
INTERVAL_ERRORS = {
    1: "count outside [0, max_spans]",
    2: "interval outside [0, capacity) or empty",
    4: "intervals not sorted or overlapping",
}
"""Bits that the plan kernel sets in debug mode (plan.cu)."""


class BadIntervals(ValueError):
    """Debug mode found intervals that break the contract."""


class SpanAttention:
    """Decode attention of one query token per sequence over the intervals that it sees.

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
        config = choose_config(shape.head_dim, shape.group_size, is_bf16, shape.batch, limit)
        self._shared_bytes = config.shared_bytes(shape.batch)
        # A persistent grid: as many blocks as run at the same time.
        by_memory = properties.shared_memory_per_multiprocessor // (self._shared_bytes + 1024)
        self._num_blocks = num_sms * max(1, min(by_memory, config.blocks_per_sm))
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
        self._spans = torch.zeros(shape.batch, shape.max_spans, 2, **integers)
        self._schedule = torch.zeros(schedule_words(shape.batch), **integers)
        num_row_heads = shape.batch * shape.num_kv_heads
        self._arrived = torch.zeros(num_row_heads, **integers)
        self._num_done = torch.zeros(1, **integers)
        self._errors = torch.zeros(shape.batch, **integers)
        num_partials = config.num_partials(num_row_heads, self._num_blocks)
        self._partials = torch.zeros(num_partials, config.partial_floats, dtype=torch.float32, device=self.device)

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor, capacity: int) -> None:
        """Plan for the intervals of every sequence; once per decode step, for all layers.

        If captured in a CUDA graph, the plan has to be in the same graph as the calls that follow it: the first call
        waits until the plan is complete, and the later calls rely on that.

        Args:
            intervals: int32 `[batch, max_spans, 2]` on the device, contiguous: half-open `[start, end)`, sorted,
                disjoint. Entries from the count on are ignored.
            counts: int32 `[batch]` on the device; 0 for padding rows.
            capacity: tokens per row of the cache; nothing beyond it is ever read.

        Raises:
            ValueError: a wrong argument, named.
            BadIntervals: debug mode only; nothing is planned then.
        """
        shape = self.shape
        self._check("intervals", intervals, (shape.batch, shape.max_spans, 2), torch.int32, contiguous=True)
        self._check("counts", counts, (shape.batch,), torch.int32, contiguous=True)
        check_capacity(shape.batch, shape.num_kv_heads, capacity)
        # From here on the last plan is being overwritten.
        self._planned_capacity, self._is_plan_done = None, False
        arguments = (
            *pointers(intervals, counts),
            *int32s(shape.batch, shape.max_spans, capacity),
            *pointers(self._spans, self._schedule, self._arrived, self._num_done),
            *int32s(shape.num_kv_heads, self._num_blocks),
            pointer(self._errors if self.debug else None),
        )
        self._launch(self._plan, *plan_grid(shape.batch, shape.max_spans), arguments)
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
            query: `[batch, num_heads, head_dim]`.
            keys, values: `[batch, num_kv_heads, capacity, head_dim]`; any strides that are multiples of 8 elements, the
                last dimension contiguous.
            scale: multiplies the scores; None: head_dim ** -0.5.
            out: `[batch, num_heads, head_dim]` to write to, of strides that give each row and head room of its own;
                None allocates.
            lse: float32 `[batch, num_heads]`, contiguous: takes the log-sum-exp of the scaled scores.

        Returns:
            `out`; zeros (and an lse of minus infinity) for sequences without intervals.

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
        arguments = (
            *pointer_and_strides(query),
            *pointer_and_strides(keys),
            *pointer_and_strides(values),
            *pointer_and_strides(out),
            *pointers(lse, self._spans, self._schedule),
            *int32s(shape.batch, shape.max_spans),
            np.float32(scale * LOG2_E),
            *pointers(self._partials, self._arrived),
            np.int32(self._is_plan_done),
        )
        self._launch(self._attend, self._num_blocks, self._num_threads, arguments, self._shared_bytes)
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
            self._check("lse", lse, shape.queries[:2], torch.float32, contiguous=True)

    def _check(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, contiguous: bool = False
    ) -> None:
        check_tensor(name, tensor, shape, dtype, self.device, contiguous)

    def _raise_errors(self) -> None:
        for row, code in enumerate(self._errors.tolist()):
            if code:
                reasons = "; ".join(text for bit, text in INTERVAL_ERRORS.items() if code & bit)
                raise BadIntervals(f"intervals of row {row}: {reasons}")


def plan_grid(batch: int, max_spans: int) -> tuple[int, int]:
    """The grid of the plan kernel: its blocks, and threads of each.

    Small plans use one block with a warp per row: with several blocks, the last one has to learn that all others have
    finished, which takes a microsecond. Larger plans use a block per row and a thread per span.
    """
    if 1 < batch <= MAX_ROWS_PER_PLAN_BLOCK and max_spans <= 32:
        return 1, 32 * min(batch, 32)
    return batch, min(MAX_PLAN_THREADS, -(-max_spans // 32) * 32)
