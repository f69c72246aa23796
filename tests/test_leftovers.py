"""What the server holds of calls that are over: nothing of those over plain HTTP, no message of anybody's."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gradio_client import Client

import app
from selfspan_core.serve import call_queue
from tests.support.crowd import ended_with, kinds, kinds_of, leave
from tests.support.fake_session import FakeSession


class Served:
    """A running app and what gradio holds of sessions in it."""

    def __init__(self, dense: float = 2000, sparse: float = 3000) -> None:
        self.session = FakeSession(dense=dense, sparse=sparse)
        self.demo = app.build_app(self.session, ("arithmetic",))
        _, self.url, _ = app.launch(self.demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)

    def held(self) -> tuple[int, int, int]:
        """Sessions with values, with a queue of messages, with a set of calls."""
        queue = self.demo._queue
        values = self.demo.app.state_holder.session_data
        return len(values), len(queue.pending_messages_per_session), len(queue.pending_event_ids_session)

    @property
    def is_idle(self) -> bool:
        """Whether no call waits or runs."""
        return not self.demo._queue.event_ids_to_events

    def settles_at(self, held: tuple[int, int, int]) -> bool:
        """The streams' ends reach the server a moment after the caller."""
        return becomes(lambda: self.held() == held)


def becomes(true: Callable[[], bool], seconds: float = 5) -> bool:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not true():
        time.sleep(0.02)
    return true()


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.demo.close(verbose=False)


@pytest.fixture
def slow() -> Iterator[Served]:
    """One whose runs take a second or two."""
    one = Served(dense=60, sparse=80)
    yield one
    one.demo.close(verbose=False)


def test_calls_over_http_leave_nothing(served):
    """A session of some 85 KB, a queue and a set are kept of every call until hundreds of others have come."""
    for number in range(3):
        assert kinds(served.url, f"{number}+1")[-1] == "end"
        assert kinds(served.url, "1/0") == []  # refused: an error's stream is one, too
    assert served.settles_at((0, 0, 0)), served.held()


def test_who_leaves_leaves_nothing(served):
    """A caller who goes in the middle: the run's next tick makes the session again, for nobody."""
    leave(served.url, "1+2*3-(4+5)*6+7*8", after_s=0.02)
    assert kinds(served.url, "1+1")[-1] == "end"
    assert becomes(lambda: served.held()[1:] == (0, 0)), served.held()


def test_no_statistics_are_kept(served):
    """After each call gradio makes a table of all calls before it, which nobody can see: slower with every visitor."""
    assert kinds(served.url, "1+1")[-1] == "end"
    queue = served.demo._queue
    assert becomes(lambda: not queue.event_ids_to_events) and not queue.event_analytics
    assert queue.cached_event_analytics_summary == {"functions": {}}


def test_named_sessions_keep_their_values(served):
    """A page's values, the job among them, are dropped between two of its calls; or its messages are kept for good."""
    client = Client(served.url, verbose=False)
    for text in ("1+1", "2+3"):
        assert client.predict("arithmetic", text, api_name="/compare")["kind"] == "end"
    assert served.settles_at((1, 1, 1)), served.held()


def test_another_call_of_a_session_goes_on(served):
    """The stream of one call ends while another one of the same caller runs: its messages are dropped."""
    call, named = f"{served.url.rstrip('/')}/gradio_api/call/compare", "a-caller"
    asked = [{"data": ["arithmetic", text], "session_hash": named} for text in ("1+1", "1+2*3-(4+5)*6+7*8")]
    events = [httpx.post(call, json=one, timeout=60).json()["event_id"] for one in asked]
    assert kinds_of(served.url, events[0]).count("end") == 4  # gradio says a run's last object once more at its end


LONG = "1+2*3-(4+5)*6+7*8"


def ask(served: Served, text: str | None, **more: object) -> httpx.Response:
    call = f"{served.url.rstrip('/')}/gradio_api/call/compare"
    return httpx.post(call, json={"data": ["arithmetic", text], **more}, timeout=60)


