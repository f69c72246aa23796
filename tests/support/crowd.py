"""Many visitors at once, as gradio's client and as plain HTTP: those who stay, and those who leave in the middle."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

LONG = "79*36+63-(45-12)*8+(-(7*8))+96/12*(31+14)-88+5*(6-2*9)"


@dataclass
class Stay:
    """What one visitor saw.

    Attributes:
        answer: of the self-selected lane; None: an error, which is in `error`.
        places: how many runs were before theirs, whenever they were told.
        words: what they were told.
        waited_s: until the first tick of their own run.
        seconds: of the whole visit.
    """

    answer: str | None = None
    error: str = ""
    places: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    waited_s: float = 0.0
    seconds: float = 0.0


def stay(url: str, text: str, task: str = "arithmetic") -> Stay:
    """A visitor who sees their run to the end."""
    # Longer than the client's own five seconds: a server that loads its models on busy cores takes so long.
    client = Client(url, verbose=False, httpx_kwargs={"timeout": 60})
    visit, began = Stay(), time.monotonic()
    try:
        for tick in client.submit(task, text, api_name="/compare"):
            if tick["kind"] == "waiting":
                visit.places.append(tick.get("ahead", 0))
                visit.words.append(tick["message"])
            elif tick["kind"] == "start":
                visit.waited_s = time.monotonic() - began
            elif tick["kind"] == "end":
                visit.answer = tick["lanes"]["sparse"]["answer"]
    except AppError as error:
        visit.error = str(error)
    visit.seconds = time.monotonic() - began
    return visit


def leave(url: str, text: str, after_s: float, **more: object) -> None:
    """A visitor whose connection ends in the middle; `more` of the request's body, the name of a session say."""
    call = f"{url.rstrip('/')}/gradio_api/call/compare"
    with httpx.Client(timeout=60) as browser:
        event = browser.post(call, json={"data": ["arithmetic", text], **more}).json()["event_id"]
        ends = time.monotonic() + after_s
        with suppress(httpx.HTTPError), browser.stream("GET", f"{call}/{event}") as lines:
            for line in lines.iter_lines():
                if time.monotonic() > ends or (line.startswith("data:") and '"kind": "end"' in line):
                    break


def kinds(url: str, text: str) -> list[str]:
    """The kinds of all objects of a run over plain HTTP."""
    call = f"{url.rstrip('/')}/gradio_api/call/compare"
    return kinds_of(url, httpx.post(call, json={"data": ["arithmetic", text]}, timeout=60).json()["event_id"])


def kinds_of(url: str, event: str) -> list[str]:
    """The same for a run that was asked for."""
    call = f"{url.rstrip('/')}/gradio_api/call/compare/{event}"
    with httpx.Client(timeout=120) as browser, browser.stream("GET", call) as lines:
        data = [json.loads(line[5:]) for line in lines.iter_lines() if line.startswith("data:")]
    return [one[0]["kind"] for one in data if one and isinstance(one, list)]


def ended_with(url: str, event: str) -> str:
    """The kind of the last object of a run; empty where it had none."""
    return (kinds_of(url, event) or [""])[-1]


def all_at_once(url: str, staying: list[str], leaving: list[str], leave_after_s: float = 1.0) -> list[Stay]:
    """The visits of those who stay, in order."""
    with ThreadPoolExecutor(len(staying) + len(leaving)) as pool:
        visits = [pool.submit(stay, url, text) for text in staying]
        gone = [pool.submit(leave, url, text, leave_after_s) for text in leaving]
        for one in gone:
            one.result()
        return [visit.result() for visit in visits]
