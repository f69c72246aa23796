"""What a batch's decode step is made of beside the model: tracker, attention, small operations, sampling.

Two sets that do the same: `CudaParts`, the kernels of `cuda_kernels`, which wait for nothing and can be captured in a
CUDA graph; and `TorchParts`, the tracker in Python and PyTorch's operations, which run anywhere and say what the
former have to compute.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.checks import AttentionShape, queries_per_row
from cuda_kernels.device import CudaUnavailable
from cuda_kernels.layers import DecodeOps
from cuda_kernels.tracker import Grammar, SpanTracker
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.engine import sampling
from selfspan_core.engine.decoder import StepOps, TorchOps
from selfspan_core.errors import ImplUnavailable
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS, Tracker

MAX_SPANS = MAX_READS + 2
"""Most intervals that a query sees: scaffold, what is read, and its own step."""


class Parts(Protocol):
    """Of one batch of rows; shapes as in `cuda_kernels.tracker`, `attention` and `layers`."""

    ops: StepOps

    def begin(self, row: int, layout: PromptLayout, annotated: bool) -> None:
        """A sequence begins in a row; its prompt is in the cache."""

    def clear(self, row: int) -> None:
        """A row has no sequence any more: it sees nothing."""

    def push(self, ids: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor, positions: torch.Tensor) -> None:
        """Every row's next id; what its query sees, and where it stands, are written."""

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """Take in what every row sees, for all layers."""

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """Attention `[B, H, D]` over what was planned."""

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_ps: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """The ids behind the tokens are written; see `DecodeOps.sample`."""

    def advance(
        self,
        ids: torch.Tensor,
        scripts: torch.Tensor,
        limits: torch.Tensor,
        ring: torch.Tensor,
        step: torch.Tensor,
        row: int | None = None,
    ) -> None:
        """What was drawn is written down, and rows at their end go idle; see `SpanTracker.advance`."""


def grammar_of(markers: Markers, vocab_size: int) -> Grammar:
    """The protocol's numbers and a tokenizer's ids, as the tracker on the device takes them."""
    return Grammar(
        ref=markers.ref,
        go=markers.go,
        res=markers.res,
        end=markers.end,
        eos=markers.eos,
        anchors=markers.anchors,
        vocab_size=vocab_size,
        max_reads=MAX_READS,
        max_body_tokens=MAX_BODY_TOKENS,
    )


class CudaParts:
    """The kernels.

    Args:
        weights: the model's, of a 16-bit type, on a CUDA device.
        markers: the tokenizer's marker ids.
        cache: of the rows.
        is_dense: every query reads everything, whatever is declared.

    Raises:
        ImplUnavailable: the kernels cannot serve this model or device; the message says why.
    """

    def __init__(self, weights: DecodeWeights, markers: Markers, cache: KVCache, is_dense: bool) -> None:
        model, batch = weights.model, cache.keys[0].shape[0]
        try:
            self.ops = DecodeOps(model.dtype, model.device, batch, weights.shapes)
            self._tracker = SpanTracker(grammar_of(markers, model.vocab_size), batch, model.device)
            shape = AttentionShape(
                batch=batch,
                num_heads=weights.num_heads,
                num_kv_heads=weights.num_kv_heads,
                head_dim=model.head_dim,
                max_spans=MAX_SPANS,
                dtype=model.dtype,
            )
            carveout_percent = self.ops.carveout_percent
            self._attention = SpanAttention(shape, device=model.device, carveout_percent=carveout_percent)
        except (ValueError, CudaUnavailable) as error:
            raise ImplUnavailable(f"decoding in a captured graph: {error}") from error
        self._cache, self._is_dense = cache, is_dense
        self._reports = torch.zeros(batch, dtype=torch.int32, device=model.device)
        self._out = torch.zeros(batch, weights.num_heads, model.head_dim, dtype=model.dtype, device=model.device)

    def begin(self, row: int, layout: PromptLayout, annotated: bool) -> None:
        """See Parts."""
        start = self._tracker.grammar.start(layout.num_tokens, layout.scaffold_end, layout.segments, annotated)
        self._tracker.set(row, *start)

    def clear(self, row: int) -> None:
        """See Parts."""
        self._tracker.clear([row])

    def push(self, ids: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor, positions: torch.Tensor) -> None:
        """See Parts."""
        self._tracker.push(ids, intervals, counts, positions, self._reports, self._is_dense)

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """See Parts."""
        self._attention.plan(intervals, counts, self._cache.capacity)

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See Parts."""
        return self._attention(queries, self._cache.keys[layer], self._cache.values[layer], out=self._out)

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


class TorchParts:
    """The tracker in Python, PyTorch's operations. Arguments: see CudaParts; any device and type."""

    def __init__(self, weights: DecodeWeights, markers: Markers, cache: KVCache, is_dense: bool) -> None:
        self.ops = TorchOps()
        self._markers, self._cache, self._is_dense = markers, cache, is_dense
        self._scale = weights.model.head_dim**-0.5
        self._trackers: dict[int, Tracker] = {}
        self._positions: dict[int, int] = {}
        self._visible: list[list[tuple[int, int]]] = []

    def begin(self, row: int, layout: PromptLayout, annotated: bool) -> None:
        """See Parts."""
        self._trackers[row] = Tracker(self._markers, layout, annotated)
        self._positions[row] = layout.num_tokens - 1

    def clear(self, row: int) -> None:
        """See Parts."""
        self._trackers.pop(row, None)

    def push(self, ids: torch.Tensor, intervals: torch.Tensor, counts: torch.Tensor, positions: torch.Tensor) -> None:
        """See Parts."""
        counts.zero_()
        positions.fill_(-1)
        for row, tracker in self._trackers.items():
            state = tracker.push(int(ids[row]))
            visible = ((0, state.position + 1),) if self._is_dense else state.visible
            intervals[row, : len(visible)] = torch.tensor(visible, dtype=torch.int32)
            counts[row], positions[row] = len(visible), state.position
            self._positions[row] = state.position

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor) -> None:
        """See Parts."""
        self._visible = [
            [(start, end) for start, end in spans[:count]]
            for spans, count in zip(intervals.tolist(), counts.tolist(), strict=True)
        ]

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See Parts."""
        out = torch.zeros_like(queries)
        for row, visible in enumerate(self._visible):
            if visible:
                end = visible[-1][1]
                keys, values = (x[layer][row : row + 1, :, :end] for x in (self._cache.keys, self._cache.values))
                mask = visibility_mask([visible], end)
                out[row] = masked_attention(queries[row, None, :, None], keys, values, mask, self._scale)[0, :, 0]
        return out

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_ps: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """See Parts. Other numbers are drawn than by the kernel, but they, too, depend on seed and position alone."""
        num_queries = queries_per_row("logits", len(logits), len(temperatures))
        settings = list(zip(temperatures.tolist(), top_ps.tolist(), seeds.tolist(), strict=True))
        for token, position in enumerate(positions.tolist()):
            if position >= 0:
                temperature, top_p, seed = settings[token // num_queries]
                ids[token] = sampling.draw(logits[token], temperature, top_p, seed, position)

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
        rows: Sequence[int] = range(len(ids)) if row is None else [row]
        slot = ring[int(step) % len(ring)]
        step += 1
        for column, number in enumerate(rows):
            if number not in self._trackers:
                slot[column] = -1
                continue
            following = self._positions[number] + 1
            if following < scripts.shape[1] and scripts[number, following] >= 0:
                ids[number] = scripts[number, following]
            slot[column] = ids[number]
            if ids[number] == self._markers.eos or following >= limits[number]:
                self.clear(number)
