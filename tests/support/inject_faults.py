"""Puts faults into a server while it serves: `python -m tests.support.inject_faults` (`make inject-faults`).

After each fault the next visitor's answer is timed. Faults of serving meet runs of a chosen length; faults of decoding
the shipped small model. With `--write` the table goes into docs/reliability.md.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import httpx
from gradio_client import Client

from cuda_kernels.bench.provenance import provenance
from selfspan_core.engine.host_step import HostStep
from selfspan_core.params import MAX_NEW_TOKENS
from selfspan_core.serve import visitors
from tests.support.crowd import LONG, ended_with, kinds, leave
from tests.support.fake_session import FakeSession
from tests.support.faults import DECODING, ERRORS, PREFILL, clock_set, failing
from tests.support.injected_calls import CALLS, ended
from tests.support.paths import ROOT
from tests.support.rehearse_space import serving

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
UNHEARD_S, ALLOWED_S = 1.0, visitors.UNHEARD_S
MOST_NEXT_S = 1.0


@dataclass
class Outcome:
    """What a fault did.

    Attributes:
        fault: what was put in.
        happened: to those whom it hit.
        next_s: until the next visitor's whole answer; infinite where there was none.
        first_word_s: until that visitor heard anything.
    """

    fault: str
    happened: str
    next_s: float
    first_word_s: float

    @property
    def is_good(self) -> bool:
        """Whether the next visitor was answered or told their place in time."""
        return self.first_word_s <= MOST_NEXT_S and self.next_s < 60


def call(url: str, text: str = LONG, session: httpx.Client | None = None, load: int = 1) -> str:
    """The id of a run, of so many requests at once, that is asked for and not listened to."""
    asked = {"data": ["arithmetic", text, "span", MAX_NEW_TOKENS, load]}
    with contextlib.nullcontext(session) if session else httpx.Client(timeout=30) as browser:
        sent = browser.post(f"{url}gradio_api/call/compare", json=asked)
        return sent.json().get("event_id", "")


def unread_socket(url: str, event: str, is_killed: bool) -> socket.socket:
    """A connection that asks for a run's objects; it is never read, or it is reset after some of them."""
    host = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((host.hostname, host.port))
    connection.sendall(f"GET /gradio_api/call/compare/{event} HTTP/1.1\r\nHost: {host.netloc}\r\n\r\n".encode())
    if is_killed:
        connection.settimeout(10)
        connection.recv(500)
        # Zero seconds of lingering: the connection is reset, as by a machine that lost its power.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    return connection


def killed_clients(url: str, session: FakeSession) -> str:
    for _ in range(8):
        unread_socket(url, call(url), is_killed=True)
    return f"8 connections were reset; {ended(session)}"


def closed_tabs(url: str, session: FakeSession) -> str:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: leave(url, LONG, 0.3), range(8)))
    return f"8 visitors left in the middle; {ended(session)}"


def stop_storm(url: str, session: FakeSession) -> str:
    client = Client(url, verbose=False)
    for _ in range(20):
        job = client.submit("arithmetic", LONG, api_name="/compare")
        for _ in range(3):
            job.cancel()
    return f"20 runs were begun and each stopped three times; {ended(session)}"


def unheard_call(url: str, session: FakeSession) -> str:
    session.rates = {"dense": 2, "sparse": 2}
    with mock.patch.object(visitors, "UNHEARD_S", UNHEARD_S):
        call(url)
        while not session.running:
            time.sleep(0.01)
        found = ended(session)
    session.rates = {"dense": 300, "sparse": 480}
    return f"with {UNHEARD_S:g} s in place of {ALLOWED_S:g} allowed, {found}"


def never_read(url: str, session: FakeSession) -> str:
    connections = [unread_socket(url, call(url), is_killed=False) for _ in range(4)]
    found = ended(session)
    for connection in connections:
        connection.close()
    return f"4 connections were open and not read: their runs took their own time, {found}"


