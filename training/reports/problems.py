"""Answers to a generator's problems as Markdown."""

from typing import Any

from selfspan_core.tasks.base import Task
from training.evaluation.results import INPUTS, results_path
from training.reports.markdown import not_measured, origin, read, source, table

LANES = (
    ("plain-dense", "plain adapter, dense"),
    ("span-dense", "span adapter, mask off"),
    ("span-sparse", "span adapter, self-selected"),
)
HEADER = [*(f"exact: {label}" for _, label in LANES), "KV read", "tokens, plain / span adapter"]


def problems(task: type[Task[Any]]) -> str:
    """Exact answers per size of problem and lane; behind that those to given inputs, where they were measured."""
    path, size_name = results_path(task.name), task.generator.size_name
    results = read(path)
    if results is None:
        return not_measured(task)
    what = f"{_what(task, results)}:\n\n"
    text = what + table(*_whole(size_name, results[size_name])) + source(results, path)
    given_path = results_path(task.name, is_given=True)
    given = read(given_path)
    if given is None:
        return text
    n = next(iter(next(iter(given[INPUTS].values())).values()))["n"]
    what = f"The same of {n} {task.generator.problems_name} that were written by hand:\n\n"
    return f"{text}\n{what}" + table(*_whole(INPUTS, given[INPUTS])) + source(given, given_path)


def _whole(first: str, rows: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a complete table; solutions that were written token for token where that was counted."""
    has_steps = any("exact_steps_percent" in lane for lanes in rows.values() for lane in lanes.values())
    header = [first, *HEADER, "malformed steps, self-selected"]
    if has_steps:
        header += [f"all steps exact: {label}" for _, label in LANES]
    made = []
    for size, lanes in rows.items():
        sparse = lanes.get("span-sparse", {})
        row = [*_cells(size, lanes), f"{sparse.get('malformed_percent_of_steps', float('nan')):.3f} %"]
        if has_steps:
            shares = (lanes.get(lane, {}).get("exact_steps_percent") for lane, _ in LANES)
            row += ["–" if share is None else f"{share:.1f} %" for share in shares]
        made.append(row)
    return header, made


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
