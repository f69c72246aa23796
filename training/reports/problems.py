"""Answers to a generator's problems as Markdown."""

from typing import Any

from selfspan_core.tasks.base import Task
from training.evaluation.results import results_path
from training.reports.markdown import not_measured, origin, read, source, table

LANES = (
    ("plain-dense", "plain adapter, dense"),
    ("span-dense", "span adapter, mask off"),
    ("span-sparse", "span adapter, self-selected"),
)
HEADER = [*(f"exact: {label}" for _, label in LANES), "KV read", "tokens, plain / span adapter"]


def problems(task: type[Task[Any]]) -> str:
    """Exact answers per size of problem and lane."""
    path, size_name = results_path(task.name), task.generator.size_name
    results = read(path)
    if results is None:
        return not_measured(task)
    rows = [
        [
            *_cells(size, lanes),
            f"{lanes.get('span-sparse', {}).get('malformed_percent_of_steps', float('nan')):.3f} %",
        ]
        for size, lanes in results[size_name].items()
    ]
    header = [size_name, *HEADER, "malformed steps, self-selected"]
    return f"{_what(task, results)}:\n\n" + table(header, rows) + source(results, path)


def problems_brief(task: type[Task[Any]]) -> str:
    """The same in a small table."""
    path, size_name = results_path(task.name), task.generator.size_name
    results = read(path)
    if results is None:
        return not_measured(task)
    rows = [_cells(size, lanes) for size, lanes in results[size_name].items()]
    return f"{_what(task, results)} ({origin(results, path)}):\n\n" + table([size_name, *HEADER], rows)


def _what(task: type[Task[Any]], results: dict) -> str:
    generator = task.generator
    n = next(iter(next(iter(results[generator.size_name].values())).values()))["n"]
    return f"Share of exact answers to {n} fresh {generator.problems_name} per row, greedy decoding, {results['dtype']}"


def _cells(size: str, lanes: dict) -> list[str]:
    exact = [f"{lanes[lane]['exact_percent']:.1f} %" if lane in lanes else "–" for lane, _ in LANES]
    tokens = [f"{lanes[lane]['mean_tokens']:.0f}" for lane in ("plain-dense", "span-sparse") if lane in lanes]
    share = lanes.get("span-sparse", {}).get("attended_percent_of_dense", float("nan"))
    return [size, *exact, f"{share:.1f} %", " / ".join(tokens)]
