"""A batch's decode step by the tracker in Python and PyTorch's operations, on any device; see `batch_parts`."""

import itertools
from collections.abc import Sequence

import torch

from cuda_kernels.checks import queries_per_row
from cuda_kernels.drafts import MAX_BODIES, OWN_DRAFTS, DraftBuffers, order_at_start
from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.engine import sampling
from selfspan_core.engine.batch_parts import fixed_words, grammar_of
from selfspan_core.engine.batch_shape import RoundsKind
from selfspan_core.engine.decoder import TorchOps
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.drafts import Drafter, DraftState, verifiable
from selfspan_core.engine.rules import Limits
from selfspan_core.engine.tabled_rules import TabledRules
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.intervals import Interval, merge
from selfspan_core.spans.protocol import Markers, PromptLayout
from selfspan_core.spans.tracker import State, Tracker


class TorchParts:
    """The tracker in Python, PyTorch's operations. Arguments: see `cuda_parts.CudaParts`; any device and type."""

    def __init__(
        self,
        weights: DecodeWeights,
        markers: Markers,
        cache: KVCache,
        is_dense: bool,
        sizes: Sequence[int] = (1,),
        rounds: RoundsKind = "single",
    ) -> None:
        self.ops = TorchOps()
        model, batch = weights.model, cache.keys[0].shape[0]
        self._grammar, is_drafted = grammar_of(markers, model.vocab_size), rounds in ("drafts", "rules")
        self.max_spans = self._grammar.max_spans(rounds == "index")
        self.buffers = DraftBuffers(self._grammar, batch, cache.capacity + 1, model.device) if is_drafted else None
        self._rules: dict[int, TabledRules] = {}
        self._limits: dict[int, list[Limits]] = {}
        self._drafted: dict[int, _DraftedRow] = {}
        self._markers, self._cache, self._is_dense = markers, cache, is_dense
        self._scale = weights.model.head_dim**-0.5
        self._trackers: dict[int, Tracker] = {}
        self._positions: dict[int, int] = {}
        self._visible: list[list[Sequence[Interval]]] = []

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
            [[(start, end) for start, end in spans[:count]]] if count else []
            for spans, count in zip(intervals.tolist(), counts.tolist(), strict=True)
        ]

    def attend(self, layer: int, queries: torch.Tensor) -> torch.Tensor:
        """See Parts."""
        out = torch.zeros_like(queries)
        size = len(queries) // len(self._visible)
        for row, visible in enumerate(self._visible):
            if visible:
                end = max(spans[-1][1] for spans in visible)
                keys, values = (x[layer][row : row + 1, :, :end] for x in (self._cache.keys, self._cache.values))
                mask, mine = visibility_mask(visible, end), slice(size * row, size * row + len(visible))
                attended = masked_attention(queries[mine].transpose(0, 1)[None], keys, values, mask, self._scale)
                out[mine] = attended[0].transpose(0, 1)
        return out

    def begin_drafts(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """See Parts."""
        buffers = self._required_buffers
        buffers.begin(row, ids)
        if drafts is not None:
            order_at_start(self._grammar, layout.segments, fixed_words(drafts.hints))  # what the kernels would refuse
        buffers.injected[row].fill_(-1 if drafts is None else OWN_DRAFTS)
        tracker = self._trackers[row]
        drafter = None if drafts is None else drafts.drafter(self._markers, tracker.annotated)
        self._drafted[row] = _DraftedRow(list(ids), tracker, drafter)

    def take_first(self, row: int, ids: torch.Tensor) -> None:
        """See Parts."""
        self._required_buffers.take_first(row, ids)

    @property
    def _required_buffers(self) -> DraftBuffers:
        if self.buffers is None:
            raise ValueError("drafts: this batch was made without")
        return self.buffers

    def draft(self, num_queries: int, limits: torch.Tensor) -> None:
        """See Parts."""
        buffers = self._required_buffers
        ids, positions = (x.view(-1, num_queries) for x in (buffers.ids(num_queries), buffers.positions(num_queries)))
        self._visible = [[] for _ in range(buffers.batch)]
        for tensor, nothing in ((ids, 0), (positions, -1), (buffers.num_drafts, 0), (buffers.first_positions, 0)):
            tensor.fill_(nothing)
        for row in self._trackers:
            drafted, kept = self._drafted[row], buffers.pending[row, : int(buffers.num_pending[row])].tolist()
            drafted.take_in(kept)
            first = len(drafted.ids) - 1
            most = min(num_queries - 1, int(limits[row]) - first - 1)
            states = drafted.propose(most, buffers.injected[row].tolist(), self._grammar.vocab_size, self._is_dense)
            states = states[: self._keep_rules(row, kept, drafted)]
            ids[row, : len(states)] = torch.tensor([drafted.ids[-1], *drafted.drafts])
            positions[row, : len(states)] = torch.arange(first, first + len(states), dtype=torch.int32)
            buffers.first_positions[row], buffers.num_drafts[row] = first, len(drafted.drafts)
            self._positions[row] = first
            self._visible[row] = [((0, s.position + 1),) if self._is_dense else s.visible for s in states]
        self._write_union(buffers)

    def _keep_rules(self, row: int, kept: Sequence[int], drafted: "_DraftedRow") -> int:
        """The row's rules take in what was kept, and cut drafts; how many queries are left."""
        rules = self._rules.get(row)
        if rules is None:
            return len(drafted.drafts) + 1
        for token in kept:
            rules.push(token)
        limits, ahead = [rules.limits()], rules.fork()
        for token in drafted.drafts:
            if not limits[-1].allow(token):
                break
            ahead.push(token)
            limits.append(ahead.limits())
        drafted.drafts = drafted.drafts[: len(limits) - 1]
        self._limits[row] = limits
        return len(limits)

    def begin_rules(self, row: int, rules: DeviceRules | None) -> None:
        """See Parts."""
        self._rules.pop(row, None)
        if rules is not None:
            self._rules[row] = TabledRules(rules, self._markers)

    def narrow(self, num_queries: int, logits: torch.Tensor) -> None:
        """See Parts."""
        for row in self._trackers.keys() & self._rules.keys():
            for query, limits in enumerate(self._limits[row]):
                token = num_queries * row + query
                logits[token] = sampling.narrow(logits[token], limits)

    def _write_union(self, buffers: DraftBuffers) -> None:
        """What any query sees, for whoever counts it; masks are the kernels' alone."""
        for row, visible in enumerate(self._visible):
            union = merge([interval for one in visible for interval in one])
            buffers.counts[row] = len(union)
            buffers.intervals[row, : len(union)] = torch.tensor(union, dtype=torch.int32).view(-1, 2)

    def accept(
        self, num_queries: int, scripts: torch.Tensor, limits: torch.Tensor, ring: torch.Tensor, step: torch.Tensor
    ) -> None:
        """See Parts."""
        buffers = self._required_buffers
        drawn = buffers.drawn(num_queries).view(-1, num_queries).tolist()
        slot = ring[int(step) % len(ring)]
        step += 1
        slot.fill_(-1)
        slot[:, -1] = 0
        for row in list(self._trackers):
            drafts, position, kept = self._drafted[row].drafts, self._positions[row], 0
            slot[row, -1] = len(drafts)
            for token in drawn[row]:
                following = position + 1 + kept
                if following < scripts.shape[1] and scripts[row, following] >= 0:
                    token = int(scripts[row, following])
                slot[row, kept] = buffers.pending[row, kept] = token
                kept += 1
                is_over = token == self._markers.eos or following >= limits[row]
                if is_over:
                    self.clear(row)
                if is_over or kept > len(drafts) or drafts[kept - 1] != token:
                    break
            buffers.num_pending[row] = kept

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


class _DraftedRow:
    """A row that is drafted: its text, and what it proposes."""

    def __init__(self, ids: list[int], tracker: Tracker, drafter: Drafter | None) -> None:
        self.ids, self.drafts = ids, list[int]()
        self._num_prompt, self._tracker, self._drafter = len(ids), tracker, drafter
        self._state: State | None = None

    def take_in(self, tokens: Sequence[int]) -> None:
        """What the last round kept."""
        for token in tokens:
            self._state = self._tracker.push(token)
            self.ids.append(token)

    def propose(self, most: int, injected: Sequence[int], vocab_size: int, is_dense: bool) -> list[State]:
        """Set `drafts`; the tracker's word on the last id and on them."""
        assert self._state is not None
        drafts: Sequence[int] = ()
        if most > 0 and injected[0] != OWN_DRAFTS:
            drafts = [token for token in itertools.takewhile(lambda token: token >= 0, injected)][:most]
        elif most > 0 and self._drafter is not None:
            state = DraftState(self.ids, self._num_prompt, self._tracker, self._state)
            drafts = self._drafter.propose(state, most)[:most]
        bodies = None if is_dense else MAX_BODIES
        drafts, states = verifiable(drafts, self._tracker, self._state, vocab_size, bodies)
        self.drafts = list(drafts)
        return [self._state, *states]
