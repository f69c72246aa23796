"""Reference implementation of attention over visible intervals: the specification for tests and `impl="reference"`.

Plain float32 arithmetic with an explicit mask over all keys: slow, but easy to check by reading.
"""

from collections.abc import Sequence

import torch

from selfspan_core.spans.intervals import Interval


def visibility_mask(visibility: Sequence[Sequence[Interval]], context: int) -> torch.Tensor:
    """Bool mask `[num_queries, context]` on CPU: row i is True at the positions that query i sees."""
    mask = torch.zeros(len(visibility), context, dtype=torch.bool)
    for row, intervals in zip(mask, visibility, strict=True):
        for start, end in intervals:
            row[start:end] = True
    return mask


def masked_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax attention in float32.

    Args:
        query: `[batch, num_heads, T, head_dim]`.
        keys, values: `[batch, num_kv_heads, S, head_dim]`; `num_heads` is a multiple of `num_kv_heads`.
        mask: bool `[T, S]`, True where a query sees a key. A row without True is an error.
        scale: multiplies the scores.

    Returns:
        `[batch, num_heads, T, head_dim]` in the query's dtype.

    Raises:
        ValueError: a query sees nothing.
    """
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("a query sees nothing: every query sees at least itself")
    group = query.shape[1] // keys.shape[1]
    keys = keys.float().repeat_interleave(group, dim=1)
    values = values.float().repeat_interleave(group, dim=1)
    scores = query.float() @ keys.transpose(2, 3) * scale
    scores = scores.masked_fill(~mask.to(scores.device), float("-inf"))
    return (scores.softmax(dim=-1) @ values).to(query.dtype)
