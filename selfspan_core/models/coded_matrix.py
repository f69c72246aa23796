"""Matrices of codes of 8 bits with one scale per row: what those of CPUs and GPUs share."""

from dataclasses import dataclass

import torch

from selfspan_core.models.weights import bytes_of

ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class CodedMatrix:
    """A matrix of a decode step (`weights.Matrix`) without `apply`: how it multiplies is its kinds' business.

    Attributes:
        codes: `[num_out, depth]`, int8 or float8_e4m3fn.
        scales: `[num_out]`, floats.
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


def round_rows(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Write the nearest codes of a weight `[num_out, depth]`, their rows' scales, and their values into the weight."""
    is_int8 = codes.dtype is torch.int8
    largest = 127 if is_int8 else torch.finfo(codes.dtype).max
    # Block by block: an output layer in float32 takes more memory than a small model's steps.
    blocks = (tensor.split(ROWS_AT_A_TIME) for tensor in (weight, codes, scales))
    for values, own_codes, own_scales in zip(*blocks, strict=True):
        wide = values.float()
        own_scales.copy_((wide.abs().amax(1) / largest).clamp(min=1e-12))
        by = own_scales.float()[:, None]
        wide = wide / by
        own_codes.copy_(wide.round_().clamp_(-128, 127) if is_int8 else wide)
        values.copy_(wide.copy_(own_codes).mul_(by))
