"""Greedy decoding of many prompts at once, for evaluation: every row under its own tracker's intervals.

The visibility is the protocol's, applied as a mask over one padded cache: right for measuring answers, not a measure
of speed (for that, see the engine, which reads only what is visible).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from selfspan_core.engine.rules import Rules
from selfspan_core.engine.sampling import narrow
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import State, Tracker

COMPACT_BELOW = 0.7
# Fused attention wants rows of its mask aligned.
MASK_ALIGNMENT = 64


@dataclass
class Decoded:
    """What one row wrote.

    Attributes:
        ids: generated ids, `<eos>` included if it came.
        attended_tokens, dense_tokens: keys read by all decode queries, and what dense attention reads.
        num_malformed: steps that broke the grammar.
    """

    ids: list[int] = field(default_factory=list)
    attended_tokens: int = 0
    dense_tokens: int = 0
    num_malformed: int = 0


class BatchReader:
    """Keys and values of a batch `[B, num_kv_heads, capacity, head_dim]` per layer, and who sees what of them.

    The capacity grows by doubling: most rows are done long before the longest.
    """

    def __init__(self, model: SpanModel, batch: int, capacity: int) -> None:
        shape = (batch, model.num_kv_heads, capacity, model.head_dim)
        make = lambda: torch.zeros(shape, dtype=model.dtype, device=model.device)  # noqa: E731
        self._keys = [make() for _ in range(model.num_layers)]
        self._values = [make() for _ in range(model.num_layers)]
        self.capacity = capacity
        self._positions: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._limit = 0

    def plan_prompt(self) -> None:
        """The next forward holds right-padded prompts from position 0."""
        self._positions = None

    def plan_tokens(self, positions: torch.Tensor, bounds: torch.Tensor, limit: int) -> None:
        """The next forward holds one token per row.

        Args:
            positions: int64 [B], where each row's token goes.
            bounds: int32 [B, K, 2], the intervals that it sees; unused ones empty.
            limit: no interval ends beyond it.
        """
        if limit > self.capacity:
            self._grow(max(limit, 2 * self.capacity))
        self._positions, self._limit = positions, limit
        key = torch.arange(limit, device=positions.device)
        visible = (bounds[..., :1] <= key) & (key < bounds[..., 1:])
        self._mask = visible.any(dim=1)[:, None, None, :]

    def _grow(self, capacity: int) -> None:
        more = (0, 0, 0, capacity - self.capacity)
        for tensors in (self._keys, self._values):
            for layer, tensor in enumerate(tensors):
                tensors[layer] = F.pad(tensor, more)
        self.capacity = capacity

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these (int64)."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store and attend; query `[B, num_heads, T, head_dim]`, key and value with num_kv_heads."""
        keys, values = self._keys[layer], self._values[layer]
        grouped = query.shape[1] != key.shape[1]
        if self._positions is None:
            keys[:, :, : key.shape[2]] = key
            values[:, :, : value.shape[2]] = value
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        rows = torch.arange(len(self._positions), device=query.device)
        keys[rows, :, self._positions] = key[:, :, 0]
        values[rows, :, self._positions] = value[:, :, 0]
        keys, values = keys[:, :, : self._limit], values[:, :, : self._limit]
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._mask, scale=scale, enable_gqa=grouped
        )


@torch.inference_mode()
def decode_greedily(
    model: SpanModel,
    markers: Markers,
    prompts: Sequence[Rendered],
    sparse: bool,
    annotated: bool,
    max_new_tokens: int,
    rules: Sequence[Rules] | None = None,
) -> list[Decoded]:
    """Decode all prompts to `<eos>` or a token limit.

    Args:
        sparse: apply the span mask; False: every token sees everything, the tracker only reports.
        annotated: whether the model writes steps (see `Tracker`).
        max_new_tokens: per row, cut to what the context holds.
        rules: one per prompt, where not everything may be written: the likeliest id that they allow is.
    """
    rows = [_Row(prompt, markers, sparse, annotated) for prompt in prompts]
    for row, rule in zip(rows, rules or (), strict=rules is not None):
        row.rules = rule
    longest = max(row.length for row in rows)
    capacity = min(model.max_context, longest + max_new_tokens)
    reader = BatchReader(model, len(rows), aligned(longest + MASK_ALIGNMENT))
    active = list(rows)
    next_ids = _choose(_prefill(model, reader, rows, longest), active)
    while True:
        for row, token in zip(active, next_ids.tolist(), strict=True):
            row.push(token, markers.eos, capacity, max_new_tokens)
        num_open = sum(not row.done for row in active)
        if num_open == 0:
            return [row.decoded for row in rows]
        if num_open < COMPACT_BELOW * len(active):
            keep = [index for index, row in enumerate(active) if not row.done]
            reader.keep(torch.tensor(keep, device=model.device))
            active = [active[index] for index in keep]
        next_ids = _choose(_step(model, reader, active, sparse), active)


