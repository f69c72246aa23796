"""What other anchors make of the same adapter (`training.anchors.study`), as Markdown: a block of docs/findings.md."""

import statistics
from collections.abc import Iterable, Sequence

from training.reports.markdown import picture, read_all, source, table
from training.reports.shares import percent_with_interval

MISSING = "Not measured yet: `python -m training.anchors.study` does.\n"
ROUGE = "rouge_l"


def findings_anchors() -> str:
    """A table a task, of all results files of it: one variant a row, over the adapters of its training seeds."""
    by_task: dict[str, dict[str, dict]] = {}
    for path, results in read_all("anchors").items():
        by_task.setdefault(results["task"], {})[path] = results
    return "\n".join(_task(files) for files in by_task.values()) or MISSING


def _task(files: dict[str, dict]) -> str:
    cells = [cell for results in files.values() for cell in results["cells"]]
    by_variant: dict[str, list[dict]] = {}
    for cell in cells:
        by_variant.setdefault(cell["variant"], []).append(cell["figures"])
    keys = list(dict.fromkeys(key for cell in cells for key in cell["figures"]))
    tokens = statistics.fmean(cell["training"]["tokens"] for cell in cells)
    rows = [[variant, f"{len(some)}", *_columns(some, keys)] for variant, some in by_variant.items()]
    path, results = next(iter(files.items()))
    header = [
        f"anchors, {results['task']}",
        "adapters",
        *(title for key in keys for title in _titles(key, cells[0]["figures"][key])),
    ]
    said = (
        f"Each adapter saw {tokens / 1e6:.0f} M tokens. Of several adapters the mean and, behind it, the least and the "
        "most; of right answers also the interval (95 %) of all of them together, which leaves out how "
        "adapters of other seeds differ."
    )
    sources = "\n".join(source(one, name) for name, one in files.items())
    return f"{said}\n\n{table(header, rows)}{sources}{picture(path, 'Anchors')}"


def _titles(key: str, figures: dict) -> list[str]:
    score = f"{key}: ROUGE-L" if "exact_percent" not in figures else f"{key} operands: exact"
    return [score, "malformed steps, %", "KV read, %", "tokens"]


def _columns(some: Sequence[dict], keys: Iterable[str]) -> list[str]:
    columns = []
    for key in keys:
        figures = [one[key] for one in some]
        columns += [
            _exact(figures) if "right" in figures[0] else _spread([one.get(ROUGE) for one in figures]),
            _spread([one["malformed_percent_of_steps"] for one in figures], digits=2),
            f"{statistics.fmean(one['kv_read_percent'] for one in figures):.1f}",
            f"{statistics.fmean(one['mean_tokens'] for one in figures):.0f}",
        ]
    return columns


def _exact(figures: Sequence[dict]) -> str:
    """Right answers of all adapters, and those of the worst and the best of them."""
    told = percent_with_interval(sum(one["right"] for one in figures), sum(one["n"] for one in figures))
    of_each = [one["exact_percent"] for one in figures]
    return told if len(figures) == 1 else f"{told}, {min(of_each):.1f} to {max(of_each):.1f}"


def _spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean, least and most; a dash where a figure is not known yet."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    told = f"{statistics.fmean(known):.{digits}f}"
    return told if len(known) == 1 else f"{told} ({min(known):.{digits}f} to {max(known):.{digits}f})"
