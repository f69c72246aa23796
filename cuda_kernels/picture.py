"""A picture of a benchmark's results: `python -m cuda_kernels.picture RESULTS.json` (needs matplotlib)."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

OURS = {"random 16": "#0f766e", "spans 16": "#d97706", "spans 4": "#b91c1c"}
PEER, DENSE, LIMIT = "#64748b", "#334155", "#94a3b8"
COLUMNS = 4


class PictureError(Exception):
    """The picture cannot be made; the message, one line, gives the reason."""


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        PictureError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PictureError(error.strerror) from error
    except ValueError as error:
        raise PictureError(f"no JSON: {error}") from error


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


def check_target(out: Path) -> None:
    """Check that matplotlib is installed and can write a file of this type.

    Raises:
        PictureError: matplotlib is missing or cannot write it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PictureError("a picture needs matplotlib: pip install matplotlib") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in kinds:
        raise PictureError(f"{out}: the name has to end in one of .{', .'.join(sorted(kinds))}")
    if not out.parent.is_dir():
        raise PictureError(f"{out}: there is no folder {out.parent}")


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


def draw(results: dict, out: Path) -> None:
    """All shapes beside each other in one picture, whose format follows from the file name's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = results["shapes"]
    num_rows = -(-len(shapes) // COLUMNS)
    figure, grid = pyplot.subplots(num_rows, COLUMNS, figsize=(3.4 * COLUMNS, 2.7 * num_rows), squeeze=False)
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
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def command_line(description: str, draw_results: Callable[[object, Path], None]) -> None:
    """Parse RESULTS.json and --out, read the results and draw the picture. An error is one line and exit status 1."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="default: beside the results, as .png")
    arguments = parser.parse_args()
    out = arguments.out or arguments.results.with_suffix(".png")
    try:
        check_target(out)
    except PictureError as error:
        sys.exit(f"error: {error}")
    try:
        draw_results(read_json(arguments.results), out)
    except (PictureError, OSError) as error:
        sys.exit(f"error: {arguments.results}: {error}")
    print(f"wrote {out}")


def draw_checked(results: object, out: Path) -> None:
    """Draw results of the benchmark.

    Raises:
        PictureError: the file holds no benchmark results.
    """
    if not is_benchmark(results):
        raise PictureError("these are no results of cuda_kernels.bench.attention")
    draw(results, out)


if __name__ == "__main__":
    command_line(__doc__, draw_checked)
