"""Many requests of many clients: `python -m tests.support.load` (`make load`, 1,000 requests of 50 clients).

The app as a user starts it, with the shipped small model. Every client asks one thing after the other, most of them
short expressions, some long ones; some clients leave in the middle. Each request has to be answered or told its place;
a long run may keep a short one waiting for no longer than it takes itself. With `--write`, and from a clean commit
only, the figures go to assets/results/app_load.json.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda_kernels.bench.provenance import provenance
from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task
from tests.support.check_memory import memory_mb
from tests.support.crowd import LONG, Visit, leave, stay
from tests.support.paths import ROOT
from tests.support.rehearse_space import client_of, serving

OUT = ROOT / "assets" / "results" / "app_load.json"
OPERANDS = (*[2] * 4, *[4] * 4, 8, 24)
"""Of ten requests in a row: eight short ones."""
LONGEST = 64
MOST_SILENCE_S = 5.0
MOST_GROWTH_MB = 200.0


def inputs(num: int, seed: int = 1000) -> list[str]:
    """Expressions, the same ones every time."""
    rng = random.Random(seed)
    return [random_problem(rng, OPERANDS[number % len(OPERANDS)], held_out=True).text for number in range(num)]


def one_client(url: str, texts: list[str]) -> list[Visit]:
    """The visits of one client, one after the other."""
    return [stay(url, text) for text in texts]


def fairness(url: str) -> dict[str, float]:
    """Seconds that a run of 64 operands takes alone, and that one of 4 operands waits beside it."""
    rng = random.Random(64)
    long, short = (random_problem(rng, operands, held_out=True).text for operands in (LONGEST, 4))
    alone = stay(url, long)
    stay(url, short)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stay, url, long)
        time.sleep(min(1.0, alone.seconds / 4))
        beside = stay(url, short)
        both = running.result()
    return {
        "long_alone_s": alone.seconds,
        "short_waited_s": beside.waited_s,
        "short_whole_s": beside.seconds,
        "long_beside_s": both.seconds,
    }


def leaving(url: str, num: int) -> dict[str, Any]:
    """Clients that leave in the middle beside some that stay."""
    texts = inputs(4, seed=20)
    with ThreadPoolExecutor(num + len(texts)) as pool:
        gone = [pool.submit(leave, url, LONG, 0.5) for _ in range(num)]
        visits = list(pool.map(stay, [url] * len(texts), texts))
        for one in gone:
            one.result()
    return {"left": num, "stayed": len(visits), "answered": sum(visit.answer is not None for visit in visits)}


def figures(visits: list[Visit], texts: list[str], seconds: float) -> dict[str, Any]:
    """What the visits come to. `unheard`: those who waited for seconds without a word."""
    waits = sorted(visit.waited_s for visit in visits if visit.answer is not None)
    expected = [get_task("arithmetic").parse(text).expected for text in texts]
    return {
        "requests": len(visits),
        "answered": sum(visit.answer is not None for visit in visits),
        "right": sum(visit.answer == right for visit, right in zip(visits, expected, strict=True)),
        "told_their_place": sum(bool(visit.places) for visit in visits),
        "unheard": sum(not visit.places and not visit.error and visit.waited_s > MOST_SILENCE_S for visit in visits),
        "errors": sorted({visit.error for visit in visits if visit.error})[:10],
        "seconds": seconds,
        "median_wait_s": statistics.median(waits) if waits else None,
        "p95_wait_s": waits[int(0.95 * (len(waits) - 1))] if waits else None,
        "longest_wait_s": max(waits, default=None),
    }


def measured(num_requests: int, num_clients: int, num_leaving: int) -> dict[str, Any]:
    """All of it, on a server of its own."""
    texts = inputs(num_requests)
    with tempfile.TemporaryDirectory() as folder, serving(sys.executable, Path(folder) / "log") as (url, pid):
        client_of(url)
        stay(url, "1+2")
        fair = fairness(url)
        before, began = memory_mb(pid), time.monotonic()
        with ThreadPoolExecutor(num_clients) as pool:
            shares = [texts[number::num_clients] for number in range(num_clients)]
            by_client = list(pool.map(one_client, [url] * num_clients, shares))
        seconds = time.monotonic() - began
        ordered = [by_client[number % num_clients][number // num_clients] for number in range(num_requests)]
        found = figures(ordered, texts, seconds)
        left = leaving(url, num_leaving)
        after = memory_mb(pid)
    memory = {"before_mb": before, "after_mb": after, "growth_mb": after - before}
    return {"clients": num_clients, **found, "memory": memory, "fairness": fair, "leaving": left}


def wrong(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    fair, memory, left = found["fairness"], found["memory"], found["leaving"]
    said = [f"{found['requests'] - found['answered']} requests were not answered: {found['errors']}"]
    said = said if found["answered"] < found["requests"] else []
    said += [f"{found['unheard']} waited without a word"] if found["unheard"] else []
    said += ["a long run kept a short one waiting"] if fair["short_waited_s"] > fair["long_alone_s"] else []
    said += [f"memory grew by {memory['growth_mb']:.0f} MB"] if memory["growth_mb"] > MOST_GROWTH_MB else []
    return said + (["who left disturbed who stayed"] if left["answered"] < left["stayed"] else [])


def main() -> None:
    """Run, print, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--leaving", type=int, default=20)
    parser.add_argument("--write", action="store_true", help=f"write {OUT.relative_to(ROOT)}, from a clean commit only")
    arguments = parser.parse_args()
    facts = provenance()
    if arguments.write and facts["dirty"]:
        sys.exit("figures are written from a clean commit only: commit first")
    found = measured(arguments.requests, arguments.clients, arguments.leaving)
    print(json.dumps(found, indent=2))
    if problems := wrong(found):
        sys.exit("\n".join(problems))
    if arguments.write:
        cores = len(os.sched_getaffinity(0))
        OUT.write_text(json.dumps(facts | {"cores": cores} | found, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
