"""Decoding at full size: `python -m training.bench_engine` -> assets/results/engine_<gpu>.json.

Physics. A decode step reads every weight once, and the keys and values that its rows may see. At batch 1 nearly all
bytes are weights; with every additional row, attention's share grows, and with it the gain of self-selection. The floor
of a step is the time of those bytes at the rate of a kernel that only reads, measured in the same run; the speedup that
the bytes predict is the ratio of two floors.

Method. The shipped model solves expressions; its output is then forced through models of other shapes with random
weights: shapes, visibility, lengths and timing are real, but the text is not their own. Dense and self-selected steps
alternate in one run, over the same cache. Of a text, every STRIDE-th step is run and timed (by events on the device),
and stands for the steps in between, in which only the trackers advance. If a cache does not fit, pairs of layers share
one (the results say so): as many bytes are read, from memory that is much larger than any cache on the chip.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import weights_digest
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.paths import ADAPTERS as ADAPTER_FOLDERS
from selfspan_core.spans.protocol import Markers
from selfspan_core.tasks.arithmetic.tree import MAX_OPERANDS
from training.bench.engine_cells import fixed_cell, long_cell, profile_cell, replay_cell, transformers_cell
from training.bench.engine_shipped import ADAPTERS, record_all, same_tokens, shipped_weights
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
from training.bench.shapes import ROOM_FOR_THE_REST, SHAPES, Machine, parameters, random_weights

STRIDE = 16
# The seed of `training.evaluate`: the arithmetic table has the reference's answers to the same expressions.
SEED = 2024
FIXED_CONTEXT = 2048
LEAST_CONTEXT = 200
LONGEST_STRIDE = 64
PROFILED_BATCHES = (1, 32)
# Lane after lane, again and again: with many requests the host is the limit, and its speed varies.
SHIPPED_ROUNDS = 3
REHEARSAL = (
    "python -m training.bench_engine --device cpu --shapes tiny --parts fixed replay long --operands 4 --answered"
    " --num 2 --same 2 --batches 2 --fixed-batches 2 --fixed-context 256 --long 256x2 --shipped-batches 1"
)
# Batch, and whether with a static cache and torch.compile.
TRANSFORMERS_RUNS = ((1, False), (32, False), (1, True))


def measure_shipped(arguments: argparse.Namespace, results: Results, device: torch.device) -> dict:
    """The shipped model's own speed and answers; its texts, per number of operands, are replayed afterwards."""
    shipped = {adapter: shipped_weights(adapter, device) for adapter in ADAPTERS}
    replays, answers = {}, {}
    for operands in sorted({*arguments.operands, *arguments.answered}):
        made, right = record_all(shipped, operands, arguments.num, arguments.record_batch, arguments.seed)
        if operands in arguments.operands:
            replays[operands] = {"span": made["span-sparse"].recordings, "plain": made["plain-dense"].recordings}
        answers[operands] = {
            lane: {"right": right[lane], "n": arguments.num, "tokens_per_second": one.tokens_per_second}
            for lane, one in made.items()
        }
    results.add("answers", {"batch": arguments.record_batch, "operands": answers})
    results.add("same_tokens", same_tokens(shipped["span"], arguments.same, arguments.record_batch, arguments.seed))
    speed = []
    for batch in arguments.shipped_batches:
        num, operands = max(8, 2 * batch), arguments.operands[-1]
        made = [record_all(shipped, operands, num, batch, arguments.seed + 1)[0] for _ in range(SHIPPED_ROUNDS)]
        medians = {lane: statistics.median(one[lane].tokens_per_second for one in made) for lane in made[0]}
        speed.append({"batch": batch, "n": num, "rounds": SHIPPED_ROUNDS} | medians)
    digests = {adapter: weights_digest(ADAPTER_FOLDERS / name) for adapter, name in ADAPTERS.items()}
    results.add("shipped", {"operands": arguments.operands[-1], "speed": speed, "weights_sha256": digests})
    return {"markers": shipped["span"].model.tokenizer.markers, "replays": replays}


def measure_shape(shape: str, arguments: argparse.Namespace, results: Results, machine: Machine, shipped: dict) -> None:
    """All cells of one shape."""
    if 2 * parameters(shape) + ROOM_FOR_THE_REST > machine.memory_bytes:
        results.add_cell(
            shape, "replay", {"unavailable": f"{2 * parameters(shape) / 1e9:.0f} GB of weights do not fit"}
        )
        return
    markers, replays = shipped["markers"], shipped["replays"]
    longest = max([4096, arguments.fixed_context, *(context for context, _ in arguments.long)])
    weights = random_weights(shape, machine.device, longest + 64)
    free_memory(machine)
    for cell in cells(shape, arguments, weights, markers, machine, replays):
        part, figures = cell()
        results.add_cell(shape, part, with_peak(figures, machine))
        free_memory(machine)


def measure_transformers(shape: str, arguments: argparse.Namespace, results: Results, machine: Machine) -> None:
    """transformers' own generation, last of all: compiling may take long."""
    weights = random_weights(shape, machine.device, max(4096, arguments.fixed_context + 64))
    free_memory(machine)
    for batch, static in TRANSFORMERS_RUNS:
        cell = transformers_cell(weights, batch, arguments.fixed_context, static)
        results.add_cell(shape, "transformers", with_peak(cell, machine))
        free_memory(machine)


