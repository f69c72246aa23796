"""Launcher of the GEMM for up to 128 rows on Hopper GPUs (gemm_wgmma.cu)."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cuda_kernels.compile import load_for, on_device
from cuda_kernels.driver import max_active_clusters
from cuda_kernels.launcher import Launcher, int32s, pointer
from cuda_kernels.tensor_map import TensorMap, tensor_map

BATCH_TILES = (32, 64, 96, 128)
"""Rows of the batch that the kernel is compiled for."""
CLUSTER_SIZES = (1, 2, 4)
"""Blocks of a cluster that it is compiled for."""
WARP_TILE_ROWS, TILE_K, WARPS_PER_GROUP, NUM_WARP_GROUPS, NUM_THREADS = 16, 64, 4, 3, 416
MAX_STAGES, BARRIER_BYTES = 12, 1024
"""As in gemm_wgmma.cu."""
MIN_WEIGHT_ELEMENTS = 2**23
"""Elements of W from which on it is the better choice: 16 MB. (H100, launches behind each other: 25 MB are 7 to 23 %
faster than by gemm.cu at 1 and 16 rows and as fast as by cuBLAS at 64, 8 MB are 15 % slower at 1 row and 9 at 64; 34
MB, square, are 10 % slower than by cuBLAS at 128, but make the whole step 1 % faster: more of each launch overlaps.)"""
CLUSTER_COST = 0.095
"""Relative cost of a cluster of several blocks. Fitted to 44 GEMMs measured by `bench_products` (any value from 0.09 to
0.12 chooses alike), and within that range to whole decode steps."""
CARVEOUT_PERCENT = 100
"""Share of a multiprocessor's fast memory that its launches request as shared memory. All other kernels of the step
request the same: a multiprocessor has to be idle to change it (H100, 64 rows: 2 % of a step)."""


@dataclass(frozen=True)
class GemmPartition:
    """How a GEMM is divided among blocks.

    Attributes:
        batch_tile: rows of the batch that the kernel has room for, one of BATCH_TILES.
        cluster_size: blocks of a cluster, which split K.
        num_clusters: clusters, which divide W's rows.
        num_passes: passes of every cluster.
        max_warp_tiles: most warp tiles (16 rows of W) of a pass.
    """

    batch_tile: int
    cluster_size: int
    num_clusters: int
    num_passes: int
    max_warp_tiles: int

    @property
    def partials_bytes(self) -> int:
        """Shared memory for the partial sums that a block receives from the other blocks in a pass."""
        rows = -(-self.max_warp_tiles // NUM_WARP_GROUPS) * NUM_WARP_GROUPS * WARP_TILE_ROWS
        return rows * self.batch_tile * 4 * (self.cluster_size - 1) // self.cluster_size

    def cost_bytes(self, depth: int) -> float:
        """A block's time is taken as proportional to this: bytes of W and x that it reads and, three times, bytes of
        partial sums that it waits for; more by CLUSTER_COST where blocks work together.

        By this the fastest of CLUSTER_SIZES is chosen for all GEMMs that `bench_products` measured (H100), or one that
        is within 1.5 % of it.
        """
        rows = self.max_warp_tiles * WARP_TILE_ROWS + self.batch_tile
        cost = CLUSTER_COST if self.cluster_size > 1 else 0.0
        return (1 + cost) * self.num_passes * (2 * rows * depth / self.cluster_size + 3 * self.partials_bytes)

    def shared_bytes(self, num_stages: int) -> int:
        """Dynamic shared memory of a block (struct SharedStorage in gemm_wgmma.cu)."""
        stage = 2 * TILE_K * (self.batch_tile + self.max_warp_tiles * WARP_TILE_ROWS)
        # The tile of the last warp group may reach beyond its stage: wgmma takes 64 rows.
        beyond = 2 * TILE_K * max(0, (WARPS_PER_GROUP - 1) * WARP_TILE_ROWS - self.batch_tile)
        return BARRIER_BYTES + num_stages * stage + max(self.partials_bytes, beyond)

    def num_stages(self, limit: int) -> int:
        """Stages of the ring buffer: as many as fit into so many bytes of shared memory, at most MAX_STAGES.

        Raises:
            ValueError: less than two fit, too few to load ahead.
        """
        most = max((n for n in range(MAX_STAGES + 1) if self.shared_bytes(n) <= limit), default=0)
        if most < 2:
            raise ValueError(f"a block of this GPU has {limit} bytes of shared memory, too few for {self}")
        return most


def batch_tile_of(batch: int) -> int:
    """The smallest of BATCH_TILES that holds so many rows."""
    return next(tile for tile in BATCH_TILES if tile >= batch)


def partition_gemm(batch_tile: int, num_rows: int, cluster_size: int, max_clusters: int) -> GemmPartition:
    """Divide a GEMM with so many rows of W among at most `max_clusters` clusters."""
    warp_tiles = num_rows // WARP_TILE_ROWS
    num_clusters = min(max_clusters, warp_tiles)
    per_cluster = -(-warp_tiles // num_clusters)
    num_passes = -(-per_cluster // (NUM_WARP_GROUPS * WARPS_PER_GROUP))
    return GemmPartition(batch_tile, cluster_size, num_clusters, num_passes, -(-per_cluster // num_passes))


class WgmmaGemm:
    """The kernel for one element type.

    It is compiled when a size of batch is first used, once in every process, in less than a second; call `partition`
    to compile it ahead of a graph's capture. How a GEMM is divided, and with it how its sums are rounded, depends on
    the batch tile and not on a row's place in the batch.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        device: a CUDA device with its index.
        cluster_sizes: which of CLUSTER_SIZES it may choose from.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, cluster_sizes: Sequence[int] = CLUSTER_SIZES) -> None:
        self._dtype, self._device, self._cluster_sizes = dtype, device, cluster_sizes
        # Only Hopper has wgmma: neither older nor newer GPUs do.
        self.is_available = torch.cuda.get_device_capability(device) == (9, 0)
        properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks a field
        self._limit = properties.shared_memory_per_block_optin
        self._launch = Launcher(device, CARVEOUT_PERCENT)

    def serves(self, batch: int, num_rows: int, depth: int) -> bool:
        """Whether it should be used for `[batch, depth]` times `[num_rows, depth]` transposed."""
        fits = depth % TILE_K == 0 and depth >= max(CLUSTER_SIZES) * TILE_K and num_rows % WARP_TILE_ROWS == 0
        return self.is_available and fits and batch <= max(BATCH_TILES) and num_rows * depth >= MIN_WEIGHT_ELEMENTS

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
        partition = self.partition(batch, num_rows, depth)
        tile, size = partition.batch_tile, partition.cluster_size
        kernel = _kernel(self._dtype, tile, size, self._device.index, self._limit)
        num_stages = partition.num_stages(self._limit)
        arguments = (
            *_maps(x, weight, tile, is_gated),
            pointer(bias),
            *int32s(batch, num_rows, depth, is_gated),
            *int32s(partition.num_passes, partition.max_warp_tiles, num_stages),
            pointer(out),
        )
        num_blocks, shared_bytes = size * partition.num_clusters, partition.shared_bytes(num_stages)
        self._launch(kernel, num_blocks, NUM_THREADS, arguments, shared_bytes)

    def partition(self, batch: int, num_rows: int, depth: int) -> GemmPartition:
        """How a GEMM is divided: the cheapest choice of a cluster size. Compiles its kernels."""
        tile = batch_tile_of(batch)
        # A small part of a GPU may have no room for the larger clusters.
        limits = {size: self.max_clusters(tile, size) for size in self._cluster_sizes}
        choices = (partition_gemm(tile, num_rows, size, number) for size, number in limits.items() if number)
        best = min(choices, key=lambda choice: choice.cost_bytes(depth))
        best.num_stages(self._limit)  # An error now rather than at the launch.
        return best

    def max_clusters(self, batch_tile: int, cluster_size: int) -> int:
        """How many clusters of so many blocks run at the same time. Compiles their kernel."""
        return _num_clusters(self._dtype, batch_tile, cluster_size, self._device.index, self._limit)


