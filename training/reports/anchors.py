"""What other anchors make of the same adapter (`training.anchors.study`), as Markdown: a block of docs/findings.md."""

import statistics
from collections.abc import Iterable, Sequence

from training.reports.markdown import read_all, source, table

MISSING = "Not measured yet: `python -m training.anchors.study` does.\n"
ROUGE = "rouge_l"


def findings_anchors() -> str:
    """A table a task: one variant a row, means over the seeds of its adapters."""
    parts = [_task(results) + source(results, path) for path, results in read_all("anchors").items()]
    return "\n".join(parts) or MISSING


def _task(results: dict) -> str:
    by_variant: dict[str, list[dict]] = {}
    for cell in results["cells"]:
        by_variant.setdefault(cell["variant"], []).append(cell["figures"])
    keys = list(dict.fromkeys(key for cell in results["cells"] for key in cell["figures"]))
    tokens = statistics.fmean(cell["training"]["tokens"] for cell in results["cells"])
    rows = [[variant, f"{len(some)}", *_columns(some, keys)] for variant, some in by_variant.items()]
    header = [
        f"anchors, {results['task']}",
        "adapters",
        *(title for key in keys for title in _titles(key, results["cells"][0]["figures"][key])),
    ]
    said = f"Each adapter saw {tokens / 1e6:.0f} M tokens; of several, the mean and, behind it, the least and the most."
    return f"{said}\n\n{table(header, rows)}"


def _titles(key: str, figures: dict) -> list[str]:
    score = f"{key}: ROUGE-L" if "exact_percent" not in figures else f"{key}: exact, %"
    return [score, "malformed steps, %", "KV read, %", "tokens"]


def _columns(some: Sequence[dict], keys: Iterable[str]) -> list[str]:
    columns = []
    for key in keys:
        score = "exact_percent" if "exact_percent" in some[0][key] else ROUGE
        columns += [
            _spread([one[key].get(score) for one in some]),
            _spread([one[key]["malformed_percent_of_steps"] for one in some], digits=2),
            f"{statistics.fmean(one[key]['kv_read_percent'] for one in some):.1f}",
            f"{statistics.fmean(one[key]['mean_tokens'] for one in some):.0f}",
        ]
    return columns


def _spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean, least and most; a dash where a figure is not known yet."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    told = f"{statistics.fmean(known):.{digits}f}"
    return told if len(known) == 1 else f"{told} ({min(known):.{digits}f} to {max(known):.{digits}f})"
