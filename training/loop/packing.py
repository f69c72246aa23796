"""Examples into fixed-length rows: ids, targets, and the intervals that every query sees.

A row holds several examples; no query sees another example, because its intervals end before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfspan_core.spans.intervals import Interval
from selfspan_core.spans.render import Rendered, VisibleRun

IGNORE = -100
NUM_OPEN_ROWS = 16
MAX_ROW_TOKENS = 32_640
"""The most that int16 bounds can hold, in whole blocks of 128."""


@dataclass(frozen=True)
class Sample:
    """One example, ready to pack.

    Attributes:
        ids: token ids, uint16 or wider, shape [n].
        loss_mask: shape [n], nonzero where the token is a prediction target.
        runs: visibility (`render.VisibleRun`), relative to the example's start.
        index: what headers see of the example, where they see an index.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    runs: Sequence[VisibleRun]
    index: Sequence[Interval] = ()


def sample_of(rendered: Rendered) -> Sample:
    """A rendered example as a sample."""
    ids, loss_mask = np.asarray(rendered.ids, np.int32), np.asarray(rendered.loss_mask, np.int8)
    return Sample(ids, loss_mask, rendered.runs, rendered.index)


def plain_sample(ids: np.ndarray, loss_mask: np.ndarray | None = None) -> Sample:
    """Text in which every token sees all before it; without a mask every token but the first is a target."""
    mask = np.ones(len(ids), np.int8) if loss_mask is None else np.asarray(loss_mask, np.int8)
    return Sample(np.asarray(ids, np.int32), mask, (VisibleRun(0, (), 0),))


def without_mask(sample: Sample) -> Sample:
    """The same example as dense attention sees it: every token all before it."""
    return replace(sample, runs=(VisibleRun(0, (), 0),), index=())


class Row:
    """A training row being filled.

    Attributes:
        ids: int32 [length].
        labels: int32 [length], the next token where it is a target, else IGNORE.
        bounds: int16 [length, max_intervals, 2], half-open intervals in row positions, unused ones (0, 0). One that
            begins at -1 - n holds of `[n, end)` what is indexed.
        indexed: uint8 [length], nonzero where a token belongs to its example's index.
        used: positions filled so far.
    """

    def __init__(self, length: int, max_intervals: int, pad_id: int) -> None:
        if length > np.iinfo(np.int16).max:
            raise ValueError(f"rows of {length} tokens do not fit int16 bounds")
        self.ids = np.full(length, pad_id, np.int32)
        self.labels = np.full(length, IGNORE, np.int32)
        self.bounds = np.zeros((length, max_intervals, 2), np.int16)
        self.indexed = np.zeros(length, np.uint8)
        # Padding sees itself: a query that sees nothing has no softmax.
        self.bounds[:, 0, 0] = np.arange(length)
        self.bounds[:, 0, 1] = np.arange(1, length + 1)
        self.used = 0

    @property
    def room(self) -> int:
        """Positions still free."""
        return len(self.ids) - self.used

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            ValueError: it does not fit, or one of its queries sees more intervals than a row records.
        """
        n, at = len(sample.ids), self.used
        if n > self.room:
            raise ValueError(f"a sample of {n} tokens does not fit into {self.room}")
        self.ids[at : at + n] = sample.ids
        targets = np.where(sample.loss_mask[1:] != 0, sample.ids[1:], IGNORE)
        self.labels[at : at + n - 1] = targets
        for index, run in enumerate(sample.runs):
            stop = sample.runs[index + 1].first if index + 1 < len(sample.runs) else n
            self._fill_bounds(run, at, at + run.first, at + stop)
        for start, end in sample.index:
            self.indexed[at + start : at + end] = 1
        self.used += n

    def _fill_bounds(self, run: VisibleRun, offset: int, first: int, stop: int) -> None:
        # Any number of intervals, all of them in the example's index: which tokens that are is kept once per row.
        context = ((-1 - 2 * offset, run.own_start),) if run.reads_index else run.context
        if len(context) >= self.bounds.shape[1]:
            raise ValueError(f"a query sees {len(run.context) + 1} intervals, a row records {self.bounds.shape[1]}")
        rows = self.bounds[first:stop]
        rows[:] = 0
        rows[:, 0, 0] = offset + run.own_start
        rows[:, 0, 1] = np.arange(first + 1, stop + 1)
        for slot, (start, end) in enumerate(context, start=1):
            rows[:, slot] = (offset + start, offset + end)


def pack(samples: Iterable[Sample], length: int, max_intervals: int, pad_id: int) -> Iterator[Row]:
    """Pack samples into rows, first fit among a few open rows; the fullest is emitted when none has room.

    Samples longer than a row are skipped: a worked example cut in the middle would teach nothing good.
    """
    open_rows: list[Row] = []
    for sample in samples:
        n = len(sample.ids)
        if n > length or n < 2:
            continue
        row = next((row for row in open_rows if row.room >= n), None)
        if row is None:
            if len(open_rows) == NUM_OPEN_ROWS:
                fullest = min(range(NUM_OPEN_ROWS), key=lambda i: open_rows[i].room)
                yield open_rows.pop(fullest)
            row = Row(length, max_intervals, pad_id)
            open_rows.append(row)
        row.add(sample)
    yield from (row for row in open_rows if row.used)


def stack(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as one batch: ids int32 [B, S], labels int32 [B, S], bounds int16 [B, S, K, 2]; and, where headers see an
    index, indexed uint8 [B, S]."""
    batch = {
        "ids": np.stack([row.ids for row in rows]),
        "labels": np.stack([row.labels for row in rows]),
        "bounds": np.stack([row.bounds for row in rows]),
    }
    if any(row.indexed.any() for row in rows):
        batch["indexed"] = np.stack([row.indexed for row in rows])
    return batch
