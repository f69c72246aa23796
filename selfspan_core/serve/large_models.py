"""Measured figures of large models for the page, out of the results files of the benchmark of drafts."""

import json
from pathlib import Path
from typing import Any

from selfspan_core.paths import ASSETS

RESULTS = ASSETS / "results"
LANES = ("plain dense", "plain dense + lookup", "span sparse", "span sparse + drafts")
FIGURES = ("ms_per_step", "tokens_per_second_per_row", "tokens", "seconds_to_answer")


def large_models(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every measured cell of the replayed texts, none of it worked out: empty where no results file is at hand. Of one
    that was measured more than once by a kind of GPU, the first file's, in the order of their names.

    A cell has `gpu`, `date`, `shape`, `text` (what is replayed), `batch`, whether layers share a cache (`shared`), and
    `lanes`: of each of `LANES` a list of `FIGURES` (milliseconds per step, tokens per second of a request, tokens of an
    answer, seconds to an answer).
    """
    files = sorted(folder.glob("drafts_*.json"))
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for file in files:
        for cell in _cells(json.loads(file.read_text(encoding="utf-8"))):
            found.setdefault((cell["gpu"], cell["shape"], cell["text"], cell["batch"]), cell)
    return list(found.values())


def _cells(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of one file; those that did not fit into the GPU's memory have no lanes."""
    where = {"gpu": results["machine"].get("gpu") or "a CPU", "date": results["date"]}
    return [
        {
            **where,
            "shape": shape,
            "text": cell["text"],
            "batch": cell["batch"],
            "shared": cell["layers_per_cache"] > 1,
            "lanes": {lane: [cell["lanes"][lane][figure] for figure in FIGURES] for lane in LANES},
        }
        for shape, parts in results["shapes"].items()
        for cell in parts.get("answers", ())
        if "lanes" in cell
    ]
