"""Pages of vLLM's CPU cache, written by vLLM's kernels and read by the plugin."""

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.serve.vllm_plugin.page_layout import read_off
from selfspan_core.serve.vllm_plugin.selected_attention import attend_selected
from tests.support.interval_tools import positions

current_platform.import_kernels()
SHAPES = [(32, 64, "vec"), (128, 32, "vec"), (16, 80, "vec16"), (32, 128, "vec16")]
SEEN = ((0, 5), (30, 34), (63, 70), (95, 100))
CONTEXT = 100


@pytest.mark.parametrize(("page_size", "head_dim", "isa"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_read_is_what_was_written(page_size, head_dim, isa, dtype):
    """Keys read in another order than the kernels write them; a page's neighbour; heads that are mixed up."""
    torch.manual_seed(page_size)
    num_kv_heads, num_heads, num_pages = 2, 6, 12
    keys, values = (torch.randn(CONTEXT, num_kv_heads, head_dim).to(dtype) for _ in range(2))
    pages = torch.randperm(num_pages)[: -(-CONTEXT // page_size)]
    slots = torch.tensor([int(pages[p // page_size]) * page_size + p % page_size for p in range(CONTEXT)])
    cache = torch.randn(num_pages, num_kv_heads, page_size, 2 * head_dim).to(dtype)
    halves = cache.view(num_pages, num_kv_heads, 2 * page_size, head_dim).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, *halves, slots, isa)

    seen = torch.tensor(positions(SEEN))
    layout = read_off(page_size, head_dim, dtype, isa)
    found = layout.gathered(cache, pages[seen // page_size], seen % page_size)
    assert torch.equal(found[0], keys[seen]) and torch.equal(found[1], values[seen])

    query = torch.randn(1, num_heads, head_dim).to(dtype)
    output = attend_selected(query, *found, [0, len(seen)], 0.2)
    wide = (part.transpose(0, 1)[None] for part in (query, keys, values))
    expected = masked_attention(*wide, visibility_mask([SEEN], CONTEXT), 0.2)[0].transpose(0, 1)
    torch.testing.assert_close(output, expected)
    with pytest.raises(RuntimeError, match="were planned"):
        layout.gathered(cache.view(num_pages, num_kv_heads, -1, head_dim), pages[:1], pages[:1])
