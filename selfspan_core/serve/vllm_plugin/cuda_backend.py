"""vLLM's attention on CUDA, with rows that read less than everything.

A step of one query per row, which vLLM captures in a CUDA graph, goes through this project's paged kernel: all rows
together, those that read everything among them. It is planned outside of the graph, before it is replayed. In a step
with prompts vLLM's kernel attends for all rows, and queries that read less are answered once more.

What queries see the host knows, which has followed their ids; with asynchronous scheduling trackers on the device know
it (`device_rows`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from cuda_kernels.checks import MAX_BATCH, AttentionShape
from cuda_kernels.follower import SpanFollower
from cuda_kernels.paged import PagedAttention, PageLayout
from selfspan_core.engine.batch_parts import grammar_of
from selfspan_core.errors import ImplUnavailable
from selfspan_core.serve.vllm_plugin.device_rows import DeviceRows, LateQuery, late_queries
from selfspan_core.serve.vllm_plugin.followed import SpanRows
from selfspan_core.serve.vllm_plugin.step_table import MAX_SPANS, SelectedQuery, StepTable, selected_queries
from selfspan_core.serve.vllm_plugin.support import SPAN_WORKER, is_switched_on, layer_problem, markers_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec


class SelfSelectedCUDABackend(FlashAttentionBackend):
    """vLLM's FlashAttention backend; its name stays, since vLLM finds it by that."""

    @staticmethod
    def get_impl_cls() -> type["SelfSelectedCUDAImpl"]:
        """The class that attends."""
        return SelfSelectedCUDAImpl

    @staticmethod
    def get_builder_cls() -> type["SelfSelectedCUDABuilder"]:
        """The class that plans a step."""
        return SelfSelectedCUDABuilder


@dataclass(frozen=True)
class Part:
    """Some queries of a step, planned: int64 `[N]`, where they stand in it."""

    attention: PagedAttention
    queries: torch.Tensor


@dataclass
class SelfSelectedMetadata(FlashAttentionMetadata):
    """A step that this project's kernel takes part in.

    Attributes:
        whole: attends for all queries, one per row.
        parts: attend for some, after vLLM's kernel has for all.
    """

    whole: PagedAttention | None = None
    parts: list[Part] = field(default_factory=list)


