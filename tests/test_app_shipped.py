"""The page with the shipped model."""

import csv
import io
import json
import time

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import SHORT
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def shipped(serve) -> str:
    """The app around the shipped weights."""
    return serve()


def weights() -> bool:
    base = any((ROOT / "assets" / "base").glob("model*.safetensors"))
    adapters = [ROOT / "assets" / "adapters" / f"arithmetic-{kind}" for kind in ("span", "plain")]
    return base and all(folder.is_dir() for folder in adapters)


@pytest.mark.browser
@pytest.mark.skipif(not weights(), reason="the shipped base and adapters are not in assets/")
class TestShippedModel:
    def example(self, operands: int) -> str:
        task = get_task("arithmetic")
        return next(text for text in task.examples if task.parse(text).num_operands == operands)

    def test_8_operands_stream_and_highlights_follow(self, shipped, open_tab):
        """The whole chain: weights, engine, session, page."""
        tab = open_tab(shipped)
        tab.open_options()
        tab.page.set_checked("#drafts input", False)  # a run with drafts is over before much is seen of it
        tab.run(self.example(8))
        tab.wait("running", timeout=120_000)
        readings = set()
        while tab.state == "running":
            lit, reading, tokens = tab.page.evaluate("""() => {
                const [dense, sparse] = document.querySelectorAll('.ss-pane');
                const lit = [...document.querySelectorAll('#race .lit')].map(node => node.dataset.name);
                return [lit, sparse.dataset.reading ?? '', [dense.dataset.tokens, sparse.dataset.tokens].map(Number)];
            }""")
            assert set(lit) == set(reading.split())
            if reading and min(tokens) > 0:
                readings.add(reading)
            time.sleep(0.05)
        assert len(readings) >= 4
        assert tab.state == "done"
        for lane in ("dense", "sparse"):
            assert len(tab.lines(lane)) >= 7 and tab.text(f"{tab.pane(lane)} .ss-badge").strip()
        assert tab.text(".ss-line")
        trace = json.loads(tab.saved("trace"))
        lines = list(csv.DictReader(io.StringIO(tab.saved("steps").decode("utf-8-sig"), newline="")))
        for name, lane in trace["lanes"].items():
            own = [line for line in lines if line["lane"] == {"dense": "dense", "sparse": "self-selected"}[name]]
            read = sum(int(line["cached_tokens_read"]) for line in own)
            assert read == lane["attended_tokens"] and sum(int(line["tokens"]) for line in own) == lane["tokens"] - 1

    def test_drafts_are_tinted_and_change_no_text(self, shipped, open_tab):
        """Would catch a switch that does nothing, text that drafts change, figures or a tint that stay away or stay."""
        tab = open_tab(shipped)
        shown = {}
        for drafts in (True, False):
            tab.open_options()
            tab.page.set_checked("#drafts input", drafts)
            tab.run(self.example(8))
            tab.wait("running", timeout=120_000)
            tab.wait("done", timeout=120_000)
            shown[drafts] = [tab.lines(lane) for lane in ("dense", "sparse")]
            for lane in ("dense", "sparse"):
                pane = tab.pane(lane)
                tinted = tab.page.locator(f"{pane} .ss-step .ss-drafted").count()
                assert (tinted > 10) == drafts and tab.page.is_visible(f"{pane} .ss-drafts") == drafts
            assert ("with drafts" in tab.text(".ss-line")) == drafts
            if drafts:
                assert "tokens per pass" in tab.text(f"{tab.pane('sparse')} .ss-drafts")
        assert shown[True] == shown[False] and len(shown[True][1]) >= 7

    def test_stop_then_a_second_run(self, shipped, open_tab):
        """Stop in the middle of a real run, and the lane is free."""
        tab = open_tab(shipped)
        tab.run(self.example(48))
        tab.wait("running", timeout=120_000)
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 20")
        tab.page.click("#stop")
        tab.wait("stopped")
        tab.compare_plain()
        tab.run(SHORT)
        tab.wait("done")
        assert tab.text(f"{tab.pane('sparse')} .ss-answer") == "2907"
