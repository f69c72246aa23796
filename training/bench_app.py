"""The app itself, through its API: `python -m training.bench_app` -> assets/results/app_gpu.json.

The app is started as a user would start it and asked by gradio's client, as any program would ask it: the project's
own articles to be summarized and some expressions, both lanes side by side, with drafts and without. Tokens per second
are the lanes' own (prefill left out, as on the page), seconds those of a lane to its answer, prefill included; wall
seconds are the whole call's, both lanes in turns and the feed included. Then visitors come: the first one while models
load, some with many requests at once, and many together (`bench.visitors`).
"""

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task
from training.bench import visitors
from training.bench.results import check_out, count

START_SECONDS = 300
MAX_PORT = 65535
OPERANDS = (24, 48)
SEED = 2024
PARTS = ("first_request", "drafts", "loads", "together", "crowds")
CROWD_LOADS_HELP = "requests of a visitor of a crowd (default: on a GPU 16 and 64, at most --load; elsewhere 1)"


@contextlib.contextmanager
def running_app(port: int) -> Iterator[tuple[str, int]]:
    """The app on a port of this machine, and its process id, once it answers.

    Raises:
        RuntimeError: the port is taken, or the app has ended, or it does not answer in START_SECONDS.
    """
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise RuntimeError(f"port {port} is taken, and what answers there would be measured: choose another --port")
    environment = os.environ | {"PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([sys.executable, "app.py"], env=environment)
    try:
        yield _when_ready(process, f"http://127.0.0.1:{port}"), process.pid
    finally:
        process.terminate()
        process.wait(30)


def _when_ready(process: subprocess.Popen, address: str) -> str:
    import httpx

    for _ in range(10 * START_SECONDS):
        if process.poll() is not None:
            raise RuntimeError(f"the app has ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(address, timeout=5).raise_for_status()
            return address
        time.sleep(0.1)
    raise RuntimeError(f"the app does not answer at {address}")


def inputs(seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Kind and arguments of every call."""
    calls: list[tuple[str, dict[str, Any]]] = []
    for length in ("short", "medium"):
        task = get_task("summarize", length=length)
        calls += [
            (f"articles, {length}", {"task": "summarize", "text": text, "length": length}) for text in task.examples
        ]
    rng = random.Random(seed)
    for operands in OPERANDS:
        texts = [random_problem(rng, operands, held_out=True).text for _ in range(3)]
        calls += [(f"{operands} operands", {"task": "arithmetic", "text": text}) for text in texts]
    return calls


def ask(client: Any, arguments: dict[str, Any], repeats: int) -> dict[str, Any]:
    """One input: medians over repeated calls."""
    ends, walls = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        ends.append(client.predict(api_name="/compare", adapter="plain", **arguments))
        walls.append(time.perf_counter() - started)
    lanes = {}
    for lane in ends[0]["lanes"]:
        results = [end["lanes"][lane] for end in ends]
        lanes[lane] = {
            "tokens": results[0]["tokens"],
            "tokens_per_second": statistics.median(one["tokens_per_second"] for one in results),
            "seconds": statistics.median(one["seconds"] for one in results),
            "tokens_per_pass": results[-1].get("tokens_per_pass"),
        }
    return {"wall_seconds": statistics.median(walls), "lanes": lanes, "line": ends[-1]["line"]}


def summed(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one kind of input: rates over all its answers."""
    lanes = {}
    for lane in answers[0]["lanes"]:
        mine = [answer["lanes"][lane] for answer in answers]
        tokens = sum(one["tokens"] for one in mine)
        lanes[lane] = {
            "tokens_per_second": sum(one["tokens"] - 1 for one in mine)
            / sum((one["tokens"] - 1) / one["tokens_per_second"] for one in mine),
            "slowest_tokens_per_second": min(one["tokens_per_second"] for one in mine),
            "seconds_to_answer": statistics.fmean(one["seconds"] for one in mine),
            "mean_tokens": tokens / len(mine),
        }
    to_answer = lanes["dense"]["seconds_to_answer"] / lanes["sparse"]["seconds_to_answer"]
    behind = sum(one["lanes"]["sparse"]["seconds"] > one["lanes"]["dense"]["seconds"] for one in answers)
    return {"answers": len(answers), "lanes": lanes, "to_answer": to_answer, "self_selected_behind": behind}


def measure(address: str, repeats: int, seed: int) -> dict[str, Any]:
    """All inputs, with drafts and without."""
    from gradio_client import Client

    client = Client(address, verbose=False)
    found: dict[str, Any] = {}
    for drafts in ("auto", "off"):
        answers: dict[str, list] = {}
        for kind, arguments in inputs(seed):
            ask(client, {**arguments, "drafts": drafts}, 1)  # engines are made and kept
            answers.setdefault(kind, []).append(ask(client, {**arguments, "drafts": drafts}, repeats))
            print(f"{kind}, drafts {drafts}: {answers[kind][-1]['line']}", flush=True)
        found[drafts] = {kind: summed(some) | {"calls": some} for kind, some in answers.items()}
    return found


def parse_arguments(argv: Sequence[str] | None, is_gpu: bool) -> argparse.Namespace:
    """The options; a mistake among them is told in a line, and ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--seed", type=int, default=SEED)
    most = max(visitors.LOADS) if is_gpu else 1
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="of the measurement")
    parser.add_argument("--load", type=int, default=most, choices=visitors.LOADS, help="most requests of a visitor")
    parser.add_argument("--crowd-loads", type=int, nargs="+", choices=visitors.LOADS, help=CROWD_LOADS_HELP)
    parser.add_argument("--crowd", type=count, default=1000, help="visits of a crowd")
    parser.add_argument("--crowd-seconds", type=count, default=300, help="no visit of a crowd begins later")
    name = "gpu" if is_gpu else "cpu"
    parser.add_argument("--out", type=Path, default=Path(f"assets/results/app_{name}.json"))
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.port <= MAX_PORT:
        parser.error(f"--port: 1 to {MAX_PORT}")
    check_out(parser, arguments.out)
    if arguments.crowd_loads is None:
        most = arguments.load
        arguments.crowd_loads = [load for load in visitors.LOADS if load <= most and (load > 1 or most == 1)]
    return arguments


def wrong(crowds: Mapping[str, dict[str, Any]]) -> list[str]:
    """What is not as it should be in any crowd, by the requests that its visitors' lanes answer at once."""
    return [f"crowd at load {load}: {said}" for load, crowd in crowds.items() for said in visitors.wrong(crowd)]


def main(argv: Sequence[str] | None = None) -> None:
    """Start, ask, write; the file is written again after every part. Exits with 1 if anything is wrong with a crowd."""
    is_gpu = torch.cuda.is_available()
    arguments = parse_arguments(argv, is_gpu)
    document = provenance() | {"seed": arguments.seed, "repeats": arguments.repeats}
    document["clock"] = "device" if is_gpu else "host"

    def add(name: str, found: dict[str, Any]) -> None:
        document[name] = found
        write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
        print(f"{name}: {json.dumps(found)[:900]}", flush=True)

    crowds: dict[str, Any] = {}
    with running_app(arguments.port) as (address, pid):
        seed, repeats = arguments.seed, arguments.repeats
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "first_request": lambda: visitors.first_request(address, seed),
            "drafts": lambda: measure(address, repeats, seed),
            "loads": lambda: visitors.loads(address, seed, repeats, arguments.load),
            "together": lambda: visitors.together(address, seed),
        }
        for name, part in parts.items():
            if name in arguments.parts:
                add(name, part())
        for load in arguments.crowd_loads if "crowds" in arguments.parts else ():
            crowds[str(load)] = visitors.crowd(address, pid, load, arguments.crowd, arguments.crowd_seconds, seed)
            add("crowds", crowds)
    print(f"wrote {arguments.out}")
    if problems := wrong(crowds):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
