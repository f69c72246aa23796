"""Attention over a paged cache, beside that over one piece: `python -m cuda_kernels.bench_paged`.

Physics: both read keys and values of the visible tokens once and nothing else, so both have the roofline

    keys and values of visible tokens  +  queries and outputs

at the bandwidth of a kernel that only reads, measured in the same run. What pages may cost beside that: every page that
an interval touches is a span of its own in the plan, so small pages end more tiles early; and where a page holds token
after token with all heads of each ("tokens first"), a head's keys are read in pieces of one token.

Method: as in `cuda_kernels.bench`: medians over replays of a graph with one call per set of inputs, as many sets as are
several times the second-level cache; measured twice in turn, the faster median counts. Pages lie in random order, keys
and values of a token side by side, as vLLM has them. Intervals are the same for every cache of a case. The plan, which
a step makes once for all layers, is timed apart. One result of every way is compared with float64. Writes
`assets/results/paged_<gpu>.json`.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch

from cuda_kernels.attention import SpanAttention
from cuda_kernels.bench.benchmark import add_options, begin_benchmark, end_benchmark, microseconds
from cuda_kernels.bench.query_case import TOLERANCE
from cuda_kernels.bench.selections import ALL, Selection, choose
from cuda_kernels.bench.shape_bench import sooner_of_two
from cuda_kernels.bench.shapes import Shape, num_sets
from cuda_kernels.bench.whole_file import write_whole
from cuda_kernels.checks import AttentionShape
from cuda_kernels.paged import PagedAttention, PageLayout

SHAPES = tuple(Shape(32, kv, batch, context) for kv in (32, 8) for batch, context in ((32, 2048), (128, 1024)))
SELECTIONS = ((ALL, 1.0), (Selection("spans", 16), 0.25), (Selection("clustered", 16), 0.25))
PAGE_SIZES = (16, 32, 64, 128)
Cache = tuple[torch.Tensor, torch.Tensor]


class PagedCase:
    """A case's inputs, and the time of the kernels on them.

    Args:
        shape: heads, rows and context.
        selection: which tokens are visible.
        density: what share of them.
        seed: of values, intervals and pages.
        replays: per figure.
        device: where the inputs are.
    """

    def __init__(
        self, shape: Shape, selection: Selection, density: float, seed: int, replays: int, device: str = "cuda"
    ) -> None:
        self.shape, self._replays, self._device = shape, replays, device
        self._generator = torch.Generator(device).manual_seed(seed)
        sets = range(num_sets(shape, density))
        self._tables = [choose(selection, density, shape.batch, shape.context, self._generator) for _ in sets]
        size = (shape.batch, shape.num_heads, shape.head_dim)
        self._queries = [self._random(*size) for _ in sets]

    def _random(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, generator=self._generator, device=self._device, dtype=torch.bfloat16)

    @property
    def num_bytes(self) -> float:
        """That one call has to read and write, in the mean."""
        intervals = torch.stack([table[0] for table in self._tables])
        tokens = (intervals[..., 1] - intervals[..., 0]).sum().item() / len(self._tables)
        return self.shape.cache_bytes(tokens) + self.shape.vector_bytes

    def one_piece(self) -> dict[str, float]:
        """Times over a cache in one piece: of attention, and of the plan."""
        shape = self.shape

        def make(number: int) -> tuple[Callable, Callable, Cache]:
            intervals, counts = self._tables[number]
            kernel = SpanAttention(self._attention_shape(number), device=self._device)
            cache = self._random(2, shape.batch, shape.num_kv_heads, shape.context, shape.head_dim)
            keys, values = cache.unbind(0)
            return kernel, partial(kernel.plan, intervals, counts, shape.context), (keys, values)

        return self._time(make, lambda cache, row: tuple(x[row] for x in cache))

    def paged(self, page_size: int, tokens_first: bool) -> dict[str, float]:
        """Times over a cache in pages: of attention, and of the plan."""
        shape = self.shape
        pages = shape.context // page_size
        table = torch.randperm(shape.batch * pages, generator=self._generator, device=self._device)
        table = table.int().view(shape.batch, pages)

        def make(number: int) -> tuple[Callable, Callable, Cache]:
            intervals, counts = self._tables[number]
            inner = (page_size, shape.num_kv_heads) if tokens_first else (shape.num_kv_heads, page_size)
            cache = self._random(shape.batch * pages, *inner, 2 * shape.head_dim)
            cache = cache.transpose(1, 2) if tokens_first else cache
            keys, values = cache.split(shape.head_dim, dim=-1)
            kernel = PagedAttention(self._attention_shape(number), PageLayout.of(keys), pages, device=self._device)
            return kernel, partial(kernel.plan, intervals, counts, table), (keys, values)

        def of_row(cache: Cache, row: int) -> tuple[torch.Tensor, ...]:
            return tuple(x[table[row].long()].transpose(0, 1).flatten(1, 2) for x in cache)

        return self._time(make, of_row)

    def _attention_shape(self, number: int) -> AttentionShape:
        shape, max_spans = self.shape, self._tables[number][0].shape[1]
        return AttentionShape(
            batch=shape.batch,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            max_spans=max_spans,
        )

    def _time(self, make: Callable, of_row: Callable) -> dict[str, float]:
        calls, plans = [], []
        for number, query in enumerate(self._queries):
            kernel, plan, cache = make(number)
            plan()
            plans.append(plan)
            calls.append(partial(kernel, query, *cache, out=torch.empty_like(query)))
            if number == 0:
                self._check(calls[0](), partial(of_row, cache))
        return {"us": microseconds(calls, self._replays), "plan_us": microseconds(plans, self._replays)}

    def _check(self, out: torch.Tensor, of_row: Callable) -> None:
        """Compare the first set's first and last row with float64; AssertionError: it is wrong."""
        for row in (0, self.shape.batch - 1):
            intervals, counts = (x[row] for x in self._tables[0])
            seen = torch.cat([torch.arange(*pair, device=out.device) for pair in intervals[: int(counts)].tolist()])
            keys, values = (x[:, seen].double() for x in of_row(row))
            query = self._queries[0][row].double().unflatten(0, (self.shape.num_kv_heads, -1))
            weights = (torch.einsum("hgd,htd->hgt", query, keys) * self.shape.head_dim**-0.5).softmax(-1)
            expected = torch.einsum("hgt,htd->hgd", weights, values).flatten(0, 1)
            error = ((out[row].double() - expected).abs().max() / expected.abs().max()).item()
            if not error < TOLERANCE:
                raise AssertionError(f"row {row} is off by {error} of the greatest value")