class SelfSelectedCUDABuilder(FlashAttentionMetadataBuilder):
    """Plans a step, for all layers.

    Raises:
        ImplUnavailable: vLLM was started with self-selected attention, and a layer's attention is more than that.
    """

    def __init__(
        self, kv_cache_spec: "AttentionSpec", layer_names: list[str], vllm_config: "VllmConfig", device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._is_on = is_switched_on(vllm_config)
        if not self._is_on:
            return
        self.supports_update_block_table = False
        layers = vllm_config.compilation_config.static_forward_context
        self._layers = [layers[name] for name in layer_names if name in layers]
        problem = next(filter(None, (layer_problem(layer.impl) for layer in self._layers)), None)
        if problem is not None:
            raise ImplUnavailable(f"{problem}, which self-selected attention does not know")
        self._table = StepTable(MAX_BATCH, device)
        self._device_rows: DeviceRows | None = None
        if vllm_config.scheduler_config.async_scheduling:
            grammar = grammar_of(markers_of(vllm_config), vllm_config.model_config.get_vocab_size())
            self._device_rows = DeviceRows(SpanFollower(grammar, MAX_BATCH, device), MAX_BATCH, device)
        self._attentions: dict[tuple[int, int], PagedAttention] = {}
        self._tables_of_parts: list[StepTable] = []

    @classmethod
    def get_cudagraph_support(cls, vllm_config: "VllmConfig", kv_cache_spec: "AttentionSpec") -> AttentionCGSupport:
        """Of steps with one query per row, where self-selected attention is on."""
        if is_switched_on(vllm_config):
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    def use_cascade_attention(self, *args: Any, **kwargs: Any) -> bool:
        """Rows do not share what they read of a prefix."""
        return not self._is_on and super().use_cascade_attention(*args, **kwargs)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        """vLLM's own metadata, and what this project's kernel is to do."""
        common = common_attn_metadata
        is_decode = self._is_on and common.max_query_len == 1
        # vLLM's kernel needs no schedule where it does not run.
        metadata = super().build(common_prefix_len, common, fast_build or is_decode)
        if not self._is_on:
            return metadata
        lengths = _lengths(common)
        starts = common.query_start_loc_cpu.tolist()
        late, selected = self._selected(starts, lengths)
        own = {one.name: getattr(metadata, one.name) for one in fields(FlashAttentionMetadata)}
        if is_decode:
            return SelfSelectedMetadata(**own, whole=self._planned_rows(common, lengths, late, selected))
        parts = self._planned_parts(common, selected) + self._planned_late(common, late)
        return SelfSelectedMetadata(**own, parts=parts)

    def _selected(
        self, starts: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Sequence[LateQuery], Sequence[SelectedQuery]]:
        """Queries that read less than everything: those that the device follows, and those that the host knows of."""
        rows: SpanRows | None = self._layers[0].impl.span_rows
        if rows is None:
            return [], []
        if self._device_rows is None:
            return [], selected_queries(rows, starts, lengths)
        self._device_rows.keep(rows.followed.values())
        return late_queries(rows, starts, lengths)

    def _pushed(self, queries: Sequence[LateQuery | None], lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What queries see that the device follows, after their ids."""
        ids = self._layers[0].impl.span_rows.next_ids
        if self._device_rows is None or ids is None:
            raise RuntimeError(f"the worker did not show where ids are: it is not {SPAN_WORKER}")
        return self._device_rows.push(ids, queries, lengths)

    def _planned_rows(
        self,
        common: CommonAttentionMetadata,
        lengths: Sequence[int],
        late: Sequence[LateQuery],
        selected: Sequence[SelectedQuery],
    ) -> PagedAttention:
        num = common.num_reqs
        attention = self._attention(num, 0, common.block_table_tensor)
        if late:
            of_row = {one.row: one for one in late}
            intervals, counts = self._pushed([of_row.get(row) for row in range(num)], lengths)
        else:
            self._table.fill(lengths, selected)
            intervals, counts = self._table.intervals[:num], self._table.counts[:num]
        attention.plan(intervals, counts, common.block_table_tensor)
        return attention

    def _planned_late(self, common: CommonAttentionMetadata, late: Sequence[LateQuery]) -> list[Part]:
        """Of a step with prompts: its queries that the device follows; a batch has no more rows than the kernel."""
        if not late:
            return []
        padded = 1 << (len(late) - 1).bit_length()
        padding = [0] * (padded - len(late))
        intervals, counts = self._pushed([*late, *(None for _ in padding)], [0] * padded)
        block_table = self._block_table(common, [*(one.row for one in late), *padding])
        attention = self._attention(padded, -1, block_table)
        attention.plan(intervals, counts, block_table)
        return [Part(attention, self._on_device([one.place for one in late]))]

    def _on_device(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers).to(self.device, non_blocking=True)

    def _block_table(self, common: CommonAttentionMetadata, rows: Sequence[int]) -> torch.Tensor:
        return common.block_table_tensor.index_select(0, self._on_device(rows))

    def _planned_parts(self, common: CommonAttentionMetadata, selected: Sequence[SelectedQuery]) -> list[Part]:
        """Of a step with prompts: of its queries that read less, so many at a time as the kernel takes."""
        parts = []
        for number, first in enumerate(range(0, len(selected), MAX_BATCH)):
            some = selected[first : first + MAX_BATCH]
            padded = 1 << (len(some) - 1).bit_length()
            if number == len(self._tables_of_parts):
                self._tables_of_parts.append(StepTable(MAX_BATCH, self.device))
            table = self._tables_of_parts[number]
            renumbered = [SelectedQuery(place, one.row, one.visible) for place, one in enumerate(some)]
            table.fill([0] * padded, renumbered)
            padding = [0] * (padded - len(some))
            block_table = self._block_table(common, [*(one.row for one in some), *padding])
            attention = self._attention(padded, number + 1, block_table)
            attention.plan(table.intervals[:padded], table.counts[:padded], block_table)
            parts.append(Part(attention, self._on_device([one.place for one in some])))
        return parts

    def _attention(self, num_queries: int, number: int, block_table: torch.Tensor) -> PagedAttention:
        """The kernel for so many queries; made when they come for the first time, with graphs at their capture."""
        found = self._attentions.get((num_queries, number))
        if found is None:
            impl, cache = self._layers[0].impl, self._layers[0].kv_cache
            shape = AttentionShape(
                batch=num_queries,
                num_heads=impl.num_heads,
                num_kv_heads=impl.num_kv_heads,
                head_dim=impl.head_size,
                max_spans=MAX_SPANS,
                dtype=cache.dtype,
            )
            keys, _ = keys_and_values(cache, impl.head_size)
            found = PagedAttention(shape, PageLayout.of(keys), block_table.shape[1], device=self.device)
            self._attentions[num_queries, number] = found
        return found


def _lengths(common: CommonAttentionMetadata) -> list[int]:
    """Tokens of each row, those of this step included."""
    lengths = common.seq_lens_cpu_upper_bound  # exact: drafts are not supported
    return (common.seq_lens if lengths is None else lengths).tolist()


def keys_and_values(kv_cache: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of a layer's cache `[num_pages, num_kv_heads, page_size, 2 head_dim]`: `[..., head_dim]` each."""
    return kv_cache[..., :head_dim], kv_cache[..., head_dim:]


class SelfSelectedCUDAImpl(FlashAttentionImpl):
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
        attn_metadata: FlashAttentionMetadata | None,
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
        keys, values = keys_and_values(kv_cache, self.head_size)
        if attn_metadata.whole is not None:
            num = attn_metadata.whole.shape.batch
            attn_metadata.whole(query[:num], keys, values, self.scale, output[:num])
            return output
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output)
        for part in attn_metadata.parts:
            padded = part.attention.shape.batch
            some = query.new_zeros(padded, *query.shape[1:])
            some[: len(part.queries)] = query[part.queries]
            output[part.queries] = part.attention(some, keys, values, self.scale)[: len(part.queries)]
        return output
