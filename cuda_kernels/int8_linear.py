"""Launcher of products with weights of 8 bits, for a few rows: half the bytes of the same product in 16 bits."""

import torch

from cuda_kernels.checks import check_tensor
from cuda_kernels.compile import load
from cuda_kernels.device import DTYPES, cuda_device, require_dtype
from cuda_kernels.launcher import Launcher, int32s, pointer, pointers
from cuda_kernels.layers import SMALL_GEMM_MAX_BATCH, SMALL_GEMM_THREADS, SMALL_GEMM_TILE_N

TILE_K = 256
"""TILE_K of gemm.cu with IS_INT8: the depth is a multiple of it."""


class Int8Linear:
    """gemm.cu for codes of 8 bits with one scale per row.

    Args:
        dtype: torch.bfloat16 or torch.float16, of inputs and results.
        device: a CUDA device.

    Raises:
        ValueError: another dtype.
        CudaUnavailable: no CUDA device, or CuPy is missing.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cuda") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is torch.bfloat16 or torch.float16, not {dtype}")
        self.dtype, self.device = dtype, cuda_device(device)
        require_dtype(dtype, self.device)
        macros = (f"-DIS_BF16={int(dtype is torch.bfloat16)}", "-DIS_INT8=1")
        self._kernel = load("gemm.cu", "selfspan_linear", macros, self.device.index)
        self._launch = Launcher(self.device)
        self._num_sms = torch.cuda.get_device_properties(self.device).multi_processor_count

    @staticmethod
    def serves(batch: int, num_out: int, depth: int) -> bool:
        """Whether it takes so many rows of inputs, and weights of that shape."""
        return batch <= SMALL_GEMM_MAX_BATCH and num_out % SMALL_GEMM_TILE_N == 0 and depth % TILE_K == 0

    def __call__(
        self, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`x (scales codes)^T + bias`.

        Args:
            x: `[B, depth]`, B at most 16. codes: int8 `[num_out, depth]`, of a shape that it `serves`.
            scales: float32 `[num_out]`. bias: `[num_out]`.

        Returns:
            `[B, num_out]`, summed in float32 and rounded once.

        Raises:
            ValueError: a tensor's shape, type or device; the message names it.
        """
        (batch, depth), num_out = x.shape, codes.shape[0]
        if not self.serves(batch, num_out, depth):
            raise ValueError(
                f"x: {batch} rows of {depth} for {num_out} rows of codes; at most {SMALL_GEMM_MAX_BATCH}, a multiple "
                f"of {TILE_K} and a multiple of {SMALL_GEMM_TILE_N} are served"
            )
        for name, tensor, shape, dtype in (
            ("x", x, (batch, depth), self.dtype),
            ("codes", codes, (num_out, depth), torch.int8),
        ):
            check_tensor(name, tensor, shape, dtype, self.device)
            if not tensor.is_contiguous():
                raise ValueError(f"{name} is not contiguous")
        check_tensor("scales", scales, (num_out,), torch.float32, self.device, contiguous=True)
        if bias is not None:
            check_tensor("bias", bias, (num_out,), self.dtype, self.device, contiguous=True)
        out = torch.empty(batch, num_out, dtype=self.dtype, device=self.device)
        arguments = (*pointers(x, codes, scales, bias), *int32s(batch, num_out, depth), pointer(out))
        self._launch(self._kernel, self._num_sms, SMALL_GEMM_THREADS, arguments)
        return out
