"""Attention of several queries per row, as drafts are verified: `python -m cuda_kernels.bench_queries`.

Physics: a row's queries stand at consecutive positions and see nearly the same tokens. Read once for all of them, these
cost what they cost one query,

    keys and values of the tokens that any query sees, once per key/value head  +  queries and outputs

at the bandwidth of a kernel that only reads, measured in the same run: that is the roofline. A warp has room for 32
columns (queries times query heads of a group). Where there are more, several blocks read the same tokens at the same
time: once from memory, the other times from the second-level cache.

Method: as in `cuda_kernels.bench`: medians over replays of a graph with one call per set of inputs, as many sets as are
several times the second-level cache; measured twice in turn, the faster median counts. Cases: the whole context,
causal; and a quarter of it in 32 spans that all queries see ("shared"), or each with a chance of one half ("mixed").
Baselines over the same cache: the one-query kernel with a row for every query, in launches of up to 256 rows
(`as_rows`), and for the whole context PyTorch's attention with a causal mask, by cuDNN and FlashAttention. Only
`with_plan` includes planning. Of every implementation and case one result is compared with float64; one that fails is
recorded with its error. Writes `assets/results/queries_<gpu>.json`.
"""

import argparse
import json
from functools import partial

import torch
from torch.nn.attention import SDPBackend

from cuda_kernels.bench.benchmark import add_options, begin_benchmark, end_benchmark
from cuda_kernels.bench.query_case import Case
from cuda_kernels.bench.query_tables import PATTERNS
from cuda_kernels.bench.shape_bench import sooner_of_two
from cuda_kernels.bench.shapes import Shape
from cuda_kernels.bench.whole_file import write_whole

SHAPES = tuple(Shape(32, kv, batch, context) for kv in (32, 8) for batch, context in ((32, 2048), (1, 16384)))
QUERIES, QUICK_QUERIES = (1, 2, 4, 8, 16), (1, 8)


def measure(case: Case, pattern: str, limit_tb_per_s: float) -> dict:
    """One line of the table: per implementation its time, its share of the roofline, or why there is none."""
    ways = {"ours": case.ours, "with_plan": partial(case.ours, True), "as_rows": case.as_rows}
    if pattern == "dense":
        ways |= {"cudnn": partial(case.sdpa, SDPBackend.CUDNN_ATTENTION)}
        ways |= {"flash": partial(case.sdpa, SDPBackend.FLASH_ATTENTION)}
    num_bytes = case.num_bytes
    line: dict = {"pattern": pattern, "num_queries": case.num_queries, "bytes": num_bytes}
    line |= sooner_of_two({name: lambda way=way: {"us": way()} for name, way in ways.items()})
    for name in ways:
        if "us" in line[name]:
            line[name]["share_of_limit"] = num_bytes / line[name]["us"] / 1e6 / limit_tb_per_s
    return line


def compare_with_one_query(lines: list[dict]) -> None:
    """To every time of a shape's lines, its ratio to that of one query of the same pattern."""
    one_query = {
        line["pattern"]: line["ours"]["us"] for line in lines if line["num_queries"] == 1 and "us" in line["ours"]
    }
    for line in lines:
        for figures in line.values():
            if isinstance(figures, dict) and "us" in figures and line["pattern"] in one_query:
                figures["times_one_query"] = figures["us"] / one_query[line["pattern"]]


def text_of(line: dict) -> str:
    """A line's figures for the terminal."""
    figures = {name: value for name, value in line.items() if isinstance(value, dict)}
    found = [f"{name} {x['us']:.1f} us" if "us" in x else f"{name}: {x['unavailable']}" for name, x in figures.items()]
    return f"  {line['pattern']}, {line['num_queries']} queries: {', '.join(found)}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="32/8 heads, 1 and 8 queries only")
    add_options(parser, "queries")
    return parser.parse_args()


def main() -> None:
    """Entry point; ends with an error if this project's kernel failed somewhere."""
    arguments = parse_arguments()
    origin, out, limit = begin_benchmark("queries", arguments.out)
    results: dict = {"read_stream_tb_per_s": limit, "seed": arguments.seed, "shapes": []}
    failed = []
    for shape in [x for x in SHAPES if x.num_kv_heads == 8] if arguments.quick else SHAPES:
        lines: list[dict] = []
        results["shapes"].append({"shape": vars(shape) | {"name": shape.name}, "measured": lines})
        print(shape.name, flush=True)
        for pattern in PATTERNS:
            for num_queries in QUICK_QUERIES if arguments.quick else QUERIES:
                case = Case(shape, pattern, num_queries, arguments.seed, arguments.replays)
                lines.append(measure(case, pattern, limit))
                print(text_of(lines[-1]), flush=True)
                failed += [text_of(lines[-1])] if "us" not in lines[-1]["ours"] else []
                del case
                torch.cuda.empty_cache()
            compare_with_one_query(lines)
            # Written after every pattern, so that an interrupted benchmark keeps what is finished.
            write_whole(out, json.dumps(results | origin, indent=1) + "\n")
    end_benchmark(out, failed)


if __name__ == "__main__":
    main()
