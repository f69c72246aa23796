"""vLLM's attention on a CPU, with rows that read less than everything.

Rows whose queries all read everything go through vLLM's own kernel; if all do, nothing here runs. The queries of a step
that read less are gathered from the paged cache, exactly the tokens that they see (`plan`, `selected_attention`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from selfspan_core.errors import ImplUnavailable
from selfspan_core.serve.vllm_plugin.followed import SpanRows
from selfspan_core.serve.vllm_plugin.page_layout import PageLayout, read_off
from selfspan_core.serve.vllm_plugin.plan import SelectedQueries, planned
from selfspan_core.serve.vllm_plugin.selected_attention import attend_selected
from selfspan_core.serve.vllm_plugin.support import is_switched_on, layer_problem

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec


class SelfSelectedCPUBackend(CPUAttentionBackend):
    """vLLM's CPU backend; its name stays, since vLLM finds it by that."""

    @staticmethod
    def get_impl_cls() -> type["SelfSelectedCPUImpl"]:
        """The class that attends."""
        return SelfSelectedCPUImpl

    @staticmethod
    def get_builder_cls() -> type["SelfSelectedCPUBuilder"]:
        """The class that plans a step."""
        return SelfSelectedCPUBuilder


@dataclass
class DenseRows:
    """The rows of a step for vLLM's own kernel: where their queries stand in the step, and their metadata."""

    queries: torch.Tensor
    metadata: CPUAttentionMetadata


@dataclass(kw_only=True)
class SelfSelectedMetadata(CPUAttentionMetadata):
    """A step in which some queries read less than everything.

    Attributes:
        selected: these queries.
        dense: the rows that have others, too; None if there are none.
        layout: of a page of the cache.
    """

    selected: SelectedQueries
    dense: DenseRows | None
    layout: PageLayout


class SelfSelectedCPUBuilder(CPUAttentionMetadataBuilder):
    """Plans a step, for all layers.

    Raises:
        ImplUnavailable: vLLM was started with self-selected attention, and a layer's attention is more than that.
    """

    def __init__(
        self, kv_cache_spec: "AttentionSpec", layer_names: list[str], vllm_config: "VllmConfig", device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = vllm_config.compilation_config.static_forward_context
        self._impls = [layers[name].impl for name in layer_names if name in layers]
        self._layout: PageLayout | None = None
        if is_switched_on(vllm_config):
            problem = next(filter(None, map(layer_problem, self._impls)), None)
            if problem is not None:
                raise ImplUnavailable(f"{problem}, which self-selected attention does not know")

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """vLLM's own metadata; where queries read less than everything, a SelfSelectedMetadata."""
        common = common_attn_metadata
        rows: SpanRows | None = self._impls[0].span_rows if self._impls else None
        if rows is None or not rows.followed:
            return super().build(common_prefix_len, common, fast_build)
        starts = common.query_start_loc.tolist()
        page_size = self.kv_cache_spec.block_size
        selected = planned(rows, starts, common.seq_lens.tolist(), common.block_table_tensor, page_size)
        if selected is None:
            return super().build(common_prefix_len, common, fast_build)
        if self._layout is None:
            self._layout = read_off(page_size, self.head_dim, self.dtype, self.isa)
        dense = None
        if selected.dense_rows:
            queries, part = part_of(common, selected.dense_rows)
            dense = DenseRows(queries, super().build(0, part, fast_build))
        return SelfSelectedMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            selected=selected,
            dense=dense,
            layout=self._layout,
        )


def part_of(common: CommonAttentionMetadata, rows: list[int]) -> tuple[torch.Tensor, CommonAttentionMetadata]:
    """Some rows of a step: int64 `[N]`, where their queries stand in it, and the metadata of a step of these rows."""
    starts = common.query_start_loc.tolist()
    queries = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows])
    lengths = torch.tensor([starts[row + 1] - starts[row] for row in rows])
    new_starts = torch.zeros(len(rows) + 1, dtype=common.query_start_loc.dtype)
    torch.cumsum(lengths, 0, out=new_starts[1:])
    seq_lens = common.seq_lens[rows]
    part = CommonAttentionMetadata(
        query_start_loc=new_starts,
        query_start_loc_cpu=new_starts,
        seq_lens=seq_lens,
        num_reqs=len(rows),
        num_actual_tokens=len(queries),
        max_query_len=int(lengths.max()),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=common.block_table_tensor[rows],
        slot_mapping=common.slot_mapping[queries],
        causal=common.causal,
    )
    return queries, part


class SelfSelectedCPUImpl(CPUAttentionBackendImpl):
    """Attention of one layer.

    Attributes:
        span_rows: the requests that read less than everything; None until a `SpanRequests` shows them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.span_rows: SpanRows | None = None

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        *scales: Any,
        **named_scales: Any,
    ) -> torch.Tensor:
        """As vLLM's: `[num_tokens, num_heads, head_dim]` in and out; the step's keys are in the cache already.

        The scales are those of a quantized output, which vLLM's own class refuses.
        """
        everything = (*scales, *named_scales.values())
        if not isinstance(attn_metadata, SelfSelectedMetadata) or any(scale is not None for scale in everything):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales, **named_scales)
        selected, dense, layout = attn_metadata.selected, attn_metadata.dense, attn_metadata.layout
        if dense is not None:
            part = torch.empty_like(output[dense.queries])
            super().forward(layer, query[dense.queries], None, None, kv_cache, dense.metadata, part)  # type: ignore
            output[dense.queries] = part
        keys, values = layout.gathered(kv_cache, selected.pages, selected.offsets)
        output[selected.queries] = attend_selected(query[selected.queries], keys, values, selected.bounds, self.scale)
        return output
