"""Weights of 8 bits for decode steps on a CPU: half the bytes of bfloat16, a quarter of float32's.

A step of one token reads every weight once, so bytes are its time. PyTorch multiplies such matrices without a compiler;
the product reads the codes once for a few rows, and costs more operations than one of floats for many: these, prompts
among them, take the floats, which are the codes' values, rounded to the type of activations. So a pass of more tokens
sums otherwise, and where two logits are within rounding of each other, it may choose the other one.

The floats are kept in oneDNN's own layout, where that can be: otherwise a product with a few rows repacks the matrix
every time. The model's own modules then have no weights any more; all that decodes goes through `engine.decoder`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from selfspan_core.models.coded_matrix import CodedMatrix, round_rows
from selfspan_core.models.huge_pages import HugePages

MOST_ROWS = 3
"""Of a product with codes. All matrices of SmolLM2-135M, two cores of an AMD EPYC, milliseconds for codes, packed
floats and floats as they are: 1 row 13, 18 and 25; 4 rows 16, 15 and 28; 8 rows 30, 15 and 30; 16 rows 50, 21 and 41.
"""
PACKED_FOR = 16
"""Rows that the layout of the floats is chosen for."""


@dataclass(frozen=True)
class Int8Matrix(CodedMatrix):
    """A matrix of a decode step with one scale per row, in the type of activations.

    Attributes:
        is_packed: whether the values are in oneDNN's layout.
    """

    is_packed: bool = False

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
        round_rows(weight, codes, scales)
        return cls(codes, scales, weight, bias)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        if x.ndim != 2 or len(x) > MOST_ROWS:
            if not self.is_packed:
                return F.linear(x, self.values, self.bias)
            dnn: Any = torch.ops.mkldnn
            return dnn._linear_pointwise(x, self.values, self.bias, "none", [], "")
        product: Any = torch.ops.aten._weight_int8pack_mm
        out = product(x.contiguous(), self.codes, self.scales)
        return out if self.bias is None else out + self.bias


class Int8Store:
    """Stores the matrices of one model as `Int8Matrix`, all in the same large pages (`weights.Store`)."""

    def __init__(self) -> None:
        self._pages = HugePages()
        self.keeps_weights = not can_pack()

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> Int8Matrix:
        """See Store."""
        made = Int8Matrix.of(weight, bias, self._pages)
        if self.keeps_weights or is_shared:
            return made
        dnn: Any = torch.ops.mkldnn
        return replace(made, values=dnn._reorder_linear_weight(made.values, PACKED_FOR), is_packed=True)


def can_pack() -> bool:
    """Whether PyTorch has oneDNN's products for packed matrices of bfloat16, which it refuses on CPUs of 256 bits."""
    has_products = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_products and torch.cpu._is_avx512_supported()


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; elsewhere it is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported()
