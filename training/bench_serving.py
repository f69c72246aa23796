"""Declared spans in vLLM's HTTP server: `python -m training.bench_serving` -> assets/results/serving_<gpu>.json.

Physics. As in `training.bench_vllm`; beside it the server reads JSON, schedules, and hands ids on, in processes of its
own. Where requests do not fit into the cache together, some wait.

Method. As many clients at once as are asked for, each with one request after the other; the ids of recorded answers are
forced through a model of a published shape with random weights. Every lane goes to the same server: plain text dense,
text with names dense, text with names self-selected. Requests per second are over the time from the first request to
the last answer; the time to an answer is what a client waits. A round before, which is not counted, warms the server.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from selfspan_core.paths import BASE
from selfspan_core.serve.vllm_plugin import support
from selfspan_core.serve.vllm_plugin.settings import SpanSettings
from training.bench.forced import FORCED, KEY
from training.bench.replay import Recording
from training.bench.results import Results, add_device, begin_results, check_out, count, find_machine
from training.bench.shapes import SHAPES
from training.bench.texts import Text, expressions, weights_of
from training.bench_vllm import ENVIRONMENT, LANES, SEED, write_model

MODEL = "served"
START_S, ANSWER_S = 600, 1800


def server_command(folder: Path, port: int, arguments: argparse.Namespace, max_context: int) -> list[str]:
    """What starts vLLM's server with random weights, the plugin and forced ids."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", str(max_context)),
        *("--max-num-seqs", str(max(arguments.clients)), "--tensor-parallel-size", str(arguments.gpus)),
        *("--no-enable-prefix-caching", "--generation-config", "vllm", "--block-size", str(arguments.page_size)),
        *scheduled(arguments.scheduling),
        *("--logits-processors", FORCED, support.SPAN_REQUESTS),
    ]


def scheduled(kind: str) -> list[str]:
    """Options of a server whose host plans a step while the one before runs ("async"), or behind it ("sync")."""
    return ["--async-scheduling", "--worker-cls", support.SPAN_WORKER] if kind == "async" else ["--no-async-scheduling"]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """A server while it runs, by its address.

    Raises:
        RuntimeError: it did not start; with the end of what it wrote.
    """
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT | {"PYTHONPATH": path()}
        )
    try:
        ends = time.monotonic() + START_S
        while not is_up(address):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def path() -> str:
    """Where the server finds this project, which may not be installed."""
    return os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH", ""))))


def is_up(address: str) -> bool:
    """Whether a server answers."""
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def body_of(recording: Recording, attention: str) -> dict[str, Any]:
    """A request whose answer is a recorded one."""
    extra = SpanSettings.of_prompt(attention, recording.layout).to_extra_args(as_text=True)
    return {
        "model": MODEL,
        "prompt": list(recording.prompt),
        "max_tokens": len(recording.ids),
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": extra | {KEY: list(recording.ids)},
    }


async def crowd(address: str, recordings: Sequence[Recording], attention: str, num: int, each: int) -> dict[str, float]:
    """So many clients at once, each with so many requests.

    Raises:
        RuntimeError: an answer is not the recorded one, or the server refused it.
    """
    bodies = itertools.cycle((one, body_of(one, attention)) for one in recordings)
    waits, tokens = [], 0

    async def client(own: Sequence[tuple[Recording, dict[str, Any]]]) -> None:
        nonlocal tokens
        for recording, body in own:
            began = time.perf_counter()
            answer = await http.post(f"{address}/v1/completions", json=body)
            waits.append(time.perf_counter() - began)
            if answer.status_code != 200:
                raise RuntimeError(f"status {answer.status_code}: {answer.text[:500]}")
            if answer.json()["choices"][0]["token_ids"] != list(recording.ids):
                raise RuntimeError("the server answered something else than what is forced")
            tokens += len(recording.ids)

    limits = httpx.Limits(max_connections=num, max_keepalive_connections=num)
    async with httpx.AsyncClient(timeout=ANSWER_S, limits=limits) as http:
        asked = [list(itertools.islice(bodies, each)) for _ in range(num)]
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for own in asked:
                group.create_task(client(own))
        seconds = time.perf_counter() - began
    return {
        "requests_per_second": num * each / seconds,
        "tokens_per_second": tokens / seconds,
        "seconds_to_answer": statistics.fmean(waits),
        "slowest_answer_s": max(waits),
        "seconds": seconds,
    }


def measure(arguments: argparse.Namespace, results: Results, text: Text) -> None:
    """All numbers of clients."""
    markers = weights_of("arithmetic-span", torch.device("cpu")).model.tokenizer.markers
    both = (*text.span, *text.plain)
    longest = 64 + max(len(one.prompt) + len(one.ids) for one in both)
    folder = write_model(arguments.shape, markers, longest)
    for file in BASE.glob("tokenizer*"):
        shutil.copy(file, folder)
    log = Path(tempfile.gettempdir()) / "bench_serving.log"
    with serving(server_command(folder, arguments.port, arguments, longest), arguments.port, log) as address:
        for with_names, attention in LANES.values():
            asyncio.run(crowd(address, text.span if with_names else text.plain, attention, min(4, len(text.span)), 1))
        for clients in arguments.clients:
            lanes = {}
            for lane, (with_names, attention) in LANES.items():
                recordings = text.span if with_names else text.plain
                lanes[lane] = asyncio.run(crowd(address, recordings, attention, clients, arguments.each))
            results.add_cell(arguments.shape, "serving", figures(text.name, clients, lanes))


def figures(text: str, clients: int, lanes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A cell's lanes, and how much more the self-selected one answers."""
    rates = {lane: one["requests_per_second"] for lane, one in lanes.items()}
    return {
        "text": text,
        "clients": clients,
        "lanes": lanes,
        "against_dense": rates["span sparse"] / rates["span dense"],
        "against_plain_dense": rates["span sparse"] / rates["plain dense"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="7B", choices=list(SHAPES), help="of the model")
    parser.add_argument("--clients", type=count, nargs="+", default=[1, 16, 64, 256], help="at once")
    parser.add_argument("--each", type=count, default=1, help="requests of a client")
    parser.add_argument("--operands", type=count, default=24, help="of the expressions")
    parser.add_argument("--num", type=count, default=32, help="texts")
    parser.add_argument("--gpus", type=count, default=1, help="tensor parallelism")
    parser.add_argument("--page-size", type=count, default=16, help="tokens of a page of vLLM's cache")
    parser.add_argument("--scheduling", default="async", choices=("async", "sync"), help="of steps by vLLM")
    parser.add_argument("--port", type=count, default=8765)
    parser.add_argument("--seed", type=int, default=SEED)
    add_device(parser)
    parser.add_argument("--out", type=Path, help="default: assets/results/serving_<gpu>.json")
    arguments = parser.parse_args(argv)
    check_out(parser, arguments.out)
    device = torch.device(arguments.device)
    machine = find_machine(device)
    text = expressions(arguments.operands, arguments.num, arguments.seed, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    head = {
        "clock": "clients",
        "page_size": arguments.page_size,
        "scheduling": arguments.scheduling,
        "requests_of_a_client": arguments.each,
    }
    results, out = begin_results(arguments, "serving", machine, head)
    measure(arguments, results, text)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
