"""Faults put into decoding and into serving, in this process: whoever comes next is served as if nothing had been."""

import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from selfspan_core.errors import LaneError
from selfspan_core.params import Request
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.runs import PageRuns
from tests.support.engine_tools import drawn, text_prompt, tiny_engine
from tests.support.fake_session import FakeSession
from tests.support.faults import DECODING, ERRORS, PREFILL, clock_set, failing

SHORT = Request("arithmetic", "1+1")


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("where", [PREFILL, DECODING])
@pytest.mark.parametrize("name", list(ERRORS))
def test_an_engine_that_failed_answers_the_next_request(name, where, attention):
    """A row, a cache or a lock that a failed run leaves behind: the next one is wrong, or waits for ever."""
    engine, prompt = tiny_engine(), text_prompt(9)
    right = drawn(engine, prompt, attention=attention)
    with (
        failing(where, ERRORS[name], after=0 if where == PREFILL else 3) as raised,
        pytest.raises((type(ERRORS[name]), RuntimeError)),
    ):
        drawn(engine, prompt, attention=attention)
    assert raised and drawn(engine, prompt, attention=attention) == right


class Failing(FakeSession):
    """A session whose run fails at a tick."""

    error: BaseException | None = None

    def _ticks(self, *arguments):
        for number, tick in enumerate(super()._ticks(*arguments)):
            if self.error is not None and number == 2:
                raise self.error
            yield tick


@pytest.mark.parametrize("error", [*ERRORS.values(), LaneError("dense", ValueError("x")), SystemExit(3)])
def test_a_device_whose_run_failed_serves_the_next(error):
    """A device's thread that dies of a run: every later visitor waits for ever."""
    session = Failing(dense=2000, sparse=2000)
    device = SharedDevice(session)
    session.error = error
    with pytest.raises(type(error)):
        list(device.compare(SHORT))
    session.error = None
    assert list(device.compare(SHORT))[-1]["kind"] == "end"


def test_a_clock_that_is_set_changes_nothing():
    """A run that is out of time, or one that never is, because somebody set the machine's clock."""
    device = SharedDevice(FakeSession(dense=400, sparse=400), most_run_s=30)
    for by_s in (86_400.0, -86_400.0):
        with closing(device.compare(SHORT)) as ticks:
            next(ticks)
            with clock_set(by_s):
                assert list(ticks)[-1]["kind"] == "end"


def test_a_storm_of_runs_and_stops_leaves_nothing():
    """A run of a tab that was stopped or replaced and goes on, or a place in the line that nobody has."""
    session = FakeSession(dense=50, sparse=50)
    device = SharedDevice(session)
    runs, tab = PageRuns(device), SimpleNamespace(session_hash="tab")
    threads = []
    for number in range(20):
        runs._newest.check("tab", number)
        job = {"run": number, "request": Request("arithmetic", "79*36+63-(45-12)*8")}
        threads.append(threading.Thread(target=lambda job=job: list(runs.stream(job, tab))))
        threads[-1].start()
        if number % 2:
            runs.halt(tab)
    runs.halt(tab)
    for thread in threads:
        thread.join(10)
    ends = time.monotonic() + 5
    while (session.running or len(device._line)) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not session.running and len(device._line) == 0 and not runs._newest
    session.rates = {"dense": 2000, "sparse": 2000}
    assert list(device.compare(SHORT))[-1]["kind"] == "end"
