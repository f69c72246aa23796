"""Preallocated keys and values of a sequence, or a batch of them. Index = original position: nothing is evicted or
re-indexed.

All layers live in one tensor, so that moving a run of positions between two caches (gathering a step's visible
pieces, writing a finished step back) is one strided copy for all layers, keys and values together.
"""

from collections.abc import Sequence

import torch

from cuda_kernels.padding import spread_capacity
from selfspan_core.spans.intervals import Interval


class KVCache:
    """Keys and values of one sequence, or of `batch` rows.

    Args:
        num_layers, num_kv_heads, head_dim: shape of the model's attention.
        capacity: number of positions. Memory is reserved, but not touched until it is written; a few more
            positions are reserved, so that heads are spread over the GPU's memory.
        dtype, device: of the stored tensors.
        batch: rows.

    Attributes:
        keys, values: per layer, `[batch, num_kv_heads, capacity, head_dim]` views.
            Positions never written hold garbage.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
    ) -> None:
        stored = spread_capacity(capacity, head_dim * dtype.itemsize)
        shape = (2, num_layers, batch, num_kv_heads, stored, head_dim)
        self._kv = torch.empty(shape, dtype=dtype, device=device)[..., :capacity, :]
        self.capacity = capacity
        self.keys: tuple[torch.Tensor, ...] = self._kv[0].unbind(0)
        self.values: tuple[torch.Tensor, ...] = self._kv[1].unbind(0)

    def like(self, capacity: int) -> "KVCache":
        """An empty cache of the same model with another capacity."""
        _, num_layers, batch, num_kv_heads, _, head_dim = self._kv.shape
        return KVCache(num_layers, num_kv_heads, head_dim, capacity, self._kv.dtype, self._kv.device, batch)

    def row(self, row: int) -> "KVCache":
        """One row of a batch, as a cache of its own that shares the memory."""
        alone = object.__new__(KVCache)
        alone._kv = self._kv[:, :, row : row + 1]
        alone.capacity = self.capacity
        alone.keys, alone.values = alone._kv[0].unbind(0), alone._kv[1].unbind(0)
        return alone

    def write(self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store new keys and values `[1, num_kv_heads, T, head_dim]` of one layer at positions `start ...`."""
        self.keys[layer].narrow(2, start, key.shape[2]).copy_(key)
        self.values[layer].narrow(2, start, value.shape[2]).copy_(value)

    def first(self, layer: int, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one layer's keys and values at the first positions, `[batch, num_kv_heads, positions, head_dim]`."""
        return self.keys[layer].narrow(2, 0, num_positions), self.values[layer].narrow(2, 0, num_positions)

    def copy_from(self, source: "KVCache", intervals: Sequence[Interval], start: int = 0) -> int:
        """Copy positions of another cache, all layers at once, one after the other from `start` on.

        Returns:
            The position after the last one written.
        """
        for first, end in intervals:
            self._kv.narrow(4, start, end - first).copy_(source._kv.narrow(4, first, end - first))
            start += end - first
        return start

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one position holds over all layers."""
        num_layers, num_kv_heads, head_dim = self._kv.shape[1], self._kv.shape[3], self._kv.shape[5]
        return 2 * num_layers * num_kv_heads * head_dim * self._kv.element_size()
