"""Decode attention over intervals of a paged cache, exact to the token: the plan looks up pages, once per step for all
layers, and attention reads as if the cache were in one piece; see `planned` for what a launch needs.

What is declared may begin and end anywhere in a page. Pages without a visible token are not touched, and of the others
only visible tokens are read.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cuda_kernels.checks import AttentionShape, check_capacity, check_int
from cuda_kernels.launcher import int32s, pointer_and_strides, pointers
from cuda_kernels.planned import PlannedAttention

MAX_PAGES_THREADS = 256


@dataclass(frozen=True)
class PageLayout:
    """Where pages lie in a cache `[num_pages, num_kv_heads, page_size, head_dim]`; any order of heads and tokens.

    Attributes:
        num_pages: of the cache.
        page_size: tokens of a page.
        page_step: from a page's beginning to the next one's, in steps from a token to the next.
    """

    num_pages: int
    page_size: int
    page_step: int

    @classmethod
    def of(cls, cache: torch.Tensor) -> "PageLayout":
        """The layout of keys or values.

        Raises:
            ValueError: it is no cache that the kernels can read.
        """
        if cache.dim() != 4:
            raise ValueError(f"cache is [num_pages, num_kv_heads, page_size, head_dim], not {tuple(cache.shape)}")
        num_pages, page_size, steps = cache.shape[0], cache.shape[2], cache.stride()
        page_step = steps[0] // steps[2] if page_size > 1 else 1
        if page_step < 1 or (page_size > 1 and steps[0] % steps[2]):
            raise ValueError(f"cache: the step of a page is no multiple of that of a token; strides: {steps}")
        # Positions in the cache are counted in 31 bits.
        if num_pages * page_step >= 2**31:
            raise ValueError(f"cache: {num_pages} pages, {page_step} tokens apart, are too many for one plan")
        return cls(num_pages, page_size, page_step)

    def token_step(self, cache: torch.Tensor) -> int:
        """Elements from a token to the next."""
        return cache.stride(2) if self.page_size > 1 else cache.stride(0)


class PagedAttention(PlannedAttention):
    """Decode attention of one query token per sequence over the intervals that it sees, in a paged cache.

    Keys and values are `[num_pages, num_kv_heads, page_size, head_dim]`, all of one layout. Holds the buffers that the
    kernels share, so one instance serves one stream at a time.

    Args:
        shape: the supported shapes; of one query per sequence.
        layout: of keys and values.
        max_pages: most pages of a sequence.
        device: a CUDA device.
        debug: check intervals and pages on the device in `plan`, which then waits for the device (not for CUDA graphs).

    Raises:
        ValueError: an argument that the kernels cannot serve; the message names it.
        CudaUnavailable: no such CUDA device, or CuPy is missing.
    """

    def __init__(
        self,
        shape: AttentionShape,
        layout: PageLayout,
        max_pages: int,
        *,
        device: torch.device | str = "cuda",
        debug: bool = False,
    ) -> None:
        check_int("max_pages", max_pages)
        if shape.num_queries != 1:
            raise ValueError(f"num_queries: a paged cache is read by one query per sequence, not {shape.num_queries}")
        if max_pages < 1:
            raise ValueError(f"max_pages is 1 or more, not {max_pages}")
        check_capacity(shape.batch, shape.num_kv_heads, max_pages * layout.page_size)
        self.layout, self.max_pages = layout, max_pages
        super().__init__(shape, ("plan_pages.cu", "selfspan_plan_pages"), device, debug, None)

    @property
    def _num_spans(self) -> int:
        # Of disjoint intervals, all but one touch a page for the first time or follow another in it.
        return self.shape.max_spans + self.max_pages

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor, table: torch.Tensor) -> None:
        """Plan for the intervals of every sequence; once per decode step, for all layers.

        If captured in a CUDA graph, the plan has to be in the same graph as the calls that follow it: the first call
        waits until the plan is complete, and the later calls rely on that.

        Args:
            intervals: int32 `[batch, max_spans, 2]` on the device, contiguous: half-open `[start, end)`, sorted,
                disjoint, of the sequence's own positions. Entries from the count on are ignored.
            counts: int32 `[batch]` on the device; 0 for padding rows.
            table: int32 `[batch, max_pages]` on the device, contiguous: the cache's page that holds each page of a
                sequence. Entries that no interval reaches are ignored.

        Raises:
            ValueError: a wrong argument, named.
            BadIntervals: debug mode only; nothing is planned then.
        """
        shape, layout = self.shape, self.layout
        self._check("intervals", intervals, (shape.batch, shape.max_spans, 2), torch.int32, contiguous=True)
        self._check("counts", counts, (shape.batch,), torch.int32, contiguous=True)
        self._check("table", table, (shape.batch, self.max_pages), torch.int32, contiguous=True)
        arguments = (
            *pointers(intervals, counts, table),
            *int32s(shape.batch, shape.max_spans, self.max_pages),
            *int32s(layout.page_size, layout.page_step, layout.num_pages),
            *pointers(self._spans),
            *int32s(self._num_spans),
            *pointers(self._schedule, self._arrived, self._num_done),
            *int32s(shape.num_kv_heads, self._num_blocks),
            *pointers(self._errors if self.debug else None),
        )
        grid = shape.batch, pages_threads(self._num_spans)
        self._launch_plan(grid, arguments, self.max_pages * layout.page_size)

    def _check_cache(self, name: str, tensor: torch.Tensor) -> None:
        shape, layout = self.shape, self.layout
        pages = (layout.num_pages, shape.num_kv_heads, layout.page_size, shape.head_dim)
        self._check(name, tensor, pages, shape.dtype)
        if PageLayout.of(tensor) != layout:
            raise ValueError(f"{name}: pages lie otherwise than in {layout}; strides: {tensor.stride()}")

    def _cache_arguments(self, tensor: torch.Tensor) -> tuple[np.uint64 | np.int64, ...]:
        # The page is in the position, and no row has a place of its own.
        start, _, head, _ = pointer_and_strides(tensor)
        return start, np.int64(0), head, np.int64(self.layout.token_step(tensor))


def pages_threads(num_spans: int) -> int:
    """Threads of a block of the plan kernel: one per span, as far as there may be so many."""
    return min(MAX_PAGES_THREADS, -(-num_spans // 32) * 32)
