"""Weights of 8 bits for decode steps on a GPU: half the bytes of bfloat16, which are most of a step of few rows.

int8 has codes with one scale per row and inputs of 16 bits, multiplied by this project's kernel, for at most 16 rows.
fp8 (e4m3) has scales for the rows of both sides, and PyTorch multiplies numbers of 8 bits, for any number of rows. The
model's modules keep their weights, rounded to what the codes stand for: prompts and steps compute with the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from cuda_kernels.int8_linear import Int8Linear
from selfspan_core.models.coded_matrix import CodedMatrix, round_rows
from selfspan_core.models.weights import Matrix

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(x, codes, scales, bias) -> `[B, num_out]`; see `Int8Linear`."""


@dataclass(frozen=True)
class Int8DeviceMatrix(CodedMatrix):
    """Codes of int8.

    Attributes:
        product: what multiplies with them, where it serves the shape.
    """

    product: Product

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        if x.ndim == 2 and Int8Linear.serves(len(x), *self.shape):
            return self.product(x.contiguous(), self.codes, self.scales, self.bias)
        return F.linear(x, self.values, self.bias)


@dataclass(frozen=True)
class Fp8DeviceMatrix(CodedMatrix):
    """Codes of e4m3; inputs are rounded to that, too, row by row."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        scales = (x.abs().amax(-1, keepdim=True).float() / torch.finfo(torch.float8_e4m3fn).max).clamp(min=1e-12)
        codes = (x / scales).to(torch.float8_e4m3fn)
        product: Any = torch._scaled_mm
        return product(codes, self.codes.t(), scales, self.scales[None], bias=self.bias, out_dtype=x.dtype)


class Int8DeviceStore:
    """Stores a model's matrices as `Int8DeviceMatrix` (`weights.Store`).

    Args:
        product: multiplies; an `Int8Linear` of the model's type and device.
    """

    keeps_weights = True

    def __init__(self, product: Product) -> None:
        self._product = product

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> Matrix:
        """See Store."""
        codes = torch.empty_like(weight, dtype=torch.int8)
        scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        round_rows(weight, codes, scales)
        return Int8DeviceMatrix(codes, scales, weight, bias, self._product)


class Fp8DeviceStore:
    """Stores a model's matrices as `Fp8DeviceMatrix` (`weights.Store`)."""

    keeps_weights = True

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> Matrix:
        """See Store."""
        codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        round_rows(weight, codes, scales)
        return Fp8DeviceMatrix(codes, scales, weight, bias)
