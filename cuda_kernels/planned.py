"""What attention over planned intervals has in common, whatever the cache: buffers, the checks, and the launch.

Nothing here waits for the device, copies to the host or allocates (apart from `out` where none is given, and in debug
mode): plans and calls can be captured in a CUDA graph, and intervals, counts, queries and cache may change between
replays. Kernels are compiled in the constructor: about a second per configuration, once per machine.
"""

import math
from typing import Any

import numpy as np
import torch

from cuda_kernels.checks import AttentionShape, check_no_overlap, check_tensor
from cuda_kernels.compile import KernelConfig, choose_config, columns_of_warp, load, on_device, schedule_words
from cuda_kernels.device import cuda_device, require_dtype
from cuda_kernels.launcher import Launcher, int32s, pointer_and_strides, pointers

LOG2_E = math.log2(math.e)
INTERVAL_ERRORS = {
    1: "count outside [0, max_spans]",
    2: "interval outside [0, capacity) or empty",
    4: "intervals not sorted or overlapping",
    8: "masks with bits at or above num_queries",
    16: "position outside [0, capacity)",
    32: "a page that the cache has not",
}
"""Bits that the plan kernel sets in debug mode (plan.cuh)."""


class BadIntervals(ValueError):
    """Debug mode found intervals that break the contract."""


class PlannedAttention:
    """Attention over what a kernel has planned; `SpanAttention` and `PagedAttention` make the plans.

    Holds the buffers that the kernels share, so one instance serves one stream at a time.

    Args:
        shape: the supported shapes.
        plan_kernel: source and name of the kernel that plans.
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
        plan_kernel: tuple[str, str],
        device: torch.device | str,
        debug: bool,
        carveout_percent: int | None,
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
        self._plan = load(*plan_kernel, config.macros(), self.device.index)
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
        self._spans = torch.zeros(shape.batch, self._num_spans, 2 if shape.num_queries == 1 else 4, **integers)
        self._schedule = torch.zeros(schedule_words(shape.batch), **integers)
        num_row_heads = shape.batch * shape.num_kv_heads
        self._arrived = torch.zeros(config.column_blocks * num_row_heads, **integers)
        self._num_done = torch.zeros(1, **integers)
        self._errors = torch.zeros(shape.batch, **integers)
        num_partials = config.num_partials(num_row_heads, self._num_blocks)
        self._partials = torch.zeros(num_partials, config.partial_floats, dtype=torch.float32, device=self.device)

    @property
    def _num_spans(self) -> int:
        """Most spans of a row's plan."""
        return self.shape.max_spans

    def _check_cache(self, name: str, tensor: torch.Tensor) -> None:
        """Raise a ValueError that names keys or values which are not what is planned for."""
        raise NotImplementedError

    def _cache_arguments(self, tensor: torch.Tensor) -> tuple[np.uint64 | np.int64, ...]:
        """Address of keys or values, and strides of row, head and token."""
        return pointer_and_strides(tensor)

    def _launch_plan(self, grid: tuple[int, int], arguments: tuple, capacity: int) -> None:
        """Launch the plan kernel; in debug mode, wait for what it finds."""
        # From here on the last plan is being overwritten.
        self._planned_capacity, self._is_plan_done = None, False
        self._launch(self._plan, *grid, arguments)
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
            keys, values: of the cache that is planned for; any strides that are multiples of 8 elements, the last
                dimension contiguous.
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
            *self._cache_arguments(keys),
            *self._cache_arguments(values),
            *out_arguments,
            *pointers(lse, self._spans, self._schedule),
            *int32s(shape.batch, self._num_spans),
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
        shape = self.shape
        if self._planned_capacity is None:
            raise ValueError("nothing is planned: call `plan` first")
        self._check("query", query, shape.queries, shape.dtype)
        self._check_cache("keys", keys)
        self._check_cache("values", values)
        if out is not None:
            self._check("out", out, shape.queries, shape.dtype)
            check_no_overlap("out", out)
        if lse is not None:
            self._check("lse", lse, shape.queries[:-1], torch.float32, contiguous=True)

    def _check(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, contiguous: bool = False
    ) -> None:
        check_tensor(name, tensor, shape, dtype, self.device, contiguous)

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
