"""What is typed into the page, and several tabs of it."""

import time

import pytest

from selfspan_core.serve import page_files
from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import BAD_INPUTS, EXPRESSION, SHORT, count, right_lines
from tests.support.browser import SIGNS
from tests.support.fake_session import FakeSession


@pytest.mark.browser
class TestTabs:
    def test_two_tabs_queue_and_both_finish(self, serve, open_tab):
        """Two runs at once on one device would spoil both clocks; a queued tab that says nothing looks broken."""
        session = FakeSession(dense=150, sparse=200)
        url = serve(session)
        first, second = open_tab(url), open_tab(url)
        with session.held(40):
            first.run(EXPRESSION)
            first.wait("running")
            second.run(SHORT)
            second.wait("waiting")
            second.page.wait_for_function("document.querySelector('.ss-status').textContent.startsWith('Waiting')")
        first.wait("done")
        second.wait("done")
        assert first.lines("dense") == right_lines(EXPRESSION)
        assert second.lines("dense") == right_lines(SHORT)
        assert session.most_running == 1

    def test_a_waiting_tab_can_be_stopped(self, serve, open_tab):
        """Stop that only knows running generators would leave the run in the queue."""
        session = FakeSession(dense=60, sparse=60)
        session.hold_at = 40
        url = serve(session)
        first, second = open_tab(url), open_tab(url)
        first.run(EXPRESSION)
        first.wait("running")
        second.run(SHORT)
        second.wait("waiting")
        second.page.click("#stop")
        second.wait("stopped", timeout=2000)
        first.page.click("#stop")
        first.wait("stopped")
        time.sleep(0.5)
        assert [event for event, _ in session.events] == ["started", "closed"]

    def test_a_waiting_run_that_is_taken_back_leaves_what_was_there(self, serve, open_tab):
        """Would catch "Stopped." over the results of a run before, which came to its end, and a recording that a run
        cuts off for good which never began.
        """
        session = FakeSession(dense=2000, sparse=2000, can_load=True)  # no shorter run passes
        url = serve(session, recorded=page_files.recorded())
        first, second = open_tab(url), open_tab(url)

        def take_back(state: str) -> None:
            with session.held(tokens=5):
                first.run(EXPRESSION)
                first.wait("running")
                second.run("1+2")
                second.wait("waiting")
                second.page.click("#stop")
                second.wait(state)
                first.page.click("#stop")
                first.wait("stopped")
            assert first.text(".ss-status") == "Stopped."
            assert second.text(".ss-status").startswith("The waiting run was taken back. ")
            assert second.page.get_attribute("#stop", "aria-disabled") == "true"

        take_back("played")
        assert "Recorded" in second.text(".ss-title") and second.page.is_visible(".ss-replay")
        second.run(SHORT)
        second.wait("done")
        headline, title = second.text(".ss-status"), second.text(".ss-title")
        flags = second.page.locator(".ss-flag").all_text_contents()
        assert "taken back" not in headline
        take_back("done")
        assert second.text(".ss-status").endswith(f" taken back. {headline}") and second.text(".ss-title") == title
        assert second.lines("dense") == second.lines("sparse") == right_lines(SHORT)
        assert second.page.locator(".ss-flag").all_text_contents() == flags

    def test_run_again_while_waiting_replaces_the_waiting_run(self, serve, open_tab):
        """A run that was given up would still take its turn, or its late ticks would mix with the new one's."""
        session = FakeSession(dense=150, sparse=150)
        url = serve(session)
        first, second = open_tab(url), open_tab(url)
        with session.held(40):
            first.run(EXPRESSION)
            first.wait("running")
            second.run("11*12")
            second.wait("waiting")
            second.run(SHORT)
            second.page.wait_for_function("document.querySelector('.ss-status').textContent.startsWith('Waiting')")
        second.wait("done")
        assert second.lines("dense") == second.lines("sparse") == right_lines(SHORT)
        assert [event for event, _ in session.events].count("started") == 2

    def test_closing_a_tab_frees_the_lane(self, serve, open_tab):
        """A run that nobody watches any more would hold the device for minutes."""
        session = FakeSession(dense=10, sparse=10)
        url = serve(session)
        first, second = open_tab(url), open_tab(url)
        first.run(EXPRESSION)
        first.wait("running")
        first.page.close()
        session.rates = {"dense": 300, "sparse": 300}
        second.run(SHORT)
        second.wait("done", timeout=20_000)


