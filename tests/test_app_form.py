"""The form as a bar: what it shows, how it opens again, and who has the focus when parts of it are hidden."""

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import SHORT, right_lines
from tests.support.fake_session import FakeSession

TASKS = ("arithmetic", "summarize")
MORE = ".ss-more >> visible=true"
FOCUSED = "document.activeElement.id || document.activeElement.className"


@pytest.fixture(scope="module")
def session() -> FakeSession:
    """Lanes that write 900 tokens a second."""
    return FakeSession(dense=900, sparse=900)


@pytest.fixture(scope="module")
def page(serve, session) -> str:
    """A page with both tasks around it."""
    return serve(session, TASKS)


def focus_is_on(tab, name: str) -> None:
    """Wait for it: the page hears of a run's beginning and end a moment later than its state says."""
    tab.page.wait_for_function(f"name => ({FOCUSED}) === name", arg=name, timeout=5000)


@pytest.mark.browser
class TestBar:
    @pytest.mark.parametrize("size", [(1280, 720), (390, 844)], ids=str)
    def test_a_button_of_the_bar_opens_the_form_again(self, page, session, open_tab, size):
        """Would catch examples and options that nobody finds after a first run, and a form that opens by itself."""
        tab = open_tab(page, size=size)
        assert not tab.page.is_visible(".ss-more")
        with session.held(tokens=10):
            tab.run(SHORT)
            tab.wait("running")
            places = [tab.page.locator(MORE).bounding_box(), tab.page.locator("#expression").bounding_box()["y"]]
        tab.wait("done")
        assert [tab.page.locator(MORE).bounding_box(), tab.page.locator("#expression").bounding_box()["y"]] == places
        hidden = ("#surprise", "button.gallery-item >> nth=0", ".ss-toggle")
        assert not any(tab.page.is_visible(part) for part in hidden)
        more = tab.page.locator(MORE)
        assert more.text_content() == "Examples and options" and more.get_attribute("aria-expanded") == "false"
        box = more.bounding_box()
        assert box["y"] + box["height"] <= size[1] and box["x"] + box["width"] <= size[0] and box["height"] >= 24
        more.press("Enter")
        assert more.get_attribute("aria-expanded") == "true" and tab.page.evaluate(FOCUSED) == "ss-more"
        assert all(tab.page.is_visible(part) for part in hidden)
        more.press("Enter")
        assert more.get_attribute("aria-expanded") == "false" and not tab.page.is_visible("#surprise")

    def test_the_bar_shows_one_line_of_an_article(self, page, session, open_tab):
        """Would catch a bar with the upper half of an article's second line in it."""
        tab = open_tab(page)
        tab.turn("Articles")
        tab.page.click("#run-article")
        tab.wait("done")
        inside = """node => {
            const { lineHeight, paddingTop } = getComputedStyle(node);
            return [node.clientHeight, parseFloat(lineHeight), parseFloat(paddingTop)];
        }"""
        height, line, above = tab.page.locator("#article textarea").first.evaluate(inside)
        assert above + line <= height <= above + line + 1

    def test_the_bar_keeps_the_box_s_name_and_leaves_no_hole(self, page, open_tab):
        """Would catch a bar that shows the middle of an article, a box that is called by its placeholder for who hears
        the page, and an empty form's height between a run and its text."""
        tab = open_tab(page)
        tab.turn("Articles")
        box = tab.page.get_by_role("textbox", name="Article", exact=False).first
        box.fill("\n".join(f"Sentence number {number} stands in this text." for number in range(40)))
        tab.page.locator("#article textarea").first.evaluate("node => { node.scrollTop = 300; }")
        tab.page.click("#run-article")
        tab.wait("done")
        assert tab.page.locator("#article textarea").first.evaluate("node => node.scrollTop") == 0
        label = "node => [...node.labels].map((label) => label.innerText).join(' ')"
        assert "Article" in tab.page.locator("#article textarea").first.evaluate(label)
        assert tab.page.locator("#tasks").bounding_box()["height"] < 80

    def test_summarize_is_on_the_first_screen(self, page, open_tab):
        """Would catch a box so high that the button below it is found by scrolling only."""
        tab = open_tab(page, size=(1280, 720))
        tab.turn("Articles")
        tab.page.wait_for_function("document.querySelector('#article textarea').clientHeight > 60")
        button = tab.page.locator("#run-article").bounding_box()
        assert tab.page.evaluate("scrollY") == 0 and button["y"] + button["height"] <= 720


@pytest.mark.browser
class TestFocus:
    def test_the_focus_stays_in_the_form(self, page, session, open_tab):
        """Would catch a keyboard's user who is sent to the top of the page by every run, its end and its Stop."""
        tab = open_tab(page)
        tab.page.focus("#run")
        with session.held(tokens=10):
            tab.page.keyboard.press("Space")
            focus_is_on(tab, "stop")
            assert tab.state == "running"
        tab.wait("done")
        focus_is_on(tab, "run")
        with session.held(tokens=10):  # from the bar, which hides Run before the run begins
            tab.page.keyboard.press("Space")
            focus_is_on(tab, "stop")
        tab.wait("done")
        focus_is_on(tab, "run")
        tab.page.locator(MORE).click()
        text = get_task("arithmetic").page.stories["A shop's bill"]
        tab.page.locator("button.gallery-item", has_text="A shop's bill").focus()
        with session.held(tokens=10):
            tab.page.keyboard.press("Enter")
            focus_is_on(tab, "stop")
        tab.wait("done")
        focus_is_on(tab, "run")
        assert tab.lines("sparse") == right_lines(text)

    def test_stop_hands_the_focus_to_run(self, serve, open_tab):
        """Would catch a Stop that takes the focus with it."""
        tab = open_tab(serve(FakeSession(dense=40, sparse=40)))
        tab.page.focus("#run")
        tab.page.keyboard.press("Enter")
        focus_is_on(tab, "stop")
        tab.page.keyboard.press("Enter")
        tab.wait("stopped")
        focus_is_on(tab, "run")

    def test_a_focus_elsewhere_is_left_alone(self, page, session, open_tab):
        """Would catch a run that takes the focus from the box that is typed in, or from what is read."""
        tab = open_tab(page)
        tab.page.fill("#expression textarea", SHORT)
        with session.held(tokens=10):
            tab.page.press("#expression textarea", "Enter")
            tab.wait("running")
            assert tab.page.evaluate("document.activeElement.tagName") == "TEXTAREA"
            tab.page.focus(".ss-details summary")
        tab.wait("done")
        assert tab.page.evaluate("document.activeElement.parentNode.className") == "ss-details"
