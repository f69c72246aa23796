"""The server's start and end, and who is taken to listen: no server, no model."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from selfspan_core.params import Request
from selfspan_core.serve import starting
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.visitors import Listener
from tests.support.clock import Moved
from tests.support.fake_session import FakeSession


@pytest.mark.parametrize("given", ["", "abc", "0", "-1", "99999", "7860 ", "１２３４", "9" * 5000])
def test_a_port_that_is_none_is_told_in_a_line(given, monkeypatch, capsys):
    """A traceback of int(), or a server on a port of the system's choice."""
    monkeypatch.setenv("PORT", given)
    with pytest.raises(SystemExit) as ended:
        starting.port_of_environment()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "PORT=8080" in said and len(said) < 200


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", ""])
def test_wrong_seconds_are_told_in_a_line(monkeypatch, capsys, given):
    """A server whose runs all end at once, or never, for a setting that was mistyped."""
    monkeypatch.setenv("SELFSPAN_RUN_SECONDS", given)
    with pytest.raises(SystemExit) as ended:
        starting.seconds_of_environment(300.0)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "seconds above 0" in said
    monkeypatch.setenv("SELFSPAN_RUN_SECONDS", "90")
    assert starting.seconds_of_environment(300.0) == 90.0
    monkeypatch.delenv("SELFSPAN_RUN_SECONDS")
    assert starting.seconds_of_environment(300.0) == 300.0


def test_an_implementation_of_no_name_is_told_in_a_line(monkeypatch, capsys):
    """A server that opens its port, and of which every run says why it cannot be."""
    monkeypatch.setenv("SELFSPAN_IMPL", "bogus")
    with pytest.raises(SystemExit) as ended:
        starting.impl_of_environment()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "captured" in said and "bogus" in said
    for given, is_named in (("gather", "gather"), ("", None)):
        monkeypatch.setenv("SELFSPAN_IMPL", given)
        assert starting.impl_of_environment() == is_named


def test_a_port_that_is_taken_is_told_in_a_line(monkeypatch, capsys):
    """Gradio's traceback, with advice about a variable that this app does not read."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(SystemExit) as ended:
            starting.port_of_environment()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"Port {port} is taken" in said and said.count("\n") == 1
    assert starting.port_of_environment() == port


COMPUTING = """
import signal, threading
from selfspan_core.serve.starting import wait_for_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # of processes in the background a shell ignores it
def compute():
    import numpy
    while True:
        numpy.ones((400, 400)) @ numpy.ones((400, 400))
for daemon in (True, False):
    threading.Thread(target=compute, daemon=daemon).start()
print("ready", flush=True)
wait_for_interrupt()
"""


def test_an_interrupt_ends_the_server_at_once():
    """A process that waits for its threads, or aborts with signal 6 because one of them computes."""
    with subprocess.Popen([sys.executable, "-c", COMPUTING], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            time.sleep(0.2)
            os.kill(server.pid, signal.SIGINT)
            began = time.monotonic()
            assert server.wait(10) == starting.EXIT_INTERRUPTED
            assert time.monotonic() - began < 2 and "Stopped." in server.stdout.read()
        finally:
            server.kill()


def heard(unread: list[int], adds: int) -> bool:
    """Whether a caller is there after so many unread messages, a second each."""
    clock, counts = Moved(), iter(unread)
    listener = Listener(adds, lambda: next(counts), patience_s=30, clock=clock)
    said = True
    for _ in unread:
        said = listener()
        clock.now += 1
    return said


def test_who_does_not_listen_is_known():
    """A run for nobody that keeps the device for minutes; a slow visitor who is taken for gone."""
    assert not heard(list(range(60)), adds=1)  # nobody takes anything
    assert not heard([2] * 60, adds=0)
    assert heard([0] * 60, adds=1) and heard([1] * 60, adds=1) and heard([0] * 60, adds=0)
    assert heard([number - number // 10 for number in range(60)], adds=1)  # takes one in ten
    assert heard([*range(25), 0, *range(25)], adds=1)  # comes back in time


def test_a_run_that_nobody_hears_frees_the_device():
    """Three hundred seconds of the device, for a call whose answer nobody ever asked for."""
    session = FakeSession(dense=5, sparse=5)
    device = SharedDevice(session)
    unread = iter(range(1000))
    listener = Listener(1, lambda: next(unread), patience_s=0.1)
    list(device.compare(Request("arithmetic", "79*36+63"), "", listener))
    assert session.running == 0 or session.events[-1][0] != "finished"
    session.rates = {"dense": 2000, "sparse": 2000}
    assert list(device.compare(Request("arithmetic", "1+1")))[-1]["kind"] == "end"
