"""PyTorch's fused attention, as decoding uses it."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's attention is compiled anew for every length that it meets, and decoding meets a new one with every token: tens
# of milliseconds per token where these need well under one.
LENGTH_FREE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def length_free_kernels(device: torch.device) -> AbstractContextManager:
    """While it is open, PyTorch's fused attention on this device uses kernels that take any length as they are.

    PyTorch keeps that choice per process; what it was before is back when the context closes. Open it around a whole
    forward pass, not around each layer.
    """
    return sdpa_kernel(LENGTH_FREE_BACKENDS) if device.type == "cuda" else nullcontext()


def causal_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's fused attention of a prompt, each token over all tokens up to its own.

    Args:
        query: `[1, num_heads, T, head_dim]`.
        keys, values: `[1, num_kv_heads, T, head_dim]`.
        scale: multiplies the scores.

    Returns:
        `[1, num_heads, T, head_dim]`.
    """
    is_grouped = query.shape[1] != keys.shape[1]
    query, keys, values, dtype = *_as_fast_floats(query, keys, values), query.dtype
    attended = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale, enable_gqa=is_grouped)
    return attended.to(dtype)


MANY_QUERIES = 64
"""As a piece of a prompt has, and no pass with drafts: a CPU attends to so many in other floats."""


class LastQueries:
    """PyTorch's fused attention of the last T tokens, each over all keys up to its own; one object for the layers of a
    pass, which share its mask.

    Heads that share a key/value head become queries of that head, so that each key and value is read once per group
    and never repeated in memory. A single query on a CPU is left as it is where that is faster: PyTorch's kernel
    divides heads among threads, and takes rows of one query faster (9 heads on 3, two cores, 2,000 keys: bfloat16 on an
    Intel Xeon with AMX 150 us instead of 205, float32 on an AMD EPYC 155 instead of 167). But without AMX bfloat16 is
    turned into float32 first, once for every head (on that EPYC 1,148 us instead of 206). So are many queries, a piece
    of a prompt, for which turning all into float32 before is the fastest without AMX (3,347 tokens in pieces of 256, a
    layer, on an EPYC with AVX-512: 100 ms instead of 113).
    """

    def __init__(self) -> None:
        self._mask: torch.Tensor | None = None

    def __call__(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend.

        Args:
            query: `[1, num_heads, T, head_dim]`; its tokens are the last T of the keys.
            keys, values: `[1, num_kv_heads, S, head_dim]`; T and S are the same at every call.
            scale: multiplies the scores.

        Returns:
            `[1, num_heads, T, head_dim]`.
        """
        num_heads, num_queries, head_dim = query.shape[1:]
        group = num_heads // keys.shape[1]
        if num_queries == 1 and query.device.type == "cpu" and _is_best_by_heads(query.dtype):
            return F.scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=group > 1)
        if num_queries >= MANY_QUERIES and query.device.type == "cpu":
            return self._by_heads(query, keys, values, scale)
        grouped = query.reshape(1, keys.shape[1], group * num_queries, head_dim)
        if num_queries > 1 and self._mask is None:
            self._mask = _mask_of_last(num_queries, keys).repeat(group, 1)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask, scale=scale)
        # On CUDA the result may be laid out otherwise than the query.
        return attended.reshape(query.shape)

    def _by_heads(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Many queries, heads left apart; arguments and result as of a call."""
        dtype, is_grouped = query.dtype, query.shape[1] != keys.shape[1]
        query, keys, values = _as_fast_floats(query, keys, values)
        if self._mask is None:
            self._mask = _mask_of_last(query.shape[2], keys)
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._mask, scale=scale, enable_gqa=is_grouped
        )
        return attended.to(dtype)


def _as_fast_floats(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In the floats in which a device attends fastest to many tokens: without AMX a CPU has none of 16 bits."""
    is_slow = tensors[0].device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
    return tuple(tensor.float() for tensor in tensors) if is_slow else tensors


def _is_best_by_heads(dtype: torch.dtype) -> bool:
    """Whether a CPU attends faster head by head than in groups of heads."""
    return dtype is torch.float32 or torch.cpu._is_amx_tile_supported()


def _mask_of_last(num_queries: int, keys: torch.Tensor) -> torch.Tensor:
    """What is added to the scores of the last queries, `[T, S]`: minus infinity at keys behind the one that asks."""
    mask = torch.zeros(num_queries, keys.shape[2], dtype=keys.dtype, device=keys.device)
    later = torch.ones(num_queries, num_queries, dtype=torch.bool, device=keys.device).triu(1)
    mask[:, -num_queries:].masked_fill_(later, -torch.inf)
    return mask
