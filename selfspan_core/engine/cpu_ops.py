"""A decode step's operations on a CPU: PyTorch's, with matrices packed for passes of several tokens in float32.

MKL repacks a matrix at every multiplication with several rows, and reads and writes it once more for that. With packed
matrices, a pass of 8 tokens of the shipped model takes 1.47 times as long as one of a single token instead of 1.79
times, and a pass of 16 takes 1.75 times as long instead of 2.27 (two cores of an Intel Xeon with AMX). A matrix is
packed for one number of rows, when a pass of about so many comes for the first time; zeros fill up fewer rows.
"""

from typing import Any

import torch
import torch.nn.functional as F

from selfspan_core.engine.decoder import Apply, ApplyGated, StepOps, TorchOps
from selfspan_core.models.weights import DecodeWeights, Matrix

PACKED_ROWS = (8, 16)
FEWEST_ROWS = 5
"""Rows from which on a packed matrix is faster, zeros included."""
MOST_BYTES = 2**28
"""Weights of larger models are not packed: every packing is one more copy of them."""


class PackedOps(TorchOps):
    """TorchOps with packed matrices, which all decoders share that are bound to it."""

    def __init__(self) -> None:
        self._packed: dict[int, _Packed] = {}

    def bind(self, matrix: Matrix) -> Apply:
        """See StepOps."""
        if matrix.floats is None:
            return matrix.apply
        if id(matrix) not in self._packed:  # it keeps the matrix, so that the id stays its own
            self._packed[id(matrix)] = _Packed(matrix, matrix.floats)
        return self._packed[id(matrix)]

    def bind_gated(self, matrix: Matrix) -> ApplyGated:
        """See StepOps."""
        bound = self.bind(matrix)

        def apply(x: torch.Tensor, out: torch.Tensor) -> None:
            gate, up = bound(x).chunk(2, -1)
            torch.mul(F.silu(gate), up, out=out)

        return apply


class _Packed:
    """One matrix, and its packings as they are needed."""

    def __init__(self, matrix: Matrix, weight: torch.Tensor) -> None:
        self._matrix, self._apply, self._weight = matrix, matrix.apply, weight
        self._bias: torch.Tensor | None = getattr(matrix, "bias", None)
        self._packings: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, depth]` -> `[T, num_out]`."""
        num_rows = len(x)
        if not FEWEST_ROWS <= num_rows <= PACKED_ROWS[-1]:
            return self._apply(x)
        size = next(size for size in PACKED_ROWS if size >= num_rows)
        mkl: Any = torch.ops.mkl
        packing = self._packings.get(size)
        if packing is None:
            packing = self._packings[size] = mkl._mkl_reorder_linear_weight(self._weight.contiguous(), size)
        filled = F.pad(x, (0, 0, 0, size - num_rows)) if num_rows < size else x
        return mkl._mkl_linear(filled, packing, self._weight, self._bias, size)[:num_rows]


def host_ops(weights: DecodeWeights) -> StepOps:
    """The operations of a step that the host decides, by the device and type of the weights."""
    model = weights.model
    is_float32 = model.device.type == "cpu" and model.dtype is torch.float32
    can_pack = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")
    return PackedOps() if is_float32 and can_pack and weights.num_bytes <= MOST_BYTES else TorchOps()
