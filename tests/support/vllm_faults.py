"""A vLLM server with this plugin, and what clients do to it: `python -m tests.support.vllm_faults` (needs vLLM).

The shipped small model with its adapter for expressions, started as `selfspan serve` does it: on a CPU in float32, on a
GPU in bfloat16 with graphs. Clients ask good things in both lanes, leave in the middle, and ask too long things or with
markers and segments that are none. Every whole answer has to be the own engine's, every refused request has to be told
why, and memory has to stay where it was. At last the process that computes is killed while it answers.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
import vllm

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.export import export_merged
from selfspan_core.models.export_record import ExportRecord
from selfspan_core.models.model import SpanModel
from selfspan_core.params import SamplingParams
from selfspan_core.paths import ADAPTERS
from selfspan_core.serve import cli_engines
from selfspan_core.serve.vllm_plugin.client import Asked, asked
from selfspan_core.tasks.arithmetic.task import random_problem
from tests.support.rehearse_space import free_port
from tests.support.vllm_tools import ENVIRONMENT, PAGE_SIZE
from training.bench.visitors import memory_mb

START_S, CALL_S = 300, 300
MAX_CONTEXT, MAX_TOKENS = 1024, 300
MODEL = "served"
NUM_TEXTS = 24
LEAST_GAP = {"cpu": 0.0, "cuda": 1.0}
"""Of the two likeliest ids' logits, everywhere in an answer that is asked for: more than 16 bits can move."""
OPERANDS = (2, 3, 4, 6)
MOST_GROWTH = 0.05


@contextlib.contextmanager
def server(
    folder: Path, port: int, device: str = "cpu", options: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """Address, process and log of a server, once it answers.

    Raises:
        RuntimeError: it has ended or does not answer; with the end of its log.
    """
    of_device = {
        "cpu": ["--dtype", "float32", "--enforce-eager", "--block-size", str(PAGE_SIZE)],
        "cuda": ["--dtype", "bfloat16", "--gpu-memory-utilization", "0.3"],
    }
    common = ["--port", str(port), "--max-model-len", str(MAX_CONTEXT), "--served-model-name", MODEL]
    command = cli_engines.vllm_command(str(folder), [*common, *of_device[device], *options])
    own = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = folder.parent / f"log-{port}"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file, start_new_session=True)
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        try:
            while not is_healthy(address):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(log.read_text()[-3000:])
                time.sleep(0.5)
            yield address, process, log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def is_healthy(address: str) -> bool:
    """Whether a server says that it is well."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{address}/health", timeout=5, trust_env=False).status_code == 200
    return False


def processes_below(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def memory_of_all(pid: int) -> float:
    """Megabytes that a server's processes hold beside files."""
    total = 0.0
    for one in processes_below(pid):
        with contextlib.suppress(OSError, StopIteration):
            total += memory_mb(one)
    return total


def gpu_memory_mb() -> list[float]:
    """Megabytes of the GPU that are taken, or nothing without one."""
    if not torch.cuda.is_available():
        return []
    free, total = torch.cuda.mem_get_info()
    return [round((total - free) / 1e6, 1)]


class Clients:
    """Requests of every kind, and what came of them.

    Args:
        address: of the server.
        questions: good requests, with the ids that have to come.
        markers_end: the first number that is no id.
    """

    def __init__(self, address: str, questions: Sequence[tuple[Asked, list[int]]], markers_end: int) -> None:
        self._url, self._questions, self._markers_end = f"{address}/v1/completions", questions, markers_end
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.told: dict[str, str] = {}
        self._lock = threading.Lock()
        self._num_wrong_ids = 0

    def one(self, number: int) -> None:
        """The request of this number, of a kind that follows from it."""
        question, ids = self._questions[number % len(self._questions)]
        body = question.to_json(MODEL, MAX_TOKENS)
        kinds = {5: self.left, 11: self.too_long, 17: self.no_segment, 23: self.no_id}
        kind = kinds.get(number % 29)
        outcome = self.answered(body, ids) if kind is None else kind(body)
        with self._lock:
            self.seen[outcome] += 1

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self._url, json=body, timeout=CALL_S, trust_env=False)

    def answered(self, body: dict[str, Any], ids: list[int]) -> str:
        """A good request: all ids are those of the own engine."""
        reply = self.post(body)
        if reply.status_code != 200:
            self.wrong.append(f"{reply.status_code}: {reply.text[:200]}")
            return "not answered"
        if reply.json()["choices"][0]["token_ids"] != ids:
            self.wrong.append(f"other ids than the own engine's: {reply.json()['choices'][0]['token_ids'][:40]}")
            return "answered otherwise"
        return "answered as by the own engine"

    def left(self, body: dict[str, Any]) -> str:
        """A client that is gone after the first words."""
        with httpx.stream("POST", self._url, json=body | {"stream": True}, timeout=CALL_S, trust_env=False) as reply:
            for _ in zip(range(3), reply.iter_lines(), strict=False):
                pass
        return "left in the middle"

    def refused(self, kind: str, body: dict[str, Any]) -> str:
        """A request that has to be refused, in words."""
        reply = self.post(body)
        if reply.status_code != 400:
            self.wrong.append(f"{kind}: {reply.status_code}: {reply.text[:200]}")
            return f"{kind}: not refused"
        self.told.setdefault(kind, str(reply.json().get("error", {}).get("message", ""))[:200])
        return f"{kind}: refused"

    def too_long(self, body: dict[str, Any]) -> str:
        return self.refused("prompt too long", body | {"prompt": body["prompt"] * MAX_CONTEXT})

    def no_segment(self, body: dict[str, Any]) -> str:
        xargs = {"selfspan": json.dumps({"attention": "sparse", "scaffold_end": 3, "segments": [[7, 9, 2]]})}
        return self.refused("segment that ends before it begins", body | {"vllm_xargs": xargs})

    def no_id(self, body: dict[str, Any]) -> str:
        """The first one behind the last, one far beyond, and one below all."""
        with self._lock:
            self._num_wrong_ids += 1
            wrong = (self._markers_end, 10**6, -1)[self._num_wrong_ids % 3]
        return self.refused("id that the model has not", body | {"prompt": [*body["prompt"], wrong]})


