"""PyTorch's fused attention, as decoding uses it."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's attention is compiled again for every new length, and in decoding every token has a new length. That costs
# tens of milliseconds per token, where the backends below need well under one.
LENGTH_FREE_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def length_free_kernels(device: torch.device) -> AbstractContextManager:
    """Context in which PyTorch's fused attention on this device uses only kernels that need no compilation per length.

    PyTorch keeps this choice per process; the previous choice is restored when the context closes. Open the context
    around a whole forward pass, not around each layer.
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
    # On CUDA the result may have another memory layout than the query.
    return attended.reshape(query.shape)
