"""A decode step's GEMMs against cuBLAS: `python -m cuda_kernels.bench_products`.

Physics: `[rows, depth]` times `[num_out, depth]` transposed does two operations per weight and row, so up to some
hundred rows the time is that of reading the weights,

    2 bytes * num_out * depth  (inputs and results are 2 to 6 % of that at 128 rows, and are not counted)

at the bandwidth of a kernel that only reads, measured in the same run: that is the roofline.

Method: as in `cuda_kernels.bench`: medians over replays of a graph with one call per set of weights, as many sets as
are several times the second-level cache. Of every size, `DecodeOps` as in a decode step, and the faster of cuBLAS's W
x^T and x W^T; with gates, including the activation. Launches of this project overlap, in the graph as in a step. For
every implementation and size one result is compared with float64. Where the wgmma GEMM is used, also the time of each
of its cluster sizes, by which tests/test_gemm_wgmma.py judges its choice.
Writes `assets/results/products_<gpu>.json`.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cuda_kernels.bench.benchmark import add_options, begin_benchmark, microseconds, positive
from cuda_kernels.bench.whole_file import write_whole
from cuda_kernels.gemm_wgmma import BATCH_TILES, CLUSTER_SIZES, WgmmaGemm, batch_tile_of
from cuda_kernels.layers import DecodeOps

ROWS = (1, 8, 16, 32, 64, 96, 128)
MIN_SET_BYTES = 4 * 64e6
DTYPE = torch.bfloat16
# Of the greatest exact value; rounded to bfloat16 twice or three times.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Weight:
    """One of a model's weight matrices, or several that are multiplied in one GEMM."""

    name: str
    num_out: int
    depth: int
    is_gated: bool = False

    @property
    def num_bytes(self) -> int:
        """In 16 bits."""
        return 2 * self.num_out * self.depth


WEIGHTS = (
    Weight("7B queries, keys, values", 12288, 4096),
    Weight("7B attention's output", 4096, 4096),
    Weight("7B gate and up, activation", 22016, 4096, is_gated=True),
    Weight("7B down", 4096, 11008),
    Weight("7B head", 32000, 4096),
    Weight("Llama-3-8B queries, keys, values", 6144, 4096),
    Weight("Llama-3-8B gate and up, activation", 28672, 4096, is_gated=True),
    Weight("Llama-3-8B down", 4096, 14336),
    Weight("13B attention's output", 5120, 5120),
    Weight("13B gate and up, activation", 27648, 5120, is_gated=True),
    Weight("33B gate and up, activation", 35840, 6656, is_gated=True),
)


