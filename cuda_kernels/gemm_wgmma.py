"""Launcher for products of up to 128 rows on Hopper GPUs (gemm_wgmma.cu)."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cuda_kernels.attention import Launcher
from cuda_kernels.compile import load_for, on_device
from cuda_kernels.driver import max_active_clusters
from cuda_kernels.tensor_map import TensorMap, tensor_map

BATCH_TILES = (32, 64, 96, 128)
"""Rows of the batch that the kernel is compiled for."""
CLUSTERS = (1, 2, 4)
"""Blocks of a cluster that it is compiled for."""
UNIT_ROWS, STAGE_DEPTH, UNITS, GROUPS, THREADS, MAX_STAGES, HEAD_BYTES = 16, 64, 4, 3, 416, 12, 1024
"""Of gemm_wgmma.cu: UNIT_ROWS, STAGE_DEPTH, UNITS, NUM_GROUPS, NUM_THREADS, MAX_STAGES, HEAD_BYTES."""
LEAST_ELEMENTS = 2**23
"""Of W, from which on it is the better choice: 16 MB. (H100, launches behind each other: 25 MB are 7 to 23 % faster
than by gemm.cu at 1 and 16 rows and as fast as by cuBLAS at 64, 8 MB are 15 % slower at 1 row and 9 at 64; 34 MB,
square, are 10 % slower than by cuBLAS at 128, but make the whole step 1 % faster: more of each launch overlaps.)"""
CLUSTER_COST = 0.095
"""Fitted to what `bench_products` measured of 44 products: 0.09 to 0.12 would do; within that, to whole steps."""
CARVEOUT_PERCENT = 100
"""Of a multiprocessor's fast memory that its launches ask to be shared memory. What else runs in the step asks for the
same: to change the split, a multiprocessor has to be idle (H100, 64 rows: 2 % of a step)."""


@dataclass(frozen=True)
class WideShape:
    """How a product is shared out.

    Attributes:
        tile: rows of the batch that the kernel has room for.
        num_blocks: of a cluster.
        num_clusters: that there are.
        num_passes: of every cluster.
        max_units: units of W's rows in a pass, at most.
    """

    tile: int
    num_blocks: int
    num_clusters: int
    num_passes: int
    max_units: int

    @property
    def parts_bytes(self) -> int:
        """Shared memory for the sums that a block gets from the others in a pass."""
        rows = -(-self.max_units // GROUPS) * GROUPS * UNIT_ROWS
        return rows * self.tile * 4 * (self.num_blocks - 1) // self.num_blocks

    def block_bytes(self, depth: int) -> float:
        """What a block's time goes by: what it reads of W and x and, three times, of others' sums, which it waits for;
        where blocks go together, CLUSTER_COST more.

        By this the fastest of CLUSTERS is chosen for all that `bench_products` measured (H100), or one that is within
        1.5 % of it.
        """
        rows = self.max_units * UNIT_ROWS + self.tile
        cost = CLUSTER_COST if self.num_blocks > 1 else 0.0
        return (1 + cost) * self.num_passes * (2 * rows * depth / self.num_blocks + 3 * self.parts_bytes)

    def shared_bytes(self, num_stages: int) -> int:
        """Dynamic shared memory of a block (struct Memory in gemm_wgmma.cu)."""
        stage = 2 * STAGE_DEPTH * (self.tile + self.max_units * UNIT_ROWS)
        # The last group's tile may reach beyond its stage.
        beyond = 2 * STAGE_DEPTH * max(0, (UNITS - 1) * UNIT_ROWS - self.tile)
        return HEAD_BYTES + num_stages * stage + max(self.parts_bytes, beyond)

    def num_stages(self, limit: int) -> int:
        """As many as fit into so many bytes of shared memory, at most MAX_STAGES.

        Raises:
            ValueError: less than two fit, with which a ring cannot be filled ahead.
        """
        most = max((n for n in range(MAX_STAGES + 1) if self.shared_bytes(n) <= limit), default=0)
        if most < 2:
            raise ValueError(f"a block of this GPU has {limit} bytes of shared memory, too few for {self}")
        return most


def batch_tile(batch: int) -> int:
    """The least of BATCH_TILES that holds so many rows."""
    return next(tile for tile in BATCH_TILES if tile >= batch)


def share_out(tile: int, num_rows: int, num_blocks: int, max_clusters: int) -> WideShape:
    """A product with so many rows of W, on so many clusters at most."""
    units = num_rows // UNIT_ROWS
    num_clusters = min(max_clusters, units)
    of_cluster = -(-units // num_clusters)
    num_passes = -(-of_cluster // (GROUPS * UNITS))
    return WideShape(tile, num_blocks, num_clusters, num_passes, -(-of_cluster // num_passes))


class WideLinear:
    """The kernel for one element type.

    It is compiled when a size of batch is first asked for, once in every process, in less than a second: ahead of what
    is captured in a graph by `shape`. How a product is shared out, and with it how its sums are rounded, depends on the
    batch's tile, not on where in the batch a row stands.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        device: a CUDA device with its index.
        clusters: which of CLUSTERS it may choose from.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, clusters: Sequence[int] = CLUSTERS) -> None:
        self._dtype, self._device, self._clusters = dtype, device, clusters
        # wgmma is Hopper's alone: neither older nor newer GPUs have it.
        self.is_available = torch.cuda.get_device_capability(device) == (9, 0)
        self._limit = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
        self._launch = Launcher(device, CARVEOUT_PERCENT)

    def serves(self, batch: int, num_rows: int, depth: int) -> bool:
        """Whether it is the one for a product of `[batch, depth]` with `[num_rows, depth]` transposed."""
        fits = depth % STAGE_DEPTH == 0 and depth >= max(CLUSTERS) * STAGE_DEPTH and num_rows % UNIT_ROWS == 0
        return self.is_available and fits and batch <= max(BATCH_TILES) and num_rows * depth >= LEAST_ELEMENTS

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, is_gated: bool
    ) -> None:
        """`x weight^T + bias`, or `silu(gate) * up` of it, to `out`.

        Args:
            x: `[B, depth]`, contiguous like all others. B: up to 128; depth: a multiple of 64, at least 256.
            weight: `[num_rows, depth]`, a multiple of 16; if gated, the first half of its rows are the gate's.
            bias: `[num_rows]`, only if not gated.
            out: `[B, num_rows]`, or half as wide; is written.
        """
        (batch, depth), num_rows = x.shape, weight.shape[0]
        shape = self.shape(batch, num_rows, depth)
        kernel = _kernel(self._dtype, shape.tile, shape.num_blocks, self._device.index, self._limit)
        num_stages = shape.num_stages(self._limit)
        maps = _maps(x, weight, shape.tile, is_gated)
        bias, out = (np.uint64(0 if one is None else one.data_ptr()) for one in (bias, out))
        numbers = (batch, num_rows, depth, is_gated, shape.num_passes, shape.max_units, num_stages)
        arguments = (*maps, bias, *(np.int32(number) for number in numbers), out)
        self._launch(kernel, shape.num_blocks * shape.num_clusters, THREADS, arguments, shape.shared_bytes(num_stages))

    def shape(self, batch: int, num_rows: int, depth: int) -> WideShape:
        """How a product is shared out: by what a block reads and waits for. Compiles its kernels."""
        tile = batch_tile(batch)
        # A small part of a GPU may have no room for the larger clusters.
        most = {blocks: self.max_clusters(tile, blocks) for blocks in self._clusters}
        shapes = (share_out(tile, num_rows, blocks, number) for blocks, number in most.items() if number)
        best = min(shapes, key=lambda shape: shape.block_bytes(depth))
        best.num_stages(self._limit)  # An error now rather than at the launch.
        return best

    def max_clusters(self, tile: int, num_blocks: int) -> int:
        """How many clusters of so many blocks run at a time. Compiles their kernel."""
        return _num_clusters(self._dtype, tile, num_blocks, self._device.index, self._limit)


