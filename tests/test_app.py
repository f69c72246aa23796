"""The page in a real browser, around a session that plays scripts: streaming, highlights, Stop, queue, bad input."""

import functools
import re
import time

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import EXPRESSION, SHORT, right_lines
from tests.support.browser import SIGNS
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT


@pytest.fixture
def quick(stage) -> str:
    """As `url`, six times as fast: for tests that look at the end of a run."""
    return stage(FakeSession(dense=900, sparse=1320))


@pytest.mark.browser
class TestRun:
    def test_both_panes_stream_and_highlights_follow(self, url, open_tab):
        """Panes filled one after the other, highlights of another step, and dimming in the dense pane show here."""
        tab = open_tab(url)
        look = """() => {
            const [dense, sparse] = document.querySelectorAll('.ss-pane');
            return {
                tokens: [Number(dense.dataset.tokens), Number(sparse.dataset.tokens)],
                reading: sparse.dataset.reading ?? '',
                lit: [...document.querySelectorAll('#race .lit')].map(node => node.dataset.name),
                everything: [dense, sparse].map(pane => pane.classList.contains('everything')),
                denseLit: dense.querySelectorAll('.lit').length + dense.classList.contains('focus'),
                caption: sparse.querySelector('.ss-caption').textContent,
                chips: [...sparse.querySelectorAll('.ss-step:last-child > .ss-chip')].map(node => node.textContent),
            };
        }"""
        # In every frame of the page's own: a busy machine asks from outside too seldom.
        tab.page.evaluate(f"""() => {{
            window.samples = [];
            const look = {look};
            const note = () => {{
                const {{ state }} = document.querySelector(".ss").dataset;
                if (state === "running") samples.push(look());
                if (state !== "done") requestAnimationFrame(note);
            }};
            note();
        }}""")
        tab.run(EXPRESSION)
        tab.wait("done")
        samples = tab.page.evaluate("samples")
        both = [sample for sample in samples if min(sample["tokens"]) > 0 and max(sample["tokens"]) < 300]
        assert len(both) > 5
        focused = [sample for sample in samples if sample["reading"]]
        assert len({sample["reading"] for sample in focused}) >= 4
        for sample in focused:
            assert set(sample["lit"]) == set(sample["reading"].split())
            assert all(name in sample["caption"] for name in sample["lit"])
            assert sample["chips"][:-1] == sample["reading"].split()
        assert not any(sample["denseLit"] for sample in samples)
        # Between steps and in headers the sparse lane reads everything too, and has to look like it.
        assert all(sample["everything"] == [True, not sample["reading"]] for sample in both[:5])
        assert tab.page.locator(".lit").count() == 0

    def test_the_end_shows_steps_answer_and_the_line(self, quick, open_tab):
        """Lost or doubled tokens, raw markers, a missing verdict or figure show here."""
        tab = open_tab(quick)
        tab.run(EXPRESSION)
        tab.wait("done")
        problem = get_task("arithmetic").parse(EXPRESSION)
        for lane in ("dense", "sparse"):
            pane = tab.pane(lane)
            assert tab.lines(lane) == right_lines(EXPRESSION)
            assert "<|" not in tab.text(pane)
            assert tab.text(f"{pane} .ss-answer") == problem.expected
            assert tab.text(f"{pane} .ss-badge") == "✓ right"
            for figure in ("tokens_per_second", "ms_per_token", "tokens", "first_token_ms", "elapsed_s", "share"):
                assert tab.text(f'{pane} [data-figure="{figure}"]') != "–"
            assert tab.text(f'{pane} [data-figure="share"]').endswith("% of dense")
            assert tab.text(f"{pane} .ss-adapter") == "span adapter"
        chips = tab.page.locator(".ss-source .ss-literal .ss-chip").all_text_contents()
        assert chips == [f"a{index}" for index in range(len(chips))] and len(chips) == 17
        assert "1.47 times as fast per token" in tab.text(".ss-line")
        assert tab.text(".ss-title") == "Same adapter, mask off and on"
        read = int(0.31 * 400 * tab.tokens("sparse")), 400 * tab.tokens("sparse")
        what = f"Read 31 % of what dense read: {read[0]:,} instead of {read[1]:,} cached tokens."
        assert tab.text(".ss-status").startswith(f"{what} Same answer, and it is right: ")
        names = ("share", "answer", "token")
        assert [tab.text(f'[data-tile="{name}"]') for name in names] == ["31\u202f%", "1.47×", "1.47×"]
        tiles = [tab.page.locator(f'[data-tile="{name}"]').bounding_box()["x"] for name in names]
        assert tiles == sorted(tiles)

    def test_the_first_page_explains_itself_and_runs_at_once(self, url, open_tab):
        """Two blank boxes, or an empty expression, are where a first-time visitor leaves."""
        tab = open_tab(url)
        for lane, word in (("dense", "all"), ("sparse", "only")):
            assert tab.page.inner_text(f"{tab.pane(lane)} .ss-for-{lane} b") == word
            assert tab.page.is_visible(f"{tab.pane(lane)} .ss-demo")
        tab.page.click("#run")
        tab.wait("running")
        assert tab.page.locator(".ss-demo").count() == 0
        tab.wait("done")

    def test_nothing_moves_while_figures_change(self, url, open_tab):
        """Figures that jump about cannot be read; a page that grows at the end moves what is under the pointer."""
        tab = open_tab(url)
        tab.run(EXPRESSION)
        tab.wait("running")
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 5")
        script = """() => [...document.querySelectorAll('.ss-pane, .ss-pane [data-figure], .ss-scroll')].map(node => {
            if (!node.checkVisibility()) return null;
            const box = node.getBoundingClientRect();
            return [box.left, box.top + scrollY, node.matches('.ss-pane') ? box.height : 0].map(Math.round);
        })"""
        before, samples = tab.page.evaluate(script), []
        while tab.state == "running":
            samples.append(tab.page.evaluate(script))
            time.sleep(0.1)
        tab.wait("done")
        assert len(samples) > 5 and all(sample == before for sample in [*samples, tab.page.evaluate(script)])

    def test_the_plain_adapter_writes_no_names(self, quick, open_tab):
        """Annotations drawn in the plain lane would claim what its model never wrote."""
        tab = open_tab(quick)
        tab.compare_plain()
        tab.run(EXPRESSION)
        tab.wait("done")
        assert tab.page.locator(f"{tab.pane('dense')} .ss-chip").count() == 0
        assert tab.text(f"{tab.pane('dense')} .ss-adapter") == "plain adapter"
        assert tab.text(f"{tab.pane('sparse')} .ss-adapter") == "span adapter"
        assert tab.lines("dense") == tab.lines("sparse") == right_lines(EXPRESSION)

    def test_one_share_of_reads_against_the_plain_adapter(self, stage, open_tab):
        """Would catch a bar or a map that contradicts the headline, and lanes out of step where one has more to say."""
        tab = open_tab(stage(FakeSession(dense=900, sparse=900, read_share=0.59)))
        tab.compare_plain()
        tab.run(EXPRESSION)
        tab.wait("done")
        assert tab.text('[data-tile="share"]') == "59\u202f%"
        for lane, share in (("dense", "100\u202f%"), ("sparse", "59\u202f%")):
            assert tab.text(f'{tab.pane(lane)} [data-figure="share"]') == f"{share} of plain lane"
            assert tab.text(f'.ss-map[data-lane="{lane}"] .ss-map-share') == f"reads {share}"
        width = "document.querySelector('.ss-pane[data-lane=\"sparse\"] .ss-kv-fill').style.width"
        assert tab.page.evaluate(width) == "59%"
        # One lane drafts, the other does not: what follows has to stand side by side nevertheless.
        tab.page.evaluate("document.querySelector('.ss-pane[data-lane=\"dense\"] .ss-drafts').hidden = false")
        tab.page.evaluate("document.querySelector('.ss-pane[data-lane=\"dense\"] .ss-drafts').textContent = 'drafts'")
        for part in (".ss-figures", ".ss-kv", ".ss-caption", ".ss-scroll", ".ss-verdict"):
            tops = [tab.page.locator(f"{tab.pane(lane)} {part}").bounding_box()["y"] for lane in ("dense", "sparse")]
            assert abs(tops[0] - tops[1]) < 1, part

    def test_negative_numbers_keep_their_minus(self, quick, open_tab):
        """Would catch a step that is explained with other numbers than it read."""
        tab = open_tab(quick)
        tab.run("-5+3-(-7)")
        tab.wait("done")
        captions = []
        for number in (1, 2):
            tab.page.hover(f"{tab.pane('sparse')} .ss-step:nth-child({number})")
            captions.append(tab.text(f"{tab.pane('sparse')} .ss-caption"))
        assert captions == ["Step a3 read a0 = −5, a1 = 3 and itself", "Step a4 read a3 = −2, a2 = −7 and itself"]

    def test_hover_and_keyboard_show_what_a_step_read(self, quick, open_tab):
        """Highlights of the wrong step, or none without a mouse, show here."""
        tab = open_tab(quick)
        tab.page.fill("#expression textarea", EXPRESSION)
        tab.page.press("#expression textarea", "Enter")
        tab.wait("done")
        pane = tab.pane("sparse")
        steps = get_task("arithmetic").parse(EXPRESSION).reductions

        def peeked() -> list[str]:
            return sorted(tab.page.evaluate("[...document.querySelectorAll('#race .peeked')].map(n => n.dataset.name)"))

        def names(index: int) -> list[str]:
            return sorted(f"a{read}" for read in steps[index].reads)

        tab.page.hover(f"{pane} .ss-step:nth-child(5)")
        assert peeked() == names(4)
        values = {f"a{step.name}": step.result.translate(SIGNS) for step in steps}
        caption = tab.text(f"{pane} .ss-caption")
        assert all(f"{name} = {values[name]}" in caption if name in values else name in caption for name in names(4))
        tab.page.hover("#run")
        assert peeked() == []
        tab.page.focus(f"{pane} .ss-step:nth-child(1)")
        tab.page.keyboard.press("ArrowDown")
        tab.page.keyboard.press("ArrowDown")
        assert peeked() == names(2)
        tab.page.click(f"{pane} .ss-step:nth-child(4)")
        tab.page.hover("#run")
        assert peeked() == names(3)
        tab.page.hover(f"{tab.pane('dense')} .ss-step:nth-child(5)")
        assert tab.page.locator(f"{tab.pane('dense')} .ss-step.before").count() == 4

    def test_stop_is_quick_and_the_next_run_works(self, serve, open_tab):
        """A generator that runs on after Stop, or a lane that stays taken, shows here."""
        session = FakeSession(dense=40, sparse=60)
        tab = open_tab(serve(session))
        tab.run(EXPRESSION)
        tab.wait("running")
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 30")
        clicked = time.monotonic()
        tab.page.click("#stop")
        tab.wait("stopped")
        while session.running and time.monotonic() - clicked < 20:
            time.sleep(0.01)  # the page hears of it first, the lane ends at its next tick
        assert session.events[-1][0] == "closed" and session.running == 0  # not at its end
        assert tab.tokens("dense") >= 30 and tab.lines("sparse")[0] == right_lines(EXPRESSION)[0]
        assert tab.text(f"{tab.pane('dense')} .ss-flag") == "stopped"
        before = tab.tokens("dense")
        time.sleep(0.5)
        assert tab.tokens("dense") == before
        tab.run(SHORT)
        tab.wait("done")
        assert tab.lines("dense") == right_lines(SHORT)

    def test_stop_before_anything_is_written(self, serve, open_tab):
        """A Stop that the page shows and the server never hears of would keep the lane busy to the end."""
        session = FakeSession(dense=2, sparse=2)
        url = serve(session)
        tab = open_tab(url)
        tab.page.evaluate("""() => {
            const race = document.querySelector('.ss');
            const stop = () => race.dataset.state === 'waiting' && document.querySelector('#stop').click();
            new MutationObserver(stop).observe(race, {attributeFilter: ['data-state']});
        }""")
        tab.run(EXPRESSION)
        tab.wait("stopped")
        session.rates = {"dense": 300, "sparse": 300}
        other = open_tab(url)
        other.run(SHORT)
        other.wait("done", timeout=20_000)  # the first run by itself takes longer
        assert session.running == 0 and tab.state == "stopped"
        assert [event for event, _ in session.events][-2:] == ["started", "finished"]

    def test_run_stop_run_in_quick_succession(self, serve, open_tab):
        """Requests that name a run which the server does not know yet end in console errors."""
        session = FakeSession(dense=200, sparse=300)
        tab = open_tab(serve(session))
        for _ in range(3):
            tab.page.fill("#expression textarea", EXPRESSION)
            tab.page.click("#run")
            tab.page.click("#stop")
        tab.run(SHORT)
        tab.wait("done", timeout=10_000)
        assert tab.lines("dense") == tab.lines("sparse") == right_lines(SHORT)

    def test_run_while_running_starts_over(self, serve, open_tab):
        """A second Run that is ignored, or queues behind its own first, shows here."""
        session = FakeSession(dense=20, sparse=20)
        tab = open_tab(serve(session))
        tab.run(EXPRESSION)
        tab.wait("running")
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 5")
        session.rates = {"dense": 300, "sparse": 300}
        tab.run(SHORT)
        tab.wait("done", timeout=10_000)
        assert tab.lines("dense") == tab.lines("sparse") == right_lines(SHORT)
        assert session.most_running == 1

    def test_a_failing_run_says_so_and_the_next_works(self, stage, open_tab):
        """A run that dies silently, or takes the lane with it, shows here."""
        session = FakeSession(fail=True)
        tab = open_tab(stage(session))
        tab.run(SHORT)
        tab.wait("failed")
        assert "the fake device fell over <b>" in tab.text(".ss-status")
        assert tab.page.get_attribute("#stop", "aria-disabled") == "true"
        session.options["fail"] = False
        tab.run(SHORT)
        tab.wait("done")

    def test_missing_weights_are_a_message_that_says_what_to_do(self, serve, open_tab, monkeypatch, caplog):
        """A stack trace, a path of the server's disk, or a page that goes on waiting shows here."""
        from selfspan_core.engine import model_store

        nowhere = functools.partial(model_store.ModelStore, adapters=ROOT / "assets" / "nowhere")
        monkeypatch.setattr(model_store, "ModelStore", nowhere)
        tab = open_tab(serve())
        tab.run(SHORT)
        tab.wait("failed")
        message = tab.text(".ss-status")
        assert message.startswith("The model is not ready: ") and "python -m training.finetune" in message
        assert str(ROOT) not in message and "Traceback" not in caplog.text

    def test_wrong_answers_and_malformed_steps_are_shown(self, stage, open_tab):
        """A wrong answer that looks like a right one would be the worst bug of all."""
        tab = open_tab(stage(FakeSession(wrong=("sparse",), malformed_step=1)))
        tab.run(EXPRESSION)
        tab.wait("done")
        pane = tab.pane("sparse")
        assert tab.text(f"{pane} .ss-badge") == "✗ wrong"
        note = tab.text(f"{pane} .ss-note")
        assert "exact value: 2799" in note and "1 malformed step" in note
        assert tab.page.locator(f"{pane} .ss-step.malformed").count() == 1
        assert tab.text(f"{tab.pane('dense')} .ss-badge") == "✓ right"
        assert tab.text(".ss-status").endswith("Different answers: dense is right, self-selected is wrong.")

    def test_the_verdict_tells_wrong_from_missing(self, stage, open_tab):
        """A lane that was cut off is not one that calculated wrongly."""
        cases = [
            ((), (), "Same answer, and it is right: 2907."),
            (("dense", "sparse"), (), "Same answer, and it is wrong: 13 instead of 2907."),
            ((), ("dense", "sparse"), "Neither got to an answer."),
            ((), ("dense",), "The dense lane got to no answer; the other's is right."),
            (("dense",), ("sparse",), "The self-selected lane got to no answer; the other's is wrong."),
        ]
        tab = open_tab(stage(FakeSession()))
        for wrong, missing, expected in cases:
            session = FakeSession(dense=2000, sparse=2000, wrong=wrong, missing=missing)
            stage(session)
            with session.held(tokens=3):  # else the run may be over before anybody sees it begin
                tab.run(SHORT)
                tab.wait("running")
            tab.wait("done")
            assert tab.text(".ss-status").endswith(f"cached tokens. {expected}")

    def test_a_figure_has_the_colour_of_its_verdict(self, stage, open_tab):
        """A slow-down in the teal of a success, or a difference that is none, deceives who only looks."""
        tab, seen = open_tab(stage(FakeSession())), {}
        for name, rates in {"better": (500, 700), "equal": (700, 705), "worse": (700, 500)}.items():
            session = FakeSession(*rates, wrong=("sparse",))
            stage(session)
            with session.held(tokens=3):  # else the run may be over before anybody sees it begin
                tab.run(SHORT)
                tab.wait("running")
            tab.wait("done")
            look = "node => [node.dataset.judged, getComputedStyle(node).color]"
            seen[name] = tab.page.locator('[data-tile="answer"]').first.evaluate(look)
        assert [judged for judged, _ in seen.values()] == ["1", "0", "-1"]
        teal, grey, amber = (tuple(map(int, re.findall(r"\d+", colour)[:3])) for _, colour in seen.values())
        assert teal[1] > 2 * teal[0] and max(grey) - min(grey) < 40 and amber[0] > 2 * amber[2]
        # The lanes' last steps differ, and so do their answers.
        for lane in ("dense", "sparse"):
            marked = tab.page.locator(f"{tab.pane(lane)} .ss-step.differs")
            assert marked.count() == 1 and marked.get_attribute("data-line") == "2"
        tab.page.click(".ss-details summary")
        # The page hears of its opening a moment later.
        tab.page.locator(".ss-details td", has_text="21.5 ms").first.wait_for()
        rows = tab.page.locator(".ss-details tr").all_inner_texts()
        assert any(row.startswith("first token\t21.5 ms\t21.5 ms") for row in rows)
        assert any(row.startswith("keys and values kept\t") and row.endswith(" MB") for row in rows)

    def test_a_share_above_one_is_shown_as_one(self, stage, open_tab):
        """Annotations can make the self-selected lane read more than the plain one; a cap at 100 % would hide it."""
        tab = open_tab(stage(FakeSession(dense=900, sparse=900, read_share=1.17)))
        tab.compare_plain()
        tab.run(SHORT)
        tab.wait("done")
        assert tab.text('[data-tile="share"]') == "117\u202f%"
        assert tab.text("[data-of-what]") == "of the plain lane’s reads"