def full_queue(url: str, session: FakeSession) -> str:
    with ThreadPoolExecutor(50) as pool, httpx.Client(timeout=30, limits=httpx.Limits(max_connections=60)) as browser:
        events = list(pool.map(lambda _: call(url, "1+1", browser), range(150)))
    kept = [event for event in events if event]
    with ThreadPoolExecutor(60) as pool:
        ends = list(pool.map(lambda event: ended_with(url, event), kept))
    told = Counter({"told that the queue is full": len(events) - len(kept)})
    told.update("answered" if end == "end" else f"ended with {end}" for end in ends)
    assert set(told) == {"answered", "told that the queue is full"}, told
    return f"of 150 calls at once {', '.join(f'{number} were {what}' for what, number in sorted(told.items()))}"


def moved_clock(url: str, session: FakeSession) -> str:
    found = []
    for by_s in (86_400.0, -86_400.0):
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(kinds, url, "79*36+63-(45-12)*8")
            time.sleep(0.15)
            with clock_set(by_s):
                found.append(run.result()[-1])
    assert found == ["end", "end"], found
    return "a day ahead and a day back in the middle of a run: both runs came to their end"


SERVING: dict[str, Callable[[str, FakeSession], str]] = {
    "clients killed": killed_clients,
    "tabs closed": closed_tabs,
    "a storm of Stops": stop_storm,
    "a call that nobody listens to": unheard_call,
    "a socket that is never read": never_read,
    **CALLS,
    "a full queue": full_queue,
    "the wall clock set": moved_clock,
}


def decoding_faults(kind: type = HostStep, load: int = 1) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Faults of decoding by name, raised by steps of a kind, in a run of so many requests at once."""
    for where, words, after in ((PREFILL, "in the prefill", 0), (DECODING, "in the middle of decoding", 20)):
        for name, error in ERRORS.items():

            def inject(url: str, where=where, error=error, after=after) -> str:
                with failing(where, error, after, kind) as raised:
                    last = told(url, load)
                if not raised:
                    raise RuntimeError("the fault was never reached")
                return last

            yield f"{name} {words}", inject


def told(url: str, load: int = 1) -> str:
    """What a visitor of a long run, of so many requests at once, gets at its end."""
    try:
        return Client(url, verbose=False).predict("arithmetic", LONG, load=load, api_name="/compare")["kind"]
    except Exception as error:
        return f"the visitor is told: {error}"


def next_answer(url: str, load: int = 1) -> tuple[float, float]:
    """Seconds until the next visitor, of so many requests at once, hears anything, and until the answer."""
    began = time.monotonic()
    event = call(url, "1+1", load=load)
    first = float("inf")
    with httpx.Client(timeout=60) as browser, browser.stream("GET", f"{url}gradio_api/call/compare/{event}") as lines:
        for line in lines.iter_lines():
            if line.startswith("data:") and "kind" in line:
                first = min(first, time.monotonic() - began)
            if line.startswith("event: error"):
                return first, float("inf")
            if line.startswith("event: complete"):
                break
    return first, time.monotonic() - began


@contextlib.contextmanager
def in_this_process(session) -> Iterator[str]:
    """The app around a session, served here, so that faults can be put into it; its address."""
    import app

    demo = app.build_app(session)
    _, url, _ = app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield url
    finally:
        demo.close(verbose=False)


def outcome(fault: str, url: str, inject: Callable[[], str], load: int = 1) -> Outcome:
    """Put a fault in, and time the next visitor; a fault that did not go as it should is no good outcome."""
    failed = ""
    try:
        happened = inject()
    except Exception as error:  # of any kind: the other faults are still to come
        happened = failed = f"the injection failed: {type(error).__name__}: {error}"
    first, whole = next_answer(url, load)
    whole = float("inf") if failed else whole
    found = Outcome(fault, happened, whole, first)
    print(
        f"{'ok ' if found.is_good else 'BAD'} {fault}: {happened}; next word {first:.2f} s, answer {whole:.2f} s",
        flush=True,
    )
    return found


def serving_outcomes() -> list[Outcome]:
    """Faults of serving."""
    session = FakeSession(dense=300, sparse=480)
    with in_this_process(session) as url:
        next_answer(url)
        return [outcome(name, url, lambda inject=inject: inject(url, session)) for name, inject in SERVING.items()]


def decoding_outcomes() -> list[Outcome]:
    """Faults of decoding."""
    from selfspan_core.serve.lazy_session import LazySession

    with in_this_process(LazySession()) as url:
        told(url)
        return [outcome(name, url, lambda inject=inject: inject(url)) for name, inject in decoding_faults()]


def abandoned(url: str) -> None:
    """A run whose server ends. Gradio's client would go on asking, and keep this process from its own end."""
    with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
        for _ in range(20):
            kinds(url, LONG)