@pytest.mark.parametrize("session", ["", "x" * 65, "x" * 10**6, "../x", "a b", 7, ["x"], {}])
def test_no_name_stops_the_server(served, session):
    """A session without a name: a message to it fails, with it the loop that begins calls, for everybody and for good;
    and names of megabytes, of which the server keeps two thousand."""
    for _ in range(8):
        refused = ask(served, "1+1", session_hash=session)
        assert refused.status_code == 400 and "session_hash has to be" in refused.text
    assert kinds(served.url, "1+1")[-1] == "end"


def test_a_waiting_call_without_messages_stops_nothing(served):
    """A queue that is gone while its call waits: what is to be said to it fails, for all calls."""
    held = [ask(served, LONG).json()["event_id"] for _ in range(3)]
    for event in held:
        served.demo._queue.pending_messages_per_session.pop(event, None)
    assert kinds(served.url, "1+1")[-1] == "end"


def test_calls_that_nobody_reads_take_nothing_from_others(monkeypatch):
    """Gradio keeps 2,000 queues and drops the oldest, though its call is waiting or being read."""
    monkeypatch.setattr(call_queue, "MOST_IDLE", 20)
    served = Served()
    with ThreadPoolExecutor(1) as pool:
        with served.session.held(1):
            slow = ask(served, LONG).json()["event_id"]
            reading = pool.submit(ended_with, served.url, slow)
            for number in range(60):
                ask(served, None, session_hash=f"unread-{number}")
            assert len(served.demo._queue.pending_messages_per_session) >= 20
            assert served.demo._queue.session_of(slow) == slow  # it has gone on through all of them
        assert reading.result() == "end"
    assert kinds(served.url, "1+1")[-1] == "end"
    assert becomes(lambda: len(served.demo._queue.pending_messages_per_session) <= 21)
    served.demo.close(verbose=False)


@pytest.mark.parametrize("more", [{}, {"session_hash": "named"}])
def test_who_reads_late_is_told(served, more):
    """Other streams' ends, a redirection of the same one, and any other call clear up what a caller comes for later."""
    call = f"{served.url.rstrip('/')}/gradio_api/call/compare"
    event = ask(served, "2+3", **more).json()["event_id"]
    assert becomes(lambda: not served.demo._queue.event_ids_to_events)
    assert kinds(served.url, "1+1")[-1] == "end"
    assert httpx.get(f"{call}/{event}/", timeout=60).status_code == 307
    assert ended_with(served.url, event) == "end"


def test_nobody_drops_a_page_s_values(served):
    """A stream that is asked for under the name of a page's session, which is no call."""
    client = Client(served.url, verbose=False)
    client.predict("arithmetic", "1+1", api_name="/compare")
    assert served.held()[0] == 1
    with httpx.stream("GET", f"{served.url.rstrip('/')}/gradio_api/call/compare/{client.session_hash}", timeout=60):
        pass
    time.sleep(0.2)
    assert served.held()[0] == 1


def test_cancels_leave_nothing(served):
    """Whose call ends between two of gradio's own looks at it is never forgotten; another function's number breaks the
    run and leaves its request for good."""
    cancel = f"{served.url.rstrip('/')}/gradio_api/cancel"
    number = next(one._id for one in served.demo.fns.values() if one.api_name == "compare")
    for at in range(6):
        named = {"session_hash": f"one-{at}"}
        with served.session.held(1):  # a call that is over may be cancelled by anybody
            event = ask(served, LONG, **named).json()["event_id"]
            for wrong in ({"fn_index": 0}, {"session_hash": "other"}):
                forged = {**named, "fn_index": number, "event_id": event, **wrong}
                assert httpx.post(cancel, json=forged, timeout=60).status_code == 400
        time.sleep(0.02 * at)
        own = {**named, "fn_index": number, "event_id": event}
        assert httpx.post(cancel, json=own, timeout=60).json() == {"success": True}
        kinds_of(served.url, event)
    assert kinds(served.url, "1+1")[-1] == "end"
    assert becomes(lambda: not served.demo._queue.event_ids_to_events and served.held()[2] <= 6), served.held()


