"""Declared spans inside vLLM, as Markdown."""

from training.reports.markdown import read_all, source, table

MISSING = "Declared spans in vLLM: not measured yet.\n"
ALONE, DENSE, SPARSE = "span dense, vLLM alone", "span dense", "span sparse"
HEADER = [
    "shape, text, requests at once",
    "vLLM alone, dense, ms a step",
    "with the plugin, dense",
    "self-selected",
    "against dense",
    "bytes say",
    "share of that",
    "against vLLM alone",
    "to the answer, against plain dense text",
]


def vllm() -> str:
    """Every GPU that it was measured on."""
    found = read_all("vllm").items()
    return "\n".join(_machine(results, path) for path, results in found if "shapes" in results) or MISSING


def _machine(results: dict, path: str) -> str:
    cells = [(shape, cell) for shape, parts in results["shapes"].items() for cell in parts["decoding"]]
    note = (
        f"vLLM {results['versions']['vllm']}: random weights of a published shape, replayed text of the shipped "
        "models, all requests at once; medians of the engine's steps by the host's clock, scheduling and sampling "
        "included. “Bytes say” is what weights and visible keys and values, read once, make of it.\n\n"
    )
    return note + table(HEADER, [_row(shape, cell) for shape, cell in cells]) + source(results, path)


def _row(shape: str, cell: dict) -> list[str]:
    step_ms = {lane: figures["ms_per_step"] for lane, figures in cell["lanes"].items()}
    return [
        f"{shape}, {cell['text']}, {cell['batch']}",
        *(f"{step_ms[lane]:.2f}" for lane in (ALONE, DENSE, SPARSE)),
        f"{cell['speedup']:.2f}x",
        f"{cell['speedup_predicted_by_bytes']:.2f}x",
        f"{100 * cell['share_of_predicted']:.0f} %",
        f"{step_ms[ALONE] / step_ms[SPARSE]:.2f}x",
        f"{cell['to_answer']:.2f}x",
    ]
