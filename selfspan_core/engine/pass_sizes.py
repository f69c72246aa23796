"""How many drafts a batch's next pass verifies, by what passes have cost and what they have brought. No torch here.

A pass of more queries per row takes longer, by how much depends on the device, the model and the batch; what it brings
depends on the text. Both are measured while decoding: the size is taken that brings most ids a second, and the next
larger one is tried now and then. With large batches that is often one query, no drafts at all.
"""

from collections.abc import Sequence

EVERY = 64
"""Passes after which another size is tried."""
TRIALS = 2
"""Passes of each size before one is chosen."""
WEIGHT_OF_NEWEST = 0.1


class PassSizes:
    """Chooses among sizes.

    Args:
        sizes: queries per row that a pass may have, ascending.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._seconds: dict[int, float] = {}
        self._ids_per_row: dict[int, float] = {}
        self._num_tried = dict.fromkeys(self.sizes, 0)
        self._num_chosen = 0

    def choose(self) -> int:
        """The size of the next pass."""
        self._num_chosen += 1
        untried = [size for size in reversed(self.sizes) if self._num_tried[size] < TRIALS]
        best = untried[0] if untried else max(self.sizes, key=self._ids_per_second)
        if not untried and self._num_chosen % EVERY == 0:
            # The neighbours in turn; a size that does not pay costs this one pass in so many.
            at = self.sizes.index(best) + (1 if self._num_chosen // EVERY % 2 else -1)
            best = self.sizes[min(max(at, 0), len(self.sizes) - 1)]
        self._num_tried[best] += 1
        return best

    def record(self, size: int, seconds: float, num_ids: Sequence[int]) -> None:
        """A pass is done.

        Args:
            size: its queries per row.
            seconds: that it took.
            num_ids: ids that it brought, of every row that took part.
        """
        if not num_ids:
            return
        _move(self._seconds, size, seconds)
        for smaller in self.sizes:
            if smaller <= size:  # it would have brought as many, up to its size
                _move(self._ids_per_row, smaller, sum(min(num, smaller) for num in num_ids) / len(num_ids))

    def _ids_per_second(self, size: int) -> float:
        if size not in self._seconds:
            return 0.0
        return self._ids_per_row[size] / self._seconds[size]


def _move(means: dict[int, float], key: int, value: float) -> None:
    """A moving mean, on which a single pass that was disturbed has little weight."""
    mean = means.get(key)
    means[key] = value if mean is None else mean + WEIGHT_OF_NEWEST * (min(value, 2 * mean) - mean)
