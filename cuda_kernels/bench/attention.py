"""The attention kernel against its peers: `python -m cuda_kernels.bench`.

Physics: a decode query does two operations per key or value byte that it reads (times the heads of a group), a GPU can
do hundreds, so the time is bytes over bandwidth. The bytes are

    keys and values of the visible tokens, once per key/value head  +  queries, outputs and the interval table

and the bandwidth is what a kernel that does nothing but read reaches on this GPU, measured in the same run. Their
quotient is the limit: nothing that reads what was selected gets far beyond it.

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
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

from cuda_kernels.attention import SpanAttention
from cuda_kernels.bench import peers
from cuda_kernels.bench.benchmark import READ_STREAM_BYTES, add_options, begin_benchmark, microseconds
from cuda_kernels.bench.selections import ALL, SELECTIONS, Selection, choose, kept_blocks

BYTES_PER_ELEMENT = 2
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75)
# What one replay reads at the lowest density, at least: several times the second-level cache (50 MB on Hopper).
LEAST_BYTES = 4 * 64e6
# How far an answer may be from that in float32: rounded to bfloat16, of values that are at most about 4.
TOLERANCE = 0.03
MAX_SETS = 128


@dataclass(frozen=True)
class Shape:
    """Of one decode step's attention."""

    num_heads: int
    num_kv_heads: int
    batch: int
    context: int
    head_dim: int = 128

    @property
    def name(self) -> str:
        """For tables: `32/8, 8 x 4096, d 128`."""
        return f"{self.num_heads}/{self.num_kv_heads}, {self.batch} x {self.context}, d {self.head_dim}"

    def cache_bytes(self, num_tokens: float) -> float:
        """Keys and values of so many tokens, over all rows together."""
        return 2 * BYTES_PER_ELEMENT * self.num_kv_heads * self.head_dim * num_tokens

    @property
    def dense_bytes(self) -> float:
        """Keys and values of the whole context."""
        return self.cache_bytes(self.batch * self.context)

    @property
    def vector_bytes(self) -> int:
        """Queries and outputs."""
        return 2 * BYTES_PER_ELEMENT * self.batch * self.num_heads * self.head_dim


SHAPES = (
    *(
        Shape(32, kv, batch, context)
        for kv in (32, 8)
        for batch, context in ((1, 16384), (8, 4096), (32, 2048), (32, 8192))
    ),
    Shape(32, 32, 64, 2048),
    Shape(32, 8, 64, 8192),
    Shape(32, 8, 4, 32768),
    Shape(32, 8, 1, 131072),
    Shape(32, 4, 8, 8192),
    Shape(32, 32, 32, 2048, 64),
    Shape(32, 8, 32, 2048, 64),
)


# FlexAttention is compiled anew for every shape and block size, which takes seconds: a few stand for all.
FLEX_SELECTIONS = ("random 16", "random 128")
FLEX_SHAPES = (Shape(32, 32, 32, 8192), Shape(32, 8, 32, 8192))
# From which context on reading less pays: heads, key/value heads and batch; contexts and shares that are kept.
FAMILIES = ((32, 32, 1), (32, 8, 1), (32, 32, 32), (32, 8, 32))
CONTEXTS = (512, 1024, 2048, 4096, 8192)
FAMILY_DENSITIES = (0.25, 0.5)
FAMILY_SELECTION = Selection("random", 16)
MAX_FAMILY_SETS = 512


def num_sets(shape: Shape, least_density: float = min(DENSITIES), max_sets: int = MAX_SETS) -> int:
    """How many sets of inputs a shape is measured with: two or more, so that no cache holds what a replay reads."""
    return min(max_sets, max(2, math.ceil(LEAST_BYTES / (least_density * shape.dense_bytes))))


def gpu_bytes(shape: Shape) -> float:
    """GPU memory that a shape takes, roughly: all sets, FlashInfer's copies of them in pages, and its workspaces."""
    return num_sets(shape) * (2 * shape.dense_bytes + peers.FLASHINFER_WORKSPACE_BYTES)