def good_questions(model: SpanModel, seed: int, least_gap: float) -> list[tuple[Asked, list[int]]]:
    """Expressions in both lanes, with the own engine's greedy ids in float32, none of which is a near tie."""
    rng, engine, found = random.Random(seed), Engine(model, model.tokenizer.markers), []
    while len(found) < NUM_TEXTS:
        text = random_problem(rng, OPERANDS[len(found) % len(OPERANDS)], held_out=True).text
        question = asked("arithmetic", text, model.tokenizer, ("dense", "sparse")[len(found) % 2])
        request = PromptRequest(
            question.rendered, sampling=SamplingParams(max_new_tokens=MAX_TOKENS), with_logits=least_gap > 0
        )
        written = [event for event in engine.generate(request, question.attention) if isinstance(event, Token)]
        if least_gap == 0 or all(gap_of(event.logits) >= least_gap for event in written):
            found.append((question, [event.id for event in written]))
    return found


def gap_of(logits: torch.Tensor) -> float:
    """By how much the likeliest id is likelier than the next."""
    first, second = logits.float().topk(2).values.tolist()
    return first - second


def load(address: str, pid: int, clients: Clients, num: int, at_once: int) -> dict[str, Any]:
    """So many requests; the server's memory after every tenth of them."""
    began, held, on_gpu = time.monotonic(), [], []
    with ThreadPoolExecutor(at_once) as pool:
        for first in range(0, num, num // 10):
            list(pool.map(clients.one, range(first, min(num, first + num // 10))))
            held.append(round(memory_of_all(pid), 1))
            on_gpu += gpu_memory_mb()
            print(f"{len(held)} of 10: {dict(clients.seen)}, {held[-1]} MB", flush=True)
    until = time.monotonic() + 30
    while (left := running(address)) and time.monotonic() < until:
        time.sleep(0.2)
    growth = held[-1] / held[1] - 1
    return {
        "requests": num,
        "clients": at_once,
        "seconds": time.monotonic() - began,
        "seen": dict(clients.seen),
        "wrong": clients.wrong,
        "told": clients.told,
        "memory_mb": held,
        "gpu_memory_mb": on_gpu,
        "growth": growth,
        "still_running": left,
    }


def running(address: str) -> int:
    """Requests that the server is working on."""
    lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running")))


def killed(address: str, process: subprocess.Popen, question: Asked) -> dict[str, Any]:
    """The process that computes dies in the middle of an answer: what the client and the server's owner hear."""
    body = question.to_json(MODEL, MAX_TOKENS) | {"ignore_eos": True, "stream": True}
    heard: dict[str, Any] = {}
    computing = max(processes_below(process.pid)[1:], key=memory_mb)
    try:
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60, trust_env=False) as reply:
            for number, line in enumerate(reply.iter_lines()):
                if number == 4:
                    os.kill(computing, signal.SIGKILL)
                    began = time.monotonic()
                if "error" in line:
                    heard["client"] = line[:300]
    except httpx.HTTPError as error:
        heard["client"] = f"{type(error).__name__}: {error}"
    heard["client_heard_after_s"] = time.monotonic() - began
    with contextlib.suppress(subprocess.TimeoutExpired):
        heard["server_ended_with"] = process.wait(60)
    heard["healthy"] = is_healthy(address)
    return heard


def main() -> int:
    """Run, print, write `--out`; 1 if an answer was wrong, a bad request was not refused, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the server has the other core
    document: dict[str, Any] = provenance() | {"seed": arguments.seed, "device": arguments.device}
    document["versions"]["vllm"] = vllm.__version__
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "arithmetic"
        record = ExportRecord("arithmetic", "span", "selfspan-17m")
        dtype = "float32" if arguments.device == "cpu" else "bfloat16"
        export_merged("selfspan-17m", ADAPTERS / "arithmetic-span", folder, dtype, record)
        model = SpanModel.load(folder)
        questions = good_questions(model, arguments.seed, LEAST_GAP[arguments.device])
        with server(folder, free_port(), arguments.device) as (address, process, log):
            clients = Clients(address, questions, model.tokenizer.vocab_size)
            document["load"] = load(address, process.pid, clients, arguments.requests, arguments.clients)
            document["killed"] = killed(address, process, questions[0][0])
            document["killed"]["log"] = [line[-200:] for line in log.read_text().splitlines() if "died" in line][-1:]
        print(json.dumps(document, indent=1))
    if arguments.out:
        write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
    found = document["load"]
    return int(bool(found["wrong"] or found["still_running"] or found["growth"] > MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
