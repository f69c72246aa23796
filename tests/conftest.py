"""Which tests run where, an app served in the tests' process, and Debian's Chromium to drive it."""

import os
import shutil
import time
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests.support import required
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, Tab
from tests.support.fake_session import FakeSession
from tests.support.slow import SLOW

BACKGROUND = 10
"""Niceness of a worker that computes."""

# Before torch is loaded, here and in processes that tests start: its threads spin for a third of a millisecond while
# they wait for each other, not for ten, which is what other processes on the same cores need.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# Before gradio is imported: two workers that find the same port free at once disturb each other, and gradio does not
# get over that.
FIRST_PORT = 20_000 + 200 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.environ.setdefault("GRADIO_SERVER_PORT", str(FIRST_PORT))
# Speed is not tested, and a machine that others use makes any example slow once in a while.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items: list) -> None:
    """Leave out slow sweeps, mark tests that need a browser, and put first what takes longest."""
    if not SLOW:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    for item in items:
        if "chromium" in item.fixturenames:
            item.add_marker("browser")
    if hasattr(config, "workerinput"):
        from tests.support.groups import SERVED, place

        for item in items:
            if item.path.stem not in SERVED and not {"chromium", "serve"}.isdisjoint(item.fixturenames):
                raise pytest.UsageError(f"{item.nodeid} needs a server: name its module in tests/support/groups.py")
        items.sort(key=lambda item: place(item.path.stem))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """A worker that computes gives way to the one with browsers and servers: that mostly waits, or is in haste."""
    if not hasattr(item.config, "workerinput"):
        return  # no workers, and perhaps no xdist
    from tests.support.groups import SERVED

    if item.path.stem not in SERVED and os.nice(0) == 0:
        os.nice(BACKGROUND)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Two workers disturb each other less, and do less twice, if what belongs together stays in one."""
    from tests.support.groups import ByModule

    return ByModule(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where a browser or a compiler is required, a test that is skipped for want of it fails."""
    report = yield
    return required.failed_if_required(report)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable]:
    """A function that serves the app around a session and returns its address."""
    import app

    apps = []

    def start(session=None, tasks=("arithmetic",), **options) -> str:
        demo = app.build_app(session or app.LazySession(), tasks, **options)
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

    def can_pause(self) -> bool:
        return self.session.can_pause()


@pytest.fixture(scope="module")
def stage(serve) -> Callable:
    """As `serve` for a FakeSession, on one server for the whole module: for tests that see their runs to the end.

    Tests that stop, queue or leave runs get a server of their own from `serve`: what they leave is nobody else's then.
    """
    played: dict[tuple[str, ...], tuple[Understudy, str]] = {}

    def start(session, tasks: tuple[str, ...] = ("arithmetic",)) -> str:
        understudy, url = played.get(tasks, (None, ""))
        ends = time.monotonic() + 5
        while understudy and understudy.session.running and time.monotonic() < ends:
            time.sleep(0.01)
        if understudy is None or understudy.session.running:  # a failed test's run is still there
            understudy = Understudy(session)
            url = serve(understudy, tasks)
            played[tasks] = understudy, url
        understudy.session = session
        return url

    return start


@pytest.fixture
def url(stage) -> str:
    """The app around a session whose lanes write 150 and 220 tokens a second."""
    return stage(FakeSession(dense=150, sparse=220))


@pytest.fixture(scope="session")
def chromium():
    """A window of a running browser; its tabs share the browser's cache, so that the page's code is loaded once."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs a browser at {CHROMIUM}: install Debian's packages chromium and chromium-driver")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver, playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser.new_context()
        browser.close()


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
