"""Fixtures of the app's tests: an app served in this process, and Debian's Chromium to drive it."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Before torch is loaded, here and in processes that tests start: its threads spin for a third of a millisecond while
# they wait for each other, not for ten, which is what other processes on the same cores need.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

SIGNS = str.maketrans("*/-", "×÷−")
"""The page sets arithmetic in type."""

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable]:
    """A function that serves the app around a session and returns its address."""
    import app

    apps = []

    def start(session=None, tasks=("arithmetic",)) -> str:
        demo = app.build_app(session or app.LazySession(), tasks)
        apps.append(demo)
        _, url, _ = app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        return url

    yield start
    for demo in apps:
        demo.close(verbose=False)


class Understudy:
    """A session that is whichever one is on the stage."""

    def __init__(self, session) -> None:
        self.session = session

    def compare(self, request) -> Iterator[dict]:
        return self.session.compare(request)

    def can_load(self) -> bool:
        return self.session.can_load()


@pytest.fixture(scope="module")
def stage(serve) -> Callable:
    """As `serve` for a FakeSession, on one server for the whole module: for tests that see their runs to the end.

    Tests that stop, queue or leave runs get a server of their own from `serve`: what they leave is nobody else's then.
    """
    played: dict = {}

    def start(session) -> str:
        ends = time.monotonic() + 5
        while played and played["understudy"].session.running and time.monotonic() < ends:
            time.sleep(0.01)
        if not played or played["understudy"].session.running:  # a failed test's run is still there
            played["understudy"] = Understudy(session)
            played["url"] = serve(played["understudy"])
        played["understudy"].session = session
        return played["url"]

    return start


@pytest.fixture(scope="session")
def chromium():
    """A window of a running browser; its tabs share the browser's cache, so that the page's code is loaded once."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"no browser at {CHROMIUM}: install Debian's packages chromium and chromium-driver")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser.new_context()
        browser.close()


class Tab:
    """One page of the app, and what it must never do: log an error, or ask any host but its own for anything."""

    def __init__(self, window, url: str, color_scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.page = window.new_page()
        self.page.set_viewport_size({"width": 1280, "height": 1100})
        self.page.emulate_media(color_scheme=color_scheme)
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("request", lambda request: self._on_request(request.url, url))
        # Until gradio has wired its buttons, a click is lost; its first heartbeat says that it has.
        with self.page.expect_response(lambda response: "/heartbeat/" in response.url):
            self.page.goto(url)
        self.page.wait_for_selector(".ss-pane")

    def close(self) -> None:
        """Nothing of it is left for the next tab."""
        if not self.page.is_closed():
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.page.close()

    def _on_console(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def _on_request(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:", "blob:")):
            self.complaints.append(f"external request: {asked}")

    def run(self, text: str) -> None:
        """Type an expression and press Run."""
        self.page.fill("#expression textarea", text)
        self.page.click("#run")

    def wait(self, state: str, timeout: float = 60_000) -> None:
        """Until the race is in `state`."""
        self.page.wait_for_selector(f'.ss[data-state="{state}"]', timeout=timeout)

    @property
    def state(self) -> str:
        """idle, waiting, starting, running, done, stopped or failed."""
        return self.page.get_attribute(".ss", "data-state")

    @property
    def alert(self) -> str:
        """The message beside the box."""
        return self.page.text_content(".ss-alert")

    def pane(self, lane: str) -> str:
        """Selector of a lane's pane."""
        return f'.ss-pane[data-lane="{lane}"]'

    def text(self, selector: str) -> str:
        """Text of one element."""
        return self.page.text_content(selector)

    def lines(self, lane: str) -> list[str]:
        """The worked steps on the screen without chips and marks: working and result, a line each."""
        script = """pane => [...document.querySelectorAll(pane + ' .ss-step')].map(step => {
            const copy = step.cloneNode(true);
            copy.querySelectorAll('.ss-chip, .ss-mark, .ss-malformed').forEach(node => node.remove());
            return copy.textContent;
        })"""
        return self.page.evaluate(script, self.pane(lane))

    def tokens(self, lane: str) -> int:
        """Tokens so far, as the pane says."""
        return int(self.page.get_attribute(self.pane(lane), "data-tokens") or 0)


@pytest.fixture
def open_tab(chromium) -> Iterator[Callable]:
    """A function that opens the app in a tab of its own; afterwards no tab may have complained."""
    tabs: list[Tab] = []

    def start(url: str, **options) -> Tab:
        tabs.append(Tab(chromium, url, **options))
        return tabs[-1]

    yield start
    for tab in tabs:
        tab.close()
    chromium.clear_cookies()
    complaints = [complaint for tab in tabs for complaint in tab.complaints]
    assert not complaints, complaints
