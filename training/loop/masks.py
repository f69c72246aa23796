"""Interval bounds into an attention mask that transformers takes as it is (4-D masks pass through unchanged).

On CUDA a FlexAttention block mask, whose kernel skips blocks that no query sees; elsewhere a plain boolean mask for
scaled_dot_product_attention. Both are made of the same intervals that decoding uses. An interval that begins at -1 - n
holds of `[n, end)` what is indexed: what headers see of an index, which has more pieces than a row has intervals.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


def attention_implementation(device: torch.device) -> str:
    """Name of the transformers attention implementation that takes this device's mask."""
    return "flex_attention" if device.type == "cuda" else "sdpa"


def dense_mask(bounds: torch.Tensor, indexed: torch.Tensor | None = None) -> torch.Tensor:
    """Boolean mask [B, 1, S, S], True = visible, from bounds [B, S, K, 2] and indexed [B, S]."""
    key = torch.arange(bounds.shape[1], device=bounds.device)
    starts, of_index = _starts(bounds)
    visible = (starts.unsqueeze(-1) <= key) & (key < bounds[..., 1].unsqueeze(-1))
    if indexed is not None:
        visible &= ~of_index.unsqueeze(-1) | indexed.bool()[:, None, None]
    return visible.any(dim=2).unsqueeze(1)


def _starts(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where intervals [B, S, K, 2] begin, int32 [B, S, K], and which of them hold only what is indexed."""
    starts = bounds[..., 0].to(torch.int32)
    return torch.where(starts < 0, -1 - starts, starts).contiguous(), (starts < 0).contiguous()


def block_mask(bounds: torch.Tensor, indexed: torch.Tensor | None = None) -> BlockMask:
    """FlexAttention mask of shape [B, 1, S, S] from bounds [B, S, K, 2] and indexed [B, S].

    Which blocks of 128 x 128 are touched is worked out from the intervals themselves, O(S * S / 128); FlexAttention's
    own `create_block_mask` would evaluate all S * S pairs for every batch.

    Raises:
        ValueError: S is not a multiple of 128.
    """
    length, max_intervals = bounds.shape[1:3]
    if length % BLOCK:
        raise ValueError(f"rows of {length} tokens are not a multiple of {BLOCK}")
    starts, of_index = _starts(bounds)
    ends = bounds[..., 1].to(torch.int32).contiguous()

    def visible(b, h, q, k):
        seen = (k >= starts[b, q, 0]) & (k < ends[b, q, 0])
        for slot in range(1, max_intervals):
            in_slot = (k >= starts[b, q, slot]) & (k < ends[b, q, slot])
            if slot == 1 and indexed is not None:  # an index is always the second interval
                in_slot = in_slot & (~of_index[b, q, 1] | (indexed[b, k] > 0))
            seen = seen | in_slot
        return seen

    touched, full = _touched_blocks(starts, ends, of_index)
    partial_count, partial_index = _as_indices(touched & ~full)
    full_count, full_index = _as_indices(full)
    return BlockMask.from_kv_blocks(
        partial_count,
        partial_index,
        full_count,
        full_index,
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _touched_blocks(
    starts: torch.Tensor, ends: torch.Tensor, of_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For starts, ends, of_index [B, S, K]: which (query block, key block) pairs hold a visible pair, and which only
    such.

    Returns two boolean tensors [B, 1, S/128, S/128]. A block that several intervals cover between them counts as
    partial; that costs a mask evaluation, never correctness.
    """
    batch, length, _ = starts.shape
    num_blocks = length // BLOCK
    first = torch.arange(num_blocks, device=starts.device, dtype=torch.int32) * BLOCK
    starts, ends = starts.unsqueeze(-1), ends.unsqueeze(-1)
    overlaps = ((starts < first + BLOCK) & (ends > first) & (starts < ends)).any(dim=2)
    covers = ((starts <= first) & (ends >= first + BLOCK) & ~of_index.unsqueeze(-1)).any(dim=2)
    touched = overlaps.view(batch, num_blocks, BLOCK, num_blocks).any(dim=2)
    full = covers.view(batch, num_blocks, BLOCK, num_blocks).all(dim=2)
    return touched.unsqueeze(1), full.unsqueeze(1)


def _as_indices(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean [B, 1, Q, K] to (count [B, 1, Q], indices [B, 1, Q, K] with the True ones first, in order), int32."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), order.to(torch.int32).contiguous()


def visibility_mask(bounds: torch.Tensor, indexed: torch.Tensor | None = None) -> torch.Tensor | BlockMask:
    """The mask that `attention_implementation` wants on the bounds' device."""
    make = block_mask if bounds.device.type == "cuda" else dense_mask
    return make(bounds, indexed)
