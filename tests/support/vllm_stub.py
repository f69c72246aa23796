"""As much of vLLM as the plugin's backend for CUDA stands on, and the paged kernel, by PyTorch on a CPU."""

import enum
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch

from tests.support.span_examples import MARKERS
from tests.support.tracker_on_cpu import Follower

BACKEND = "selfspan_core.serve.vllm_plugin.cuda_backend"


def attended(query, cache, table, visible, scale):
    """One query `[H, D]` over what it sees of a cache `[num_pages, Hkv, page_size, 2 D]`."""
    page_size, head_dim = cache.shape[2], query.shape[1]
    at = torch.cat([torch.arange(start, end) for start, end in visible])
    both = cache[table[at // page_size].long(), :, at % page_size]
    both = both.repeat_interleave(query.shape[0] // cache.shape[1], 1)
    keys, values = both[..., :head_dim], both[..., head_dim:]
    weights = (torch.einsum("hd,thd->ht", query, keys) * scale).softmax(-1)
    return torch.einsum("ht,thd->hd", weights, values)


class CGSupport(enum.Enum):
    ALWAYS = 3
    UNIFORM_SINGLE_TOKEN_DECODE = 1


@dataclass
class Common:
    """A step's metadata, as far as they are looked at."""

    query_start_loc_cpu: torch.Tensor
    seq_lens: torch.Tensor
    num_reqs: int
    max_query_len: int
    block_table_tensor: torch.Tensor
    seq_lens_cpu_upper_bound: torch.Tensor | None = None


@dataclass
class Metadata:
    common: Common


class Builder:
    def __init__(self, spec, names, config, device):
        self.device, self.supports_update_block_table = device, True

    @classmethod
    def get_cudagraph_support(cls, config, spec):
        return CGSupport.ALWAYS

    def use_cascade_attention(self):
        return True

    def build(self, common_prefix_len, common, fast_build=False):
        return Metadata(common)


class Impl:
    def __init__(self, num_heads, head_size, scale, num_kv_heads):
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.sliding_window, self.alibi_slopes, self.logits_soft_cap = (-1, -1), None, 0
        self.sinks, self.attn_type = None, "decoder"

    def forward(self, layer, query, key, value, cache, metadata, output, *scales, **named):
        """Dense attention of all queries."""
        common = metadata.common
        starts = common.query_start_loc_cpu.tolist()
        for row, length in enumerate(common.seq_lens.tolist()):
            for place in range(starts[row], starts[row + 1]):
                seen = [(0, length - starts[row + 1] + place + 1)]
                output[place] = attended(query[place], cache, common.block_table_tensor[row], seen, self.scale)
        return output


class Paged:
    """`cuda_kernels.paged.PagedAttention`; shapes are as strict."""

    def __init__(self, shape, layout, max_pages, device):
        self.shape, self.layout, self.max_pages = shape, layout, max_pages

    def plan(self, intervals, counts, table):
        shape = self.shape
        for tensor, wanted in ((intervals, (shape.batch, shape.max_spans, 2)), (counts, (shape.batch,))):
            assert tensor.shape == wanted and tensor.is_contiguous() and tensor.dtype == torch.int32
        assert table.shape == (shape.batch, self.max_pages) and table.is_contiguous() and table.dtype == torch.int32
        self.planned = intervals.clone(), counts.tolist(), table.clone()

    def __call__(self, query, keys, values, scale=None, out=None):
        out = torch.empty_like(query) if out is None else out
        intervals, counts, table = self.planned
        assert len(query) == len(counts) and tuple(keys.shape[1:]) == (
            self.shape.num_kv_heads,
            self.layout.page_size,
            self.shape.head_dim,
        )
        for row, count in enumerate(counts):
            seen = [tuple(one) for one in intervals[row, :count].tolist()]
            cache = torch.cat([keys, values], -1)
            out[row] = attended(query[row], cache, table[row], seen, scale) if seen else 0
        return out


def backend(monkeypatch, is_on=True):
    """The backend's module, over these."""
    stands = {
        "backend": {"AttentionCGSupport": CGSupport, "CommonAttentionMetadata": Common},
        "backends.flash_attn": {
            "FlashAttentionBackend": object,
            "FlashAttentionImpl": Impl,
            "FlashAttentionMetadata": Metadata,
            "FlashAttentionMetadataBuilder": Builder,
        },
    }
    for name in ("vllm", "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.backends"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, contents in stands.items():
        module = ModuleType(f"vllm.v1.attention.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, BACKEND, raising=False)
    made = importlib.import_module(BACKEND)
    monkeypatch.delitem(sys.modules, BACKEND)
    monkeypatch.setattr(made, "PagedAttention", Paged)
    monkeypatch.setattr(made, "SpanFollower", Follower)
    monkeypatch.setattr(made, "markers_of", lambda _: MARKERS)
    # The kernels take 16 bits only; here numbers are compared.
    monkeypatch.setattr(made, "AttentionShape", SimpleNamespace)
    monkeypatch.setattr(made, "is_switched_on", lambda _: is_on)
    return made
