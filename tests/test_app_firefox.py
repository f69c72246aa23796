"""The page's main flow in Firefox: it loads, a sum is run to its answer, and the next run is stopped."""

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.support.app_tools import EXPRESSION, SHORT, right_lines
from tests.support.browser import SIGNS
from tests.support.fake_session import FakeSession

FIREFOX = "/usr/bin/firefox-esr"
STATE = "return document.querySelector('.ss').dataset.state;"
OUTCOMES = "return [...document.querySelectorAll('.ss-outcome')].map((node) => node.innerText.trim());"
LINES = """return [...document.querySelectorAll('.ss-pane[data-lane="dense"] .ss-step')].map((step) => {
    const copy = step.cloneNode(true);
    copy.querySelectorAll(".ss-chip, .ss-mark").forEach((node) => node.remove());
    return copy.textContent;
});"""
PAINTED = """const canvas = document.querySelector('.ss-map[data-lane="sparse"] .ss-map-rows');
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
return data.filter((value, i) => i % 4 === 3 && value > 200).length;"""


@pytest.fixture(scope="module")
def firefox(tmp_path_factory) -> Iterator:
    """Debian's Firefox, driven by Mozilla's own client: geckodriver is none of Debian's packages."""
    if shutil.which(FIREFOX) is None:
        pytest.skip(f"needs Firefox at {FIREFOX}: install Debian's package firefox-esr")
    driver = pytest.importorskip("marionette_driver.marionette", reason="needs Firefox's driver, marionette-driver")
    log = tmp_path_factory.mktemp("firefox") / "gecko.log"
    browser = driver.Marionette(bin=FIREFOX, headless=True, port=0, gecko_log=str(log), startup_timeout=60)
    try:
        browser.start_session()
        yield browser
    finally:
        browser.cleanup()


def wait(browser, script: str, wanted, timeout: float = 30) -> None:
    """Until a script returns what is wanted."""
    ends = time.monotonic() + timeout
    while (seen := browser.execute_script(script)) != wanted:
        assert time.monotonic() < ends, f"{seen!r} is not {wanted!r}"
        time.sleep(0.05)


def run(browser, text: str) -> None:
    """Type an expression and press Run."""
    box = browser.find_element("css selector", "#expression textarea")
    box.clear()
    box.send_keys(text)
    browser.find_element("css selector", "#run").click()


@pytest.mark.browser
def test_the_main_flow(serve, firefox):
    """Would catch script or style that only Chromium understands: a page without panes, maps, an answer or a Stop."""
    session = FakeSession(dense=300, sparse=300)
    firefox.navigate(serve(session, ("arithmetic", "summarize")))
    wait(firefox, "return document.querySelectorAll('.ss-pane').length;", 2)
    wait(firefox, "return document.querySelector('#stop')?.getAttribute('aria-disabled');", "true")
    time.sleep(1)  # until gradio has wired its buttons, a click is lost
    run(firefox, SHORT)
    wait(firefox, STATE, "done")
    assert [" ".join(said.split()) for said in firefox.execute_script(OUTCOMES)] == [
        f"{lane} attention Answer 2907 ✓ right" for lane in ("Dense", "Self-selected")
    ]
    assert firefox.execute_script(LINES) == right_lines(SHORT) and firefox.execute_script(PAINTED) > 1000
    assert "×" in SHORT.translate(SIGNS) and "×" in firefox.execute_script(LINES)[0]
    tops = "return [...document.querySelectorAll('.ss-scroll')].map((node) => node.getBoundingClientRect().top);"
    assert len(set(firefox.execute_script(tops))) == 1
    session.rates = {"dense": 30, "sparse": 30}
    run(firefox, EXPRESSION)
    wait(firefox, STATE, "running")
    firefox.find_element("css selector", "#stop").click()
    wait(firefox, STATE, "stopped", timeout=5)
    ends = time.monotonic() + 5
    while session.running and time.monotonic() < ends:
        time.sleep(0.01)
    assert session.events[-1][0] == "closed"
