"""A result belongs to the tab of its task: it is there when somebody comes back, and a run goes on meanwhile."""

import json

import pytest

from selfspan_core.serve import page_files
from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import EXPRESSION, SHORT, right_lines
from tests.support.fake_session import FakeSession

ARTICLE = get_task("summarize").examples[0]
TASKS = ("arithmetic", "summarize")
SHARES = '.ss-map[data-lane="sparse"] .ss-map-share'


def summarize(tab, text: str = ARTICLE):
    tab.page.fill("#article textarea", text)
    tab.page.click("#run-article")


def begin_and_leave(tab, tokens: int):
    """A run that has written some tokens goes on behind the other tab."""
    tab.run(EXPRESSION)
    tab.wait("running")
    tab.page.wait_for_function("least => document.querySelector('.ss-pane').dataset.tokens > least", arg=tokens)
    tab.turn("Articles")


@pytest.mark.browser
class TestTasks:
    def test_each_tab_has_its_own_result(self, stage, open_tab):
        """A sum's result above an article, steps of the one among the other's, and a result lost by looking away."""
        tab = open_tab(stage(FakeSession(dense=2000, sparse=2000), TASKS))
        tab.run(SHORT)
        tab.wait("done")
        shown = {selector: tab.text(selector) for selector in (".ss-status", ".ss-line", SHARES, ".ss-source-text")}
        tab.turn("Articles")
        assert tab.state == "idle" and tab.page.is_hidden(".ss-source") and tab.page.is_hidden(".ss-tiles")
        assert tab.page.locator(".ss-step").count() == 0 and tab.text(SHARES) == ""
        assert tab.page.is_visible(f"{tab.pane('dense')} .ss-empty")
        summarize(tab)
        tab.wait("done")
        assert tab.text(".ss-source-name") == "The article" and tab.page.is_visible(".ss-constrained")
        tab.turn("Arithmetic")
        assert {selector: tab.text(selector) for selector in shown} == shown
        assert tab.lines("dense") == tab.lines("sparse") == right_lines(SHORT)
        assert tab.text(f"{tab.pane('sparse')} .ss-badge") == "✓ right" and tab.page.is_hidden(".ss-constrained")
        tab.page.hover(f"{tab.pane('sparse')} .ss-step:nth-child(1)")
        names = [node.get_attribute("data-name") for node in tab.page.locator("#race .peeked").all()]
        assert sorted(names) == ["a0", "a1"]
        tab.turn("Articles")
        assert tab.text(f"{tab.pane('dense')} .ss-badge") == "3 sentences" and tab.state == "done"

    def test_one_share_is_named_after_a_look_elsewhere_too(self, stage, open_tab):
        """Would catch shares of the lane's own text, in a tab that is come back to or in a picture of the maps."""
        tab = open_tab(stage(FakeSession(dense=2000, sparse=2000, read_share=0.73), TASKS))
        tab.compare_plain()
        tab.run(SHORT)
        tab.wait("done")
        bar = f"{tab.pane('sparse')} [data-figure='share']"
        shown = {bar: "73\u202f% of plain lane", SHARES: "reads 73\u202f%", '[data-tile="share"]': "73\u202f%"}
        assert {selector: tab.text(selector) for selector in shown} == shown
        tab.turn("Articles")
        tab.turn("Arithmetic")
        assert {selector: tab.text(selector) for selector in shown} == shown
        assert "reads 73\u202f%" in tab.saved("drawing").decode()

    def test_what_says_nothing_of_the_newest_article_stays_away(self, stage, open_tab):
        """Would catch figures of the article before, which a refusal took away, in a tab that is come back to."""
        tab = open_tab(stage(FakeSession(dense=2000, sparse=2000), TASKS))
        tab.turn("Articles")
        summarize(tab)
        tab.wait("done")
        assert tab.text('[data-tile="answer"]') != "–"
        summarize(tab, ARTICLE * 80)
        tab.wait("failed")
        # A file is of the run that is still there, not of the input that came to none.
        assert json.loads(tab.saved("trace"))["state"] == "done"
        tab.turn("Arithmetic")
        tab.turn("Articles")
        assert tab.state == "failed" and tab.text('[data-tile="answer"]') == "–" and tab.page.is_visible(".ss-begin")
        tab.page.click(".ss-begin")
        tab.wait("idle")
        tab.turn("Arithmetic")
        tab.turn("Articles")
        assert tab.text(f"{tab.pane('sparse')} .ss-outcome").strip() == "" and tab.page.is_hidden(".ss-tiles")
        summarize(tab)
        tab.wait("done")
        assert tab.text('[data-tile="answer"]') != "–" and tab.page.is_visible(".ss-tiles")

    def test_a_run_goes_on_while_another_tab_is_in_sight(self, stage, open_tab):
        """Tokens lost while nobody looked, drawn into the other tab, or a Stop that does not reach the run."""
        session = FakeSession(dense=150, sparse=220)
        tab = open_tab(stage(session, TASKS))
        with session.held(90):
            begin_and_leave(tab, tokens=20)
            written = len(session.ticks)
            while len(session.ticks) < written + 8:
                tab.page.wait_for_timeout(50)
            assert tab.state == "idle" and tab.page.locator(".ss-step").count() == 0
            assert tab.page.get_attribute("#stop-article", "aria-disabled") == "false"
            tab.turn("Arithmetic")
            assert tab.tokens("dense") > 60 and tab.state == "running"
        tab.wait("done")
        assert tab.lines("dense") == tab.lines("sparse") == right_lines(EXPRESSION)

    def test_a_run_that_another_replaces_says_that_it_stopped(self, serve, open_tab):
        """A tab that shows for ever that it is running what the server gave up long ago."""
        session = FakeSession(dense=60, sparse=60)
        tab = open_tab(serve(session, TASKS))
        begin_and_leave(tab, tokens=5)
        session.rates = {"dense": 2000, "sparse": 2000}
        summarize(tab)
        tab.wait("done")
        tab.turn("Arithmetic")
        assert tab.state == "stopped" and tab.tokens("dense") > 5
        assert tab.text(f"{tab.pane('dense')} .ss-flag") == "stopped"

    def test_the_recorded_run_stays_in_its_tab(self, serve, open_tab):
        """A recording that plays among an article's summary, or that a run elsewhere cuts off in the middle."""
        url = serve(FakeSession(dense=2000, sparse=2000), TASKS, recorded=page_files.recorded())
        tab = open_tab(url)
        tab.turn("Articles")
        assert tab.state == "idle" and tab.page.is_hidden(".ss-replay")
        summarize(tab)
        tab.wait("done")
        assert tab.page.locator(f"{tab.pane('sparse')} .ss-step").count() == 3
        tab.turn("Arithmetic")
        tab.wait("played")
        assert "Recorded" in tab.text(".ss-title") and tab.page.is_visible(".ss-replay")
        tab.run(SHORT)
        tab.wait("done")
        assert tab.lines("sparse") == right_lines(SHORT) and tab.page.is_hidden(".ss-replay")
