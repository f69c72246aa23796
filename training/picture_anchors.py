"""What other anchors make of adapters: `python -m training.picture_anchors RESULTS.json [MORE.json]` (matplotlib).

A panel per size or set: how much each adapter reads, and how well it answers. Adapters that differ in their training
seed alone have one colour.
"""

import itertools
from typing import TYPE_CHECKING

from cuda_kernels.bench.pictures import PictureError, command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0f766e", "#d97706", "#334155", "#94a3b8", "#b91c1c", "#7c3aed", "#0284c7", "#65a30d")
EXACT, ROUGE = "exact_percent", "rouge_l"


def places_of(*results: dict) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Size or set -> variant -> (KV read in percent, score) of each adapter.

    Raises:
        PictureError: these are other results, or their scores are not known yet.
    """
    places: dict[str, dict[str, list[tuple[float, float]]]] = {}
    try:
        for cell in (cell for one in results for cell in one["cells"]):
            for key, figures in cell["figures"].items():
                score = figures[EXACT] if EXACT in figures else figures[ROUGE]
                place = float(figures["kv_read_percent"]), float(score)
                places.setdefault(key, {}).setdefault(cell["variant"], []).append(place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PictureError("these are no scored results of training.anchors.study") from error
    if not places:
        raise PictureError("there is no adapter in these results")
    return places


def draw(*results: dict) -> "Figure":
    """One panel per size or set."""
    from matplotlib.figure import Figure

    places = places_of(*results)
    is_exact = EXACT in next(iter(results[0]["cells"][0]["figures"].values()))
    figure = Figure(figsize=(4.6 * len(places), 3.6), dpi=130)
    axes = figure.subplots(1, len(places), squeeze=False)
    for panel, (key, variants) in zip(axes[0], places.items(), strict=True):
        for colour, (variant, adapters) in zip(itertools.cycle(COLOURS), variants.items(), strict=False):
            panel.scatter(*zip(*adapters, strict=True), color=colour, s=26, label=variant)
        panel.set_xlabel("KV read, %", fontsize=8)
        panel.set_title(f"{key} operands" if is_exact else key, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    axes[0][0].set_ylabel("exact answers, %" if is_exact else "ROUGE-L F1", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    command_line(__doc__, draw, takes_several=True)
