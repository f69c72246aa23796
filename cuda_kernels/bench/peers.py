"""The kernel's peers in the benchmark, each as a function of one prepared set of tensors.

A peer that is missing or refuses a case is reported with its reason, never left out in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cuda_kernels.bench.selections import Selection

FLASHINFER_WORKSPACE_BYTES = 128 * 2**20

Call = Callable[[], torch.Tensor]


@dataclass
class Tensors:
    """One set of inputs: `query [B, H, D]`, `keys`, `values [B, Hkv, S, D]`."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def is_grouped(self) -> bool:
        """Whether query heads share key/value heads."""
        return self.query.shape[1] != self.keys.shape[1]


def sdpa_dense(tensors: Tensors, backend: SDPBackend) -> Call:
    """PyTorch's scaled_dot_product_attention over the whole context, by one backend."""
    query = tensors.query[:, :, None]

    def call() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, tensors.keys, tensors.values, enable_gqa=tensors.is_grouped)

    return call


def flex(tensors: list[Tensors], kept: list[torch.Tensor], selection: Selection, as_partial: bool) -> list[Call]:
    """A compiled FlexAttention with a block mask of the same blocks; compiled separately for every shape.

    Args:
        kept: per set, the blocks that every row keeps, int64 `[B, num_kept]`.
        as_partial: call the blocks partial (with a mask that hides nothing) and not full: the two are split over the
            multiprocessors in different ways, and either can be the faster.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    calls = []
    for one, blocks in zip(tensors, kept, strict=True):
        batch, num_kept = blocks.shape
        counts = torch.full((batch, 1, 1), num_kept, dtype=torch.int32, device=blocks.device)
        context = one.keys.shape[2]
        indices = torch.zeros(batch, 1, 1, context // selection.tokens, dtype=torch.int32, device=blocks.device)
        indices[:, 0, 0, :num_kept] = blocks
        mask = BlockMask.from_kv_blocks(
            *((counts, indices) if as_partial else (torch.zeros_like(counts), torch.zeros_like(indices))),
            *((None, None) if as_partial else (counts, indices)),
            BLOCK_SIZE=(128, selection.tokens),
            seq_lengths=(1, context),
        )
        query = one.query[:, :, None]
        calls.append(_flex_call(compiled, query, one, mask))
    return calls


def _flex_call(compiled: Callable, query: torch.Tensor, one: Tensors, mask: object) -> Call:
    return lambda: compiled(query, one.keys, one.values, block_mask=mask, enable_gqa=one.is_grouped)


@dataclass
class FlashInfer:
    """FlashInfer's paged decode over the kept pages: `plan` on the host whenever the selection changes, then `run`.

    The pages are those of `tensors` in its own layout `[num_pages, Hkv, page, D]`; page = block.
    """

    plan: Callable[[], None]
    run: Call


def flashinfer(tensors: Tensors, blocks: torch.Tensor, page: int, tensor_cores: bool) -> FlashInfer:
    """Set up one wrapper for one set.

    Args:
        blocks: those that every row keeps, int64 `[B, num_kept]`.
        page: tokens of a block.
        tensor_cores: which of its two kernels; its users are advised to take this one for grouped heads.
    """
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    batch, num_heads, head_dim = tensors.query.shape
    num_kv_heads, context = tensors.keys.shape[1:3]
    device = tensors.query.device
    # Zeroed before its first use, as FlashInfer asks.
    workspace = torch.zeros(FLASHINFER_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=tensor_cores)
    per_row = context // page
    # Copied: a cache kept in pages, as it would be.
    paged = [
        x.view(batch, num_kv_heads, per_row, page, head_dim).transpose(1, 2).flatten(0, 1).contiguous()
        for x in (tensors.keys, tensors.values)
    ]
    pages = (blocks + per_row * torch.arange(batch, device=device)[:, None]).flatten().to(torch.int32)
    # On the host, where its planning wants them.
    bounds = torch.arange(batch + 1, dtype=torch.int32) * blocks.shape[1]
    last = torch.full((batch,), page, dtype=torch.int32)

    def plan() -> None:
        dtype = tensors.query.dtype
        wrapper.plan(
            bounds, pages, last, num_heads, num_kv_heads, head_dim, page, q_data_type=dtype, kv_data_type=dtype
        )

    return FlashInfer(plan, lambda: wrapper.run(tensors.query, tuple(paged)))
