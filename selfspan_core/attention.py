"""Attention of a decoding query over the intervals that it may see, behind an explicit `impl=`.

    reference  masked, eager, float32, over everything: the oracle
    gather     reads only visible keys and values: gathers them into one contiguous piece, fused attention over it
    cuda       a kernel that reads intervals in place; not built yet

Asked for and unavailable is an error that says why, never a silent fallback. `attend` is the stateless op. A *reader*
is the same thing with a memory, for decoding: planned once per token on the host (`plan`), run once per layer
(`attend`), so that the gather is paid once per step of the span protocol and not once per token.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfspan_core.intervals import Interval
from selfspan_core.kv_cache import KVCache
from selfspan_core.reference import masked_attention, visibility_mask
from selfspan_core.tracker import MAX_BODY_TOKENS, Phase, State

IMPLS = ("reference", "gather", "cuda")
# cuDNN's attention is compiled anew for every length that it meets, and decoding meets a new one with every token: tens
# of milliseconds per token where these need well under one.
LENGTH_FREE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ImplUnavailable(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why."""


def why_unavailable(impl: str, device: torch.device | str) -> str | None:
    """Why an implementation cannot run on a device, or None if it can.

    Raises:
        ValueError: there is no implementation of that name.
    """
    if impl not in IMPLS:
        raise ValueError(f"no attention implementation is called {impl!r}; there are {', '.join(IMPLS)}")
    if impl != "cuda":
        return None
    if torch.device(device).type != "cuda":
        return f"impl 'cuda' needs a CUDA device, and this model is on {torch.device(device).type!r}"
    return "impl 'cuda' is not part of this version: there is no CUDA kernel yet; use 'gather'"


def available_impls(device: torch.device | str) -> tuple[str, ...]:
    """The implementations that can run on a device."""
    return tuple(impl for impl in IMPLS if why_unavailable(impl, device) is None)


def require_impl(impl: str, device: torch.device | str) -> None:
    """Raise ImplUnavailable, with the reason, unless an implementation can run on a device."""
    reason = why_unavailable(impl, device)
    if reason is not None:
        raise ImplUnavailable(reason)


def length_free_kernels(device: torch.device) -> AbstractContextManager:
    """While it is open, PyTorch's fused attention on this device uses kernels that take any length as they are."""
    return sdpa_kernel(LENGTH_FREE_BACKENDS) if device.type == "cuda" else nullcontext()


def fused_one_query(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's fused attention of one query over all the keys that it is given.

    Heads that share a key/value head become queries of that head: without a mask they all see the same keys, and
    each key and value is then read once per group and never repeated in memory.

    Args:
        query: `[1, num_heads, 1, head_dim]`.
        keys, values: `[1, num_kv_heads, S, head_dim]`.
        scale: multiplies the scores.

    Returns:
        `[1, num_heads, 1, head_dim]`.
    """
    num_kv_heads = keys.shape[1]
    grouped = query.view(1, num_kv_heads, query.shape[1] // num_kv_heads, query.shape[3])
    with length_free_kernels(query.device):
        attended = F.scaled_dot_product_attention(grouped, keys, values, scale=scale)
    # On CUDA the result may be laid out otherwise than the query.
    return attended.reshape(query.shape)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: Sequence[Interval],
    scale: float,
    impl: str,
) -> torch.Tensor:
    """Attention of one query over the visible intervals of a cache.

    Args:
        query: `[1, num_heads, 1, head_dim]`, contiguous.
        keys, values: `[1, num_kv_heads, capacity, head_dim]`.
        visible: sorted, disjoint, half-open intervals inside the capacity.
        scale: multiplies the scores.
        impl: one of IMPLS.

    Returns:
        `[1, num_heads, 1, head_dim]`.

    Raises:
        ValueError: unknown `impl`, or nothing visible.
        ImplUnavailable: the implementation cannot run on this device.
    """
    require_impl(impl, query.device)
    if not visible:
        raise ValueError("a query sees nothing: every query sees at least itself")
    if impl == "reference":
        context = visible[-1][1]
        mask = visibility_mask([visible], context)
        return masked_attention(query, keys[:, :, :context], values[:, :, :context], mask, scale)
    pieces = [slice(start, end) for start, end in visible]
    gathered_keys = torch.cat([keys[:, :, piece] for piece in pieces], dim=2)
    gathered_values = torch.cat([values[:, :, piece] for piece in pieces], dim=2)
    return fused_one_query(query, gathered_keys, gathered_values, scale)


class Reader(Protocol):
    """What a forward pass calls for attention: owns where new keys and values go and what queries read."""

    def plan(self, start: int, state: State | None) -> None:
        """Prepare for a forward of tokens from position `start` on.

        `state` is the tracker's word on a single token, or None for the prompt (all of it at once, from position 0,
        every token seeing everything before it).
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
        with length_free_kernels(query.device):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


