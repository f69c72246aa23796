"""A real run, recorded: what the page plays until a visitor runs something. No model is needed to play it.

python -m selfspan_core.serve.record
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.params import Request
from selfspan_core.serve.feed import dumps, outcome, packed_item, packed_row
from selfspan_core.serve.lazy_session import LazySession
from selfspan_core.serve.page_files import RECORDED
from selfspan_core.tasks.registry import TASKS, get_task

MAX_BYTES = 150_000
DIGITS = 4


def recording(ticks: Iterable[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """A run's ticks as one object: `frames` hold what each tick adds, and the milliseconds of the lanes' clock.

    Args:
        ticks: a whole run.
        facts: provenance of the run; see `cuda_kernels.bench.provenance`.
    """
    frames, start, end = [], {}, {}
    for tick in ticks:
        if tick["kind"] == "start":
            start = tick
        elif tick["kind"] == "end":
            end = {**tick, "lanes": {name: outcome(result) for name, result in tick["lanes"].items()}}
        else:
            lanes = {name: _packed(lane) for name, lane in tick["lanes"].items()}
            frames.append([round(1000 * max(lane["elapsed_s"] for lane in lanes.values())), lanes])
    where = facts["machine"]
    machine = where.get("gpu") or f"{where['cpu']}, {where['cores']} cores"
    told = {"machine": machine, "date": facts["date"], "commit": facts["commit"], "dirty": facts["dirty"]}
    return {"kind": "recorded", **told, "start": start, "frames": frames, "end": end}


def _packed(lane: dict[str, Any]) -> dict[str, Any]:
    """A lane's news as the page reads them, with figures of few digits."""
    figures = {name: _short(value) for name, value in lane.items()}
    items, rows = [packed_item(item) for item in lane["items"]], [packed_row(run) for run in lane["rows"]]
    return figures | {"items": items, "rows": rows}


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _run(task: str, text: str) -> Iterator[dict[str, Any]]:
    """The second of two runs: the first one loads and warms up what the second needs."""
    session = LazySession()
    for _ in session.compare(Request(task, text)):
        pass
    return session.compare(Request(task, text))


def main() -> None:
    """Run an example that takes some seconds, and write what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=place, default=RECORDED)
    parser.add_argument("--task", choices=list(TASKS), default=next(iter(TASKS)))
    parser.add_argument("--text", help="by default one of the task's longer examples")
    arguments = parser.parse_args()
    facts = provenance()
    ticks = list(_run(arguments.task, arguments.text or get_task(arguments.task).examples[-2]))
    written = dumps(recording(ticks, facts))
    if len(written.encode()) > MAX_BYTES:
        raise SystemExit(f"The recording takes {len(written.encode()):,} bytes; the most is {MAX_BYTES:,}.")
    write_whole(arguments.out, written + "\n")
    print(f"{arguments.out}: {len(written.encode()) / 1000:.0f} kB, {ticks[-1]['headline']['text']}")


if __name__ == "__main__":
    main()
