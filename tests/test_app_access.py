"""The page without a mouse, without colours of its own, and read aloud; checked by axe-core where a rule knows it."""

import io
import itertools
import time

import pytest

from selfspan_core.serve import page_files
from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import EXPRESSION, SHORT
from tests.support.fake_session import FakeSession

TASKS = ("arithmetic", "summarize")
NOT_OURS = "footer"
"""gradio's own, with its settings: what is in it no style or script of this page makes."""
RATIO = """node => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const parts = colour.slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = numbers(getComputedStyle(at).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return light(colour);
        }
        return 1;
    };
    const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const own = behind(node);
    return [ratio(light(numbers(getComputedStyle(node).color)), own), ratio(own, behind(node.parentElement))];
}"""


@pytest.fixture(scope="module")
def quick(serve) -> str:
    """The whole page with its recorded run, around a session whose lanes write 900 tokens a second."""
    return serve(FakeSession(dense=900, sparse=900), TASKS, recorded=page_files.recorded())


@pytest.fixture(scope="module")
def slow_session() -> FakeSession:
    """Lanes that are stopped before they end."""
    return FakeSession(dense=40, sparse=40)


@pytest.fixture(scope="module")
def slow(serve, slow_session) -> str:
    """The page around lanes that are stopped before they end."""
    return serve(slow_session, TASKS)


def violations(tab) -> list[str]:
    """What axe-core finds in the page, a line each."""
    needed = "needs a browser's rules, axe-playwright-python"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=needed)
    found = axe.Axe().run(tab.page, context={"exclude": [[NOT_OURS]]}).response["violations"]
    return [f"{one['id']}: {node['target']} {node['html'][:80]}" for one in found for node in one["nodes"]]


@pytest.mark.browser
class TestRules:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing(self, quick, open_tab, scheme):
        """Would catch text too pale to read, nameless controls and regions, lists and headings out of order."""
        tab, found = open_tab(quick, color_scheme=scheme, reduced_motion="reduce"), {}
        tab.wait("played")
        tab.open_options()
        found["arrival"] = violations(tab)
        tab.run(SHORT)
        tab.wait("done")
        for part in (".ss-details", ".ss-large", ".ss-keep", ".ss-history"):
            tab.page.click(f"{part} summary")
        tab.page.wait_for_selector(".ss-runs .ss-again")
        found["sum"] = violations(tab)
        tab.turn("Articles")
        tab.page.wait_for_selector("#run-article")
        found["articles"] = violations(tab)
        tab.page.fill("#article textarea", get_task("summarize").examples[0])
        tab.page.click("#run-article")
        tab.page.wait_for_selector('.ss[data-task="summarize"][data-state="done"]')
        found["summary"] = violations(tab)
        assert not any(found.values()), found

    def test_tabs_and_stop_can_be_read(self, slow, open_tab):
        """Would catch the accent of gradio on white, 2.49 to 1, and a Stop that sinks into a dark page."""
        tab = open_tab(slow)
        tab.run(EXPRESSION)
        tab.wait("running")
        for scheme in ("dark", "light"):
            tab.page.emulate_media(color_scheme=scheme)
            tab.page.wait_for_function("is => document.body.classList.contains('dark') === is", arg=scheme == "dark")
            # gradio changes colours slowly.
            for selector, least in (("#stop", [4.5, 3]), ('[role="tab"][aria-selected="true"]', [4.5, 1])):
                fits = f"([at, least]) => ({RATIO})(document.querySelector(at)).every((one, i) => one >= least[i])"
                tab.page.wait_for_function(fits, arg=[selector, least], timeout=5000)
        tab.page.click("#stop")
        tab.wait("stopped")

    def test_lists_headings_and_names(self, quick, open_tab):
        """Would catch a term without its description, a heading that skips a level, and two lanes of one name."""
        tab = open_tab(quick, reduced_motion="reduce")
        tab.wait("played")
        lists = """() => [...document.querySelectorAll("dl")].flatMap((dl) => [...dl.children]).map(
            (group) => [...group.children].map((node) => node.tagName).join(" "))"""
        assert set(tab.page.evaluate(lists)) == {"DT DD"}
        shown = "nodes => nodes.filter((node) => node.checkVisibility()).map((node) => Number(node.tagName[1]))"
        levels = tab.page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", shown)
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        for name in ("Dense attention", "Self-selected attention"):
            assert tab.page.get_by_role("article", name=name, exact=True).count() == 1