def test_two_readers_of_a_call_disturb_no_other(served):
    """Who reads a call twice: the first stream's end takes the second one's queue, in the middle of its reading."""
    event = ask(served, LONG).json()["event_id"]
    with ThreadPoolExecutor(2) as pool:
        read = list(pool.map(lambda _: kinds_of(served.url, event), range(2)))  # the one is told that there is nothing
    assert sum("end" in one for one in read) >= 1
    assert kinds(served.url, "1+1")[-1] == "end"


def test_who_closed_a_tab_takes_nothing_from_others(served, monkeypatch):
    """A set of calls that stays of each run that was left, and counts as newer than all sessions with messages: after
    300 of them every page stood still."""
    monkeypatch.setattr(call_queue, "MOST_IDLE", 4)
    for number in range(9):
        leave(served.url, LONG, after_s=0.01, session_hash=f"left-{number}")
    assert becomes(lambda: served.is_idle)
    event = ask(served, "2+3", session_hash="stays").json()["event_id"]
    assert becomes(lambda: served.is_idle)
    for number in range(2):
        ask(served, "1/0", session_hash=f"other-{number}")
    assert ended_with(served.url, event) == "end"
    queue = served.demo._queue
    assert set(queue.pending_event_ids_session) <= set(queue.pending_messages_per_session)


def test_who_called_last_is_kept(served, monkeypatch):
    """A tab that was opened before others, and whose newest call is dropped for it."""
    monkeypatch.setattr(call_queue, "MOST_IDLE", 4)
    ended_with(served.url, ask(served, "1+1", session_hash="old").json()["event_id"])
    for number in range(3):
        ask(served, "1/0", session_hash=f"before-{number}")
    event = ask(served, "2+3", session_hash="old").json()["event_id"]
    assert becomes(lambda: served.is_idle)
    for number in range(3):
        ask(served, "1/0", session_hash=f"behind-{number}")
    assert ended_with(served.url, event) == "end"


def test_a_session_that_reads_nothing_gets_no_more_calls(served, monkeypatch):
    """Thousands of calls of one session: of sessions the oldest is dropped, and this one is the newest."""
    monkeypatch.setattr(call_queue, "MOST_UNTOLD", 3)
    events = [ask(served, "1/0", session_hash="one").json()["event_id"] for _ in range(3)]
    refused = ask(served, "1+1", session_hash="one")
    assert refused.status_code == 503 and "whose ends nobody has read" in refused.json()["detail"]
    assert kinds(served.url, "1+1")[-1] == "end"
    kinds_of(served.url, events[0])  # the stream of a session has the ends of all its calls
    assert ended_with(served.url, ask(served, "1+1", session_hash="one").json()["event_id"]) == "end"


def test_messages_that_nobody_reads_are_bounded(served, monkeypatch):
    """A thousand sessions with the messages of long runs each."""
    monkeypatch.setattr(call_queue, "MOST_UNREAD", 20)
    for number in range(12):
        ask(served, LONG, session_hash=f"unread-{number}")
        assert becomes(lambda: served.is_idle)
    ask(served, "1+1", session_hash="newest")
    queues = served.demo._queue.pending_messages_per_session
    assert list(queues)[-1] == "newest" and len(queues) <= 4


def test_a_second_stream_goes_on(slow):
    """A page whose connection broke opens another, and the end of the first, noticed late, takes its run with it."""
    event = ask(slow, LONG, session_hash="page").json()["event_id"]
    stream = f"{slow.url.rstrip('/')}/gradio_api/queue/data?session_hash=page"
    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as client:
        with client.stream("GET", stream) as first:
            lines = first.iter_lines()  # held: its end is the stream's
            next(lines)
            second = pool.submit(ended_with, slow.url, event)
            assert becomes(lambda: slow.demo._queue.streams["page"] == 2)
        assert becomes(lambda: slow.demo._queue.streams["page"] <= 1)
        assert second.result() == "end"


