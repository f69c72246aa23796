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
from selfspan_core.models.int8_matrix import ROWS_AT_A_TIME, round_rows
from selfspan_core.models.weights import Matrix, bytes_of

LARGEST = 448.0
"""Of e4m3."""
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(x, codes, scales, bias) -> `[B, num_out]`; see `Int8Linear`."""


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix of 8 bits (`weights.Matrix`); how it multiplies is its kinds' business.

    Attributes:
        codes: `[num_out, depth]`, int8 or e4m3.
        scales: float32 `[num_out]`.
        values: `[num_out, depth]`, codes times scales, rounded to the type of activations.
        bias: `[num_out]`, or None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """See Matrix."""
        num_out, depth = self.codes.shape
        return num_out, depth

    @property
    def num_bytes(self) -> int:
        """See Matrix."""
        return sum(map(bytes_of, (self.codes, self.scales, *(() if self.bias is None else (self.bias,)))))

    @property
    def floats(self) -> torch.Tensor | None:
        """None: a kernel for floats must not take the values in place of the codes. See Matrix."""
        return None


@dataclass(frozen=True)
class Int8DeviceMatrix(DeviceMatrix):
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
class Fp8DeviceMatrix(DeviceMatrix):
    """Codes of e4m3; inputs are rounded to that, too, row by row."""

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See Matrix."""
        scales = (x.abs().amax(-1, keepdim=True).float() / LARGEST).clamp(min=1e-12)
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
        scales = torch.empty(len(weight), device=weight.device)
        round_rows(weight, codes, scales)
        return Int8DeviceMatrix(codes, scales, weight, bias, self._product)


class Fp8DeviceStore:
    """Stores a model's matrices as `Fp8DeviceMatrix` (`weights.Store`)."""

    keeps_weights = True

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_shared: bool) -> Matrix:
        """See Store."""
        codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        scales = torch.empty(len(weight), device=weight.device)
        blocks = (tensor.split(ROWS_AT_A_TIME) for tensor in (weight, codes, scales))
        for values, own_codes, own_scales in zip(*blocks, strict=True):
            wide = values.float()
            own_scales.copy_((wide.abs().amax(1) / LARGEST).clamp(min=1e-12))
            own_codes.copy_(wide / own_scales[:, None])
            values.copy_(own_codes.float() * own_scales[:, None])
        return Fp8DeviceMatrix(codes, scales, weight, bias)
