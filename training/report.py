"""Put figures from `assets/results` and the training reports into README and model card: `python -m training.report`.

A block `<!-- results:NAME -->` ... `<!-- /results:NAME -->` holds what this script makes of the files; with `--check`
nothing is written, and the exit status is 1 if a document is out of date.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from training.reports.engine import engine
from training.reports.markdown import ROOT, read, source, table
from training.reports.summary import summarize

DOCUMENTS = ("README.md", "assets/MODEL_CARD.md")
LANES = (
    ("plain-dense", "plain adapter, dense"),
    ("span-dense", "span adapter, mask off"),
    ("span-sparse", "span adapter, self-selected"),
)
SHOWN_ROWS = (1, 32, 64, 96, 128)
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def arithmetic() -> str:
    """Exact answers per operand count and lane."""
    path = "assets/results/arithmetic.json"
    results = read(path)
    if results is None:
        return "Arithmetic answers: not measured yet.\n"
    rows = []
    for operands, lanes in results["operands"].items():
        cells = [f"{lanes[lane]['exact_percent']:.1f} %" if lane in lanes else "–" for lane, _ in LANES]
        sparse = lanes.get("span-sparse", {})
        tokens = [f"{lanes[lane]['mean_tokens']:.0f}" for lane in ("plain-dense", "span-sparse") if lane in lanes]
        rows.append(
            [
                operands,
                *cells,
                f"{sparse.get('attended_percent_of_dense', float('nan')):.1f} %",
                " / ".join(tokens),
                f"{sparse.get('malformed_percent_of_steps', float('nan')):.3f} %",
            ]
        )
    header = [
        "operands",
        *(f"exact: {label}" for _, label in LANES),
        "KV read",
        "tokens plain / span",
        "malformed steps (self-selected)",
    ]
    n = next(iter(next(iter(results["operands"].values())).values()))["n"]
    intro = f"Exact answers on {n} fresh expressions per row, greedy, {results['dtype']}:\n\n"
    return intro + table(header, rows) + source(results, path)


def cpu_engine() -> str:
    """Decode speed on a CPU."""
    path = "assets/results/cpu_engine.json"
    results = read(path)
    if results is None:
        return "Decoding speed on a CPU: not measured yet.\n"
    rows = [
        [
            f"{row['context']:,}",
            f"{row['dense']['ms_per_token']:.2f}",
            f"{row['sparse']['ms_per_token']:.2f}",
            f"{row['dense_over_sparse']:.2f}x",
            f"{100 * row['visible_share']:.0f} %",
        ]
        for row in results["contexts"]
    ]
    header = ["context, up to (tokens)", "dense ms/token", "self-selected ms/token", "faster", "KV read"]
    return (
        "Decoding on a CPU, same tokens in both lanes, measured over the last 256 tokens before each length:\n\n"
        + table(header, rows)
        + source(results, path)
    )


def base() -> str:
    """Held-out figures of the base model."""
    path = "assets/base/pretraining.json"
    results = read(path)
    if results is None:
        return "The base model: not trained yet.\n"
    names = {
        "loss/": "loss (nats per token), {}",
        "exact_copy/": "exact copies, task “{}”",
        "exact_arithmetic/": "worked arithmetic reproduced exactly, {} operands",
    }
    rows = []
    for key, value in results["heldout"].items():
        prefix = next((p for p in names if key.startswith(p)), None)
        label = names[prefix].format(key.removeprefix(prefix)) if prefix else "exact copies, all tasks"
        rows.append([label, f"{value:.3f}" if key.startswith("loss/") else f"{100 * value:.1f} %"])
    size = f"{results['parameters'] / 1e6:.1f} M parameters, trained on {results['tokens'] / 1e6:,.0f} M tokens. "
    intro = f"The base model: {size}Held out:\n\n"
    return intro + table(["figure", "value"], rows) + source(results, path)


def kernel() -> str:
    """The CUDA kernel against cuDNN's dense attention and FlashInfer, on every GPU that it was measured on."""
    paths = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "assets/results").glob("kernel_*.json"))
    texts = [kernel_on(results, path) for path in paths if (results := read(path))]
    return "\n".join(texts) or "The CUDA kernel: not measured yet.\n"


