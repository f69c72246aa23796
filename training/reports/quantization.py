"""Answers with fewer bits, as Markdown: the block of docs/findings.md."""

import math

from training.reports.markdown import read, source, table

PATH = "assets/results/quantization.json"
LANES = {"plain-dense": "plain, dense", "span-dense": "span, mask off", "span-sparse": "self-selected"}
MISSING = "Not measured yet: `python -m training.quantization` does.\n"


def findings_quantization() -> str:
    """Exact answers by bits, lane and size."""
    results = read(PATH)
    if not results:
        return MISSING
    sizes = list(results["operands"])
    rows = []
    for kind in results["operands"][sizes[0]]:
        for lane, label in LANES.items():
            cells = [results["operands"][size][kind].get(lane) for size in sizes]
            if any(cells):
                malformed = sum(cell["malformed_steps"] for cell in cells if cell)
                rows.append([f"{kind}, {label}", *(_share(cell) for cell in cells), str(malformed)])
    header = ["bits, lane", *(f"{size} operands" for size in sizes), "malformed steps"]
    intro = f"Exact answers of selfspan-17m to {results['n']} expressions of each size, and their intervals (95 %):\n\n"
    return intro + table(header, rows) + source(results, PATH)


def _share(cell: dict | None) -> str:
    """Right answers in percent, with Wilson's interval."""
    if cell is None:
        return "–"
    low, high = wilson(cell["right"], cell["n"])
    return f"{100 * cell['right'] / cell['n']:.1f} % ({100 * low:.0f}–{100 * high:.0f})"


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share, of which `right` of `n` were seen (E. B. Wilson, 1927)."""
    share, weight = right / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
