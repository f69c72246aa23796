"""The server from its first second on: visitors who come too early, too many, or around the queue."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from gradio_client import Client

from selfspan_core.errors import Busy
from selfspan_core.models.registry import DEFAULT_MODEL
from selfspan_core.params import Request
from selfspan_core.serve.device import SharedDevice
from tests.support.crowd import stay
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT
from tests.support.rehearse_space import free_port

EXPRESSION = "79*36+63-(45-12)*8"
AROUND_THE_QUEUE = ("/gradio_api/run/compare", "/gradio_api/api/compare")


def test_nobody_gets_around_the_queue(serve):
    """Forty calls beside the queue took forty threads, all that gradio has, and the run that they waited for needs one:
    the server answered nothing any more, for good.
    """
    session = FakeSession(dense=20, sparse=20)
    url = serve(session)
    job = Client(url, verbose=False).submit("arithmetic", EXPRESSION, api_name="/compare")
    while not job.outputs():
        time.sleep(0.05)

    def call(number: int) -> int:
        path = AROUND_THE_QUEUE[number % len(AROUND_THE_QUEUE)]
        return caller.post(url.rstrip("/") + path, json={"data": ["arithmetic", EXPRESSION]}).status_code

    with httpx.Client(timeout=30) as caller, ThreadPoolExecutor(48) as pool:
        assert set(pool.map(call, range(48))) == {404}
    assert httpx.get(url, timeout=10).status_code == 200
    before = len(job.outputs())
    session.rates = {"dense": 2000, "sparse": 2000}
    assert job.result(timeout=30)["kind"] == "end" and len(job.outputs()) > before


def test_nothing_can_be_left_on_the_server(serve):
    """Files of strangers on the server's disk, 64 MB each, and statistics of visitors for everybody to read."""
    url = serve(FakeSession()).rstrip("/")
    for size in (3, 2_000):
        sent = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.txt", b"a" * size)}, timeout=30)
        assert sent.status_code == 404
    for path in ("monitoring/summary", "gradio_api/file=app.py", "gradio_api/dev/reload", "gradio_api/proxy=http://a"):
        assert httpx.get(f"{url}/{path}", timeout=30).status_code == 404
    for page in ("", "config", "theme.css", "gradio_api/info"):
        shown = httpx.get(f"{url}/{page}", timeout=30)
        assert shown.status_code == 200 and str(ROOT) not in shown.text


def test_a_run_does_not_wait_without_end():
    """A lane that is never freed would hold every later visitor's thread with it."""
    session = FakeSession(dense=2000, sparse=2000)
    lane = SharedDevice(session, patience_s=0.05)
    first = lane.compare(Request("arithmetic", "1+1"))
    next(first)
    with pytest.raises(Busy, match="Try again"):
        next(lane.compare(Request("arithmetic", "2+2")))
    first.close()
    with closing(lane.compare(Request("arithmetic", "2+2"))) as ticks:
        assert [tick["kind"] for tick in ticks][-1] == "end"


RACE = """
import sys, threading, traceback
import torch  # the race needs a quick start: without it the first thread is far ahead of the others
from selfspan_core.models.registry import MODELS, DEFAULT_MODEL
from selfspan_core.serve.lazy_session import LazySession
session, errors, barrier = LazySession(model=MODELS[DEFAULT_MODEL]), [], threading.Barrier(10)
def one(number):
    barrier.wait()
    try:
        if number == 0:
            list(session.loads())
        session.can_load()
    except BaseException:
        errors.append(traceback.format_exc())
threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit("".join(errors[:1]) or 0)
"""


def test_many_first_requests_import_once():
    """Two threads that import transformers at once can each be left with half of it ("cannot import name
    'AttentionInterface'"): the first visitors' runs failed while the models loaded in the background.
    """
    done = subprocess.run([sys.executable, "-c", RACE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr


def wait_for_port(port: int, server: subprocess.Popen) -> None:
    """Until the port opens; an AssertionError if the server ends before."""
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("the server ended before it opened its port")


def test_visitors_of_the_first_moment_are_served():
    """The server could die of its own start: gradio asks its own page once and gives up after three seconds, which the
    imports that ten early visitors set off can take. Then, too, first requests died of the race of imports, or waited
    without a word.
    """
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        # One model is loaded sooner than two. A proxy that leads nowhere must not stand between it and itself.
        env={**os.environ, "PORT": str(port), "SELFSPAN_MODEL": DEFAULT_MODEL, "HTTP_PROXY": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(server.stdout), daemon=True)
        reader.start()
        try:
            wait_for_port(port, server)
            with ThreadPoolExecutor(10) as pool:
                visits = list(pool.map(stay, [f"http://127.0.0.1:{port}"] * 10, ["1+2"] * 10))
            assert [(visit.answer, visit.error) for visit in visits] == [("3", "")] * 10
            assert any(word.startswith("Loading the model, ") for visit in visits for word in visit.words)
            assert server.poll() is None
        finally:
            server.terminate()
            reader.join(10)
    assert "Traceback" not in "".join(log), "".join(log)


START = """
import gc, json, socket, sys, time
from types import SimpleNamespace
asked, look_up = [], socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: asked.append(host) or look_up(host, *rest, **more)
import app
loaded = [name for name in ("torch", "transformers", "cupy") if name in sys.modules]
from tests.support.crowd import stay
from tests.support.fake_session import FakeSession
demo = app.build_app(FakeSession())
app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
kept, searched = gc.get_freeze_count(), len(gc.get_objects())
time.sleep(2)
others = {str(host) for host in asked} - {"127.0.0.1", "localhost", "0.0.0.0", "None"}
demo.close(verbose=False)
closed = gc.get_freeze_count()
app.warm(SimpleNamespace(warm=lambda: None))
counts = {"kept": kept, "searched": searched, "closed": closed, "warm": gc.get_freeze_count()}
print(json.dumps({"loaded": loaded, "asked": sorted(others), **counts}))
"""


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """What importing the app loads, what serving it asks, and how many objects are left out of searches for garbage, in
    a process of its own.
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", START], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_app_loads_no_torch(started):
    """An import of torch in app.py or in what it imports would delay every start and break CUDA-on-demand Spaces."""
    assert started["loaded"] == []


def test_serving_asks_no_other_host(started):
    """A look-up of a font, a version or a statistics host fails on a closed network and tells on users elsewhere."""
    assert started["asked"] == []


def test_streams_stand_still_for_no_search_for_garbage(started):
    """A full search of Python's collector, among all that the imports had made, stopped a fast stream for 0.4 s. A
    closed server that kept its objects from being found.
    """
    assert started["kept"] > 100_000 and started["searched"] < started["kept"] / 10
    assert started["closed"] == 0 and started["warm"] > 100_000