def products() -> str:
    """Products with weights against cuBLAS, on every GPU that they were measured on."""
    paths = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "assets/results").glob("products_*.json"))
    texts = [products_on(results, path) for path in paths if (results := read(path))]
    return "\n".join(texts) or "Products with weights: not measured yet.\n"


def products_on(results: dict, path: str) -> str:
    """The same on one GPU: times, and how many times as fast as cuBLAS."""
    first = results["weights"][0]["measured"]
    header = [
        "products with weights, us",
        "floor",
        *(f"{line['rows']} row{'s' * (line['rows'] > 1)}" for line in first if line["rows"] in SHOWN_ROWS),
    ]
    rows = []
    for weight in results["weights"]:
        faster = (
            (line["us"], min(line["cublas_us"].values())) for line in weight["measured"] if line["rows"] in SHOWN_ROWS
        )
        cells = (f"{ours:.1f} ({cublas / ours:.2f}x)" for ours, cublas in faster)
        rows.append([weight["name"], f"{weight['measured'][0]['floor_us']:.1f}", *cells])
    intro = (
        "Again and again with other weights; the floor is that of the bytes, in parentheses how many times as fast "
        "as cuBLAS. In a step other launches overlap with it, so that what loses here can gain there.\n\n"
    )
    return intro + table(header, rows) + source(results, path)


def kernel_on(results: dict, path: str) -> str:
    """One GPU's tables and sentences."""
    shapes = results["shapes"]
    names = dict.fromkeys(row["selection"] for row in shapes[0]["cases"] if _is_block_case(row, 0.5))
    intro = (
        "One decode step's attention, times as fast as cuDNN's dense attention. 50 and 25 % kept in blocks of so many "
        f"tokens, the slowest of: {', '.join(names)}. A read stream moves "
        f"{results['read_stream_tb_per_s']:.2f} TB/s here; the last columns say how much of that the "
        "kernel reaches at 50 % kept, in blocks of 16 and in spans of mean length 16 and 4 at any offset.\n\n"
    )
    header = [
        "heads/kv, batch x context",
        "cuDNN dense, us",
        "all kept",
        "50 %",
        "25 %",
        "FlashInfer, 50 %, pages of 16",
    ]
    header += ["blocks of 16", "spans of 16", "spans of 4"]
    rows = [kernel_row(measured) for measured in shapes]
    picture = Path(path).with_suffix(".png")
    shown = (
        f"![Time over the share of the context that is kept, per shape]({picture})\n\n"
        if (ROOT / picture).exists()
        else ""
    )
    return intro + table(header, rows) + "\n" + shown + kernel_remarks(results) + source(results, path)


def kernel_row(measured: dict) -> list[str]:
    """One shape of the table."""
    cases, dense = measured["cases"], measured["dense"]["cudnn"].get("us")
    times = [
        [row["ours"].get("times_cudnn_dense", 0.0) for row in cases if _is_block_case(row, d)] for d in (0.5, 0.25)
    ]
    full = next((row["ours"].get("times_cudnn_dense", 0.0) for row in cases if row["selection"] == "all"), 0.0)
    half = {row["selection"]: row for row in cases if row["density"] == 0.5}
    pages = half.get("random 16", {}).get("flashinfer", {}).get("us")
    shares = [
        half[name]["ours"].get("share_of_limit") if name in half else None
        for name in ("random 16", "spans 16", "spans 4")
    ]
    return [
        measured["shape"]["name"],
        f"{dense:.1f}" if dense else "–",
        *(f"{value:.2f}x" for value in (full, *(min(values, default=0.0) for values in times))),
        f"{dense / pages:.2f}x" if dense and pages else "–",
        *(f"{100 * share:.0f} %" if share else "–" for share in shares),
    ]