class _WeightMaps(ctypes.Structure):
    """struct WeightMaps in gemm_wgmma.cu."""

    _fields_ = [("of_units", TensorMap * UNITS)]


def _maps(x: torch.Tensor, weight: torch.Tensor, tile: int, is_gated: bool) -> tuple[TensorMap, _WeightMaps]:
    depth = weight.shape[1]
    # A unit is two eights: neighbours, or one of the gates and the one that goes with it.
    eights = weight.view(2, -1, 8, depth).transpose(0, 1) if is_gated else weight.view(-1, 2, 8, depth)
    of_units = (tensor_map(eights, (num, 2, 8, STAGE_DEPTH)) for num in range(1, UNITS + 1))
    return tensor_map(x, (tile, STAGE_DEPTH)), _WeightMaps((TensorMap * UNITS)(*of_units))


def macros(dtype: torch.dtype, tile: int, num_blocks: int) -> tuple[str, ...]:
    """What the source takes, as compiler options."""
    is_bf16 = int(dtype is torch.bfloat16)
    return f"-DIS_BF16={is_bf16}", f"-DBATCH_TILE={tile}", f"-DNUM_BLOCKS={num_blocks}"


@functools.cache
def _kernel(dtype: torch.dtype, tile: int, num_blocks: int, device_index: int, limit: int):
    """The kernel, compiled and loaded, with all the shared memory that a block can have."""
    options = macros(dtype, tile, num_blocks)
    kernel = load_for("gemm_wgmma.cu", "selfspan_linear_wide", options, "90a", device_index)
    with on_device(device_index):
        kernel.max_dynamic_shared_size_bytes = limit
    return kernel


@functools.cache
def _num_clusters(dtype: torch.dtype, tile: int, num_blocks: int, device_index: int, limit: int) -> int:
    """How many clusters run at the same time, with one block per multiprocessor; by how the GPU's parts are grouped."""
    kernel = _kernel(dtype, tile, num_blocks, device_index, limit)
    with on_device(device_index):
        return max_active_clusters(kernel.kernel.ptr, num_blocks, THREADS, limit)