def has_ended(pid: int) -> bool:
    """Whether a child has ended, and nobody asked for its status yet."""
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def interrupted() -> Outcome:
    """Ctrl-C in the middle of a run, and a server that is started again."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with serving(sys.executable, log) as (url, pid):
            threading.Thread(target=abandoned, args=(url,), daemon=True).start()
            time.sleep(15)
            was_there = not has_ended(pid)
            os.kill(pid, signal.SIGINT)
            began = time.monotonic()
            while not has_ended(pid) and time.monotonic() - began < 20:
                time.sleep(0.001)
            took = time.monotonic() - began
        said = log.read_text()
        is_clean = was_there and "Stopped." in said and "Abort" not in said and "Traceback" not in said
    happened = f"the server ended after {took:.3f} s{'' if is_clean else ', and not cleanly'}"
    print(happened, flush=True)
    return Outcome("Ctrl-C in the middle of a run", happened, 0.0, 0.0 if took < 2 and is_clean else float("inf"))


def table(outcomes: list[Outcome]) -> str:
    """The outcomes for the page."""
    facts = provenance()
    where = facts["machine"]
    device = where.get("gpu") or f"{where.get('cpu')}, {where.get('cores')} cores"
    head = (
        f"{device}, {facts['date']}, commit {facts['commit'][:10]}{', uncommitted changes' if facts['dirty'] else ''}."
    )
    rows = [
        f"| {one.fault} | {' '.join(one.happened.split()).replace('|', '/')} | "
        + (f"{one.first_word_s:.2f} | {one.next_s:.2f} |" if one.next_s else "– | – |")
        for one in outcomes
    ]
    columns = "| injected | what happened | next visitor's first word, s | and answer, s |\n| --- | --- | ---: | ---: |"
    return "\n".join([head, "", columns, *rows])


def conclude(outcomes: list[Outcome], marks: tuple[str, str] | None) -> None:
    """Exit with 1 where the next visitor was not served; before that, the table into the page between two marks.

    Args:
        outcomes: of all faults.
        marks: before and behind the table's place; None: it is not written.
    """
    if marks is not None:
        begin, end = marks
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
        _, _, behind = rest.partition(end)
        PAGE.write_text(f"{before}{begin}\n{table(outcomes)}\n{end}{behind}", encoding="utf-8")
    if not all(one.is_good for one in outcomes):
        sys.exit("the next visitor was not served in time")


def main() -> None:
    """Inject, print, and exit with 1 where the next visitor was not served."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--only", choices=("serving", "decoding", "interrupt"))
    arguments = parser.parse_args()
    # A shell that starts this in the background has its children ignore Ctrl-C, and theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("selfspan").setLevel(logging.CRITICAL)
    outcomes: list[Outcome] = []
    if arguments.only in (None, "serving"):
        outcomes += serving_outcomes()
    if arguments.only in (None, "decoding"):
        outcomes += decoding_outcomes()
    if arguments.only in (None, "interrupt"):
        outcomes.append(interrupted())
    conclude(outcomes, (BEGIN, END) if arguments.write else None)


if __name__ == "__main__":
    main()
