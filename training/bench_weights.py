"""Steps with weights of fewer bits: `python -m training.bench_weights` -> assets/results/weights_<gpu>.json.

Physics. A decode step reads every weight, and of keys and values what its rows may see. Reading less of the latter
saves the larger a part, the fewer bytes weights have: with half of them, what bytes say of a tenth read at batch 1 and
8,192 tokens grows from 1.28 to 1.55 times at the 7B shape. The floor is the time of those bytes at the rate of a kernel
that only reads, measured in the same run.

Method. One run has all kinds of weights, random ones of a published shape: bfloat16, int8 by this project's kernel (for
at most 16 rows: larger cells are left out), fp8 by PyTorch's scaled product with both sides rounded row by row. Steps
are dense, or bodies that read a tenth, a quarter or half of the context, as in `training.bench_engine`; medians by the
device's clock.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from cuda_kernels.int8_linear import Int8Linear
from cuda_kernels.layers import SMALL_GEMM_MAX_BATCH
from selfspan_core.models.device_matrices import Fp8DeviceStore, Int8DeviceStore
from selfspan_core.models.weights import Store
from selfspan_core.paths import BASE
from training.bench.engine_cells import long_cell
from training.bench.results import (
    Results,
    add_device,
    begin_results,
    check_out,
    check_rehearsal,
    count,
    find_machine,
    free_memory,
)
from training.bench.shapes import SHAPES, Machine, random_weights
from training.bench_engine import long_of

KINDS = ("bfloat16", "int8", "fp8")
CELLS = [(2048, 1), (8192, 1), (8192, 16), (8192, 64), (32768, 4)]
REHEARSAL = "python -m training.bench_weights --device cpu --shapes tiny --kinds bfloat16 --cells 256x2"


def store_of(kind: str, device: torch.device) -> Store | None:
    """How a kind of weights is stored; None: as they are."""
    if kind == "int8":
        return Int8DeviceStore(Int8Linear(torch.bfloat16, device))
    return Fp8DeviceStore() if kind == "fp8" else None


def measure(arguments: argparse.Namespace, results: Results, machine: Machine) -> None:
    """All cells of all shapes and kinds."""
    from selfspan_core.models.tokenizer import SpanTokenizer

    markers = SpanTokenizer.load(BASE).markers
    longest = max(context for context, _ in arguments.cells) + 128
    for shape in arguments.shapes:
        for kind in arguments.kinds:
            free_memory(machine)
            weights = random_weights(shape, machine.device, longest, store_of(kind, machine.device))
            for context, batch in arguments.cells:
                if kind != "int8" or batch <= SMALL_GEMM_MAX_BATCH:
                    free_memory(machine)
                    cell = long_cell(weights, markers, machine, batch, context)
                    results.add_cell(shape, "steps", {"weights": kind, "gigabytes": weights.num_bytes / 1e9} | cell)
            del weights


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"Without a GPU: {REHEARSAL}")
    parser.add_argument("--shapes", nargs="+", default=["7B", "Llama-3-8B"], choices=list(SHAPES), help="of models")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of weights")
    parser.add_argument("--cells", type=long_of, nargs="+", default=CELLS, help="CONTEXTxROWS, like 8192x16")
    parser.add_argument("--seed", type=count, default=2024, help="of the weights")
    add_device(parser)
    parser.add_argument("--out", type=Path, help="default: assets/results/weights_<gpu>.json")
    arguments = parser.parse_args(argv)
    check_rehearsal(parser, arguments, REHEARSAL)
    check_out(parser, arguments.out)
    torch.manual_seed(arguments.seed)
    machine = find_machine(torch.device(arguments.device))
    results, out = begin_results(arguments, "weights", machine, {})
    measure(arguments, results, machine)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
