"""The line in front of the device: who is next, who gives way, what the others are told."""

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from selfspan_core.errors import Busy, NotReady, OutOfTime
from selfspan_core.params import Request
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.line import MAX_OF_VISITOR, Line
from selfspan_core.serve.run_times import RunTimes
from tests.support.clock import Moved

SHORT, LONG = Request("arithmetic", "1+1"), Request("arithmetic", "1+1" + "+1" * 63)


class Steps:
    """A session whose runs take a number of ticks, by their texts, and write down who had the device."""

    def __init__(self, seconds: float = 0.002, captured: bool = False) -> None:
        self.seconds, self.captured = seconds, captured
        self.had: list[str] = []
        self.closed: list[str] = []
        self.load_s = 0.0
        self.fails = False

    def can_pause(self) -> bool:
        return not self.captured

    def loads(self) -> Iterator[str]:
        time.sleep(self.load_s)
        if self.fails:
            raise NotReady("make it with: python")
        yield "tiny"

    def first_requests(self) -> Iterator[Request]:
        yield SHORT

    def compare(self, request: Request) -> Iterator[dict]:
        return self._ticks(request.text)

    def _ticks(self, text: str) -> Iterator[dict]:
        try:
            for number in range(len(text)):
                self.had.append(text)
                time.sleep(self.seconds)
                yield {"kind": "tick", "number": number}
        except GeneratorExit:
            self.closed.append(text)
            raise


def run(device: SharedDevice, request: Request, visitor: str = "") -> threading.Thread:
    """A run in a thread of its own, as a visitor's."""
    thread = threading.Thread(target=lambda: list(device.compare(request, visitor)))
    thread.start()
    return thread