class ReferenceReader:
    """The oracle: a mask over everything, in float32. Says what the other readers must compute."""

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


class GatherReader:
    """Body tokens read only what their step may see, from a small contiguous workspace.

    The first body token of a step gathers the visible pieces, the step's own header included, into the workspace.
    Body tokens append there and read nothing else. As soon as a token sees everything again (the step ended, broke,
    or the sequence ended), the body's keys and values go to the cache, in one copy: until then nothing reads them
    from there. So a body token writes as often as a dense one, and reads less.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._dense = DenseReader(cache)
        self._workspace: KVCache | None = None
        self._used = 0
        self._in_body = False
        # Where the open body starts, in the cache and in the workspace.
        self._body_start = 0
        self._body_offset = 0

    def plan(self, start: int, state: State | None) -> None:
        """See Reader."""
        if state is not None and state.phase is Phase.BODY:
            if self._in_body:
                self._used += 1
            else:
                self._gather(start, state)
            return
        if self._in_body:
            self._write_back()
        self._dense.plan(start, state)

    def _gather(self, start: int, state: State) -> None:
        *before, (own_start, _) = state.visible
        needed = min(state.num_visible + MAX_BODY_TOKENS + 1, self._cache.capacity)
        if self._workspace is None or self._workspace.capacity < needed:
            # Doubling: the workspace is sized by what steps read, not by the context, and seldom grows.
            grown = 2 * self._workspace.capacity if self._workspace is not None else 0
            self._workspace = self._cache.like(min(max(needed, grown), self._cache.capacity))
        # The token at `start` itself is not in the cache yet: its layers append it.
        self._used = self._workspace.copy_from(self._cache, [*before, (own_start, start)])
        self._body_start, self._body_offset, self._in_body = start, self._used, True

    def _write_back(self) -> None:
        body = (self._body_offset, self._used + 1)
        self._cache.copy_from(self._workspace, [body], self._body_start)
        self._in_body = False

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See Reader."""
        if not self._in_body:
            return self._dense.attend(layer, query, key, value, scale)
        workspace, used = self._workspace, self._used
        workspace.write(layer, used, key, value)
        keys, values = workspace.keys[layer].narrow(2, 0, used + 1), workspace.values[layer].narrow(2, 0, used + 1)
        return fused_one_query(query, keys, values, scale)


def make_reader(attention: str, impl: str, cache: KVCache, device: torch.device | str) -> Reader:
    """The reader of one lane.

    Args:
        attention: "dense" (everything, fused attention) or "sparse" (what the tracker says, by `impl`).
        impl: the sparse lane's implementation, one of IMPLS; a dense lane has one only and does not look at it.
        cache: where keys and values live.
        device: where the model runs.

    Raises:
        ValueError: unknown `attention` or `impl`.
        ImplUnavailable: the implementation cannot run on this device.
    """
    if attention == "dense":
        return DenseReader(cache)
    if attention != "sparse":
        raise ValueError(f"attention is 'dense' or 'sparse', not {attention!r}")
    require_impl(impl, device)
    return {"reference": ReferenceReader, "gather": GatherReader}[impl](cache)
