"""The page while it is drawn: nothing jumps, and nothing is left over."""

import pytest

from selfspan_core.serve import page_files
from selfspan_core.tasks.registry import get_task
from tests.support.browser import Tab
from tests.support.fake_session import FakeSession

TASKS = ("arithmetic", "summarize")
SHIFTS = """window.shift = 0;
const add = (list) => list.getEntries().forEach((entry) => (window.shift += entry.value));
new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });"""
TOP = "selector => document.querySelector(selector).getBoundingClientRect().top"


@pytest.fixture(scope="module")
def session() -> FakeSession:
    """Lanes that write 900 tokens a second."""
    return FakeSession(dense=900, sparse=900)


@pytest.fixture(scope="module")
def page(serve, session) -> str:
    """The whole page with its recorded run."""
    return serve(session, TASKS, recorded=page_files.recorded())


@pytest.mark.browser
class TestArrival:
    @pytest.mark.parametrize("size", [(390, 844), (1280, 720)], ids=str)
    def test_nothing_jumps_on_arrival(self, chromium, page, size):
        """Would catch a page whose tabs are drawn where the maps will be, and pushed away when these come."""
        window = chromium.browser.new_context()
        window.add_init_script(SHIFTS)
        tab = Tab(window, page, size=size)
        tab.wait("playing")
        tab.page.wait_for_timeout(500)
        assert tab.page.locator("#stage .ss-map").count() == 2 and tab.page.locator("#run").is_visible()
        assert tab.page.evaluate("window.shift") < 0.1
        window.close()

    @pytest.mark.parametrize("size", [(390, 844), (820, 1180), (1280, 720)], ids=str)
    def test_what_is_drawn_late_has_its_room(self, page, open_tab, size):
        """Would catch the same where gradio draws the parts in another order, as it does now and then."""
        tab = open_tab(page, size=size, reduced_motion="reduce")
        tab.wait("played")
        tab.page.wait_for_selector("button.gallery-item")
        for late, below in (("#stage", "#tasks"), ("#tasks", "#race")):
            before = tab.page.evaluate(TOP, below)
            away = "selector => { const node = document.querySelector(selector); window.late = node; node.remove(); }"
            tab.page.evaluate(away, late)
            assert abs(tab.page.evaluate(TOP, below) - before) < 40, late
            tab.page.evaluate("below => document.querySelector(below).before(window.late)", below)
            assert tab.page.evaluate(TOP, below) == before

    def test_the_maps_stay_where_they_are(self, page, session, open_tab):
        """Would catch a label that breaks into two lines beside a long prompt, and moves the map below it."""
        tab = open_tab(page, size=(390, 844), reduced_motion="reduce")
        tab.wait("played")
        tops = (
            "[...document.querySelectorAll('.ss-map-field')].map((node) => node.getBoundingClientRect().top + scrollY)"
        )
        before = tab.page.evaluate(tops)
        with session.held(tokens=10):
            tab.run(get_task("arithmetic").page.stories["A race"])
            tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens === '10'")
            room = "parseFloat(document.querySelector('.ss-map').style.getPropertyValue('--ss-map-boundary'))"
            assert tab.page.evaluate(room) > 80
            assert tab.page.evaluate(tops) == before
        tab.wait("done")
        assert tab.page.evaluate(tops) == before

    def test_the_footer_has_no_stray_dot(self, page, open_tab):
        """Would catch "· Settings": on a phone gradio hides what stood before the dot."""
        tab = open_tab(page, size=(390, 844), reduced_motion="reduce")
        footer = tab.page.locator("footer[aria-label]")
        assert footer.inner_text().strip() == "Settings"
