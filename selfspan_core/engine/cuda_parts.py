"""A batch's decode step by the kernels of `cuda_kernels`; see `batch_parts`."""

from collections.abc import Sequence

import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape
from cuda_kernels.device import CudaUnavailable
from cuda_kernels.drafts import MAX_QUERIES, OWN_DRAFTS, TABLE_SPANS, SpanDrafter, order_at_start
from cuda_kernels.layers import DecodeOps
from cuda_kernels.rules import RuleBuffers, RuleKeeper
from cuda_kernels.tracker import SpanTracker
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.engine.batch_parts import fixed_words, grammar_of
from selfspan_core.engine.batch_shape import RoundsKind
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import ImplUnavailable
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers, PromptLayout


class CudaParts:
    """The kernels.

    Args:
        weights: the model's, of a 16-bit type, on a CUDA device.
        markers: the tokenizer's marker ids.
        cache: of the rows.
        is_dense: every query reads everything, whatever is declared.
        sizes: queries of a row in a step, of every kind of step.
        rounds: "single": rows take in one id per step; "index": their headers may see an index; "drafts": they may have
            drafts; "rules": rules, too.

    Raises:
        ImplUnavailable: the kernels cannot serve this model or device; the message says why.
    """

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        cache: KVCache,
        is_dense: bool,
        sizes: Sequence[int] = (1,),
        rounds: RoundsKind = "single",
    ) -> None:
        model, batch = weights.model, cache.keys[0].shape[0]
        is_drafted, self._drafter, self._keeper = rounds in ("drafts", "rules"), None, None
        try:
            self.ops = DecodeOps(model.dtype, model.device, [batch * size for size in sizes], weights.shapes)
            grammar = grammar_of(markers, model.vocab_size)
            self._tracker = SpanTracker(grammar, batch, model.device, rounds == "index")
            self.max_spans = grammar.max_spans(rounds == "index")
            text_length = cache.capacity + 1
            rules = RuleBuffers(grammar, batch, text_length, MAX_QUERIES, model.device) if rounds == "rules" else None
            if is_drafted:
                self._drafter = SpanDrafter(self._tracker, text_length, rules)
            if rules is not None:
                self._keeper = RuleKeeper(rules, self._tracker.kinds, model.dtype)
            self._attentions = {
                size: self._attention_of(weights, batch, size, TABLE_SPANS if is_drafted else self.max_spans)
                for size in sizes
            }
        except (ValueError, CudaUnavailable) as error:
            raise ImplUnavailable(f"decoding in a captured graph: {error}") from error
        self.buffers = None if self._drafter is None else self._drafter.buffers
        self._batch, self._cache, self._is_dense = batch, cache, is_dense
        self._planned = 1
        self._reports = torch.zeros(batch, dtype=torch.int32, device=model.device)
        out = (max(sizes) * batch, weights.num_heads, model.head_dim)
        self._out = torch.zeros(out, dtype=model.dtype, device=model.device)

    def _attention_of(self, weights: DecodeWeights, batch: int, num_queries: int, max_spans: int) -> SpanAttention:
        model = weights.model
        shape = AttentionShape(
            batch=batch,
            num_heads=weights.num_heads,
            num_kv_heads=weights.num_kv_heads,
            head_dim=model.head_dim,
            max_spans=max_spans,
            dtype=model.dtype,
            num_queries=num_queries,
        )
        return SpanAttention(shape, device=model.device, carveout_percent=self.ops.carveout_percent)

    def begin(self, row: int, layout: PromptLayout, annotated: bool) -> None:
        """See Parts."""
        grammar, index = self._tracker.grammar, None
        track, segments = grammar.start(layout.num_tokens, layout.scaffold_end, layout.segments, annotated)
        if layout.head_tokens is not None and annotated and not self._is_dense:
            index = grammar.see_index(track, layout.index, layout.head_tokens)
        self._tracker.set(row, track, segments, index)

    def clear(self, row: int) -> None:
        """See Parts."""
        self._tracker.clear([row])

    def push(self, ids: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor, positions: torch.Tensor) -> None:
        """See Parts."""
        self._tracker.push(ids, intervals, counts, positions, self._reports, self._is_dense)

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """See Parts."""
        self._planned = 1
        self._attentions[1].plan(intervals, counts, self._cache.capacity)

    def begin_drafts(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """See Parts."""
        buffers = self._required_drafter.buffers
        buffers.begin(row, ids)
        words = fixed_words(DraftHints() if drafts is None else drafts.hints)
        order = order_at_start(self._tracker.grammar, layout.segments, words)
        buffers.orders[row].copy_(order, non_blocking=True)
        buffers.injected[row].fill_(-1 if drafts is None else OWN_DRAFTS)

    def take_first(self, row: int, ids: torch.Tensor) -> None:
        """See Parts."""
        self._required_drafter.buffers.take_first(row, ids)

    def draft(self, num_queries: int, limits: torch.Tensor) -> None:
        """See Parts."""
        drafter = self._required_drafter
        drafter.draft(num_queries, limits, self._is_dense)
        buffers, self._planned = drafter.buffers, num_queries
        ahead = () if num_queries == 1 else (buffers.masks, buffers.first_positions)
        self._attentions[num_queries].plan(buffers.intervals, buffers.counts, self._cache.capacity, *ahead)

    def begin_rules(self, row: int, rules: DeviceRules | None) -> None:
        """See Parts."""
        self._required_keeper.buffers.begin(row, rules)

    def narrow(self, num_queries: int, logits: torch.Tensor) -> None:
        """See Parts."""
        positions = self._required_drafter.buffers.positions(num_queries)
        self._required_keeper.narrow(num_queries, positions, logits)

    @property
    def _required_keeper(self) -> RuleKeeper:
        if self._keeper is None:
            raise ValueError("rules: this batch was made without rules that it keeps by itself")
        return self._keeper

    def accept(
        self, num_queries: int, scripts: torch.Tensor, limits: torch.Tensor, ring: torch.Tensor, step: torch.Tensor
    ) -> None:
        """See Parts."""
        self._required_drafter.accept(num_queries, scripts, limits, ring, step)

    @property
    def _required_drafter(self) -> SpanDrafter:
        if self._drafter is None:
            raise ValueError("drafts: this batch was made without")
        return self._drafter

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See Parts."""
        keys, values, out = self._cache.keys[layer], self._cache.values[layer], self._out[: len(queries)]
        if self._planned > 1:
            queries, by_row = (x.view(self._batch, self._planned, *x.shape[1:]) for x in (queries, out))
            self._attentions[self._planned](queries, keys, values, out=by_row)
            return out
        return self._attentions[1](queries, keys, values, out=out)

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_ps: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """See Parts."""
        self.ops.sample(logits, temperatures, top_ps, seeds, positions, ids)

    def advance(
        self,
        ids: torch.Tensor,
        scripts: torch.Tensor,
        limits: torch.Tensor,
        ring: torch.Tensor,
        step: torch.Tensor,
        row: int | None = None,
    ) -> None:
        """See Parts."""
        self._tracker.advance(ids, scripts, limits, ring, step, row=row)