@pytest.mark.browser
class TestKeyboard:
    def test_escape_stops_the_run(self, slow, slow_session, open_tab):
        """Would catch a key that only the page hears of, and one that stops when it was to let go of a step."""
        tab = open_tab(slow)
        tab.run(EXPRESSION)
        tab.wait("running")
        step = f"{tab.pane('sparse')} .ss-step:not(.current)"
        tab.page.wait_for_selector(step)
        tab.page.focus(step)
        tab.page.keyboard.press("Enter")
        assert tab.page.locator(f"{tab.pane('sparse')} .pinned").count() == 1
        tab.page.keyboard.press("Escape")
        assert tab.page.locator(".pinned").count() == 0 and tab.state == "running"
        tab.page.keyboard.press("Escape")
        tab.wait("stopped")
        ends = time.monotonic() + 5
        while slow_session.running and time.monotonic() < ends:
            time.sleep(0.01)
        assert slow_session.events[-1][0] == "closed"

    def test_enter_holds_a_step(self, quick, open_tab):
        """Would catch a step that only a mouse can hold."""
        tab = open_tab(quick)
        tab.run(SHORT)
        tab.wait("done")
        step = f"{tab.pane('sparse')} .ss-step:nth-child(2)"
        tab.page.focus(step)
        tab.page.keyboard.press("Enter")
        tab.page.focus("#run")
        assert tab.page.locator(f"{step}.pinned.peeking").count() == 1
        tab.page.focus(step)
        tab.page.keyboard.press("Enter")
        assert tab.page.locator(".pinned").count() == 0

    def test_whatever_has_the_focus_shows_it(self, quick, open_tab):
        """Would catch radios, tabs and buttons that a keyboard moves among unseen."""
        tab = open_tab(quick, reduced_motion="reduce")
        tab.open_options()
        outline = """selector => {
            const style = getComputedStyle(document.activeElement.closest(selector));
            return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
        }"""
        tab.page.focus("#ask input[type=radio]:checked")
        tab.page.keyboard.press("ArrowDown")
        assert tab.page.evaluate(outline, "label")
        tab.page.focus("#drafts input")
        tab.page.keyboard.press("Space")
        assert tab.page.evaluate(outline, "label")
        tab.page.press(".ss-keep summary", "Enter")
        for selector in ('[role="tab"]', "#run", ".ss-toggle", "button.gallery-item", ".ss-link"):
            tab.page.locator(f"{selector} >> visible=true").first.focus()
            assert tab.page.evaluate(outline, selector), selector

    def test_stop_says_from_the_start_that_it_does_nothing(self, quick, open_tab):
        """Would catch a Stop that is announced as one that works, in a tab that was not opened yet, too."""
        tab = open_tab(quick)
        assert tab.page.get_attribute("#stop", "aria-disabled") == "true"
        tab.turn("Articles")
        tab.page.wait_for_selector('#stop-article[aria-disabled="true"]')


@pytest.mark.browser
class TestOutcome:
    def test_the_verdict_is_read_out(self, quick, open_tab):
        """Would catch a verdict outside a live region, one that is filled while it is hidden, or without its lane."""
        tab = open_tab(quick)
        watch = """() => {
            window.told = {};
            for (const region of document.querySelectorAll(".ss-pane [role='status']")) {
                const words = () => region.textContent.replace(/\\s+/g, " ").trim();
                const isShown = () => region.checkVisibility({ visibilityProperty: true });
                const note = () => (window.told[words()] = isShown());
                new MutationObserver(note).observe(region, { childList: true, characterData: true, subtree: true });
            }
        }"""
        tab.page.evaluate(watch)
        tab.run(SHORT)
        tab.wait("done")
        told = tab.page.evaluate("window.told")
        assert told["Dense attention Answer 2907 ✓ right"] and told["Self-selected attention Answer 2907 ✓ right"]

    def test_bars_and_highlights_survive_forced_colours(self, quick, open_tab):
        """Would catch bars that vanish, buttons that are words, and a read number like any other, where the system
        decides on colours.
        """
        image = pytest.importorskip("PIL.Image", reason="needs Pillow")
        tab = open_tab(quick, forced_colors="active")
        border = """node => {
            const { borderTopWidth, borderTopStyle, borderTopColor } = getComputedStyle(node);
            const own = document.body.appendChild(document.createElement("p"));
            own.style.color = "ButtonBorder";
            const isSystems = getComputedStyle(own).color === borderTopColor;
            own.remove();
            return [borderTopWidth, borderTopStyle, isSystems];
        }"""
        for button in ("#run", "#stop", "#surprise"):
            assert tab.page.locator(button).evaluate(border) == ["1px", "solid", True], button
        tab.run(SHORT)
        tab.wait("done")

        def colours(selector: str) -> set:
            shot = image.open(io.BytesIO(tab.page.locator(selector).screenshot())).convert("RGB")
            most = sorted(shot.getcolors(shot.width * shot.height), reverse=True)
            return {colour for count, colour in most if count > 0.1 * shot.width * shot.height}

        assert len(colours(f"{tab.pane('sparse')} .ss-kv-track")) >= 2
        plain = colours('.ss-literal[data-name="a0"]')
        tab.page.hover(f"{tab.pane('sparse')} .ss-step:nth-child(1)")
        tab.page.wait_for_selector('.ss-literal[data-name="a0"].peeked')
        time.sleep(0.5)  # colours change a little late
        assert colours('.ss-literal[data-name="a0"]') != plain
        assert tab.page.locator('.ss-literal[data-name="a0"]').first.evaluate(RATIO)[0] >= 4.5
