"""Many requests of many clients: `python -m tests.support.load` (`make load`, 1,000 requests of 50 clients).

The app as a user starts it, with the shipped small model. Every client asks one thing after the other, most of them
short expressions, some long ones; some clients leave in the middle. Each request has to be answered or told its place;
a long run may keep a short one waiting for no longer than it takes itself. With `--write`, and from a clean commit
only, the figures go to assets/results/load_cpu.json.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from tests.support.crowd import LONG, leave
from tests.support.paths import ROOT
from tests.support.rehearse_space import client_of, serving
from training.bench import visitors
from training.bench.visitors import OPERANDS, crowd, expressions, visit

OUT = ROOT / "assets" / "results" / "load_cpu.json"
SEED = 1000
MOST_S = 3600
MOST_GROWTH = 0.05


def leaving(url: str, num: int) -> dict[str, Any]:
    """Clients that leave in the middle beside some that stay."""
    texts = expressions(4, OPERANDS, seed=20)
    with ThreadPoolExecutor(num + len(texts)) as pool:
        gone = [pool.submit(leave, url, LONG, 0.5) for _ in range(num)]
        visits = list(pool.map(visit, [url] * len(texts), texts))
        for one in gone:
            one.result()
    return {"left": num, "stayed": len(visits), "answered": sum(bool(one.end) for one in visits)}


def measured(num_requests: int, num_clients: int, num_leaving: int) -> dict[str, Any]:
    """All of it, on a server of its own."""
    with tempfile.TemporaryDirectory() as folder, serving(sys.executable, Path(folder) / "log") as (url, pid):
        client_of(url)
        found = crowd(url, pid, load=1, num=num_requests, most_s=MOST_S, seed=SEED, num_clients=num_clients)
        return {"crowds": {"1": found}, "leaving": leaving(url, num_leaving)}


def wrong(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    left, found = found["leaving"], found["crowds"]["1"]
    before_mb, after_mb = (found["memory_mb"][when]["resident"] for when in ("before", "after"))
    said = visitors.wrong(found)
    said += [f"memory: {before_mb:.0f} MB, then {after_mb:.0f}"] if after_mb > (1 + MOST_GROWTH) * before_mb else []
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
        write_whole(OUT, json.dumps(facts | found, indent=1) + "\n")
        print(f"wrote {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
