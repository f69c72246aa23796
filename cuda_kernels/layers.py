"""Launchers of a decode step's operations beside attention: GEMMs, norms, rotary embedding, activation, sampling.

A row has one token, or several, one behind the other. Nothing here waits for the device or copies to the host; only
GEMMs allocate their results.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cuda_kernels.checks import check_tensor, queries_per_row
from cuda_kernels.compile import load
from cuda_kernels.device import DTYPES, cuda_device, require_dtype
from cuda_kernels.gemm_wgmma import CARVEOUT_PERCENT, WgmmaGemm
from cuda_kernels.launcher import Launcher, int32s, pointer, pointers

VECTOR = 8
"""Elements that a thread takes at once: rows are multiples of it."""
SMALL_GEMM_MAX_BATCH, SMALL_GEMM_THREADS, SMALL_GEMM_TILE_K, SMALL_GEMM_TILE_N = 16, 256, 128, 8
"""MAX_BATCH, NUM_THREADS, TILE_K and TILE_N of gemm.cu. Beyond 16 rows reading the inputs takes as long as the weights;
depth and rows of the weights are multiples of a tile."""
MIN_TRANSPOSED_BATCH = 33
"""Rows from which on cuBLAS is faster at W x^T than at x W^T where W has many times as many rows as columns: at 64 and
128 rows and LLaMA-7B's 22016 x 4096 by 6 and 4 %, at 32 not at all (measured on an H100, which now has gemm_wgmma.cu;
assumed for other GPUs). Even numbers of rows only."""
TRANSPOSE_TILE = 64
"""Rows and columns that a block of the transposed activation takes (layer.cu)."""


class DecodeOps:
    """The kernels of gemm.cu, gemm_wgmma.cu, layer.cu and sample.cu for one element type.

    A wrong argument is a ValueError that names it.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        device: a CUDA device.
        batch: rows that the step has; several numbers, where steps of several sizes take turns.
        gemm_shapes: `(num_out, depth)` of the weights that will be used: their kernels are compiled now, those of
            others when they are first used.

    Attributes:
        carveout_percent: for a `SpanAttention` that runs between these; see `gemm_wgmma.CARVEOUT_PERCENT`.

    Raises:
        ValueError: another dtype.
        CudaUnavailable: no CUDA device, or CuPy is missing.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str = "cuda",
        batch: int | Iterable[int] = 1,
        gemm_shapes: Iterable[tuple[int, int]] = (),
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is torch.bfloat16 or torch.float16, not {dtype}")
        self.dtype, self.device = dtype, cuda_device(device)
        require_dtype(dtype, self.device)
        macros = (f"-DIS_BF16={int(dtype is torch.bfloat16)}",)
        self._kernels = {
            name: load(source, f"selfspan_{name}", macros, self.device.index)
            for source, names in (
                ("layer.cu", ("add_rms_norm", "rotary_write", "gated_silu", "gated_silu_transposed")),
                ("sample.cu", ("sample",)),
                ("gemm.cu", ("linear",)),
            )
            for name in names
        }
        self._wgmma = WgmmaGemm(dtype, self.device)
        sizes = itertools.product([batch] if isinstance(batch, int) else batch, gemm_shapes)
        by_wgmma = [(rows, shape) for rows, shape in sizes if self._wgmma.serves(rows, *shape)]
        for rows, shape in by_wgmma:
            self._wgmma.partition(rows, *shape)
        self.carveout_percent = CARVEOUT_PERCENT if by_wgmma else None
        self._launch = Launcher(self.device, self.carveout_percent)
        self._num_sms = torch.cuda.get_device_properties(self.device).multi_processor_count

    def bind(self, matrix: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that computes `matrix.apply`, with these kernels if the matrix is plain floats (see `linear`).

        Args:
            matrix: an object with `apply(x)`; plain floats are in `floats` and `bias`. A matrix whose `floats` are None
                is stored in another form, and its own `apply` is used.
        """
        weight = matrix.floats
        if weight is None:
            return matrix.apply
        return lambda x: self.linear(x, weight, matrix.bias)

    def bind_gated(self, matrix: Any) -> Callable[[torch.Tensor, torch.Tensor], None]:
        """A function that computes `silu(gate) * up` of the result of `matrix.apply`; see `bind` and `gated_linear`."""
        weight = matrix.floats
        if weight is not None:
            return lambda x, out: self.gated_linear(x, weight, out)
        return lambda x, out: self.gated_silu(matrix.apply(x).view(len(x), 2, -1), out)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x weight^T + bias`: by gemm_wgmma.cu on Hopper GPUs, up to 128 rows and from 16 MB of weights on
        (`WgmmaGemm.serves`); otherwise by gemm.cu, up to 16 rows; otherwise, and for odd shapes, by cuBLAS.

        Args:
            x: `[B, depth]`. weight: `[num_out, depth]`. bias: `[num_out]`.

        Returns:
            `[B, num_out]`, summed in float32 and rounded once.
        """
        (batch, depth), num_out = x.shape, weight.shape[0]
        by_wgmma = self._wgmma.serves(batch, num_out, depth)
        is_tiled = depth % SMALL_GEMM_TILE_K == 0 and num_out % SMALL_GEMM_TILE_N == 0
        if not by_wgmma and not (is_tiled and batch <= SMALL_GEMM_MAX_BATCH):
            return F.linear(x, weight, bias)
        self._check("x", x, (batch, depth))
        self._check("weight", weight, (num_out, depth))
        if bias is not None:
            self._check("bias", bias, (num_out,))
        out = torch.empty(batch, num_out, dtype=self.dtype, device=self.device)
        if by_wgmma:
            self._wgmma(x, weight, bias, out, is_gated=False)
            return out
        arguments = (*pointers(x, weight, None, bias), *int32s(batch, num_out, depth), pointer(out))
        self._launch(self._kernels["linear"], self._num_sms, SMALL_GEMM_THREADS, arguments)
        return out

    def add_rms_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor,
    ) -> None:
        """`residual += delta` (unless it is None), and the root mean square norm of the sum.

        Args:
            residual: `[B, hidden]`; is written. delta: the same shape. weight: `[hidden]`, constant: it is read before
                the previous kernel has finished.
            epsilon: added to the mean square.
            out: `[B, hidden]`; is written.
        """
        batch, hidden = residual.shape
        for name, tensor in (("residual", residual), ("out", out), *((("delta", delta),) if delta is not None else ())):
            self._check(name, tensor, (batch, hidden))
        self._check("weight", weight, (hidden,))
        arguments = (
            *pointers(residual, delta, weight),
            np.float32(epsilon),
            np.int32(hidden),
            *pointers(out),
        )
        self._launch(self._kernels["add_rms_norm"], batch, _threads(hidden // VECTOR), arguments)

    def rotary_write(
        self,
        qkv: torch.Tensor,
        rotary: torch.Tensor,
        positions: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Apply the rotary embedding to queries and keys; write keys and values to one layer's cache.

        Args:
            qkv: `[T, H + 2 Hkv, D]`: queries, keys, values of T = B Q tokens, Q of every row: token i is row i // Q's.
            rotary: `[capacity, 2, D / 2]`, cosines and sines of every position.
            positions: int32 `[T]`; where it is negative there is no token, and nothing is written.
            queries: `[T, H, D]`; is written.
            keys, values: `[B, Hkv, capacity, D]`, of the same strides; are written at the positions.
        """
        num_tokens, num_heads, head_dim = queries.shape
        batch, num_kv_heads, capacity = keys.shape[:3]
        num_queries = queries_per_row("queries", num_tokens, batch)
        self._check("qkv", qkv, (num_tokens, num_heads + 2 * num_kv_heads, head_dim))
        self._check("rotary", rotary, (capacity, 2, head_dim // 2))
        self._check("queries", queries, (num_tokens, num_heads, head_dim))
        check_tensor("positions", positions, (num_tokens,), torch.int32, self.device, contiguous=True)
        for name, tensor in (("keys", keys), ("values", values)):
            check_tensor(name, tensor, (batch, num_kv_heads, capacity, head_dim), self.dtype, self.device)
        if keys.stride() != values.stride():
            raise ValueError(f"keys and values have other strides: {keys.stride()} and {values.stride()}")
        arguments = (
            *pointers(qkv, rotary, positions),
            *int32s(num_queries, num_heads, num_kv_heads, head_dim),
            *pointers(queries, keys, values),
            *(np.int64(step) for step in keys.stride()[:3]),
        )
        items = (num_heads + 2 * num_kv_heads) * head_dim // (2 * VECTOR)
        self._launch(self._kernels["rotary_write"], num_tokens, _threads(items), arguments)

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """`silu(gate) * up` of `x weight^T`; the first half of the weight's rows are the gate's.

        Args:
            x: `[B, depth]`. weight: `[2 * size, depth]`.
            out: `[B, size]`; is written.
        """
        (batch, size), depth = out.shape, x.shape[1]
        if self._wgmma.serves(batch, 2 * size, depth):
            self._check("x", x, (batch, depth))
            self._check("weight", weight, (2 * size, depth))
            self._check("out", out, (batch, size))
            self._wgmma(x, weight, None, out, is_gated=True)
            return
        if batch < MIN_TRANSPOSED_BATCH or batch % 2 or size % TRANSPOSE_TILE:
            self.gated_silu(self.linear(x, weight).view(batch, 2, size), out)
            return
        self.gated_silu_transposed(torch.mm(weight, x.t()).view(2, size, batch), out)

    def gated_silu_transposed(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """`silu(gate) * up`. gate_up: `[2, size, B]`, B even, size a multiple of 64; out: `[B, size]`, is written."""
        batch, size = out.shape
        check_tensor("gate_up", gate_up, (2, size, batch), self.dtype, self.device, contiguous=True)
        self._check("out", out, (batch, size))
        if batch % 2 or size % TRANSPOSE_TILE:
            raise ValueError(f"out: {batch} is odd, or {size} no multiple of {TRANSPOSE_TILE}")
        arguments = (pointer(gate_up), *int32s(batch, size), pointer(out))
        grid = (size // TRANSPOSE_TILE, -(-batch // TRANSPOSE_TILE))
        self._launch(self._kernels["gated_silu_transposed"], grid, 4 * TRANSPOSE_TILE, arguments)

    def gated_silu(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """`silu(gate) * up`. gate_up: `[B, 2, size]`; out: `[B, size]`, is written."""
        batch, size = out.shape
        self._check("gate_up", gate_up, (batch, 2, size))
        self._check("out", out, (batch, size))
        arguments = (pointer(gate_up), *int32s(batch, size), pointer(out))
        self._launch(self._kernels["gated_silu"], -(-batch * size // VECTOR // 256), 256, arguments)

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_ps: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """The id behind every token; it depends on the token's logits and position and its row's settings only.

        Args:
            logits: `[T, vocab]` of T = B Q tokens, Q of every row: token i has the settings of row i // Q.
            temperatures: float32 `[B]`; 0 for greedy: the most likely id, the first of equals.
            top_ps: float32 `[B]`: draw from the most likely ids that hold so much of the probability; 1 for all ids.
            seeds: int64 `[B]`.
            positions: int32 `[T]`, of the tokens whose logits are given; where it is negative there is no token.
            ids: int64 `[T]`; is written where there is a token.
        """
        (num_tokens, vocab_size), batch = logits.shape, len(temperatures)
        num_queries = queries_per_row("logits", num_tokens, batch)
        # The kernel reads one element at a time, so a vocabulary may have any size.
        if logits.dtype != self.dtype or logits.device != self.device or not logits.is_contiguous():
            raise ValueError(f"logits is not contiguous in {self.dtype} on {self.device}")
        kinds = (
            ("temperatures", temperatures, batch, torch.float32),
            ("top_ps", top_ps, batch, torch.float32),
            ("seeds", seeds, batch, torch.int64),
            ("positions", positions, num_tokens, torch.int32),
            ("ids", ids, num_tokens, torch.int64),
        )
        for name, tensor, size, dtype in kinds:
            check_tensor(name, tensor, (size,), dtype, self.device, contiguous=True)
        arguments = (
            *pointers(logits),
            *int32s(vocab_size, num_queries),
            *pointers(temperatures, top_ps, seeds, positions, ids),
        )
        self._launch(self._kernels["sample"], num_tokens, _threads(vocab_size // 4), arguments)

    def _check(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        check_tensor(name, tensor, shape, self.dtype, self.device)
        if not tensor.is_contiguous() or tensor.shape[-1] % VECTOR:
            raise ValueError(f"{name} is not contiguous in rows of a multiple of {VECTOR} elements")


def _threads(items: int) -> int:
    """Threads of a block for so many items: whole warps, 1,024 at most."""
    return min(1024, -(-max(1, items) // 32) * 32)
