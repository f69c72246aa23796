"""A decode step's operations on a CPU: PyTorch's, with matrices in oneDNN's own layout in float32.

Otherwise a product with a few rows repacks the matrix, which takes longer than to multiply: of the shipped small
model's matrices, passes of 1, 8 and 16 tokens take 4.4, 10.7 and 13.0 ms as PyTorch multiplies them by itself (MKL),
and 3.4, 3.7 and 4.7 ms in this layout (two cores of an AMD EPYC, weights not in the cache). So a draft costs hardly
anything. One layout serves any number of rows.
"""

from typing import Any

import torch
import torch.nn.functional as F

from selfspan_core.engine.decoder import Apply, ApplyGated, StepOps, TorchOps
from selfspan_core.models.weights import DecodeWeights, Matrix

ROWS = 16
"""Of the products that the layout is chosen for; more take the matrix as it is."""
MOST_BYTES = 2**28
"""Weights of larger models are not packed: that is one more copy of them."""


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
    """One matrix, packed when it is first multiplied with."""

    def __init__(self, matrix: Matrix, weight: torch.Tensor) -> None:
        self._matrix, self._apply, self._weight = matrix, matrix.apply, weight
        self._bias: torch.Tensor | None = getattr(matrix, "bias", None)
        self._packing: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[T, depth]` -> `[T, num_out]`."""
        if len(x) > ROWS:
            return self._apply(x)
        dnn: Any = torch.ops.mkldnn
        if self._packing is None:
            self._packing = dnn._reorder_linear_weight(self._weight.contiguous(), ROWS)
        return dnn._linear_pointwise(x, self._packing, self._bias, "none", [], "")


def host_ops(weights: DecodeWeights) -> StepOps:
    """The operations of a step that the host decides, by the device and type of the weights."""
    model = weights.model
    is_float32 = model.device.type == "cpu" and model.dtype is torch.float32
    can_pack = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return PackedOps() if is_float32 and can_pack and weights.num_bytes <= MOST_BYTES else TorchOps()