def with_peak(cell: dict, machine: Machine) -> dict:
    """A cell with the peak memory since `free_memory`, weights included."""
    if machine.device.type != "cuda" or "unavailable" in cell:
        return cell
    return cell | {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}


def cells(
    shape: str,
    arguments: argparse.Namespace,
    weights: DecodeWeights,
    markers: Markers,
    machine: Machine,
    replays: dict,
) -> Iterator[Callable[[], tuple[str, dict]]]:
    """The cells of a shape in the order of measurement: (part, cell)."""
    for batch in arguments.fixed_batches if "fixed" in arguments.parts else ():
        yield lambda batch=batch: ("fixed", fixed_cell(weights, markers, machine, batch, arguments.fixed_context))
    # The first shape in full, the others only in the most important cells.
    is_first = shape == arguments.shapes[0]
    for operands in arguments.operands[0 if is_first else -1 :] if "replay" in arguments.parts else ():
        for batch in arguments.batches[:: 1 if is_first else 2]:
            yield lambda o=operands, b=batch: (
                "replay",
                {"operands": o} | replay_cell(weights, markers, machine, replays[o], b, arguments.stride),
            )
    for context, batch in arguments.long if "long" in arguments.parts else ():
        yield lambda c=context, b=batch: ("long", long_cell(weights, markers, machine, b, c))
    if "profile" in arguments.parts and machine.device.type == "cuda":
        for batch in PROFILED_BATCHES:
            operands = arguments.operands[0]
            recordings = list(itertools.islice(itertools.cycle(replays[operands]["span"]), batch))
            yield lambda o=operands, r=recordings: (
                "profile",
                {"operands": o} | profile_cell(weights, markers, machine, r),
            )


def long_of(text: str) -> tuple[int, int]:
    """`32768x4` -> (32768, 4)."""
    context, _, batch = text.partition("x")
    if not (context.isdigit() and batch.isdigit()) or int(context) < LEAST_CONTEXT or int(batch) < 1:
        raise argparse.ArgumentTypeError(f"CONTEXTxBATCH, like 32768x4, from {LEAST_CONTEXT} tokens on; not {text!r}")
    return int(context), int(batch)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"Without a GPU: {REHEARSAL}")
    shapes, parts = ["7B", "Llama-3-8B", "13B", "33B", "65B"], ("fixed", "replay", "long", "profile", "transformers")
    add = parser.add_argument
    add(
        "--shapes", nargs="*", default=shapes, choices=list(SHAPES), help="of models; those that do not fit are skipped"
    )
    add("--parts", nargs="*", default=parts, choices=parts, help="what is measured of a shape")
    add("--batches", type=count, nargs="*", default=[1, 8, 32, 64, 128], help="rows, for replayed texts")
    add("--fixed-batches", type=count, nargs="*", default=[1, 8, 32], help="rows, for dense steps of one length")
    add("--fixed-context", type=count, default=FIXED_CONTEXT, help="tokens that those read per row")
    add("--operands", type=int, nargs="+", default=[24, 48, 64], help="numbers in a replayed expression")
    longest = [(8192, 16), (32768, 4), (32768, 16)]
    add("--long", type=long_of, nargs="*", default=longest, help="CONTEXTxBATCH, for long contexts")
    add("--answered", type=int, nargs="*", default=[8], help="more numbers of operands, for answers alone")
    add("--num", type=count, default=500, help="expressions per number of operands")
    same = "expressions whose tokens are compared with the model's own forward pass"
    add("--same", type=count, default=500, help=same)
    add("--record-batch", type=count, default=128, help="rows that answer expressions at a time")
    add("--shipped-batches", type=count, nargs="*", default=[1, 16, 64], help="rows, for the shipped model's speed")
    stride = f"of a text, one step in so many is measured; at most {LONGEST_STRIDE}"
    add("--stride", type=count, default=STRIDE, help=stride)
    add("--seed", type=int, default=SEED, help="of the expressions; by default those of the arithmetic table")
    add_device(parser)
    add("--out", type=Path, help="default: assets/results/engine_<gpu>.json; on a CPU runs/engine_cpu.json")
    arguments = parser.parse_args(argv)
    check_rehearsal(parser, arguments, REHEARSAL)
    numbers = [*arguments.operands, *arguments.answered]
    if min(numbers) < 2 or max(numbers) > MAX_OPERANDS:
        parser.error(f"--operands, --answered: 2 to {MAX_OPERANDS}")
    if arguments.stride > LONGEST_STRIDE:
        parser.error(f"--stride is at most {LONGEST_STRIDE}: a text has to have several samples")
    check_out(parser, arguments.out)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    arguments = parse_arguments(argv)
    device = torch.device(arguments.device)
    machine = find_machine(device)
    # Milliseconds of steps are by the device's clock, the shipped model's tokens per second by the wall clock.
    results, out = begin_results(arguments, "engine", machine, {"stride": arguments.stride})
    shipped = measure_shipped(arguments, results, device)
    for shape in arguments.shapes:
        free_memory(machine)
        measure_shape(shape, arguments, results, machine, shipped)
    if "transformers" in arguments.parts and device.type == "cuda" and arguments.shapes:
        free_memory(machine)
        measure_transformers(arguments.shapes[0], arguments, results, machine)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
