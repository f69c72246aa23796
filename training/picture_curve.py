"""Quality over training tokens: `python -m training.picture_curve assets/results/summary_curve.json` (matplotlib)."""

from typing import TYPE_CHECKING

from cuda_kernels.bench.pictures import PictureError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LANES = {
    "plain-dense": ("plain adapter, dense", "#334155"),
    "span-dense": ("span adapter, mask off", "#94a3b8"),
    "span-sparse": ("span adapter, self-selected", "#0f766e"),
}


def series_of(results: dict) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Setting -> lane -> (million tokens, ROUGE-L).

    Raises:
        PictureError: these are other results.
    """
    try:
        return {
            setting: {
                lane: [(point["tokens"] / 1e6, float(point["lanes"][lane][setting]["rougeL"])) for point in points]
                for lane in LANES
            }
            for points in [results["points"]]
            for setting in points[0]["lanes"]["span-sparse"]
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PictureError("these are no results of training.summary_curve") from error


def draw(results: dict) -> "Figure":
    """One panel per setting."""
    from matplotlib.figure import Figure

    series = series_of(results)
    figure = Figure(figsize=(4.6 * len(series), 3.4), dpi=130)
    axes = figure.subplots(1, len(series), squeeze=False, sharey=True)
    for panel, (setting, lanes) in zip(axes[0], series.items(), strict=True):
        for lane, places in lanes.items():
            label, colour = LANES[lane]
            panel.plot(*zip(*places, strict=True), color=colour, marker="o", markersize=3, label=label)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:g} M")
        panel.set_xlabel("training tokens", fontsize=8)
        panel.set_title(setting, fontsize=9)
        panel.tick_params(labelsize=8)
    axes[0][0].set_ylabel("ROUGE-L F1", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    command_line(__doc__, draw)
