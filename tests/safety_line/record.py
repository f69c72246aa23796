"""Record the safety line: `python -m tests.safety_line.record` (some half an hour on two cores).

Recorded once, with the code of before; a change of the models or of a prompt's form is the only reason to do it again.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.safety_line.cases import LANES, Case, Ways, cases, digest, quiet_threads

FILE = Path(__file__).parent / "ids.npz"


def write(path: Path, ids: dict[str, list[int]], prompts: dict[str, str], about: dict) -> None:
    """All ids in one array, with names, lengths and the prompts' digests beside it; whole or not at all."""
    names = list(ids)
    meta = {"names": names, "prompts": [prompts[name] for name in names], "about": about}
    arrays = {
        "ids": np.array([token for name in names for token in ids[name]], dtype=np.uint16),
        "lengths": np.array([len(ids[name]) for name in names], dtype=np.uint32),
        "meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def read(path: Path = FILE) -> tuple[dict[str, list[int]], dict[str, str], dict]:
    """Ids by case, the prompts' digests by case, and how they were made."""
    with np.load(path, allow_pickle=False) as stored:
        ids, lengths, meta = stored["ids"].tolist(), stored["lengths"].tolist(), json.loads(stored["meta"].tobytes())
    found, at = {}, 0
    for name, length in zip(meta["names"], lengths, strict=True):
        found[name] = ids[at : at + length]
        at += length
    return found, dict(zip(meta["names"], meta["prompts"], strict=True)), meta["about"]


def decode(ways: Ways, chosen: list[Case], report) -> dict[str, list[int]]:
    """Ids of cases by name."""
    ids = {}
    alone = [case for case in chosen if case.way == "token by token"]
    for case in alone:
        ids[case.name] = ways.token_by_token(case)
        report(len(ids), len(chosen))
    for lane in LANES:
        together = [case for case in chosen if case.way == "rows together" and case.lane == lane]
        for place, written in ways.rows_together(together) if together else ():
            ids[together[place].name] = written
        report(len(ids), len(chosen))
    return ids


def join(files: list[Path], out: Path) -> None:
    """One file out of parts that were recorded with the same code.

    Raises:
        ValueError: a case is missing.
    """
    ids, prompts, abouts = {}, {}, []
    for file in files:
        some, their_prompts, about = read(file)
        ids, prompts, abouts = ids | some, prompts | their_prompts, [*abouts, about]
    names = [case.name for case in cases()]
    if set(names) != set(ids):
        raise ValueError(f"{len(set(names) - set(ids))} cases are missing")
    about = abouts[0] | {"versions": [one["versions"] for one in abouts if one["versions"] != abouts[0]["versions"]]}
    about["versions"] = [abouts[0]["versions"], *about["versions"][:1]]
    write(out, {name: ids[name] for name in names}, prompts, about)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--task", help="only this task's cases")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th input, from the I-th on")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="put parts together, and record nothing")
    arguments = parser.parse_args()
    if arguments.join:
        join(arguments.join, arguments.out)
        return
    quiet_threads(arguments.threads)
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        spent = time.monotonic() - started
        print(f"\r{done}/{total}, about {spent / done * (total - done) / 60:.1f} min left ", end="", file=sys.stderr)

    first, parts = map(int, arguments.part.split("/"))
    ways = Ways()
    chosen = [case for case in cases(arguments.task) if case.number % parts == first - 1]
    prompts = {case.name: digest(ways.prompt(case).ids) for case in chosen}
    ids = decode(ways, chosen, report)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = {"commit": commit, "machine": platform.machine(), "versions": versions, "threads": arguments.threads}
    write(arguments.out, {case.name: ids[case.name] for case in chosen}, prompts, about)
    print(f"\nwrote {arguments.out}: {sum(map(len, ids.values()))} ids", file=sys.stderr)


if __name__ == "__main__":
    main()
