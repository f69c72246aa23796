"""Measured figures of large models for the page, out of the results files of the engine benchmark."""

import json
from pathlib import Path
from typing import Any

from selfspan_core.paths import ASSETS

RESULTS = ASSETS / "results"
LANES = ("plain-dense", "span-dense", "span-sparse")
FIGURES = ("ms_per_step", "tokens_per_second", "mean_tokens", "seconds_to_answer")


def large_models(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every measured cell of the replayed runs, none of it worked out: empty where no results file is at hand.

    A cell has `gpu`, `date`, `shape`, `operands`, `batch`, whether layers share a cache (`shared`), and `lanes`: of
    each of `LANES` a list of `FIGURES` (milliseconds per step, tokens per second of the whole batch, tokens of an
    answer, seconds to an answer).
    """
    files = sorted(folder.glob("engine_*.json"))
    return [cell for file in files for cell in _cells(json.loads(file.read_text(encoding="utf-8")))]


def _cells(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of one file; those that did not fit into the GPU's memory have no lanes."""
    where = {"gpu": results["machine"]["gpu"], "date": results["date"]}
    return [
        {
            **where,
            "shape": shape,
            "operands": cell["operands"],
            "batch": cell["batch"],
            "shared": cell["layers_per_cache"] > 1,
            "lanes": {lane: [cell["lanes"][lane][figure] for figure in FIGURES] for lane in LANES},
        }
        for shape, parts in results["shapes"].items()
        for cell in parts.get("replay", ())
        if "lanes" in cell
    ]
