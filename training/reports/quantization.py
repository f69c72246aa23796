"""Answers with fewer bits, as Markdown: the block of docs/findings.md."""

from training.reports.markdown import read, source, table
from training.reports.shares import percent_with_interval

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
    return "–" if cell is None else percent_with_interval(cell["right"], cell["n"])
