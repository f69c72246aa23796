"""Readers: attention over the KV cache, for decoding. Work that all layers or tokens share is done once.

A reader is planned once per token on the host (`plan`) and run once per layer (`attend`). The reader decides where new
keys and values are stored and which keys a query reads.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape
from cuda_kernels.device import CudaUnavailable
from selfspan_core.attention.backends import IMPLS, require_impl
from selfspan_core.attention.fused import fused_one_query
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.errors import ImplUnavailable
from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, Phase, State


class Reader(Protocol):
    """The attention of a forward pass: decides where new keys and values are stored and which keys a query reads."""

    def plan(self, start: int, state: State | None) -> None:
        """Prepare for a forward of tokens from position `start` on.

        `state` is the tracker's state for a single token, or None for the prompt (the whole prompt at once, from
        position 0, every token seeing all tokens before it).
        """

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store one layer's new keys and values, and attend.

        Args:
            layer: index of the layer.
            query: `[1, num_heads, T, head_dim]`.
            key, value: `[1, num_kv_heads, T, head_dim]`, rotary embedding applied.
            scale: multiplies the scores.

        Returns:
            `[1, num_heads, T, head_dim]`.
        """


class DenseReader:
    """Every query reads everything before it, through PyTorch's fused attention."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._start = 0

    def plan(self, start: int, state: State | None) -> None:
        """See Reader."""
        self._start = start

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        cache, start = self._cache, self._start
        cache.write(layer, start, key, value)
        if query.shape[2] == 1:
            keys = cache.keys[layer].narrow(2, 0, start + 1)
            values = cache.values[layer].narrow(2, 0, start + 1)
            return fused_one_query(query, keys, values, scale)
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


class ReferenceReader:
    """The reference for the other readers: attention with an explicit mask over all keys, in float32."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._start = 0
        self._state: State | None = None

    def plan(self, start: int, state: State | None) -> None:
        """See Reader."""
        self._start, self._state = start, state

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        self._cache.write(layer, self._start, key, value)
        end = self._start + query.shape[2]
        visibility = [((0, p + 1),) for p in range(self._start, end)] if self._state is None else [self._state.visible]
        keys, values = self._cache.keys[layer][:, :, :end], self._cache.values[layer][:, :, :end]
        return masked_attention(query, keys, values, visibility_mask(visibility, end), scale)


class CudaReader:
    """The CUDA kernel reads the visible intervals in the cache itself, for headers and bodies alike."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._dense = DenseReader(cache)
        self._start = 0
        self._visible: Sequence[Interval] | None = None
        self._kernel: SpanAttention | None = None
        self._is_planned = False

    def plan(self, start: int, state: State | None) -> None:
        """See Reader."""
        self._start, self._visible, self._is_planned = start, None if state is None else state.visible, False
        self._dense.plan(start, state)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        if self._visible is None:
            return self._dense.attend(layer, query, key, value, scale)
        cache = self._cache
        cache.write(layer, self._start, key, value)
        # The first layer plans for all layers: the number of query heads is known only here.
        kernel = self._kernel
        if kernel is None or not self._is_planned:
            kernel = self._kernel = self._with_room(query.shape[1], len(self._visible))
            plan_visible(kernel, self._visible, cache.capacity)
            self._is_planned = True
        return kernel(query[:, :, 0], cache.keys[layer], cache.values[layer], scale)[:, :, None]

    def _with_room(self, num_heads: int, num_spans: int) -> SpanAttention:
        if self._kernel is not None and num_spans <= self._kernel.shape.max_spans:
            return self._kernel
        return cuda_attention(num_heads, self._cache.keys[0], max(16, 2 * num_spans))


class GatherReader:
    """Body tokens read only the keys and values that their step may see, from a small contiguous workspace.

    The first body token of a step gathers the visible pieces, the step's own header included, into the workspace.
    Body tokens append to the workspace and read nothing else. As soon as a token sees everything again (the step
    ended, broke, or the sequence ended), one copy moves the body's keys and values to the cache: until then nothing
    reads them from there. So a body token writes as often as a dense one, and reads less.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._dense = DenseReader(cache)
        self._workspace: KVCache | None = None
        self._used = 0
        # The workspace while a body is open.
        self._open: KVCache | None = None
        # Where the open body starts, in the cache and in the workspace.
        self._body_start = 0
        self._body_offset = 0

    def plan(self, start: int, state: State | None) -> None:
        """See Reader."""
        if state is not None and state.phase is Phase.BODY:
            if self._open is None:
                self._gather(start, state)
            else:
                self._used += 1
            return
        if self._open is not None:
            self._write_back(self._open)
        self._dense.plan(start, state)

    def _gather(self, start: int, state: State) -> None:
        *before, (own_start, _) = state.visible
        needed = min(state.num_visible + MAX_BODY_TOKENS + 1, self._cache.capacity)
        if self._workspace is None or self._workspace.capacity < needed:
            # Doubling: the workspace has the size of what steps read, not of the context, and seldom grows.
            grown = 2 * self._workspace.capacity if self._workspace is not None else 0
            self._workspace = self._cache.like(min(max(needed, grown), self._cache.capacity))
        # The token at `start` itself is not in the cache yet: its layers append it.
        self._used = self._workspace.copy_from(self._cache, [*before, (own_start, start)])
        self._body_start, self._body_offset, self._open = start, self._used, self._workspace

    def _write_back(self, workspace: KVCache) -> None:
        body = (self._body_offset, self._used + 1)
        self._cache.copy_from(workspace, [body], self._body_start)
        self._open = None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        workspace, used = self._open, self._used
        if workspace is None:
            return self._dense.attend(layer, query, key, value, scale)
        workspace.write(layer, used, key, value)
        keys, values = workspace.keys[layer].narrow(2, 0, used + 1), workspace.values[layer].narrow(2, 0, used + 1)
        return fused_one_query(query, keys, values, scale)