@pytest.mark.browser
class TestInput:
    def test_bad_input_gets_a_message_beside_the_box_and_changes_nothing_else(self, stage, open_tab):
        """An input that crashes, runs anyway, wipes the last result or only raises a toast shows here."""
        session = FakeSession()
        tab = open_tab(stage(session))
        tab.run(SHORT)
        tab.wait("done")
        screen, num_events, number = tab.text("#race"), len(session.events), ""
        for name, text in BAD_INPUTS.items():
            tab.run(text)
            tab.page.wait_for_function(
                "old => (document.querySelector('.ss-alert').dataset.run ?? '') !== old", arg=number
            )
            number = tab.page.get_attribute(".ss-alert", "data-run")
            assert 10 < len(tab.alert) < 400, name
            assert tab.page.is_visible(".ss-alert"), name
            assert tab.page.get_attribute("#expression textarea", "aria-invalid") == "true"
            assert (tab.text("#race"), len(session.events)) == (screen, num_events), name
        box = tab.page.locator("#expression").bounding_box()
        alert = tab.page.locator(".ss-alert").bounding_box()
        assert 0 <= alert["y"] - (box["y"] + box["height"]) < 40
        tab.page.fill("#expression textarea", SHORT)
        tab.page.wait_for_function("!document.querySelector('.ss-alert').textContent")
        tab.run("1+2")  # other steps: until the server answers, the page still shows that the last run is done
        tab.page.wait_for_function("document.querySelectorAll('.ss-step').length === 2")
        tab.wait("done")
        assert tab.lines("sparse") == right_lines("1+2")

    def test_unicode_operators_and_thousands_of_spaces_are_understood(self, url, open_tab):
        """What a phone keyboard or a copied formula holds must work."""
        tab = open_tab(url)
        tab.run("79 × 36" + " " * 3000 + "− 84 ÷ 12")
        tab.wait("done")
        assert tab.lines("dense") == right_lines("79*36-84/12")

    def test_text_is_never_a_template_nor_markup(self, stage, open_tab):
        """`{{value}}` and `${value}` execute in a gr.HTML template; markup in innerHTML does too."""
        hostile = "{{7*7}}${7*7}<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>&amp;"
        tab = open_tab(stage(FakeSession(dense=2000, sparse=2000, extra_text=hostile)))
        tab.run(SHORT)
        tab.wait("done")
        assert all(hostile.translate(SIGNS) in tab.lines(lane)[0] for lane in ("dense", "sparse"))
        assert tab.page.evaluate("window.pwned") is None

    def test_surprise_fills_the_box_and_runs(self, url, open_tab):
        """A surprise that the task itself rejects, or that runs what stood in the box before, would be embarrassing."""
        tab = open_tab(url)
        before = tab.page.input_value("#expression textarea")
        tab.page.click("#surprise")
        tab.page.wait_for_function("old => document.querySelector('#expression textarea').value !== old", arg=before)
        text = tab.page.input_value("#expression textarea")
        tab.wait("running")
        tab.page.click("#stop")
        assert count(text) == tab.page.locator(".ss-source .ss-literal").count()

    def test_examples_have_names_and_run(self, stage, open_tab):
        """An example that waits for another click, that runs what stood in the box before, or that is too long."""
        tab = open_tab(stage(FakeSession(dense=9000, sparse=9000)))
        stories = get_task("arithmetic").page.stories
        buttons = tab.page.locator("button.gallery-item")
        labels = [label.strip() for label in buttons.all_text_contents()]
        assert labels == [f"{name}, {count(text)} numbers" for name, text in stories.items()]
        assert {"A shop's bill", "A race"} <= set(stories) and count(stories["A race"]) == 64
        for button, text in enumerate(stories.values()):
            tab.page.wait_for_function("document.querySelectorAll('.ss-bar').length === 0")
            buttons.nth(button).click()
            tab.page.wait_for_function(
                "count => document.querySelectorAll('.ss-source .ss-literal').length === count", arg=count(text)
            )
            tab.wait("done")
            assert tab.page.input_value("#expression textarea") == text
            assert tab.lines("sparse") == right_lines(text)
            tab.page.click("#expression textarea")
