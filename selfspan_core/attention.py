"""Attention of a decoding query over the intervals that it may see, behind an explicit `impl=`.

    reference  masked, eager, float32, over everything: the oracle
    gather     reads only visible keys and values: gathers them into one contiguous piece, fused attention over it
    cuda       the kernel of `cuda_kernels`, which reads intervals in place

Asked for and unavailable is an error that says why, never a silent fallback. This is the stateless op; decoding uses
the same implementations through `readers`, which remember what the tokens of a step share.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cuda_kernels.launch import CudaUnavailable, SpanAttention, cuda_device
from selfspan_core.intervals import Interval
from selfspan_core.reference import masked_attention, visibility_mask

IMPLS = ("reference", "gather", "cuda")
# cuDNN's attention is compiled anew for every length that it meets, and decoding meets a new one with every token: tens
# of milliseconds per token where these need well under one.
LENGTH_FREE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ImplUnavailable(RuntimeError):
    """The implementation that was asked for cannot run here; the message says why."""


def why_unavailable(impl: str, device: torch.device | str) -> str | None:
    """Why an implementation cannot run on a device, or None if it can.

    Raises:
        ValueError: there is no implementation of that name, or `device` says no device.
    """
    if impl not in IMPLS:
        raise ValueError(f"no attention implementation is called {impl!r}; there are {', '.join(IMPLS)}")
    if impl != "cuda":
        return None
    try:
        cuda_device(device)
    except CudaUnavailable as error:
        return f"impl 'cuda': {error}"
    return None


def available_impls(device: torch.device | str) -> tuple[str, ...]:
    """The implementations that can run on a device."""
    return tuple(impl for impl in IMPLS if why_unavailable(impl, device) is None)


def require_impl(impl: str, device: torch.device | str) -> None:
    """Raise ImplUnavailable, with the reason, unless an implementation can run on a device."""
    reason = why_unavailable(impl, device)
    if reason is not None:
        raise ImplUnavailable(reason)


def length_free_kernels(device: torch.device) -> AbstractContextManager:
    """While it is open, PyTorch's fused attention on this device uses kernels that take any length as they are.

    PyTorch keeps that choice per process; what it was before is back when the context closes. Open it around a whole
    forward pass, not around each layer.
    """
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
        impl: one of IMPLS. "cuda" takes 16-bit floats and some head_dims only, and sets itself up anew in every call:
            `readers` and `cuda_kernels.launch.SpanAttention` do that once.

    Returns:
        `[1, num_heads, 1, head_dim]`.

    Raises:
        ValueError: unknown `impl`, or nothing visible.
        ImplUnavailable: the implementation cannot run on this device, or not with these tensors.
    """
    require_impl(impl, query.device)
    if not visible:
        raise ValueError("a query sees nothing: every query sees at least itself")
    if impl == "reference":
        context = visible[-1][1]
        mask = visibility_mask([visible], context)
        return masked_attention(query, keys[:, :, :context], values[:, :, :context], mask, scale)
    if impl == "cuda":
        return _cuda_attend(query, keys, values, visible, scale)
    pieces = [slice(start, end) for start, end in visible]
    gathered_keys = torch.cat([keys[:, :, piece] for piece in pieces], dim=2)
    gathered_values = torch.cat([values[:, :, piece] for piece in pieces], dim=2)
    with length_free_kernels(query.device):
        return fused_one_query(query, gathered_keys, gathered_values, scale)


def _cuda_attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: Sequence[Interval], scale: float
) -> torch.Tensor:
    kernel = cuda_attention(query.shape[1], keys, len(visible))
    try:
        plan_visible(kernel, visible, keys.shape[2])
        return kernel(query[:, :, 0], keys, values, scale)[:, :, None]
    except ValueError as error:
        raise ImplUnavailable(f"impl 'cuda': {error}") from error


def cuda_attention(num_heads: int, keys: torch.Tensor, max_spans: int) -> SpanAttention:
    """The CUDA kernel for one sequence's cache.

    Args:
        num_heads: query heads.
        keys: `[1, num_kv_heads, capacity, head_dim]`, of the cache.
        max_spans: most intervals of a query.

    Raises:
        ImplUnavailable: the kernel does not take this element type or shape.
    """
    try:
        return SpanAttention(
            batch=1,
            num_heads=num_heads,
            num_kv_heads=keys.shape[1],
            head_dim=keys.shape[3],
            max_spans=max_spans,
            dtype=keys.dtype,
            device=keys.device,
        )
    except (ValueError, CudaUnavailable) as error:
        raise ImplUnavailable(f"impl 'cuda': {error}") from error


def plan_visible(kernel: SpanAttention, visible: Sequence[Interval], capacity: int) -> None:
    """Tell the kernel what one sequence sees. Copies from the host: right for a lane that decodes token by token."""
    table = torch.zeros(1, kernel.max_spans, 2, dtype=torch.int32)
    table[0, : len(visible)] = torch.tensor(visible, dtype=torch.int32)
    counts = torch.tensor([len(visible)], dtype=torch.int32)
    kernel.plan(table.to(kernel.device), counts.to(kernel.device), capacity)