def kernel_remarks(results: dict) -> str:
    """The kernel against FlashInfer and FlexAttention, what planning takes, and from which context on it pays."""
    cases = [row for measured in results["shapes"] for row in measured["cases"]]
    text = ""
    pairs = [
        (row["flashinfer"], row["ours"]) for row in cases if "us" in row.get("flashinfer", {}) and "us" in row["ours"]
    ]
    if pairs:
        times = sorted(theirs["us"] / ours["us"] for theirs, ours in pairs)
        text += (
            "FlashInfer over the same pages, its planning on the host left out: this kernel is faster in "
            f"{sum(x > 1 for x in times)} of {len(times)} cases, {times[0]:.2f} to {times[-1]:.2f} times as fast, "
            f"{statistics.median(times):.2f} times in the median; by more than 2 % slower in "
            f"{sum(x < 0.98 for x in times)}.\n"
        )
    host_plans = [theirs["plan_us"] for theirs, _ in pairs if "plan_us" in theirs]
    if host_plans:
        text += f"FlashInfer's planning on the host, per step: {statistics.median(host_plans):.0f} us in the median.\n"
    text += flex_remark(results)
    text += plan_remark(results)
    for family in results.get("break_even_context", ()):
        where = f"{family['num_heads']}/{family['num_kv_heads']} heads, batch {family['batch']}"
        parts = [
            f"at {100 * float(density):.0f} % kept "
            + (f"from {context:,} tokens on" if context else "nowhere measured")
            for density, context in family["from_context"].items()
        ]
        text += f"With planning in each step faster than cuDNN's dense attention, {where}: {', '.join(parts)}.\n"
    return text


def plan_remark(results: dict) -> str:
    """What planning takes at batch 32 and up to 32 spans per row: by itself, and as a step pays it."""
    few = [
        row["ours"]
        for measured in results["shapes"]
        for row in measured["cases"]
        if measured["shape"]["batch"] == 32 and row["ours"].get("spans_per_row", 99) <= 32
    ]
    if not few:
        return ""
    plans = [ours["plan_us"] for ours in few]
    more = [ours["us_with_plan"] - ours["us"] for ours in few]
    return (
        "Planning, once per step on the device, at batch 32 and up to 32 spans per row: "
        f"{statistics.median(plans):.2f} us in the median, {max(plans):.2f} us at most, launched by itself again "
        f"and again; {statistics.median(more):.2f} and {max(more):.2f} us between a launch with its plan and one "
        "without.\n"
    )


def flex_remark(results: dict) -> str:
    """A line on the cases that FlexAttention was measured in, or nothing."""
    parts = [
        f"{row['ours']['us']:.0f} against {row['flex']['us']:.0f} us ({measured['shape']['name']}, {row['selection']}, "
        f"{100 * row['density']:.0f} % kept)"
        for measured in results["shapes"]
        for row in measured["cases"]
        if "us" in row.get("flex", {})
    ]
    return f"This kernel against FlexAttention, compiled per shape, same blocks: {', '.join(parts)}.\n" if parts else ""


def _is_block_case(row: dict, density: float) -> bool:
    return row["density"] == density and row["selection"].startswith(("random", "clustered"))


BLOCKS: dict[str, Callable[[], str]] = {
    "arithmetic": arithmetic,
    "cpu_engine": cpu_engine,
    "engine": engine,
    "kernel": kernel,
    "products": products,
    "base": base,
    "summarize": summarize,
}


def filled(text: str) -> str:
    """A document with every block made anew."""
    return BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]]() + block[3], text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is out of date")
    arguments = parser.parse_args()
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(name)
            if not arguments.check:
                (ROOT / name).write_text(filled(text), encoding="utf-8")
    print("out of date: " + ", ".join(stale) if stale else "up to date")
    sys.exit(1 if stale and arguments.check else 0)


if __name__ == "__main__":
    main()
