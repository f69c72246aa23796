"""What the page's figures compare, and when, and the colours of their verdicts."""

import pytest

from tests.support.app_tools import EXPRESSION
from tests.support.fake_session import FakeSession

TOKEN = '[data-tile="token"]'
LOOK = "node => [node.textContent, node.dataset.judged, getComputedStyle(node).color]"


def wait_for_tokens(tab, count: int) -> None:
    tab.page.wait_for_function(
        "count => [...document.querySelectorAll('.ss-pane')].every((pane) => Number(pane.dataset.tokens) === count)",
        arg=count,
    )


@pytest.mark.browser
class TestRates:
    def test_rates_are_compared_once_there_is_something_to_compare(self, serve, open_tab):
        """Would catch "2.24x as fast per token" in teal of a run that has barely begun, or that was stopped."""
        session = FakeSession(dense=400, sparse=900)
        tab = open_tab(serve(session))
        with session.held(tokens=12):
            tab.run(EXPRESSION)
            wait_for_tokens(tab, 12)
            text, judged, grey = tab.page.locator(TOKEN).first.evaluate(LOOK)
            assert (text, judged) == ("–", "")
        session.hold_at = 60
        wait_for_tokens(tab, 60)
        text, judged, teal = tab.page.locator(TOKEN).first.evaluate(LOOK)
        assert (text, judged) == ("2.25×", "1") and teal != grey
        tab.page.click("#stop")
        tab.wait("stopped")
        assert tab.page.locator(TOKEN).first.evaluate(LOOK) == ["–", "", grey]
        session.hold_at = None

    def test_a_short_run_is_compared_at_its_end(self, stage, open_tab):
        """Would catch a figure that a run of few tokens never gets."""
        tab = open_tab(stage(FakeSession(dense=400, sparse=900)))
        tab.run("1+2")
        tab.wait("done")
        assert tab.text(TOKEN) == "2.25×"


@pytest.mark.browser
class TestVerdict:
    def test_the_share_has_one_colour(self, stage, open_tab):
        """Would catch a share above 100 % that is amber in the headline, and teal at the map and in the bar."""
        colours = {}
        tab = open_tab(stage(FakeSession(dense=900, sparse=900)))
        tab.compare_plain()
        for share in (1.37, 0.31, 1.0):
            stage(FakeSession(dense=900, sparse=900, read_share=share))
            tab.run(f"12*34+56+{int(10 * share)}")
            tab.page.wait_for_function(
                "text => document.querySelector('[data-tile=\"share\"]').textContent === text",
                arg=f"{100 * share:.0f}\u202f%",
            )
            tab.wait("done")
            colour = "(node, name) => getComputedStyle(node)[name]"
            found = [
                tab.page.locator('[data-tile="share"]').first.evaluate(colour, "color"),
                tab.page.locator('.ss-map[data-lane="sparse"] .ss-map-share').first.evaluate(colour, "color"),
                tab.page.locator(f"{tab.pane('sparse')} .ss-kv-fill").first.evaluate(colour, "backgroundColor"),
            ]
            assert len(set(found)) == 1, (share, found)
            colours[share] = found[0]
            dense = tab.page.locator(f"{tab.pane('dense')} .ss-kv-fill").first.evaluate(colour, "backgroundColor")
            assert dense == "rgb(71, 85, 105)"
            assert tab.text('.ss-map[data-lane="sparse"] .ss-map-share') == f"reads {100 * share:.0f}\u202f%"
        assert len(set(colours.values())) == 3