def _choose(logits: torch.Tensor, active: list["_Row"]) -> torch.Tensor:
    """The likeliest id of each row that its rules allow, int64 [B], for logits [B, vocab]."""
    for place, row in enumerate(active):
        if row.rules is not None and not row.done:
            logits[place] = narrow(logits[place], row.rules.limits())
    return logits.argmax(-1)


def replay(example: Rendered, markers: Markers, sparse: bool, annotated: bool) -> Decoded:
    """What `decode_greedily` returns for a row that writes exactly the example's steps."""
    row = _Row(example, markers, sparse, annotated)
    written = example.ids[example.prompt.num_tokens :]
    for token in written:
        row.push(token, markers.eos, len(example.ids) + 1, len(written) + 1)
    return row.decoded


def aligned(length: int) -> int:
    """The length rounded up to what fused attention likes its masks to be."""
    return -(-length // MASK_ALIGNMENT) * MASK_ALIGNMENT


class _Row:
    def __init__(self, prompt: Rendered, markers: Markers, sparse: bool, annotated: bool) -> None:
        self._sparse = sparse
        self.prompt_ids = prompt.ids[: prompt.prompt.num_tokens]
        self.length = len(self.prompt_ids)
        self.tracker = Tracker(markers, prompt.prompt, annotated)
        self.decoded = Decoded()
        self.state: State | None = None
        self.last_id = 0
        self.done = False
        self.rules: Rules | None = None

    def push(self, token: int, eos: int, capacity: int, max_new_tokens: int) -> None:
        """Take the row's next id; a row that is done ignores it."""
        if self.done:
            return
        decoded = self.decoded
        decoded.ids.append(token)
        self.state, self.last_id = self.tracker.push(token), token
        if self.rules is not None:
            self.rules.push(token)
        decoded.num_malformed = self.tracker.num_malformed
        self.done = token == eos or len(decoded.ids) >= max_new_tokens or self.state.position + 1 >= capacity
        if not self.done:
            context = self.state.position + 1
            decoded.attended_tokens += self.state.num_visible if self._sparse else context
            decoded.dense_tokens += context


def _prefill(model: SpanModel, reader: BatchReader, rows: list[_Row], longest: int) -> torch.Tensor:
    padded = [row.prompt_ids + [0] * (longest - row.length) for row in rows]
    ids = torch.tensor(padded, device=model.device)
    positions = torch.arange(longest, device=model.device).expand(len(rows), -1)
    last = torch.tensor([row.length - 1 for row in rows], device=model.device)
    reader.plan_prompt()
    return model.forward_rows(ids, positions, last, reader)


def _step(model: SpanModel, reader: BatchReader, active: list[_Row], sparse: bool) -> torch.Tensor:
    visible = [row.state.visible if sparse else ((0, row.state.position + 1),) for row in active]
    widest = max(len(intervals) for intervals in visible)
    bounds = [[*intervals, *[(0, 0)] * (widest - len(intervals))] for intervals in visible]
    place = [(row.last_id, row.state.position) for row in active]
    ids, positions = torch.tensor(place, device=model.device).unbind(1)
    # Finished rows not yet dropped go through again with their last token; nobody reads what comes of it.
    limit = aligned(max(row.state.position for row in active) + 1)
    reader.plan_tokens(positions, torch.tensor(bounds, dtype=torch.int32, device=model.device), limit)
    last = torch.zeros(len(active), dtype=torch.long, device=model.device)
    return model.forward_rows(ids[:, None], positions[:, None], last, reader)
