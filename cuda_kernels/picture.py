"""A picture of a benchmark's results: `python -m cuda_kernels.picture RESULTS.json` (needs matplotlib)."""

from typing import TYPE_CHECKING

from cuda_kernels.bench.pictures import PictureError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = {"random 16": "#0f766e", "spans 16": "#d97706", "spans 4": "#b91c1c"}
PEER, DENSE, LIMIT = "#64748b", "#334155", "#94a3b8"
COLUMNS = 4


def is_benchmark(results: object) -> bool:
    """Whether the results have all parts of which a picture is drawn."""
    try:
        found = [float(results["read_stream_tb_per_s"]), results["machine"].get("gpu")]
        for measured in results["shapes"]:
            found += [measured["shape"]["name"], "us" in measured["dense"]["cudnn"]]
            for row in measured["cases"]:
                found += [row["selection"], row["density"], "us" in row["ours"]]
        return bool(results["shapes"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def draw_shape(axes, measured: dict, limit_tb_per_s: float) -> None:
    """One shape: time over the share of the context that is kept."""
    rows = [row for row in measured["cases"] if "us" in row["ours"]]
    everything = [row for row in rows if row["selection"] == "all"]
    for name, colour in OURS.items():
        points = sorted((row["ours"]["kept"], row["ours"]["us"]) for row in rows if row["selection"] == name)
        points += [(row["ours"]["kept"], row["ours"]["us"]) for row in everything]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=f"this kernel, {name}")
    pages = sorted(
        (row["density"], row["flashinfer"]["us"])
        for row in rows
        if row["selection"] == "random 16" and "us" in row.get("flashinfer", {})
    )
    if pages:
        axes.plot(*zip(*pages, strict=True), color=PEER, marker="s", markersize=3, label="FlashInfer, pages of 16")
    if "us" in measured["dense"]["cudnn"]:
        axes.axhline(measured["dense"]["cudnn"]["us"], color=DENSE, label="cuDNN, everything")
    if everything:
        full_us = everything[0]["ours"]["bytes"] / limit_tb_per_s / 1e6
        axes.plot([0, 1], [0, full_us], color=LIMIT, linestyle="--", label="reading alone")
    axes.set_title(measured["shape"]["name"], fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.tick_params(labelsize=8)


def draw(results: dict) -> "Figure":
    """All shapes beside each other."""
    from matplotlib.figure import Figure

    shapes = results["shapes"]
    num_rows = -(-len(shapes) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.7 * num_rows), dpi=110)
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False)
    for axes in grid.flat[len(shapes) :]:
        axes.axis("off")
    for axes, measured in zip(grid.flat, shapes, strict=False):
        draw_shape(axes, measured, results["read_stream_tb_per_s"])
    for axes in grid[:, 0]:
        axes.set_ylabel("microseconds", fontsize=8)
    figure.suptitle(
        f"One decode step's attention, {results['machine'].get('gpu')}: heads/kv heads, batch x context; "
        "time over the share of the context that is kept",
        fontsize=10,
    )
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 0.98))
    return figure


def draw_checked(results: object) -> "Figure":
    """Draw results of the benchmark.

    Raises:
        PictureError: the file holds no benchmark results.
    """
    if not is_benchmark(results):
        raise PictureError("these are no results of cuda_kernels.bench.attention")
    return draw(results)


if __name__ == "__main__":
    command_line(__doc__, draw_checked)