class _WeightMaps(ctypes.Structure):
    """struct WeightMaps in gemm_wgmma.cu."""

    _fields_ = [("boxes", TensorMap * WARPS_PER_GROUP)]


def _maps(x: torch.Tensor, weight: torch.Tensor, tile: int, is_gated: bool) -> tuple[TensorMap, _WeightMaps]:
    depth = weight.shape[1]
    # A warp tile is two times eight rows: neighbours, or gate rows and the up rows that belong to them.
    halves = weight.view(2, -1, 8, depth).transpose(0, 1) if is_gated else weight.view(-1, 2, 8, depth)
    boxes = (tensor_map(halves, (num, 2, 8, TILE_K)) for num in range(1, WARPS_PER_GROUP + 1))
    return tensor_map(x, (tile, TILE_K)), _WeightMaps((TensorMap * WARPS_PER_GROUP)(*boxes))


def macros(dtype: torch.dtype, batch_tile: int, cluster_size: int) -> tuple[str, ...]:
    """As compiler options."""
    is_bf16 = int(dtype is torch.bfloat16)
    return f"-DIS_BF16={is_bf16}", f"-DBATCH_TILE={batch_tile}", f"-DCLUSTER_SIZE={cluster_size}"


@functools.cache
def _kernel(dtype: torch.dtype, batch_tile: int, cluster_size: int, device_index: int, limit: int):
    """The kernel, compiled and loaded, with the greatest limit of shared memory per block."""
    options = macros(dtype, batch_tile, cluster_size)
    kernel = load_for("gemm_wgmma.cu", "selfspan_linear_wgmma", options, "90a", device_index)
    with on_device(device_index):
        kernel.max_dynamic_shared_size_bytes = limit
    return kernel


@functools.cache
def _num_clusters(dtype: torch.dtype, batch_tile: int, cluster_size: int, device_index: int, limit: int) -> int:
    """How many clusters run at the same time; the GPU has its multiprocessors in groups, which a cluster must fit."""
    kernel = _kernel(dtype, batch_tile, cluster_size, device_index, limit)
    with on_device(device_index):
        return max_active_clusters(kernel.kernel.ptr, cluster_size, NUM_THREADS, limit)
