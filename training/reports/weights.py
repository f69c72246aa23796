"""Steps with weights of fewer bits, as Markdown: a block of docs/findings.md."""

from training.reports.markdown import read_all, source, table

MISSING = "Steps with smaller weights: not measured yet (`python -m training.bench_weights` does).\n"
HEADER = [
    "shape, weights, rows x context",
    "weights, GB",
    "dense, ms/step",
    "a tenth read, ms/step",
    "faster by",
    "bytes say",
    "a quarter read, faster by",
    "dense, against bfloat16",
]


def findings_weights() -> str:
    """Every GPU that they were measured on."""
    return "\n".join(_measured(results, path) for path, results in read_all("weights").items()) or MISSING


def _measured(results: dict, path: str) -> str:
    rows = []
    for shape, parts in results["shapes"].items():
        cells = [cell for cell in parts["steps"] if "lanes" in cell]
        floats = {
            (cell["context"], cell["batch"]): cell["lanes"]["dense"]["ms_per_step"]
            for cell in cells
            if cell["weights"] == "bfloat16"
        }
        rows += [_row(shape, cell, floats.get((cell["context"], cell["batch"]))) for cell in cells]
    return table(HEADER, rows) + source(results, path)


def _row(shape: str, cell: dict, of_floats: float | None) -> list[str]:
    dense, tenth, quarter = (cell["lanes"][name] for name in ("dense", "0.1", "0.25"))
    return [
        f"{shape}, {cell['weights']}, {cell['batch']} x {cell['context']}",
        f"{cell['gigabytes']:.1f}",
        *(f"{one['ms_per_step']:.2f}" for one in (dense, tenth)),
        f"{tenth['speedup']:.2f}x",
        f"{tenth['speedup_predicted_by_bytes']:.2f}x",
        f"{quarter['speedup']:.2f}x",
        "–" if of_floats is None else f"{of_floats / dense['ms_per_step']:.2f}x",
    ]
