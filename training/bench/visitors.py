"""Many visitors of a running app, over plain HTTP as any program would ask: who comes first, together, and in crowds.

Waiting is until the first object of a visitor's own run; a word is the first object of any kind, so the place in the
line or "loading the model" counts. The server's memory is what it holds beside files, and on its GPU.
"""

import json
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from selfspan_core.params import MAX_NEW_TOKENS
from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task

LOADS = (1, 16, 64)
NUM_TOGETHER = 24
NUM_CLIENTS = 50
OPERANDS = (*[2] * 4, *[4] * 4, 8, 24)
"""Of ten requests of a crowd in a row: eight short ones."""
LONGEST = 64
MOST_SILENCE_S = 5.0
TELL_EVERY = 25
CALL_SECONDS = 900


@dataclass
class Visit:
    """What one visitor saw.

    Attributes:
        end: the last object of the run; empty if there was none, which `error` explains.
        was_told: whether they were told what they wait for.
        word_s, waited_s, seconds: until the first object, until their own run began, and of the whole visit.
    """

    end: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    was_told: bool = False
    word_s: float = 0.0
    waited_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether the self-selected answer is; an answer that nobody can check counts."""
        return bool(self.end) and self.end["lanes"]["sparse"]["correct"] is not False


def visit(address: str, text: str, task: str = "arithmetic", load: int = 1, adapter: str = "span") -> Visit:
    """Ask, and see the run to its end."""
    found, began = Visit(), time.monotonic()
    url = f"{address}/gradio_api/call/compare"
    with httpx.Client(timeout=CALL_SECONDS) as client:
        asked = client.post(url, json={"data": [task, text, adapter, MAX_NEW_TOKENS, load]})
        asked.raise_for_status()
        with client.stream("GET", f"{url}/{asked.json()['event_id']}") as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    _take_in(found, json.loads(line[5:]), time.monotonic() - began)
    found.seconds = time.monotonic() - began
    return found


def _take_in(found: Visit, data: Any, seconds: float) -> None:
    """One message of the stream: a list of one object, an error in words, or null behind the last."""
    if not isinstance(data, list):
        found.error = found.error or (str(data) if data else "")
        return
    (one,) = data
    found.word_s = found.word_s or seconds
    if one["kind"] == "waiting":
        found.was_told = True
    elif one["kind"] == "start":
        found.waited_s = seconds
    elif one["kind"] == "end":
        found.end = one


def expressions(num: int, operands: Sequence[int], seed: int) -> list[str]:
    """Of the held-out side, with so many operands in turns."""
    rng = random.Random(seed)
    return [random_problem(rng, operands[number % len(operands)], held_out=True).text for number in range(num)]


def first_request(address: str, seed: int) -> dict[str, Any]:
    """Of whoever asks the moment that the port is open."""
    (text,) = expressions(1, (8,), seed)
    first = visit(address, text)
    return {
        "first_word_s": first.word_s,
        "waited_s": first.waited_s,
        "seconds": first.seconds,
        "is_right": first.is_right,
        "error": first.error,
    }


def loads(address: str, seed: int, repeats: int, most: int) -> dict[str, Any]:
    """One visitor whose lanes answer so many requests at once: medians, after a call for the engines."""
    (text,) = expressions(1, (24,), seed)
    found = {}
    for load in (load for load in LOADS if load <= most):
        runs = [visit(address, text, load=load) for _ in range(repeats + 1)][1:]
        rate = "tokens_per_second" if load == 1 else "total_tokens_per_second"
        lanes = {lane: statistics.median(run.end["lanes"][lane][rate] for run in runs) for lane in runs[0].end["lanes"]}
        seconds = statistics.median(run.seconds for run in runs)
        found[str(load)] = {
            "tokens_per_second": lanes,
            "wall_seconds": seconds,
            "right": all(run.is_right for run in runs),
        }
    return found


def together(address: str, seed: int) -> dict[str, Any]:
    """Clients that come at once: every third with an article, the others with expressions."""
    articles = get_task("summarize").examples
    texts = [(text, "arithmetic") for text in expressions(NUM_TOGETHER, (8, 24), seed)]
    texts[::3] = [(articles[number % len(articles)], "summarize") for number in range(len(texts[::3]))]
    began = time.monotonic()
    with ThreadPoolExecutor(NUM_TOGETHER) as pool:
        visits = list(pool.map(lambda asked: visit(address, *asked), texts))
    return summed(visits, time.monotonic() - began)


def summed(visits: Sequence[Visit], seconds: float) -> dict[str, Any]:
    """What the visits come to. `unheard`: those who waited for seconds without a word."""
    waits = sorted(one.waited_s for one in visits if one.end)
    return {
        "requests": len(visits),
        "answered": sum(bool(one.end) for one in visits),
        "right": sum(one.is_right for one in visits),
        "told_their_place": sum(one.was_told for one in visits),
        "unheard": sum(one.word_s > MOST_SILENCE_S or not (one.end or one.error) for one in visits),
        "errors": sorted({one.error[:200] for one in visits if one.error})[:10],
        "seconds": seconds,
        "median_wait_s": statistics.median(waits) if waits else None,
        "p95_wait_s": waits[int(0.95 * (len(waits) - 1))] if waits else None,
        "longest_wait_s": max(waits, default=None),
    }


def crowd(
    address: str, pid: int, load: int, num: int, most_s: float, seed: int, num_clients: int = NUM_CLIENTS
) -> dict[str, Any]:
    """Many clients, each with one request after the other, and how a long one is fair to a short one.

    Args:
        address: of the app.
        pid: of its process.
        load: requests that each visitor's lanes answer at once.
        num: of visits; none begins after `most_s` seconds.
        most_s: see there.
        seed: of the expressions.
        num_clients: at once.
    """
    texts = iter(expressions(num, OPERANDS, seed))
    lock, visits = threading.Lock(), list[Visit]()
    fair = fairness(address, load, seed)  # and the server has everything that it loads when it is needed
    sizes, began = [memory(pid)], time.monotonic()

    def one_client(_: int) -> None:
        while time.monotonic() - began < most_s:
            with lock:
                text = next(texts, None)
            if text is None:
                return
            seen = visit(address, text, load=load)
            with lock:
                visits.append(seen)
                if len(visits) % TELL_EVERY == 0:
                    sizes.append(memory(pid))
                    told(len(visits), num, time.monotonic() - began, sizes[-1])

    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(one_client, range(num_clients)))
    found = summed(visits, time.monotonic() - began)
    sizes.append(memory(pid))
    # Threads and connections of so many clients come with their first visits.
    warm = min(2 * num_clients // TELL_EVERY, len(sizes) - 2)
    held = {"first": sizes[0], "before": sizes[warm], "after": sizes[-1], "every": TELL_EVERY, "sampled": sizes}
    return {"clients": num_clients, **found, "memory_mb": held, "fairness": fair}


def told(done: int, num: int, seconds: float, size: Mapping[str, float]) -> None:
    """Say how far a crowd is."""
    rest = seconds * (num / done - 1)
    print(f"{done} of {num} visits, {seconds:.0f} s, ETA {rest:.0f} s, {size['resident']:.0f} MB", flush=True)


def fairness(address: str, load: int, seed: int) -> dict[str, float]:
    """Seconds of a run of LONGEST operands alone, and those that one of 4 operands waits beside it, and by itself: many
    prompts are prepared before a run's first object comes.
    """
    long, short = expressions(2, (LONGEST, 4), seed)
    ask: Callable[[str], Visit] = lambda text: visit(address, text, load=load)  # noqa: E731
    for text in (long, short):
        ask(text)
    alone, by_itself = ask(long), ask(short)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, long)
        time.sleep(alone.seconds / 8)
        beside = ask(short)
        running.result()
    waited = {"short_waited_s": beside.waited_s, "short_waited_alone_s": by_itself.waited_s}
    return {"long_alone_s": alone.seconds, **waited, "short_whole_s": beside.seconds}


def wrong(crowd: Mapping[str, Any]) -> list[str]:
    """What is not as it should be in a crowd: who was not answered or heard nothing, and who was kept waiting.

    Args:
        crowd: what `crowd` returns.
    """
    fair, missing = crowd["fairness"], crowd["requests"] - crowd["answered"]
    said = [f"{missing} requests were not answered: {crowd['errors']}"] if missing else []
    said += [f"{crowd['unheard']} waited without a word"] if crowd["unheard"] else []
    waited, alone = fair["short_waited_s"] - fair.get("short_waited_alone_s", 0.0), fair["long_alone_s"]
    if waited > alone:
        said.append(f"a long run kept a short one waiting for {waited:.2f} s, and takes {alone:.2f} s itself")
    return said


def memory_mb(pid: int) -> float:
    """Memory of a process that is not shared with files, in MB: pages of mapped weights come and go."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1000


def memory(pid: int) -> dict[str, float]:
    """Megabytes that a process holds: resident and not shared with files, and on the GPU where one can be asked."""
    held = {"resident": memory_mb(pid)}
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return held
    return held | {"gpu": float(asked.stdout.splitlines()[0])}
