"""How many drafts a batch's next pass verifies, by what passes have cost and what they have brought. No torch here.

A pass of more queries per row takes longer, by how much depends on the device, the model and the batch; what it brings
depends on the text. Both are measured while decoding: the size is taken that brings most ids a second, and its
neighbours are tried now and then. With large batches that is often one query, no drafts at all.
"""

from collections.abc import Sequence

EVERY = 64
"""Passes after which another size is tried."""
WEIGHT_OF_NEWEST = 0.1
WEIGHT_OF_TRIAL = 0.3
"""Of the seldom passes of another size than the best."""


class PassSizes:
    """Chooses among sizes. Until a size has run it is taken to cost what it was primed with, and to bring all it can.

    Args:
        sizes: queries per row that a pass may have, ascending.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._seconds: dict[int, float] = {}
        self._ids_per_row: dict[int, float] = {}
        self._num_chosen = 0
        self._best = self.sizes[-1]

    def prime(self, size: int, seconds: float) -> None:
        """A pass of a size takes about so long, without anything to read."""
        self._seconds[size] = seconds

    def expect_new_text(self) -> None:
        """The next passes write another text, which may be easier to predict than the last one.

        What larger sizes have brought counts as half of all that they can, at least: otherwise a text that nothing
        predicts, after which they are hardly tried, would slow down many texts behind it.
        """
        for size, mean in self._ids_per_row.items():
            self._ids_per_row[size] = max(mean, size / 2)

    def choose(self) -> int:
        """The size of the next pass."""
        self._num_chosen += 1
        self._best = max(self.sizes, key=self._ids_per_second)
        if self._num_chosen % EVERY:
            return self._best
        # The neighbours in turn; a size that does not pay costs this one pass in so many.
        at = self.sizes.index(self._best) + (1 if self._num_chosen // EVERY % 2 else -1)
        return self.sizes[min(max(at, 0), len(self.sizes) - 1)]

    def record(self, size: int, seconds: float, num_ids: Sequence[int]) -> None:
        """A pass is done.

        Args:
            size: its queries per row.
            seconds: that it took.
            num_ids: ids that it brought, of every row that took part.
        """
        if not num_ids:
            return
        weight = WEIGHT_OF_NEWEST if size == self._best else WEIGHT_OF_TRIAL
        # A single pass that was disturbed has little weight.
        _move(self._seconds, size, min(seconds, 2 * self._seconds.get(size, seconds)), weight)
        for smaller in self.sizes:
            if smaller <= size:  # it would have brought as many, up to its size
                mean = sum(min(num, smaller) for num in num_ids) / len(num_ids)
                _move(self._ids_per_row, smaller, mean, weight)

    def _ids_per_second(self, size: int) -> float:
        # Of sizes that nothing is known of, the largest is tried first.
        return self._ids_per_row.get(size, size) / self._seconds.get(size, 1e-9)


def _move(means: dict[int, float], key: int, value: float, weight: float) -> None:
    """A moving mean."""
    mean = means.get(key)
    means[key] = value if mean is None else mean + weight * (value - mean)