def until(condition, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def test_the_shortest_is_next_and_waiting_counts():
    """A line in the order of arrival, where a short run waits for all long ones; one where a long run never comes."""
    clock = Moved()
    line = Line(clock)
    first = line.join(expected_s=5)
    assert line.due() is first
    long, short = line.join(expected_s=60), line.join(expected_s=2)
    assert line.ahead(short) == [first] and line.wait_s(short) == 5 and line.wait_s(long) == 7
    assert line.due() is first  # a captured engine's run is never interrupted
    line.leave(first)
    assert line.due() is short
    clock.now = 59
    late = line.join(expected_s=3)
    line.leave(short)
    assert line.due() is long and line.ahead(late) == [long]


def test_a_long_run_gives_way_to_one_that_is_far_shorter():
    """A run of a second that waits minutes for one of minutes; runs of one size that take turns, for nobody."""
    clock = Moved()
    line = Line(clock)
    line.can_give_way = True
    long = line.join(expected_s=60)
    assert line.due() is long
    long.used_s = clock.now = 10
    similar, unknown = line.join(expected_s=40), line.join()
    assert line.due() is long
    short = line.join(expected_s=3)
    assert line.due() is short and short in line.ahead(long)
    short.used_s = 30  # far longer than it was taken for: now it is taken to be half done
    line.leave(unknown)
    assert line.due() is short
    line.leave(short)
    assert line.due() is similar


def test_a_run_that_waited_long_gives_way_too_but_not_for_ever():
    """A run that nothing may pass because it waited long before it began; one that is passed by for good."""
    clock = Moved()
    line = Line(clock)
    line.can_give_way = True
    first, long = line.join(expected_s=20), line.join(expected_s=20)
    assert line.due() is first
    clock.now = first.used_s = 20
    line.leave(first)
    assert line.due() is long
    passed_by = 0
    while passed_by < 100:
        short = line.join(expected_s=1)
        if line.due() is not short:
            break
        clock.now += 1
        passed_by += 1
        line.leave(short)
        assert line.due() is long
    assert 20 <= passed_by <= 22 and line.due() is long


def test_a_visitor_has_one_run_at_a_time():
    """One visitor's many runs, all before another's one."""
    line = Line(Moved())
    mine = [line.join("me", 1) for _ in range(MAX_OF_VISITOR)]
    with pytest.raises(Busy, match="8 runs waiting"):
        line.join("me", 1)
    other = line.join("other", 2)
    assert line.due() is mine[0]
    line.leave(mine[0])
    assert line.due() is mine[1]
    line.leave(mine[1])
    line.can_give_way = True
    assert line.due() is mine[2] and not line._passes(other, mine[2])  # a second of it is left, of the other two


def test_times_are_known_by_kind_and_size():
    """An estimate of another task's runs, and none at all for a size that was not measured yet."""
    times = RunTimes()
    assert times.expected(SHORT) is None
    times.record(LONG, 64.0)
    assert times.expected(LONG) == 64 and 0 < times.expected(SHORT) < 8
    assert times.expected(Request("arithmetic", "1+1", adapter="plain")) is None
    times.record(LONG, 32.0)
    assert 32 < times.expected(LONG) < 64


def test_a_short_run_passes_a_long_one_and_both_end():
    """A long run that loses its place, its ticks or its memory when another has the device in between."""
    session = Steps()
    device = SharedDevice(session)
    for request in (SHORT, LONG):
        assert len(list(device.compare(request))) == len(request.text)
    session.had.clear()
    long = run(device, LONG)
    until(lambda: len(session.had) > 5)
    list(device.compare(SHORT))
    assert long.is_alive() or session.had[-1] == LONG.text
    long.join(10)
    turns = [text for text, _ in itertools.groupby(session.had)]
    assert turns == [LONG.text, SHORT.text, LONG.text]
    assert session.had.count(LONG.text) == len(LONG.text)


def test_captured_runs_are_whole():
    """An engine that begins a second run before its first is over raises: both would be lost."""
    session = Steps(captured=True)
    device = SharedDevice(session)
    for request in (SHORT, LONG):
        list(device.compare(request))
    session.had.clear()
    long = run(device, LONG)
    until(lambda: len(session.had) > 5)
    list(device.compare(SHORT))
    long.join(10)
    assert [text for text, _ in itertools.groupby(session.had)] == [LONG.text, SHORT.text]


def test_who_waits_is_told_why():
    """A wait without a word, and one whose word is wrong: for the models, for others, and how long."""
    session = Steps(seconds=0.02)
    session.load_s = 1.5
    device = SharedDevice(session)
    warming = threading.Thread(target=device.warm)
    warming.start()
    until(lambda: device._loading_since is not None)
    told = [tick for tick in device.compare(LONG) if tick["kind"] == "waiting"]
    assert told[0]["for"] == "model" and told[0]["message"] == "Loading the model, 1 s."
    warming.join(10)
    long = run(device, LONG)
    until(lambda: session.had[-1:] == [LONG.text])
    with closing(device.compare(LONG)) as ticks:
        word = next(ticks)
        assert (word["kind"], word["for"], word["ahead"]) == ("waiting", "device", 1)
        assert 0.5 < word["expected_s"] < 60 and word["message"].startswith("Waiting: another run has the device.")
    long.join(20)


def test_the_first_word_comes_as_soon_in_a_crowd(monkeypatch):
    """Would catch visitors of a crowd who look at nothing for as long as the words between two others may take."""
    monkeypatch.setattr("selfspan_core.serve.device.TELL_EVERY_S", 0.2)
    device = SharedDevice(Steps(seconds=0.02))
    for _ in range(40):
        device._join(lambda: iter(()))  # none of them asks for its turn, so that nobody's comes
    with closing(device.compare(LONG)) as waiting:
        first, second = next(waiting), next(waiting)
    assert first["seconds"] < second["seconds"] - first["seconds"]


def test_leaving_frees_the_device_and_says_so_to_nobody():
    """A run that was given up and goes on, a place in the line that nobody has, a closing that waits for the device."""
    session = Steps(seconds=0.05)
    device = SharedDevice(session)
    mine = device.compare(LONG)
    next(mine)
    gone = device.compare(LONG)
    waiting = threading.Thread(target=lambda: next(gone))
    waiting.start()
    until(lambda: len(device._line) == 2)
    began = time.monotonic()
    mine.close()
    assert time.monotonic() - began < 0.04 or session.closed  # it does not wait for the tick at hand
    waiting.join(10)
    gone.close()
    until(lambda: len(device._line) == 0, 1)
    assert session.closed == [LONG.text] * 2 and not device._runs
    assert len(list(device.compare(SHORT))) == 3


def test_a_run_that_nobody_wants_does_not_begin():
    """A tab that was stopped while it waited, whose run then takes its turn all the same."""
    session = Steps(seconds=0.01)
    device = SharedDevice(session)
    assert list(device.compare(SHORT, is_wanted=lambda: False)) == [] and not session.had
    left = iter([True] * 5)
    assert len(list(device.compare(LONG, is_wanted=lambda: next(left, False)))) == 5
    until(lambda: session.closed == [LONG.text])
    assert device._times.expected(LONG) is None


def test_a_run_that_is_taken_back_leaves_the_line(monkeypatch):
    """A visitor's taken-back runs that count as waiting until a tick ends, for others and as runs of that visitor."""
    monkeypatch.setattr("selfspan_core.serve.device.TELL_EVERY_S", 0.05)
    is_free, wanted = threading.Event(), threading.Event()

    class Blocked(Steps):
        def _ticks(self, text):
            for tick in super()._ticks(text):
                yield tick
                is_free.wait(30)

    session = Blocked()
    device = SharedDevice(session)
    first = run(device, LONG)
    until(lambda: session.had and device._loading_since is None)
    wanted.set()
    taken_back = [device.compare(LONG, "me", wanted.is_set) for _ in range(MAX_OF_VISITOR)]
    assert [next(ticks)["kind"] for ticks in taken_back] == ["waiting"] * MAX_OF_VISITOR
    wanted.clear()
    assert [list(ticks) for ticks in taken_back] == [[]] * MAX_OF_VISITOR
    with closing(device.compare(LONG, "me")) as ticks:
        assert next(ticks)["ahead"] == 1
    is_free.set()
    first.join(20)
    until(lambda: len(device._line) == 0)


def test_a_run_has_its_time_and_no_more(caplog):
    """One run that has the device for good; a server whose models are missing and which does not say so."""
    device = SharedDevice(Steps(seconds=0.02), most_run_s=0.1)
    with pytest.raises(OutOfTime, match=r"after 0\.1 s of the device"):
        list(device.compare(LONG))
    assert len(list(device.compare(SHORT))) == 3
    session = Steps()
    session.fails = True
    with caplog.at_level(logging.ERROR):
        SharedDevice(session).warm()
    assert "make it with: python" in caplog.text


def test_errors_reach_who_asked():
    """A run whose error kills the device's thread would be the last one."""

    class Broken(Steps):
        def _ticks(self, text):
            yield {"kind": "start"}
            raise RuntimeError("fell over")

    device = SharedDevice(Broken())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="fell over"):
            list(device.compare(SHORT))
