"""Pictures of what drafts bring: `python -m training.picture_drafts RESULTS.json` (needs matplotlib).

Above, tokens per step by the size of step; below, time to the answer over the batch, lane by lane.
"""

from typing import TYPE_CHECKING

from cuda_kernels.bench.pictures import PictureError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "plain dense": "#334155",
    "plain dense + lookup": "#94a3b8",
    "span sparse": "#d97706",
    "span sparse + drafts": "#0f766e",
}
DRAFTED = ("plain dense + lookup", "span sparse + drafts")


def cells_of(results: dict) -> tuple[str, dict[str, list[dict]], str]:
    """The first shape, its cells by text, and the device's name.

    Raises:
        PictureError: there are none.
    """
    try:
        shape, parts = next(iter(results["shapes"].items()))
        found: dict[str, list[dict]] = {}
        for cell in parts["answers"]:
            if "lanes" in cell:
                found.setdefault(cell["text"], []).append(cell)
                _require(cell)
        machine = results["machine"]
        gpu = machine.get("gpu") or machine["cpu"]
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise PictureError("these are no results of training.bench_drafts") from error
    if not found:
        raise PictureError("there is no replayed text in these results")
    return shape, {text: sorted(cells, key=lambda cell: cell["batch"]) for text, cells in found.items()}, gpu


def _require(cell: dict) -> None:
    """Raise a KeyError or TypeError where a cell lacks what is drawn of it."""
    float(cell["batch"])
    for lane in COLOURS:
        float(cell["lanes"][lane]["seconds_to_answer"])
    for lane in DRAFTED:
        [float(one["tokens_per_step"]) for one in cell["lanes"][lane]["sizes"].values()]


def draw_sizes(axes, cells: list[dict]) -> None:
    """Tokens per step by the queries of a row, at the smallest batch."""
    for lane in DRAFTED:
        sizes = cells[0]["lanes"][lane]["sizes"]
        tokens = [one["tokens_per_step"] for one in sizes.values()]
        axes.plot([int(size) for size in sizes], tokens, color=COLOURS[lane], marker="o", markersize=3, label=lane)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:.0f}")
    axes.set_xlabel("queries per row and step", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)


def draw_times(axes, cells: list[dict]) -> None:
    """Seconds to the answer over the batch."""
    batches = [cell["batch"] for cell in cells]
    for lane, colour in COLOURS.items():
        seconds = [cell["lanes"][lane]["seconds_to_answer"] for cell in cells]
        axes.plot(batches, seconds, color=colour, marker="o", markersize=3, label=lane)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda batch, _: f"{batch:.0f}")
    axes.set_xlabel("batch", fontsize=8)
    axes.tick_params(labelsize=8)


def draw(results: dict) -> "Figure":
    """All texts of the first shape beside each other."""
    from matplotlib.figure import Figure

    shape, texts, gpu = cells_of(results)
    figure = Figure(figsize=(2.9 * len(texts), 5.6), dpi=130)
    rows = figure.subplots(2, len(texts), squeeze=False)
    for column, (text, cells) in enumerate(texts.items()):
        draw_sizes(rows[0][column], cells)
        draw_times(rows[1][column], cells)
        rows[0][column].set_title(text, fontsize=9)
    rows[0][0].set_ylabel("tokens per step", fontsize=8)
    rows[1][0].set_ylabel("seconds to the answer", fontsize=8)
    rows[1][0].legend(fontsize=7)
    figure.suptitle(f"Drafts, {shape} shape, random weights, replayed text; {gpu}", fontsize=10)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    command_line(__doc__, draw)
