"""Attention of single queries over the tokens that each of them reads: exact, in float32, one query after the other."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_selected(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bounds: Sequence[int], scale: float
) -> torch.Tensor:
    """What `attention.reference` says of these queries and the keys and values that they see.

    Args:
        query: `[Q, num_heads, head_dim]`.
        keys, values: `[T, num_kv_heads, head_dim]`, query after query; `num_heads` is a multiple of `num_kv_heads`.
        bounds: Q + 1 numbers; query i sees `bounds[i]` to `bounds[i + 1]`.
        scale: multiplies the scores.

    Returns:
        `[Q, num_heads, head_dim]` in the query's dtype; sums are made in float32.
    """
    output = torch.empty_like(query)
    heads = keys.shape[1], query.shape[1] // keys.shape[1], query.shape[2]
    for index, (start, end) in enumerate(pairwise(bounds)):
        # The query heads that share a key head are queries of it: `[num_kv_heads, group, head_dim]`.
        own = query[index].float().view(heads)
        seen_keys, seen_values = (part[start:end].float().transpose(0, 1) for part in (keys, values))
        mixed = scaled_dot_product_attention(own[None], seen_keys[None], seen_values[None], scale=scale)
        output[index] = mixed.reshape(query.shape[1:]).to(query.dtype)
    return output
