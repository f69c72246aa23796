"""Weights of 8 bits for decode steps on a CPU: half the bytes of bfloat16, a quarter of float32's.

A step of one token reads every weight once, so bytes are its time. PyTorch multiplies such matrices without a compiler;
the product reads the codes once for a few rows, and costs more operations than one of floats for many: these take the
floats, which are the codes' values, rounded to the type of activations. So a pass of more tokens sums otherwise, and
where two logits are within rounding of each other, it may choose the other one.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from selfspan_core.models.huge_pages import HugePages

MOST_ROWS = 7
"""Of a product with codes. Two cores of an Intel Xeon with AMX, 960 x 576, microseconds for codes and floats: 1 row 15
and 45, 4 rows 28 and 45, 8 rows 55 and 46, 16 rows 104 and 48."""

ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Int8Matrix:
    """A matrix of a decode step with one scale per row (`selfspan_core.models.weights.Matrix`).

    Attributes:
        codes: int8 `[num_out, depth]`.
        scales: `[num_out]`, in the type of activations.
        values: `[num_out, depth]`, codes times scales, rounded to that type; the model's own modules share it.
        bias: `[num_out]`, or None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None, pages: HugePages | None = None) -> "Int8Matrix":
        """The matrix whose values are nearest to a weight of bfloat16 on a CPU, into which they are written.

        Args:
            weight: `[num_out, depth]`.
            bias: `[num_out]`, or None.
            pages: where the codes shall lie; None: in a block of their own.
        """
        codes = (pages or HugePages()).empty(*weight.shape)
        scales = weight.new_empty(len(weight))
        # Block by block: an output layer in float32 takes more memory than a small model's steps.
        blocks = (tensor.split(ROWS_AT_A_TIME) for tensor in (weight, codes, scales))
        for values, own_codes, own_scales in zip(*blocks, strict=True):
            wide = values.float()
            own_scales.copy_((wide.abs().amax(1) / 127).clamp(min=1e-12))
            by = own_scales.float()[:, None]
            own_codes.copy_(wide.div_(by).round_().clamp_(-128, 127))
            values.copy_(torch.mul(own_codes, by, out=wide))
        return cls(codes, scales, weight, bias)

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        num_out, depth = self.codes.shape
        return num_out, depth

    @property
    def num_bytes(self) -> int:
        """See Matrix."""
        parts = (self.codes, self.scales, *(() if self.bias is None else (self.bias,)))
        return sum(part.numel() * part.element_size() for part in parts)

    @property
    def floats(self) -> torch.Tensor | None:
        """None: a kernel for floats must not take the values in place of the codes. See Matrix."""
        return None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        if x.ndim != 2 or len(x) > MOST_ROWS:
            return F.linear(x, self.values, self.bias)
        product: Any = torch.ops.aten._weight_int8pack_mm
        out = product(x.contiguous(), self.codes, self.scales)
        return out if self.bias is None else out + self.bias


class Int8Store:
    """Stores the matrices of one model as `Int8Matrix`, all in the same large pages (`weights.Store`)."""

    def __init__(self) -> None:
        self._pages = HugePages()

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Matrix:
        """See Store."""
        return Int8Matrix.of(weight, bias, self._pages)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; elsewhere it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported()
