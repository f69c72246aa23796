"""Faults that come as calls and requests: unread, nameless, left, heavy, cancelled, or of callers who are gone."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx

from selfspan_core.serve.call_queue import MOST_IDLE
from tests.support.crowd import LONG, ended_with, kinds, leave
from tests.support.fake_session import FakeSession

NUM_UNREAD = 2 * MOST_IDLE
NUM_LEFT = 300
NUM_OF_ONE = 400
HEAVY_BYTES = 7_900_000


def ended(session: FakeSession) -> str:
    """In how many seconds no run is left. Raises an AssertionError if one is left after a minute."""
    began = time.monotonic()
    while session.running and time.monotonic() - began < 60:
        time.sleep(0.01)
    took = time.monotonic() - began
    assert not session.running, f"{session.running} runs went on"
    return f"no run was left after {took:.1f} s"


def unread_calls(url: str, session: FakeSession) -> str:
    """Hundreds of calls that nobody reads, beside one that is read."""
    asked = f"{url.rstrip('/')}/gradio_api/call/compare"
    session.rates = {"dense": 40, "sparse": 60}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(kinds, url, LONG)
        statuses = [
            httpx.post(asked, json={"data": ["arithmetic", None]}, timeout=60).status_code for _ in range(NUM_UNREAD)
        ]
        last = run.result()[-1]
    session.rates = {"dense": 300, "sparse": 480}
    assert statuses == [200] * NUM_UNREAD and last == "end", (set(statuses), last)
    return f"{NUM_UNREAD} calls were refused unheard; one that was read beside them came to its end"


def nameless_sessions(url: str, session: FakeSession) -> str:
    """Sessions that have no name, and ones whose name has a megabyte."""
    asked = f"{url.rstrip('/')}/gradio_api/call/compare"
    bodies = [{"data": ["arithmetic", "1+1"], "session_hash": name} for name in ("", "x" * 10**6) for _ in range(8)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        statuses = list(pool.map(lambda body: httpx.post(asked, json=body, timeout=60).status_code, bodies))
    assert statuses == [400] * len(bodies), statuses
    return f"all {len(bodies)} calls were refused"


def cancelled(url: str, session: FakeSession) -> str:
    """Calls cancelled by their callers, and by somebody else."""
    url = url.rstrip("/")
    config = httpx.get(f"{url}/config", timeout=60).json()["dependencies"]
    number = next(one["id"] for one in config if one["api_name"] == "compare")
    forged = []
    for at in range(8):
        own = {"session_hash": f"caller-{at}", "fn_index": number}
        body = {"data": ["arithmetic", LONG], "session_hash": own["session_hash"]}
        event = httpx.post(f"{url}/gradio_api/call/compare", json=body, timeout=60).json()["event_id"]
        for said in ({**own, "fn_index": 0}, {**own, "session_hash": "another"}, own):
            cancel = httpx.post(f"{url}/gradio_api/cancel", json={**said, "event_id": event}, timeout=60)
            forged.append(cancel.status_code)
    assert forged == [400, 400, 200] * 8, forged
    return f"8 calls ended by their callers, 16 tries of others refused; {ended(session)}"


def left_sessions(url: str, session: FakeSession) -> str:
    """Sessions with a name, as pages have, whose tabs are closed in the middle of their runs."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: leave(url, LONG, 0.01, session_hash=f"left-{number}"), range(NUM_LEFT)))
    found = ended(session)
    asked = {"data": ["arithmetic", "2+3"], "session_hash": "stays"}
    event = httpx.post(f"{url.rstrip('/')}/gradio_api/call/compare", json=asked, timeout=60).json()["event_id"]
    for _ in range(3):
        kinds(url, "1/0")
    assert ended_with(url, event) == "end"
    return f"{NUM_LEFT} tabs with sessions were closed in the middle; an answer that was read late came, {found}"


def one_session(url: str, session: FakeSession) -> str:
    """Calls of one session that reads nothing."""
    asked = {"data": ["arithmetic", None], "session_hash": "reads-nothing"}
    path = f"{url.rstrip('/')}/gradio_api/call/compare"
    with httpx.Client(timeout=60) as client:
        statuses = [client.post(path, json=asked).status_code for _ in range(NUM_OF_ONE)]
    taken = statuses.count(200)
    assert set(statuses) == {200, 503} and taken < 200, (set(statuses), taken)
    return f"of {NUM_OF_ONE} calls of one session {taken} were taken, all others refused until it reads"


def heavy_requests(url: str, session: FakeSession) -> str:
    """Eight megabytes of lists, objects, keys, text and no JSON at once, beside a page that is asked for."""
    path = f"{url.rstrip('/')}/gradio_api/call/compare"
    unit = {"lists": b"[],", "objects": b"{},", "numbers": b"1,"}
    bodies = [b'{"data":[' + one * (HEAVY_BYTES // len(one)) + b"1]}" for one in unit.values()]
    bodies += [b'{"data":[],"event_data":"' + b"x" * HEAVY_BYTES + b'"}', b" " * HEAVY_BYTES]
    bodies.append(json.dumps({"data": ["arithmetic", "1+1" + "+1" * (HEAVY_BYTES // 2 - 40)]}).encode())
    headers = {"content-type": "application/json"}
    with ThreadPoolExecutor(len(bodies)) as pool:
        sent = [pool.submit(httpx.post, path, content=body, headers=headers, timeout=60) for body in bodies]
        waited = []
        while not all(one.done() for one in sent):
            began = time.monotonic()
            httpx.get(f"{url}config", timeout=60)
            waited.append(time.monotonic() - began)
    statuses = [one.result().status_code for one in sent]
    assert statuses == [400] * 5 + [200], statuses
    return f"5 of 6 requests of 8 MB were refused, a text let in; others waited for at most {max(waited):.1f} s"


def tools_left(url: str, session: FakeSession) -> str:
    """Clients of MCP that go in the middle of their tools' runs."""
    called = {"name": "compare", "arguments": {"task": "arithmetic", "text": LONG}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": called}
    accepted = {"accept": "application/json, text/event-stream"}
    session.rates = {"dense": 4, "sparse": 5}

    def leaves(_: int) -> None:
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{url}gradio_api/mcp/", json=asked, headers=accepted, timeout=httpx.Timeout(30, read=5))

    with ThreadPoolExecutor(4) as pool:
        left = [pool.submit(leaves, number) for number in range(4)]
        while not session.running and not all(one.done() for one in left):
            time.sleep(0.01)
        assert session.running, "no tool's run had begun"
    found = ended(session)
    session.rates = {"dense": 300, "sparse": 480}
    return f"4 clients left their tools' runs; {found}"


CALLS: dict[str, Callable[[str, FakeSession], str]] = {
    "calls that nobody reads": unread_calls,
    "sessions without a name": nameless_sessions,
    "sessions that are left": left_sessions,
    "a session that reads nothing": one_session,
    "requests of 8 MB": heavy_requests,
    "calls cancelled": cancelled,
    "tools whose clients left": tools_left,
}
"""By what is injected."""