def make_reader(attention: str, impl: str, cache: KVCache, device: torch.device | str) -> Reader:
    """The reader of one lane.

    Args:
        attention: "dense" (fused attention over all keys) or "sparse" (only the tracker's intervals, by `impl`).
        impl: the sparse lane's implementation, one of IMPLS; ignored for a dense lane, which has only one.
        cache: stores the keys and values.
        device: where the model runs.

    Raises:
        ValueError: unknown `attention` or `impl`.
        ImplUnavailable: the implementation cannot run on this device.
    """
    if attention == "dense":
        return DenseReader(cache)
    if attention != "sparse":
        raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
    if impl not in IMPLS:
        raise ValueError(f"no implementation of attention is called {impl!r}; there are {', '.join(IMPLS)}")
    require_impl(impl, device)
    readers: dict[str, Callable[[KVCache], Reader]] = {
        "reference": ReferenceReader,
        "gather": GatherReader,
        "cuda": CudaReader,
    }
    return readers[impl](cache)


def cuda_attention(num_heads: int, keys: torch.Tensor, max_spans: int) -> SpanAttention:
    """The CUDA kernel for one sequence's cache.

    Args:
        num_heads: query heads.
        keys: `[1, num_kv_heads, capacity, head_dim]`, of the cache.
        max_spans: most intervals of a query.

    Raises:
        ImplUnavailable: the kernel does not support this element type or shape.
    """
    try:
        shape = AttentionShape(
            batch=1,
            num_heads=num_heads,
            num_kv_heads=keys.shape[1],
            head_dim=keys.shape[3],
            max_spans=max_spans,
            dtype=keys.dtype,
        )
        return SpanAttention(shape, device=keys.device)
    except (ValueError, CudaUnavailable) as error:
        raise ImplUnavailable(f"impl 'cuda': {error}") from error


def plan_visible(kernel: SpanAttention, visible: Sequence[Interval], capacity: int) -> None:
    """Plan the kernel for the intervals of one sequence. Copies from the host, which suits token-by-token decoding."""
    table = torch.zeros(1, kernel.shape.max_spans, 2, dtype=torch.int32)
    table[0, : len(visible)] = torch.tensor(visible, dtype=torch.int32)
    counts = torch.tensor([len(visible)], dtype=torch.int32)
    kernel.plan(table.to(kernel.device), counts.to(kernel.device), capacity)
