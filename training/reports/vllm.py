"""Declared spans inside vLLM, as Markdown."""

from selfspan_core.tasks.registry import TASKS
from training.reports.markdown import origin, read_all, source, table

MISSING = "Declared spans in vLLM: not measured yet.\n"
LANES = ("plain dense", "span dense", "span sparse")
SERVER_HEADER = [
    "shape, text, clients",
    *(f"{name}, requests/s" for name in ("plain text, dense", "with names, dense", "self-selected")),
    *(f"{name}, s to the answer" for name in ("plain text, dense", "with names, dense", "self-selected")),
    "against dense",
    "against plain text",
]
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
BRIEF_HEADER = [
    "7B shape, requests at once",
    "vLLM alone, dense, ms/step",
    "with the plugin, dense",
    "self-selected",
    "speedup per step",
    "bytes say",
    "to the answer",
]


def vllm() -> str:
    """Every GPU that it was measured on: steps, the HTTP server, and whose ids came out."""
    parts = [_machine(results, path) for path, results in read_all("vllm").items() if "shapes" in results]
    parts += [_answers(results, path) for path, results in read_all("vllm_answers").items()]
    parts += [_server(results, path) for path, results in read_all("serving").items()]
    parts += [_faults(results, path) for path, results in read_all("vllm_faults").items()]
    return "\n".join(parts) or MISSING


def vllm_brief() -> str:
    """One GPU's first shape."""
    measured = {path: results for path, results in read_all("vllm").items() if "shapes" in results}
    if not measured:
        return MISSING
    path, results = next(iter(measured.items()))
    shape, parts = next(iter(results["shapes"].items()))
    rows = [_row(shape, cell) for cell in parts["decoding"]]
    intro = (
        f"Inside vLLM {results['versions']['vllm']}, by a plugin ([how](docs/serving.md)), with its graphs and "
        f"asynchronous scheduling, replayed text as above ({origin(results, path)}):\n\n"
    )
    return intro + table(BRIEF_HEADER, [[row[0].removeprefix(f"{shape}, "), *row[1:6], row[8]] for row in rows])


def _answers(results: dict, path: str) -> str:
    """Greedy ids beside those of the project's own engine."""
    rows = []
    for task in TASKS:
        for lane, one in results.get(task, {}).items():
            gaps = ", ".join(f"{gap:g}" for gap in sorted(map(abs, one["gaps"])))
            figures = [f"{one['answers']}", f"{one['equal']}", gaps or "–", f"{len(one['others'])}"]
            rows.append([f"{task}, {lane}", *figures, f"{100 * one['read']:.0f} %"])
    version, dtype = results["versions"].get("vllm", "for CPUs"), results.get("dtype", "bfloat16")
    graphs = "graphs on" if results["graphs"] else "without graphs"
    note = (
        f"Greedy answers of the shipped small model in {dtype} out of vLLM {version}, {graphs}, {results['rows']} rows "
        "beside the own engine's; the gap is that of the two likeliest ids' logits where two answers part:\n\n"
    )
    header = ["task, lane", "answers", "the own engine's ids", "gaps at near ties", "others", "KV read"]
    return note + table(header, rows) + source(results, path)


def _machine(results: dict, path: str) -> str:
    cells = [(shape, cell) for shape, parts in results["shapes"].items() for cell in parts["decoding"]]
    note = (
        f"vLLM {results['versions']['vllm']}: random weights of a published shape, replayed text of the shipped "
        "models, all requests at once; medians of the engine's steps by the host's clock, scheduling and sampling "
        "included. “Bytes say” is what weights and visible keys and values, read once, make of it.\n\n"
    )
    return note + table(HEADER, [_row(shape, cell) for shape, cell in cells]) + source(results, path)


def _server(results: dict, path: str) -> str:
    rows = [
        [
            f"{shape}, {cell['text']}, {cell['clients']}",
            *(f"{cell['lanes'][lane]['requests_per_second']:.2f}" for lane in LANES),
            *(f"{cell['lanes'][lane]['seconds_to_answer']:.1f}" for lane in LANES),
            f"{cell['against_dense']:.2f}x",
            f"{cell['against_plain_dense']:.2f}x",
        ]
        for shape, parts in results["shapes"].items()
        for cell in parts["serving"]
    ]
    note = (
        f"Through vLLM's HTTP server, {results['requests_of_a_client']} request(s) of each client, all clients at "
        "once; requests per second over the whole crowd, and what a client waits for its answer:\n\n"
    )
    return note + table(SERVER_HEADER, rows) + source(results, path)


def _faults(results: dict, path: str) -> str:
    """A server under load and faults."""
    load, killed = results["load"], results["killed"]
    rows = [[what, f"{num:,}"] for what, num in sorted(load["seen"].items(), key=lambda one: -one[1])]
    held = load["memory_mb"]
    note = (
        f"vLLM {results['versions']['vllm']} with the shipped small model, {load['requests']:,} requests of "
        f"{load['clients']} clients over HTTP, good ones of both lanes and bad ones among them. A good answer is right "
        "if every id is the own engine's:\n\n"
    )
    then = (
        f"\nThe server's processes held {held[1]:,.0f} MB after a fifth of them and {held[-1]:,.0f} MB after the last; "
        f"{load['still_running']} requests were left running. When the process that computes was killed in the middle "
        f"of an answer, the client heard an error after {killed['client_heard_after_s']:.1f} s, and the server ended.\n"
    )
    return note + table(["request", "how many"], rows) + then + source(results, path)


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
