"""The page's tab of programs: lines in colours, the variables, and what is lit of both."""

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.fake_session import FakeSession

TASKS = ("arithmetic", "trace")
PROGRAM = "total = 2\nfor i in range(3):\n    total = total + i\nword = 'a <b>c</b>'\nprint(total, word)"


@pytest.fixture
def session():
    """Answers at once."""
    return FakeSession(dense=3000, sparse=3000)


@pytest.fixture
def tab(stage, open_tab, session):
    """A tab in which programs can be run."""
    opened = open_tab(stage(session, TASKS))
    opened.turn("Programs")  # until its form stands: gradio may draw it twice, and what was filled in would be gone
    return opened


def run(tab, text: str) -> None:
    """Run a program."""
    tab.page.fill("#program textarea", text)
    tab.page.click("#run-trace")


@pytest.mark.browser
class TestPrograms:
    def test_lines_variables_and_answer(self, tab):
        """Would catch a program in one line, markup out of a string, or a table that misses a variable's last value."""
        run(tab, PROGRAM)
        tab.wait("done")
        lines = tab.page.locator(".ss-code").all_text_contents()
        assert lines == PROGRAM.split("\n") and tab.text(".ss-source-name") == "The program"
        assert tab.page.locator(".ss-source-text b").count() == 0
        assert tab.page.locator(".ss-code-word").all_text_contents() == ["for", "in", "range", "print"]
        assert tab.page.locator(".ss-code-text").all_text_contents() == ["'a <b>c</b>'"]
        rows = tab.page.locator(".ss-variables tr")
        shown = {row.locator("th").text_content(): row.locator("td").text_content() for row in rows.all()}
        assert shown == {"total": "5", "i": "2", "word": "'a <b>c</b>'"}
        assert tab.text(tab.pane("sparse") + " .ss-answer") == "5 a <b>c</b>"
        assert tab.text(tab.pane("sparse") + " .ss-badge") == "✓ right"

    def test_a_step_lights_its_line_and_what_it_reads(self, tab, session):
        """Would catch a table or lines that are never lit, or lit for good."""
        run(tab, PROGRAM)
        tab.wait("done")
        tab.page.hover(f"{tab.pane('sparse')} .ss-step:last-child")
        peeked = [node.get_attribute("data-name") for node in tab.page.locator("#race .peeked").all()]
        assert "a4" in peeked and len(peeked) == 3
        lit = tab.page.locator(".ss-variables tr.lit")
        assert lit.all_text_contents() == ["total5", "word'a <b>c</b>'"]
        tab.page.hover(f"{tab.pane('sparse')} .ss-step:nth-child(5)")
        assert lit.all_text_contents() == ["total2", "i1"]
        tab.page.hover(".ss-source-name")
        assert lit.count() == 0 and "total5" in tab.page.locator(".ss-variables tr").all_text_contents()
        tab.page.evaluate("""() => {
            const seen = (window.seen = new Set());
            new MutationObserver(() => {
                for (const row of document.querySelectorAll(".ss-variables tr.lit th")) seen.add(row.textContent);
            }).observe(document.querySelector(".ss-variables"), { attributes: true, subtree: true });
        }""")
        session.rates = {"dense": 250, "sparse": 250}
        run(tab, get_task("trace").examples[1])
        tab.wait("running")
        tab.wait("done")
        assert set(tab.page.evaluate("[...window.seen]")) <= {"a", "b", "i"}
        assert tab.page.evaluate("window.seen.size") > 0

    def test_an_error_names_the_line(self, tab):
        """Would catch a program that is refused without a word, or a box that does not say that it is the one."""
        run(tab, "x = 1\ny = x / 2\nprint(y)")
        tab.page.get_by_text("Line 2: / gives fractions, which are not supported; use //.").wait_for()
        assert tab.page.get_attribute("#program textarea", "aria-invalid") == "true"

    def test_what_was_shown_goes_with_its_tab(self, tab):
        """Would catch another task's run beside a program's variables."""
        run(tab, PROGRAM)
        tab.wait("done")
        tab.turn("Arithmetic")
        assert tab.page.is_hidden(".ss-variables")
        tab.turn("Programs")
        assert tab.page.is_visible(".ss-variables") and tab.page.locator(".ss-variables tr").count() == 3
