"""The attention kernel against cuDNN, FlashInfer and FlexAttention as Markdown."""

import statistics
from collections import Counter

from training.reports.markdown import origin, picture, read_all, source, table
from training.reports.queries import queries_brief

MISSING = "The CUDA kernel: not measured yet.\n"
HEADER = ["heads/kv, batch x context", "cuDNN dense, us", "all kept", "50 %", "25 %", "FlashInfer, 50 %, pages of 16"]
SHARES = ["blocks of 16", "spans of 16", "spans of 4"]
MOST_BRIEF_ROWS = 3


def kernel() -> str:
    """Every GPU that the kernel was measured on."""
    return "\n".join(kernel_on(results, path) for path, results in read_all("kernel").items()) or MISSING


def kernel_brief() -> str:
    """One GPU's shortest and longest shape of each grouping of heads, at the commonest head_dim."""
    measured = read_all("kernel")
    if not measured:
        return MISSING
    path, results = next(iter(measured.items()))
    rows = [kernel_row(shape)[: len(HEADER)] for shape in brief_shapes(results["shapes"])]
    intro = (
        "Attention of one decode step: speedup over cuDNN's dense attention by the share of the tokens that is kept "
        f"({origin(results, path)}). {flashinfer_summary(results).rstrip()}{queries_brief()}\n\n"
    )
    return intro + table(HEADER, rows)


def brief_shapes(shapes: list[dict]) -> list[dict]:
    """The shapes of the brief table, in the order of the results file; at most MOST_BRIEF_ROWS."""
    ((head_dim, _),) = Counter(measured["shape"]["head_dim"] for measured in shapes).most_common(1)
    groups: dict[tuple[int, int], list[dict]] = {}
    for measured in shapes:
        shape = measured["shape"]
        if shape["head_dim"] == head_dim and measured["dense"]["cudnn"].get("us"):
            groups.setdefault((shape["num_heads"], shape["num_kv_heads"]), []).append(measured)
    chosen = []
    for group in groups.values():
        by_time = sorted(group, key=lambda measured: measured["dense"]["cudnn"]["us"])
        chosen += [by_time[0], by_time[-1]] if len(by_time) > 1 else by_time
    return chosen[:MOST_BRIEF_ROWS]


def kernel_on(results: dict, path: str) -> str:
    """One GPU's tables and sentences."""
    shapes = results["shapes"]
    names = dict.fromkeys(row["selection"] for row in shapes[0]["cases"] if _is_block_case(row, 0.5))
    intro = (
        "Attention of one decode step: speedup over cuDNN's dense attention. The columns “50 %” and “25 %” are the "
        "share of the tokens that is kept; each is the slowest of these selections, named by how blocks are placed and "
        f"by their size in tokens: {', '.join(names)}. A kernel that only reads memory moves "
        f"{results['read_stream_tb_per_s']:.2f} TB/s on this GPU; the last three columns say which share of that rate "
        "the kernel reaches at 50 % kept, in blocks of 16 tokens and in spans of mean length 16 and 4 at any "
        "offset.\n\n"
    )
    rows = [kernel_row(measured) for measured in shapes]
    drawn = picture(path, "Time over the share of the context that is kept, per shape")
    remarks = kernel_remarks(results)
    parts = [intro + table([*HEADER, *SHARES], rows), drawn, remarks]
    return "\n".join(part for part in parts if part) + source(results, path)


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
    text = flashinfer_remark(results) + flex_remark(results) + plan_remark(results)
    for family in results.get("break_even_context", ()):
        where = f"{family['num_heads']}/{family['num_kv_heads']} heads, batch {family['batch']}"
        parts = [
            f"at {100 * float(density):.0f} % kept "
            + (f"from {context:,} tokens on" if context else "nowhere measured")
            for density, context in family["from_context"].items()
        ]
        text += f"* Faster than cuDNN's dense attention, planning included, {where}: {', '.join(parts)}.\n"
    return text


def flashinfer_remark(results: dict) -> str:
    """How the kernel compares with FlashInfer over all cases, or nothing where FlashInfer was not measured."""
    text = flashinfer_summary(results)
    plans = [theirs["plan_us"] for theirs, _ in _flashinfer_pairs(results) if "plan_us" in theirs]
    if plans:
        text += f"* FlashInfer's planning on the host, per step: {statistics.median(plans):.0f} us in the median.\n"
    return f"* {text}" if text else ""


def flashinfer_summary(results: dict) -> str:
    """One sentence: in how many cases the kernel is faster than FlashInfer, and by how much."""
    pairs = _flashinfer_pairs(results)
    if not pairs:
        return ""
    times = sorted(theirs["us"] / ours["us"] for theirs, ours in pairs)
    num_faster, num_slower = sum(x > 1 for x in times), sum(x < 0.98 for x in times)
    return (
        "Against FlashInfer over the same pages, without FlashInfer's planning on the host, this kernel is faster in "
        f"{num_faster} of {len(times)} cases, {times[0]:.2f} to {times[-1]:.2f} times as fast, "
        f"{statistics.median(times):.2f} times in the median; by more than 2 % slower in {num_slower}.\n"
    )


def _flashinfer_pairs(results: dict) -> list[tuple[dict, dict]]:
    cases = (row for measured in results["shapes"] for row in measured["cases"])
    return [
        (row["flashinfer"], row["ours"]) for row in cases if "us" in row.get("flashinfer", {}) and "us" in row["ours"]
    ]


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
        "* Planning, once per step on the device, at batch 32 and up to 32 spans per row: "
        f"{statistics.median(plans):.2f} us in the median, {max(plans):.2f} us at most, launched by itself "
        f"repeatedly; {statistics.median(more):.2f} and {max(more):.2f} us between a launch with its plan and one "
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
    return (
        f"* This kernel against FlexAttention, compiled per shape, same blocks: {', '.join(parts)}.\n" if parts else ""
    )


def _is_block_case(row: dict, density: float) -> bool:
    return row["density"] == density and row["selection"].startswith(("random", "clustered"))
