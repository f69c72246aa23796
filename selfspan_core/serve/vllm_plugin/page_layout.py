"""Where keys and values of a token lie within a page of vLLM's CPU cache.

vLLM's CPU kernels order the numbers of a page as their instruction set likes it: keys transposed, or in tiles. That
order is no part of vLLM's interface, so it is read off instead of assumed: numbers that say where they come from are
written into an empty page by vLLM's own operator.
"""

from dataclasses import dataclass

import torch
from vllm import _custom_ops as ops

BASE = 128
"""Of the digits in which a number's origin is written: every digit is exact in each dtype of a cache."""


@dataclass(frozen=True)
class PageLayout:
    """The order of numbers in a page, for one head.

    Attributes:
        keys, values: int64 `[page_size, head_dim]`, the place among a page's keys, or values, of each number.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.keys.shape[0]

    def gathered(
        self, kv_cache: torch.Tensor, pages: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens in a layer's cache.

        Args:
            kv_cache: `[num_pages, num_kv_heads, page_size, 2 * head_dim]`, as vLLM allocates it.
            pages, offsets: int64 `[T]`, each token's page and its place within it.

        Returns:
            Two tensors `[T, num_kv_heads, head_dim]`.
        """
        num_pages, num_heads, page_size, _ = kv_cache.shape
        if page_size != self.page_size:
            raise RuntimeError(f"a page of the cache holds {page_size} tokens, and {self.page_size} were planned")
        halves = kv_cache.view(num_pages, num_heads, 2, -1)
        page, head = pages[:, None, None], torch.arange(num_heads)[None, :, None]
        return halves[page, head, 0, self.keys[offsets][:, None]], halves[page, head, 1, self.values[offsets][:, None]]


def read_off(page_size: int, head_dim: int, dtype: torch.dtype, isa: str) -> PageLayout:
    """The layout of pages that vLLM's kernels write.

    Args:
        page_size: tokens per page.
        head_dim: numbers per token and head.
        dtype: of the cache.
        isa: the instruction set's name, as vLLM's metadata builder knows it.

    Raises:
        RuntimeError: the kernels do something else than putting numbers into an order.
    """
    num_numbers = page_size * head_dim
    origin = torch.arange(num_numbers)
    found = torch.zeros(2, num_numbers, dtype=torch.long)
    unit = 1
    while unit < num_numbers:
        digits = (origin // unit % BASE).to(dtype).view(page_size, 1, head_dim)
        page = torch.zeros(1, 1, 2 * page_size, head_dim, dtype=dtype)
        keys, values = page.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(digits, digits.clone(), keys, values, torch.arange(page_size), isa)
        found += page.view(2, num_numbers).long() * unit
        unit *= BASE
    if not all(torch.equal(half.sort().values, origin) for half in found):
        raise RuntimeError(f"the order of numbers in a page of vLLM's cache (instruction set {isa}) was not understood")
    keys_at, values_at = (half.argsort().view(page_size, head_dim) for half in found)
    return PageLayout(keys_at, values_at)