class Bench:
    """One shape's inputs and clock.

    Args:
        shape: what is measured.
        seed: of values and intervals.
        replays: per figure.
        least_density: of what is measured; decides with the shape how many sets of inputs there are.
        max_sets: of inputs, at most.
    """

    def __init__(
        self,
        shape: Shape,
        seed: int,
        replays: int,
        least_density: float = min(DENSITIES),
        max_sets: int = MAX_SETS,
    ) -> None:
        self.shape, self.replays = shape, replays
        self.generator = torch.Generator("cuda").manual_seed(seed)
        self.sets = [self._tensors() for _ in range(num_sets(shape, least_density, max_sets))]

    def _tensors(self) -> peers.Tensors:
        shape = self.shape
        make = lambda heads, *rest: torch.randn(  # noqa: E731
            shape.batch, heads, *rest, shape.head_dim, generator=self.generator, device="cuda", dtype=torch.bfloat16
        )
        cache = (shape.num_kv_heads, shape.context)
        return peers.Tensors(make(shape.num_heads), make(*cache), make(*cache))

    def microseconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Median time of one call, of which there is one per set."""
        return microseconds(calls, self.replays)

    def dense(self) -> dict:
        """PyTorch's dense attention by the two backends that serve decoding."""
        backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
        figures = {}
        for name, backend in backends.items():
            calls = [peers.sdpa_dense(one, backend) for one in self.sets]
            figures[name] = attempt(lambda calls=calls: {"us": self.microseconds(calls)})
        return figures

    def ours(self, selection: Selection, density: float) -> dict:
        """The kernel on fresh intervals, with and without planning."""
        shape = self.shape
        tables = [choose(selection, density, shape.batch, shape.context, self.generator) for _ in self.sets]
        served = [self._served(table) for table in tables]
        outs = [torch.empty_like(one.query) for one in self.sets]
        attend = [_call(*x) for x in zip(served, self.sets, outs, strict=True)]
        plan = [_plan(one, table, shape.context) for one, table in zip(served, tables, strict=True)]
        both = [_in_turn(*pair) for pair in zip(plan, attend, strict=True)]
        visible = statistics.fmean(float((table[0][..., 1] - table[0][..., 0]).sum()) for table in tables)
        num_spans = tables[0][0].shape[1]
        num_bytes = shape.cache_bytes(visible) + shape.vector_bytes + 8 * num_spans * shape.batch
        # Alone, with its plan, the plan alone; and once more.
        us, us_with_plan, plan_us = (
            min(pair)
            for pair in zip(*([self.microseconds(x) for x in (attend, both, plan)] for _ in range(2)), strict=True)
        )
        self._check(outs[0], tables[0][0])
        return {
            "us": us,
            "us_with_plan": us_with_plan,
            "plan_us": plan_us,
            "kept": visible / (shape.batch * shape.context),
            "spans_per_row": num_spans,
            "bytes": num_bytes,
        }

    def _served(self, table: tuple[torch.Tensor, torch.Tensor]) -> SpanAttention:
        shape = self.shape
        served = SpanAttention(
            batch=shape.batch,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            max_spans=table[0].shape[1],
        )
        served.plan(*table, shape.context)
        return served

    def flex(self, selection: Selection, density: float) -> dict:
        """FlexAttention over the same kind of blocks, in the faster of two ways to say which."""
        kept = [self._blocks(selection, density) for _ in self.sets]
        ways = [
            attempt(lambda way=way: {"us": self.microseconds(peers.flex(self.sets, kept, selection, way))})
            for way in (False, True)
        ]
        return min(ways, key=lambda figures: figures.get("us", math.inf))

    def _check(self, out: torch.Tensor, intervals: torch.Tensor) -> None:
        """Compare the first set's first and last row with attention by PyTorch in float32."""
        one = self.sets[0]
        for row in (0, self.shape.batch - 1):
            starts, ends = intervals[row].long().unbind(-1)
            before = (ends - starts).cumsum(0) - (ends - starts)
            seen = torch.repeat_interleave(starts - before, ends - starts)
            seen += torch.arange(len(seen), device="cuda")
            keys, values = one.keys[row, :, seen].float(), one.values[row, :, seen].float()
            query = one.query[row].float().unflatten(0, (self.shape.num_kv_heads, -1))
            scores = torch.einsum("hgd,htd->hgt", query, keys) * self.shape.head_dim**-0.5
            expected = torch.einsum("hgt,htd->hgd", scores.softmax(-1), values).flatten(0, 1)
            error = (out[row].float() - expected).abs().max().item()
            if not error < TOLERANCE:
                raise AssertionError(f"row {row} of {self.shape.name} is off by {error}")

    def flashinfer(self, selection: Selection, density: float) -> dict:
        """FlashInfer over the same kind of pages, the faster of its kernels, and what planning takes on the host.

        Both are tried for every grouping; one that refuses it does not count.
        """
        figures = [self._flashinfer(selection, density, tensor_cores) for tensor_cores in (True, False, True, False)]
        return min(figures, key=lambda one: one.get("us", math.inf))

    def _flashinfer(self, selection: Selection, density: float, tensor_cores: bool) -> dict:
        blocks = [self._blocks(selection, density) for _ in self.sets]

        def measure() -> dict:
            made = [
                peers.flashinfer(one, kept, selection.tokens, tensor_cores)
                for one, kept in zip(self.sets, blocks, strict=True)
            ]
            made[0].plan()  # compiles
            plans = []
            for one in made:
                torch.cuda.synchronize()
                begin = time.perf_counter()
                one.plan()
                torch.cuda.synchronize()
                plans.append(1e6 * (time.perf_counter() - begin))
            us = self.microseconds([one.run for one in made])
            starts = blocks[0] * selection.tokens
            self._check(made[0].run(), torch.stack([starts, starts + selection.tokens], -1))
            return {"us": us, "plan_us": statistics.median(plans), "tensor_cores": tensor_cores}

        return attempt(measure)

    def _blocks(self, selection: Selection, density: float) -> torch.Tensor:
        return kept_blocks(selection, density, self.shape.batch, self.shape.context, self.generator)


