"""A picture of the engine's results: `python -m training.picture_engine RESULTS.json` (needs matplotlib)."""

import itertools
from typing import TYPE_CHECKING

from cuda_kernels.bench.pictures import PictureError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0f766e", "#d97706", "#b91c1c", "#4338ca")
REFERENCE = "#94a3b8"
DRAWN = {"operands", "batch", "speedup", "speedup_predicted_by_bytes", "time_to_answer_speedup"}


def cells_of(results: dict) -> tuple[dict[str, list[dict]], str]:
    """Replayed cells by shape, and the GPU's name.

    Raises:
        PictureError: there are none.
    """
    try:
        shapes = results["shapes"].items()
        found = {shape: [cell for cell in parts.get("replay", ()) if cell.keys() >= DRAWN] for shape, parts in shapes}
        gpu = results["machine"]["gpu"]
        # A single batch size would be a dot, not a curve.
        found = {shape: cells for shape, cells in found.items() if len({cell["batch"] for cell in cells}) > 1}
    except (KeyError, TypeError, AttributeError) as error:
        raise PictureError("these are no results of training.bench_engine") from error
    if not found:
        raise PictureError("there is no replayed text in these results")
    return found, gpu


def draw_shape(axes, shape: str, cells: list[dict], colours: dict[int, str]) -> None:
    """One shape: how many times faster, over the batch; a colour per number of operands."""
    for operands, colour in colours.items():
        own = sorted((cell for cell in cells if cell["operands"] == operands), key=lambda cell: cell["batch"])
        if not own:
            continue
        batches = [cell["batch"] for cell in own]
        style = {"color": colour, "marker": "o", "markersize": 3}
        axes.plot(batches, [cell["speedup"] for cell in own], label=f"{operands} operands, per token", **style)
        predicted = [cell["speedup_predicted_by_bytes"] for cell in own]
        axes.plot(batches, predicted, color=colour, linestyle="--", linewidth=1, label="what the bytes say")
        to_answer = [cell["time_to_answer_speedup"] for cell in own]
        axes.plot(batches, to_answer, linestyle=":", label="to the answer", **style)
    axes.axhline(1, color=REFERENCE, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda batch, _: f"{batch:.0f}")
    axes.set_xlabel("batch", fontsize=8)
    axes.set_title(f"{shape} shape, random weights", fontsize=9)
    axes.tick_params(labelsize=8)


def draw(results: dict) -> "Figure":
    """All shapes beside each other."""
    from matplotlib.figure import Figure

    found, gpu = cells_of(results)
    every = sorted({cell["operands"] for cells in found.values() for cell in cells})
    colours = dict(zip(every, itertools.cycle(COLOURS), strict=False))
    figure = Figure(figsize=(3.6 * len(found) + 1, 3.6), dpi=110)
    row = figure.subplots(1, len(found), squeeze=False, sharey=True)
    for axes, (shape, cells) in zip(row[0], found.items(), strict=True):
        draw_shape(axes, shape, cells, colours)
    row[0][0].set_ylabel("self-selected over dense, times as fast", fontsize=8)
    figure.suptitle(f"Decoding replayed arithmetic, {gpu}: whole steps, one captured graph each", fontsize=10)
    handles, labels = row[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.08 + 0.045 * (len(labels) // 3), 1, 0.97))
    return figure


if __name__ == "__main__":
    command_line(__doc__, draw)
