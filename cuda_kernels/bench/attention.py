"""The attention kernel against its peers: `python -m cuda_kernels.bench`.

Decoding is memory-bound: a query does two operations per key or value byte that it reads (times the heads of a group),
a GPU can do hundreds, so the time is bytes over bandwidth. The bytes are

    keys and values of the visible tokens, once per key/value head  +  queries, outputs and the interval table

and the bandwidth is what a kernel that does nothing but read reaches on this GPU, measured in the same run. Their
quotient is the roofline: nothing that reads what was selected gets far beyond it.

Method: every figure is the median over replays of a CUDA graph that calls the kernel once per set of inputs, divided by
the number of sets. There are as many sets as it takes to be several times the second-level cache, each with random
values and intervals of its own. All of a shape's kernels run in one process, ours and FlashInfer's case by case. These
two and dense attention are measured twice, with something else in between, and the faster median counts: what ran
before slows some launches by up to a sixth for some ten milliseconds (FlexAttention: once for each of two ways, the
faster counts). From sm_90 on our launches overlap, in the graph as in a decode step: one starts while the one before
ends, which hides 1 to 2 us of a launch; no peer's do. Of every case one answer is compared with PyTorch's, in float32.
Writes `assets/results/kernel_<gpu>.json`.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence

import torch

from cuda_kernels.bench.benchmark import add_options, begin_benchmark
from cuda_kernels.bench.break_even import break_even, measure_contexts
from cuda_kernels.bench.selections import ALL, SELECTIONS, Selection
from cuda_kernels.bench.shape_bench import ShapeBench
from cuda_kernels.bench.shapes import DENSITIES, FLEX_SELECTIONS, FLEX_SHAPES, SHAPES, Shape, memory_text
from cuda_kernels.bench.whole_file import write_whole


def cases(selections: Sequence[Selection]) -> Iterator[tuple[Selection, float]]:
    """The cases of a shape: every selection at every density, and the whole context."""
    yield ALL, 1.0
    for density in DENSITIES:
        for selection in selections:
            yield selection, density


def measure_shape(shape: Shape, arguments: argparse.Namespace, limit_tb_per_s: float) -> dict:
    """All figures of one shape."""
    bench = ShapeBench(shape, arguments.seed, arguments.replays)
    dense = bench.dense()
    rows = []
    for selection, density in cases([s for s in SELECTIONS if s.name in arguments.selections]):
        ours = bench.ours(selection, density)
        row = {"selection": selection.name, "density": density, "ours": ours}
        ours["tb_per_s"] = ours["bytes"] / ours["us"] / 1e6
        ours["share_of_limit"] = ours["tb_per_s"] / limit_tb_per_s
        if "us" in dense["cudnn"]:
            ours["times_cudnn_dense"] = dense["cudnn"]["us"] / ours["us"]
        if selection.is_blocks and "flashinfer" in arguments.peers:
            row["flashinfer"] = bench.flashinfer(selection, density)
        if "flex" in arguments.peers and shape in FLEX_SHAPES and density == 0.5 and selection.name in FLEX_SELECTIONS:
            row["flex"] = bench.flex(selection, density)
        rows.append(row)
        print(f"  {selection.name:14s} {100 * density:5.1f} %  {summary(row)}", flush=True)
    # Once more at the end, as clocks may have drifted meanwhile.
    for name, figures in bench.dense().items():
        if figures.get("us", math.inf) < dense[name].get("us", math.inf):
            dense[name] = figures
    for row in rows:
        if "us" in dense["cudnn"]:
            row["ours"]["times_cudnn_dense"] = dense["cudnn"]["us"] / row["ours"]["us"]
    return {"shape": vars(shape) | {"name": shape.name}, "dense": dense, "cases": rows}


def summary(row: dict) -> str:
    """One line of figures."""
    ours = row["ours"]
    times_dense = ours.get("times_cudnn_dense", math.nan)
    text = f"{ours['us']:8.1f} us  {ours['tb_per_s']:.2f} TB/s  {times_dense:5.2f}x cuDNN dense"
    text += f"  plan {ours['plan_us']:.1f} us"
    for peer in ("flashinfer", "flex"):
        if peer in row:
            text += f"  {peer} " + (f"{row[peer]['us']:.1f} us" if "us" in row[peer] else row[peer]["unavailable"][:60])
    return text


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=memory_text(), formatter_class=formatter)
    names = [selection.name for selection in SELECTIONS]
    number = {"type": int, "choices": range(len(SHAPES)), "metavar": "NUMBER"}
    parser.add_argument("--shapes", nargs="+", **number, help="those to measure, by number (default: all)")
    name = {"choices": names, "metavar": "NAME", "default": names}
    parser.add_argument("--selections", nargs="+", **name, help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--peers", nargs="*", default=["flashinfer", "flex"], choices=["flashinfer", "flex"])
    add_options(parser, "kernel")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    origin, out, limit = begin_benchmark("kernel", arguments.out)
    shapes = [SHAPES[i] for i in arguments.shapes] if arguments.shapes else SHAPES
    measured: list[dict] = []
    for number, shape in enumerate(shapes, start=1):
        started = time.perf_counter()
        print(f"[{number}/{len(shapes)}] {shape.name}", flush=True)
        measured.append(measure_shape(shape, arguments, limit))
        torch.cuda.empty_cache()
        results = {"read_stream_tb_per_s": limit, "shapes": measured, "break_even": break_even(measured)}
        # Written after every shape, so that an interrupted benchmark keeps its finished shapes.
        write_whole(out, json.dumps(results | {"seed": arguments.seed} | origin, indent=1) + "\n")
        print(f"  {time.perf_counter() - started:.0f} s, wrote {out}", flush=True)
    if arguments.shapes is None:
        print("break-even contexts", flush=True)
        results["break_even_context"] = measure_contexts(arguments)
        write_whole(out, json.dumps(results | {"seed": arguments.seed} | origin, indent=1) + "\n")


if __name__ == "__main__":
    main()