def _call(served: SpanAttention, one: peers.Tensors, out: torch.Tensor) -> Callable[[], object]:
    return lambda: served(one.query, one.keys, one.values, out=out)


def _plan(served: SpanAttention, table: tuple[torch.Tensor, torch.Tensor], context: int) -> Callable[[], object]:
    return lambda: served.plan(*table, context)


def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> Callable[[], object]:
    def both() -> None:
        first()
        second()

    return both


def attempt(measure: Callable[[], dict]) -> dict:
    """Figures, or why there are none: a peer that is missing or refuses a case does not end the benchmark."""
    try:
        return measure()
    except Exception as error:  # a peer's errors are of any kind
        return {"unavailable": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


def cases(selections: Sequence[Selection]) -> Iterator[tuple[Selection, float]]:
    """What is measured per shape: every selection at every density, and everything kept."""
    yield ALL, 1.0
    for density in DENSITIES:
        for selection in selections:
            yield selection, density


def measure_shape(shape: Shape, arguments: argparse.Namespace, limit_tb_per_s: float) -> dict:
    """All figures of one shape."""
    bench = Bench(shape, arguments.seed, arguments.replays)
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


def break_even(shapes: Sequence[dict]) -> list[dict]:
    """Per shape and selection: the largest density at which the kernel, plan included, beats cuDNN's dense attention.

    Interpolated linearly between the densities measured; None where it never does.
    """
    found = []
    for measured in shapes:
        dense = measured["dense"]["cudnn"].get("us")
        if not dense:
            continue
        names = dict.fromkeys(row["selection"] for row in measured["cases"] if row["selection"] != ALL.name)
        for name in names:
            points = sorted(
                (row["ours"]["kept"], row["ours"]["us_with_plan"])
                for row in measured["cases"]
                if row["selection"] in (name, ALL.name) and "us" in row["ours"]
            )
            found.append({"shape": measured["shape"]["name"], "selection": name, "density": _crossing(points, dense)})
    return found


def measure_contexts(arguments: argparse.Namespace) -> list[dict]:
    """Per family of shapes and density: the shortest context from which on the kernel, plan included, beats cuDNN."""
    found = []
    for num_heads, num_kv_heads, batch in FAMILIES:
        points = []
        for context in CONTEXTS:
            shape = Shape(num_heads, num_kv_heads, batch, context)
            bench = Bench(shape, arguments.seed, arguments.replays, min(FAMILY_DENSITIES), MAX_FAMILY_SETS)
            point = {"context": context, "cudnn_us": bench.dense()["cudnn"].get("us")}
            for density in FAMILY_DENSITIES:
                point[str(density)] = bench.ours(FAMILY_SELECTION, density)["us_with_plan"]
            points.append(point)
            del bench
            torch.cuda.empty_cache()
        family = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "batch": batch, "points": points}
        family["from_context"] = {str(density): first_context(points, str(density)) for density in FAMILY_DENSITIES}
        found.append(family)
        print(f"  {num_heads}/{num_kv_heads}, batch {batch}: pays from context {family['from_context']}", flush=True)
    return found


def first_context(points: Sequence[dict], density: str) -> int | None:
    """The shortest measured context from which on all are faster than cuDNN; None where not even the longest is."""
    first = None
    for point in reversed(points):
        if not point["cudnn_us"] or not point[density] or point[density] >= point["cudnn_us"]:
            break
        first = point["context"]
    return first


def _crossing(points: Sequence[tuple[float, float]], dense: float) -> float | None:
    below = [point for point in points if point[1] <= dense]
    if not below:
        return None
    index = points.index(below[-1])
    if index == len(points) - 1:
        return 1.0
    (x0, y0), (x1, y1) = points[index], points[index + 1]
    return round(x0 + (x1 - x0) * (dense - y0) / (y1 - y0), 3)


def memory_text() -> str:
    """What the shapes take of a GPU's memory, for --help."""
    lines = [f"  {i:2d}  {shape.name:28s} {gpu_bytes(shape) / 1e9:5.1f} GB" for i, shape in enumerate(SHAPES)]
    return "\n".join(
        [
            "shapes (heads/key-value heads, batch x context, head_dim), and roughly what they take of the GPU's",
            "memory, FlashInfer's pages included (one shape at a time; the read stream before them takes "
            f"{READ_STREAM_BYTES / 1e9:.0f} GB):",
            *lines,
        ]
    )


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
        # After every shape: a benchmark that is cut off leaves what it has.
        out.write_text(json.dumps(results | {"seed": arguments.seed} | origin, indent=1) + "\n", encoding="utf-8")
        print(f"  {time.perf_counter() - started:.0f} s, wrote {out}", flush=True)
    if arguments.shapes is None:
        print("break-even contexts", flush=True)
        results["break_even_context"] = measure_contexts(arguments)
        out.write_text(json.dumps(results | {"seed": arguments.seed} | origin, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