def measure(case: PagedCase, limit_tb_per_s: float) -> dict:
    """One case: for every cache its time, its share of the roofline, or why there is none."""
    ways: dict[str, Callable[[], dict[str, float]]] = {"one piece": case.one_piece}
    for size in PAGE_SIZES:
        for name, tokens_first in (("heads first", False), ("tokens first", True)):
            ways[f"pages of {size}, {name}"] = partial(case.paged, size, tokens_first)
    found = sooner_of_two(ways)
    for one in found.values():
        if "us" in one:
            one["share_of_limit"] = case.num_bytes / one["us"] / 1e6 / limit_tb_per_s
    return {"bytes": case.num_bytes, "caches": found}


def text_of(line: dict) -> str:
    """A case's figures for the terminal."""
    told = {
        name: f"{one['us']:.1f} us (plan {one['plan_us']:.1f})" if "us" in one else one["unavailable"]
        for name, one in line["caches"].items()
    }
    return f"  {line['selection']}, {line['density']}: " + "; ".join(f"{name} {text}" for name, text in told.items())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    add_options(parser, "paged")
    return parser.parse_args()


def main() -> None:
    """Entry point; ends with an error if a kernel failed somewhere."""
    arguments = parse_arguments()
    origin, out, limit = begin_benchmark("paged", arguments.out)
    results: dict = {"read_stream_tb_per_s": limit, "seed": arguments.seed, "shapes": []}
    failed = []
    for shape in SHAPES[:1] if arguments.quick else SHAPES:
        lines: list[dict] = []
        results["shapes"].append({"shape": vars(shape) | {"name": shape.name}, "measured": lines})
        print(shape.name, flush=True)
        for selection, density in SELECTIONS:
            case = PagedCase(shape, selection, density, arguments.seed, arguments.replays)
            lines.append({"selection": selection.name, "density": density} | measure(case, limit))
            print(text_of(lines[-1]), flush=True)
            failed += [text_of(lines[-1])] if any("us" not in one for one in lines[-1]["caches"].values()) else []
            write_whole(out, json.dumps(results | origin, indent=1) + "\n")
    end_benchmark(out, failed)


if __name__ == "__main__":
    main()