def test_two_streams_that_break_off_at_once(slow):
    """Each takes the other for one that reads on: the run of nobody has the device for half a minute."""
    event = ask(slow, LONG + "+1" * 30, session_hash="page").json()["event_id"]
    stream = f"GET /gradio_api/call/compare/{event} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    at = httpx.URL(slow.url)
    both = [socket.create_connection((at.host, at.port)) for _ in range(2)]
    for one in both:
        one.sendall(stream)
    assert becomes(lambda: slow.demo._queue.streams["page"] == 2)
    for one in both:  # reset, as by a machine that lost its power
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    # The queue of a session that somebody named may stay for a while, as gradio notices an end in one way or another.
    assert becomes(lambda: slow.is_idle and slow.held()[2] == 0), slow.held()


def test_cancels_at_once_are_one(slow):
    """The second of two cancels fails at what the first has taken out, and the call stays to be begun anew."""
    cancel = f"{slow.url.rstrip('/')}/gradio_api/cancel"
    number = next(one._id for one in slow.demo.fns.values() if one.api_name == "compare")
    for at in range(8):
        event = ask(slow, LONG, session_hash=f"s{at}").json()["event_id"]
        body = {"session_hash": f"s{at}", "fn_index": number, "event_id": event}
        time.sleep(0.03 * at)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda one: httpx.post(cancel, json=one, timeout=60), [body] * 4))
        assert {one.status_code for one in answers} <= {200, 400}, answers  # 400: nothing of that name any more
    assert becomes(lambda: slow.is_idle and not slow.demo.app.iterators and not slow.demo.app.iterators_to_reset)


def test_large_requests_that_wait_are_bounded(slow, monkeypatch):
    """Sixty-four texts of eight megabytes, held until their turn comes."""
    monkeypatch.setattr(call_queue, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(call_queue, "MOST_HELD_BYTES", 25_000)
    large = LONG + " " * 15_000
    held = ask(slow, large).json()["event_id"]
    refused = ask(slow, large)
    assert refused.status_code == 503 and "wait for their turn" in refused.json()["detail"]
    assert kinds(slow.url, "1+1")[-1] == "end" and ended_with(slow.url, held) == "end"
    assert becomes(lambda: slow.is_idle)
    assert ended_with(slow.url, ask(slow, large).json()["event_id"]) == "end"


def test_a_tool_s_caller_who_leaves_ends_its_run():
    """A run of minutes for an MCP client that is gone: gradio's own client reads it to its end."""
    served = Served(dense=4, sparse=5)
    tools = f"{served.url.rstrip('/')}/gradio_api/mcp/"
    called = {"name": "compare", "arguments": {"task": "arithmetic", "text": LONG}}
    accepted = {"accept": "application/json, text/event-stream"}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": called}
    for read_s in (3, 10, 30):  # the first call of a tool makes gradio's own client, on a busy machine in seconds
        with ThreadPoolExecutor(1) as pool:
            left = pool.submit(httpx.post, tools, json=asked, headers=accepted, timeout=httpx.Timeout(30, read=read_s))
            was_running = becomes(lambda: served.session.running == 1, seconds=read_s)
            with pytest.raises(httpx.ReadTimeout):
                left.result()
        if was_running:
            break
    assert was_running
    assert becomes(lambda: not served.session.running and not served.demo._queue.callers)
    assert kinds_of(served.url, ask(served, "1+1").json()["event_id"])[-1] == "end"
    served.demo.close(verbose=False)


def test_nobody_decides_the_address_of_others(served):
    """The first one who asks for the API's description names a host, and everybody is shown calls to it."""
    described = f"{served.url.rstrip('/')}/gradio_api/info"
    elsewhere = {"host": "elsewhere.example", "x-forwarded-host": "elsewhere.example"}
    for path in ("", "/", "?all_endpoints=true", "?page=", "?page=none"):
        assert httpx.get(described + path, headers=elsewhere, timeout=60).status_code in (200, 307)
        own = httpx.get(described, timeout=60)
        assert "elsewhere.example" not in own.text and served.url.rstrip("/") in own.text
        assert "/compare" in own.json()["named_endpoints"]
