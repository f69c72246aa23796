"""Greedy decoding by drafts: the right solution is proposed, and the model says whether it would have written it.

Greedy decoding writes a given text exactly if and only if each of its tokens is the arg-max given those before it. So
one forward pass over prompt and draft, every token under the visibility that it has in decoding, settles a row whose
draft is what the model writes; only the others are decoded token by token. (Arg-max ties within rounding may fall
either way, as they do between any two batch sizes.) A model that is right 98 % of the time is measured in a small part
of the time that decoding takes, on a CPU too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from selfspan_core.models.model import SpanModel
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from training.evaluation.batch_decode import Decoded, decode_greedily, replay
from training.loop.masks import dense_mask
from training.loop.packing import Row, sample_of

# Fused attention wants rows of its mask aligned.
MASK_ALIGNMENT = 64


class DraftReader:
    """Attention of whole sequences at once, `[B, num_heads, T, head_dim]`; nothing is kept.

    Args:
        mask: bool `[B, 1, T, T]`, True where a query sees a key, or None: everything before it.
    """

    def __init__(self, mask: torch.Tensor | None) -> None:
        self._mask = mask

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `selfspan_core.attention.readers.Reader`."""
        grouped = query.shape[1] != key.shape[1]
        causal = self._mask is None
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )


def decode_by_drafts(
    model: SpanModel,
    markers: Markers,
    drafts: Sequence[Rendered],
    sparse: bool,
    annotated: bool,
    max_new_tokens: int,
    draft_batch: int,
) -> tuple[list[Decoded], int]:
    """What `decode_greedily` returns for the drafts' prompts, and how many rows had to be decoded.

    Args:
        drafts: rendered with their steps, `<eos>` at the end.
        sparse, annotated, max_new_tokens: as in `decode_greedily`; a draft longer than the limit is not looked at.
        draft_batch: drafts of one forward pass.
    """
    results: list[Decoded | None] = [None] * len(drafts)
    short = [i for i, d in enumerate(drafts) if len(d.ids) - d.prompt.num_tokens <= max_new_tokens]
    # Of like length together: less padding.
    short.sort(key=lambda i: len(drafts[i].ids))
    for first in range(0, len(short), draft_batch):
        chosen = short[first : first + draft_batch]
        for index, written in zip(chosen, would_write(model, [drafts[i] for i in chosen], sparse), strict=True):
            if written:
                results[index] = replay(drafts[index], markers, sparse, annotated)
    rest = [i for i, result in enumerate(results) if result is None]
    if rest:
        prompts = [drafts[i] for i in rest]
        decoded = decode_greedily(model, markers, prompts, sparse, annotated, max_new_tokens)
        for index, row in zip(rest, decoded, strict=True):
            results[index] = row
    return results, len(rest)


@torch.inference_mode()
def would_write(model: SpanModel, drafts: Sequence[Rendered], sparse: bool) -> list[bool]:
    """Whether greedy decoding writes each draft's answer token for token, in one forward pass over all of them."""
    length = aligned(max(len(draft.ids) for draft in drafts))
    ids = torch.tensor([draft.ids + [0] * (length - len(draft.ids)) for draft in drafts], device=model.device)
    positions = torch.arange(length, device=model.device).expand(len(drafts), -1)
    mask = _span_mask(drafts, length, model.device) if sparse else None
    predicted = model.forward_argmax(ids, positions, DraftReader(mask))
    right = (predicted[:, :-1] == ids[:, 1:]).cpu()
    return [
        bool(row[draft.prompt.num_tokens - 1 : len(draft.ids) - 1].all())
        for row, draft in zip(right, drafts, strict=True)
    ]


def aligned(length: int) -> int:
    """The length rounded up to what fused attention likes its masks to be."""
    return -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT


def _span_mask(drafts: Sequence[Rendered], length: int, device: torch.device) -> torch.Tensor:
    """Bool `[B, 1, T, T]` out of each draft's own visibility; padding sees itself."""
    most = 1 + max(1 if run.reads_index else len(run.context) for draft in drafts for run in draft.runs)
    rows = [Row(length, most, pad_id=0) for _ in drafts]
    for row, draft in zip(rows, drafts, strict=True):
        row.add(sample_of(draft))
    masks = []
    for row in rows:
        bounds, indexed = (torch.from_numpy(part)[None].to(device) for part in (row.bounds, row.indexed))
        masks.append(dense_mask(bounds, indexed))
    return torch.cat(masks)
