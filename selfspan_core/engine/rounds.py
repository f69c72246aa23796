"""What a batch's step does around the model: take in the last ids, and keep those that were drawn.

`SingleRounds` feeds one id per row. `DraftRounds` feeds the last id and drafts behind it, and keeps those that were
drawn in their place. Everything lies in device memory; what the host hears of it lies in a ring in host memory.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from selfspan_core.engine.batch_parts import Parts
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.params import MAX_DRAFTS
from selfspan_core.spans.protocol import PromptLayout

NUM_SLOTS = 16
"""Steps whose ids the ring holds; so many may be on their way at most."""


class BatchState:
    """What changes from step to step in every kind of round.

    Args:
        batch: rows.
        capacity: positions of each row.
        device: of all tensors but the ring.
        ring_width: numbers that the ring holds of a row and step.

    Attributes:
        ids: int64 `[batch]`: the next id to take in, where a row has one. limits: int32 `[batch]`: positions it may
            take. scripts: int32 `[batch, capacity + 1]`: the id that it has to take at a position, or -1.
        settings: temperatures and top-ps, float32 `[batch]`, and seeds, int64 `[batch]`.
        ring: int64 `[NUM_SLOTS, batch, ring_width]` in host memory. step: int32 `[1]`: counts steps.
        firsts: int64 `[batch, 1, 1]` in host memory: rows' first ids.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device, ring_width: int) -> None:
        zeros = lambda *shape, dtype=torch.int32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
        temperatures, top_ps = (zeros(batch, dtype=torch.float32) for _ in range(2))
        self.settings = (temperatures, top_ps, zeros(batch, dtype=torch.int64))
        self.limits = zeros(batch)
        self.ids, self.step = zeros(batch, dtype=torch.int64), zeros(1)
        # The id behind a row's last place is drawn, too.
        self.scripts = torch.full((batch, capacity + 1), -1, dtype=torch.int32, device=device)
        # Of a row that begins.
        self.first_settings = tuple(torch.empty_like(setting[:1]) for setting in self.settings)
        self.first_position, self.first_step = zeros(1), zeros(1)
        self.first_id = zeros(1, dtype=torch.int64)
        is_pinned = device.type == "cuda"
        self.ring = torch.full((NUM_SLOTS, batch, ring_width), -1, dtype=torch.int64, pin_memory=is_pinned)
        self.firsts = torch.full((batch, 1, 1), -1, dtype=torch.int64, pin_memory=is_pinned)


class Rounds(Protocol):
    """Of one batch; a round has one of several sizes, queries per row."""

    def begin(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """A prompt is in the row's cache."""
        ...

    def take_first(self, row: int) -> None:
        """The row's first id stands in the state's `ids`."""
        ...

    def take_in(self, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids to feed, int64 `[batch * num_queries]`, and their positions, int32, -1 where there is none."""
        ...

    def drawn(self, num_queries: int) -> torch.Tensor:
        """Where the ids go that are drawn behind every query, int64 `[batch * num_queries]`."""
        ...

    def keep(self, num_queries: int) -> None:
        """Write down which of them are kept; rows at their end go idle."""
        ...

    def kept(self, slot: torch.Tensor) -> tuple[list[list[int]], list[int]]:
        """Of a slot of the ring: every row's new ids, and how many drafts it had."""
        ...

    def num_planned(self) -> torch.Tensor:
        """Tokens of all intervals that were planned last; a new tensor."""
        ...


class SingleRounds:
    """One id per row; see Rounds.

    Args:
        parts: of the batch.
        state: of the batch, with a ring one number wide.
    """

    def __init__(self, parts: Parts, state: BatchState) -> None:
        self._parts, self._state = parts, state
        self.positions, self.counts = (torch.zeros_like(state.limits) for _ in range(2))
        shape = (len(state.limits), parts.max_spans, 2)
        self.intervals = torch.zeros(shape, dtype=torch.int32, device=state.limits.device)
        self._ring = state.ring[:, :, 0]

    def begin(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """See Rounds."""
        if drafts is not None:
            raise ValueError("drafter: this batch was made without drafts")

    def take_first(self, row: int) -> None:
        """See Rounds."""

    def take_in(self, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See Rounds."""
        self._parts.push(self._state.ids, self.intervals, self.counts, self.positions)
        self._parts.plan(self.intervals, self.counts)
        return self._state.ids, self.positions

    def drawn(self, num_queries: int) -> torch.Tensor:
        """See Rounds."""
        return self._state.ids

    def keep(self, num_queries: int) -> None:
        """See Rounds."""
        state = self._state
        self._parts.advance(state.ids, state.scripts, state.limits, self._ring, state.step)

    def kept(self, slot: torch.Tensor) -> tuple[list[list[int]], list[int]]:
        """See Rounds."""
        ids = slot[:, 0].tolist()
        return [[token] if token >= 0 else [] for token in ids], [0] * len(ids)

    def num_planned(self) -> torch.Tensor:
        """See Rounds."""
        return _total(self.intervals, self.counts)


class DraftRounds:
    """Every row's last id and its drafts; see Rounds.

    Args:
        parts: of the batch.
        state: of the batch, with a ring that is wider by one than a row has queries.
    """

    def __init__(self, parts: Parts, state: BatchState) -> None:
        assert parts.buffers is not None
        self._parts, self._state, self._buffers = parts, state, parts.buffers
        pinned = state.ring.is_pinned()
        self._injected = torch.empty(len(state.limits), MAX_DRAFTS, dtype=torch.int32, pin_memory=pinned)

    def begin(self, row: int, ids: Sequence[int], layout: PromptLayout, drafts: DeviceDrafts | None) -> None:
        """See Rounds."""
        self._parts.begin_drafts(row, ids, layout, drafts)

    def take_first(self, row: int) -> None:
        """See Rounds."""
        self._parts.take_first(row, self._state.ids)

    def inject(self, row: int, drafts: Sequence[int]) -> None:
        """The drafts of a row in the next step, where it proposes none itself; no step may be on its way."""
        self._injected[row].fill_(-1)
        self._injected[row, : len(drafts)] = torch.tensor(list(drafts), dtype=torch.int32)
        self._buffers.injected[row].copy_(self._injected[row], non_blocking=True)

    def take_in(self, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See Rounds."""
        self._parts.draft(num_queries, self._state.limits)
        return self._buffers.ids(num_queries), self._buffers.positions(num_queries)

    def drawn(self, num_queries: int) -> torch.Tensor:
        """See Rounds."""
        return self._buffers.drawn(num_queries)

    def keep(self, num_queries: int) -> None:
        """See Rounds."""
        state = self._state
        self._parts.accept(num_queries, state.scripts, state.limits, state.ring, state.step)

    def kept(self, slot: torch.Tensor) -> tuple[list[list[int]], list[int]]:
        """See Rounds."""
        rows = slot.tolist()
        return [[token for token in ids if token >= 0] for *ids, _ in rows], [num for *_, num in rows]

    def num_planned(self) -> torch.Tensor:
        """See Rounds."""
        return _total(self._buffers.intervals, self._buffers.counts)


def _total(intervals: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Length of the first `counts` intervals of every row."""
    lengths = intervals[:, :, 1] - intervals[:, :, 0]
    return lengths.masked_fill(torch.arange(lengths.shape[1], device=counts.device) >= counts[:, None], 0).sum()