class GemmCase:
    """One size's inputs.

    Args:
        weight: the matrix.
        rows: of the batch.
        seed: of all values.
        ops: a decode step's operations.
    """

    def __init__(self, weight: Weight, rows: int, seed: int, ops: DecodeOps) -> None:
        self.weight, self.rows, self._ops = weight, rows, ops
        # Between cuBLAS's GEMMs, which request no carveout of shared memory, activations do not either.
        self._beside_cublas = DecodeOps(DTYPE)
        generator = torch.Generator("cuda").manual_seed(seed)
        make = lambda *shape: torch.randn(shape, generator=generator, device="cuda", dtype=DTYPE)  # noqa: E731
        self.x = make(rows, weight.depth)
        self.sets = [
            make(weight.num_out, weight.depth) / weight.depth**0.5
            for _ in range(math.ceil(MIN_SET_BYTES / weight.num_bytes) + 1)
        ]
        width = weight.num_out // 2 if weight.is_gated else weight.num_out
        self.out = torch.empty(rows, width, device="cuda", dtype=DTYPE)

    def ours(self, matrix: torch.Tensor) -> torch.Tensor:
        """As a decode step does it."""
        if not self.weight.is_gated:
            return self._ops.linear(self.x, matrix)
        self._ops.gated_linear(self.x, matrix, self.out)
        return self.out

    def cublas(self, matrix: torch.Tensor) -> torch.Tensor:
        """x W^T, and the activation behind it."""
        return self._activated(F.linear(self.x, matrix))

    def cublas_transposed(self, matrix: torch.Tensor) -> torch.Tensor:
        """W x^T; with gates for even numbers of rows only, without them the result stays transposed."""
        product = torch.mm(matrix, self.x.t())
        if not self.weight.is_gated:
            return product.t()
        self._beside_cublas.gated_silu_transposed(product.view(2, -1, self.rows), self.out)
        return self.out

    def _activated(self, product: torch.Tensor) -> torch.Tensor:
        if not self.weight.is_gated:
            return product
        self._beside_cublas.gated_silu(product.view(self.rows, 2, -1), self.out)
        return self.out

    def in_clusters(self, num_blocks: int, replays: int) -> dict[str, float] | None:
        """The wgmma GEMM in clusters of so many blocks; None: the GPU has no room for one."""
        gemm = WgmmaGemm(DTYPE, self.x.device, (num_blocks,))
        number = gemm.max_clusters(batch_tile_of(self.rows), num_blocks)
        if not number:
            return None

        def in_cluster(matrix: torch.Tensor) -> torch.Tensor:
            gemm(self.x, matrix, None, self.out, self.weight.is_gated)
            return self.out

        return {"at_a_time": number, "us": min(self.microseconds(in_cluster, replays) for _ in range(2))}

    def microseconds(self, gemm: Callable[[torch.Tensor], torch.Tensor], replays: int) -> float:
        """Time of one GEMM; its result is checked.

        Raises:
            AssertionError: it is wrong.
        """
        self.out.fill_(math.nan)
        found = gemm(self.sets[0]).double()
        exact = F.linear(self.x.double(), self.sets[0].double())
        if self.weight.is_gated:
            gate, up = exact.chunk(2, -1)
            exact = F.silu(gate) * up
        error = ((found - exact).abs().max() / exact.abs().max()).item()
        if not error < TOLERANCE:
            raise AssertionError(f"{self.weight.name}, {self.rows} rows: off by {error} of the greatest value")
        return microseconds([lambda matrix=matrix: gemm(matrix) for matrix in self.sets], replays)


def measure(weight: Weight, rows: int, arguments: argparse.Namespace, tb_per_s: float) -> dict:
    """One line of the table."""
    ops = DecodeOps(DTYPE, batch=rows, gemm_shapes=[(weight.num_out, weight.depth)])
    case = GemmCase(weight, rows, arguments.seed, ops)
    peers = {"x W^T": case.cublas}
    if rows % 2 == 0 or not weight.is_gated:
        peers["W x^T"] = case.cublas_transposed
    # Twice, in turn, because the work before a measurement may slow it.
    ours, cublas = math.inf, dict.fromkeys(peers, math.inf)
    for _ in range(2):
        ours = min(ours, case.microseconds(case.ours, arguments.replays))
        for name, peer in peers.items():
            cublas[name] = min(cublas[name], case.microseconds(peer, arguments.replays))
    line = {"rows": rows, "us": ours, "cublas_us": cublas, "floor_us": weight.num_bytes / tb_per_s / 1e6}
    if rows in BATCH_TILES and WgmmaGemm(DTYPE, ops.device).serves(rows, weight.num_out, weight.depth):
        line["clusters"] = {number: case.in_clusters(number, arguments.replays) for number in CLUSTER_SIZES}
    return line


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rows", type=positive, nargs="+", default=ROWS, help="of the batch (default: %(default)s)")
    add_options(parser, "products")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    origin, out, limit = begin_benchmark("products", arguments.out)
    results: dict = {"read_stream_tb_per_s": limit, "seed": arguments.seed, "weights": []}
    for weight in WEIGHTS:
        lines = []
        results["weights"].append({"name": weight.name, "shape": [weight.num_out, weight.depth], "measured": lines})
        for rows in arguments.rows:
            lines.append(measure(weight, rows, arguments, limit))
            ours, best, floor = lines[-1]["us"], min(lines[-1]["cublas_us"].values()), lines[-1]["floor_us"]
            print(f"{weight.name}, {rows} rows: {ours:.1f} us, cuBLAS {best:.1f}, floor {floor:.1f}", flush=True)
            torch.cuda.empty_cache()
        # Written after every matrix, so that an interrupted benchmark keeps its finished matrices.
        write_whole(out, json.dumps(results | origin, indent=1) + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
