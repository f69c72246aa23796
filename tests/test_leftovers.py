"""What the server holds of calls that are over: nothing of those over plain HTTP, no message of anybody's."""

import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from gradio_client import Client

import app
from selfspan_core.serve.leftovers import CALL
from tests.support.crowd import kinds, kinds_of, leave
from tests.support.fake_session import FakeSession


class Served:
    """A running app and what gradio holds of sessions in it."""

    def __init__(self) -> None:
        self.demo = app.build_app(FakeSession(dense=2000, sparse=3000), ("arithmetic",))
        _, self.url, _ = app.launch(self.demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)

    def held(self) -> tuple[int, int, int]:
        """Sessions with values, with a queue of messages, with a set of calls."""
        queue = self.demo._queue
        values = self.demo.app.state_holder.session_data
        return len(values), len(queue.pending_messages_per_session), len(queue.pending_event_ids_session)

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


def test_a_client_that_leaves_is_cleared_up_later(served):
    """The set of whoever closes the page in the middle of a run is kept for good."""
    join = f"{served.url.rstrip('/')}/gradio_api/queue/join"
    number = next(one._id for one in served.demo.fns.values() if one.api_name == "compare")
    asked = {"data": ["arithmetic", "1+2*3-(4+5)*6+7*8"], "fn_index": number, "session_hash": "a-page"}
    httpx.post(join, json=asked, timeout=60).raise_for_status()
    with httpx.stream("GET", f"{join.removesuffix('join')}data?session_hash=a-page", timeout=60) as lines:
        next(lines.iter_lines())
    assert becomes(lambda: not served.demo._queue.event_ids_to_events)
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
    assert served.settles_at((1, 0, 0)), served.held()


def test_another_call_of_a_session_goes_on(served):
    """The stream of one call ends while another one of the same caller runs: its messages are dropped."""
    call, named = f"{served.url.rstrip('/')}/gradio_api/call/compare", "a-caller"
    asked = [{"data": ["arithmetic", text], "session_hash": named} for text in ("1+1", "1+2*3-(4+5)*6+7*8")]
    events = [httpx.post(call, json=one, timeout=60).json()["event_id"] for one in asked]
    assert kinds_of(served.url, events[0]).count("end") == 4  # gradio says a run's last object once more at its end


@pytest.mark.parametrize("path", ["/gradio_api/call/compare/ab1", "/gradio_api/call/v2/compare/ab1/"])
def test_a_call_is_known_by_its_path(path):
    """The second version's streams leave what the first one's do not."""
    assert CALL.fullmatch(path)["call"] == "ab1"
