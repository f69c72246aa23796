"""Whether the server's memory stays flat: `python -m tests.support.check_memory` (`make check-memory`).

The app as a user starts it, and 200 runs through its API, each by a visitor of their own: expressions of all sizes,
articles, runs that are left in the middle, bad input.
"""

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError

from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task
from tests.support.crowd import leave
from tests.support.rehearse_space import client_of, serving
from training.bench.visitors import memory_mb

MOST_GROWTH = 0.05
WARM_RUNS = 20


def one_run(url: str, number: int, rng: random.Random) -> None:
    """One visitor."""
    kind = number % 10
    if kind == 7:
        leave(url, random_problem(rng, 24, held_out=True).text, after_s=0.5)
    elif kind == 8:
        try:
            Client(url, verbose=False).predict("arithmetic", "1/0", api_name="/compare")
        except AppError:
            return
        raise AssertionError("1/0 was answered")
    elif kind in (4, 9):
        article = rng.choice(get_task("summarize").examples)
        Client(url, verbose=False).predict("summarize", article, length="short", api_name="/compare")
    else:
        text = random_problem(rng, rng.choice((2, 4, 8, 12)), held_out=True).text
        Client(url, verbose=False).predict("arithmetic", text, api_name="/compare")


def main() -> None:
    """Run, print, and exit with 1 if memory grew by more than MOST_GROWTH."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    rng, seen = random.Random(200), []
    with tempfile.TemporaryDirectory() as folder, serving(sys.executable, Path(folder) / "log") as (url, pid):
        client_of(url)
        for number in range(arguments.runs):
            one_run(url, number, rng)
            seen.append(memory_mb(pid))
            if number % 10 == 9:
                print(f"{number + 1:4d} runs: {seen[-1]:7.1f} MB", flush=True)
    before, after = statistics.median(seen[WARM_RUNS : 2 * WARM_RUNS]), statistics.median(seen[-WARM_RUNS:])
    growth = after / before - 1
    print(f"{before:.0f} MB after {WARM_RUNS} runs, {after:.0f} MB after {arguments.runs}: {100 * growth:+.1f} %")
    if growth > MOST_GROWTH:
        sys.exit(f"memory grew by more than {100 * MOST_GROWTH:.0f} %")


if __name__ == "__main__":
    main()
