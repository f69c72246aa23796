"""The read maps: painted as they are written, tied to steps and source, at every size of screen."""

import itertools
import json
import time

import pytest

from selfspan_core.compare.verdict import direction
from selfspan_core.params import Request
from selfspan_core.serve import page_files
from selfspan_core.serve.feed import dumps
from selfspan_core.serve.large_models import large_models
from selfspan_core.serve.record import MAX_BYTES, recording
from tests.support.app_tools import EXPRESSION, SHORT, right_lines
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT

PAINTED = """lane => {
    const canvas = document.querySelector(`.ss-map[data-lane="${lane}"] .ss-map-rows`);
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const colours = new Map();
    let bottom = 0;
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] < 200) continue;
        const colour = [data[i], data[i + 1], data[i + 2]].join();
        colours.set(colour, (colours.get(colour) ?? 0) + 1);
        bottom = Math.floor(i / 4 / width);
    }
    const share = [...colours].map(([colour, count]) => [colour, count / (width * height)]);
    return { share: Object.fromEntries(share.filter(([, part]) => part > 0.01)), bottom: bottom / height };
}"""
LIT = """lane => {
    const canvas = document.querySelector(`.ss-map[data-lane="${lane}"] .ss-map-over`);
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, i) => i % 4 === 3 && value > 0).length;
}"""

CHARTED = """() => {
    const points = (line) => [...line.points].map(({ x, y }) => [x, y]);
    const lines = [...document.querySelectorAll(".ss-plot polyline")];
    const named = lines.map((line) => [`${line.closest(".ss-plot").dataset.plot} ${line.dataset.line}`, points(line)]);
    return { lines: Object.fromEntries(named), height: document.querySelector(".ss-chart").clientHeight };
}"""

UNREAD = {"light": "238,241,245", "dark": "34,43,58"}
"""Colour of what was not read."""
CROWDED = """() => {
    const extent = (node) => {
        const range = document.createRange();
        range.selectNodeContents(node);
        return range.getBoundingClientRect();
    };
    const shown = (selector) => [...document.querySelectorAll(selector)].filter((node) => node.checkVisibility());
    const rows = ".ss-figures, .ss-tiles, .ss-head, .ss-map-head, .ss-kv, .ss-plot p, .ss-plot-axis, .ss-words";
    const overlapping = shown(rows).filter((row) => {
        const boxes = [...row.children].filter((node) => node.checkVisibility() && node.textContent.trim()).map(extent);
        return boxes.some((one, i) => boxes.slice(i + 1).some((other) =>
            one.left < other.right - 1 && other.left < one.right - 1
            && one.top < other.bottom - 1 && other.top < one.bottom - 1));
    });
    const fixed = ".ss-figures dd, .ss-kv-text, .ss-tiles dd, .ss-map-share, .ss-drafts, .ss-plot span";
    const cut = shown(fixed).filter((node) => extent(node).width > node.getBoundingClientRect().width + 1);
    return [...overlapping, ...cut].map((node) => `${node.className || node.tagName} ${node.textContent.trim()}`);
}"""
"""Rows whose parts lie over each other, and texts that are wider than their boxes."""
NOTE_SHIFTS = """() => {
    window.shift = 0;
    const add = (list) => list.getEntries().forEach((entry) => (window.shift += entry.value));
    new PerformanceObserver(add).observe({ type: "layout-shift", buffered: false });
}"""


def field(lane: str) -> str:
    return f'.ss-map[data-lane="{lane}"] .ss-map-field'


def unread(tab, lane: str) -> float:
    """The share of the triangle that has the colour of what was not read."""
    shares = tab.page.evaluate(PAINTED, lane)["share"]
    return shares.get(UNREAD["light"], 0.0) / sum(shares.values())


@pytest.mark.browser
class TestMap:
    def test_a_map_grows_and_shows_what_was_read(self, stage, open_tab):
        """A map drawn at the end only, one that paints what was not read, or a dense lane with gaps shows here."""
        session = FakeSession(dense=150, sparse=150)
        tab = open_tab(stage(session))
        with session.held(60):  # a busy browser could look when all is over
            tab.run(EXPRESSION)
            tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens === '60'")
            time.sleep(0.3)
            early, charted = tab.page.evaluate(PAINTED, "sparse")["bottom"], tab.page.evaluate(CHARTED)
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 120")
        time.sleep(0.3)
        # Rows become thinner when there are too many for the height: the same bottom would be the same picture.
        assert early > 0 and tab.page.evaluate(PAINTED, "sparse")["bottom"] not in (0, early)
        tab.wait("done")
        time.sleep(0.3)
        self.check_chart(charted, tab.page.evaluate(CHARTED))
        told = tab.page.get_attribute(".ss-plots", "aria-label")
        last = session.ticks[-2]["lanes"]["dense"]
        assert f"Dense: {last['attended_tokens']:,} cached tokens read and 17 steps done in" in told
        assert tab.text('[data-plot="done"] .ss-plot-most') == "17"
        assert tab.page.evaluate(PAINTED, "dense")["bottom"] > 0.98
        assert unread(tab, "dense") == 0 and 0.3 < unread(tab, "sparse") < 0.9
        words = tab.text('.ss-map[data-lane="sparse"] .ss-map-text')
        assert "17 steps" in words and "31\u202f% of the" in words
        assert tab.text('.ss-map[data-lane="sparse"] .ss-map-share') == "reads 31\u202f%"

    def test_the_last_step_counts(self, playing, open_tab):
        """Would catch a finished run of "0 steps done": its last step ends at the time of its last token."""
        tab = open_tab(playing, reduced_motion="reduce")
        tab.run("1+2")
        tab.wait("done")
        self.check_last_step(tab, "1 step done")
        tab.turn("Articles")
        tab.page.click("#run-article")
        tab.wait("done")
        self.check_last_step(tab, "3 sentences done")

    @staticmethod
    def check_last_step(tab, done: str) -> None:
        """Both lanes, in words and as the ends of their curves."""
        assert tab.page.get_attribute(".ss-plots", "aria-label").count(done) == 2
        assert tab.text('[data-plot="done"] .ss-plot-most') == done.split()[0]
        lines = tab.page.evaluate(CHARTED)["lines"]
        assert [lines[f"done {lane}"][-1] for lane in ("dense", "sparse")] == [[100, 0]] * 2

    @staticmethod
    def check_chart(early: dict, late: dict) -> None:
        """Lines that run backwards, of one lane only, or of another lane's reads; a chart that grows in height."""
        assert early["height"] == late["height"] > 80 and set(early["lines"]) == set(late["lines"])
        for name, line in late["lines"].items():
            assert len(line) > len(early["lines"][name]) > 2, name
            assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(line)), name
            assert line[-1][0] > 99
        ends = {name: 100 - line[-1][1] for name, line in late["lines"].items()}
        assert ends["read dense"] == ends["done dense"] == ends["done sparse"] == 100
        assert abs(ends["read sparse"] - 31) < 1

    def test_rows_steps_and_source_light_each_other(self, stage, open_tab):
        """A row that lights another step, a number without its readers, and a pin that nothing undoes show here."""
        tab = open_tab(stage(FakeSession(dense=900, sparse=900)))
        tab.run(EXPRESSION)
        tab.wait("done")
        pane, map_field = tab.pane("sparse"), field("sparse")
        peeking = f"document.querySelector('{pane} .peeking')?.dataset.step"
        tab.page.hover(f"{pane} .ss-step:nth-child(14)")
        assert tab.page.evaluate(LIT, "sparse") > 20
        tab.page.locator(map_field).scroll_into_view_if_needed()
        box = tab.page.locator(map_field).bounding_box()
        seen = []
        for part in (0.1, 0.5, 0.95):
            tab.page.mouse.move(box["x"] + 40, box["y"] + part * box["height"])
            seen.append(int(tab.page.evaluate(peeking)))
        assert seen == sorted(set(seen)) and seen[0] < 4 and seen[2] > 14
        tab.page.mouse.click(box["x"] + 40, box["y"] + 0.5 * box["height"])
        tab.page.mouse.move(5, 5)
        assert int(tab.page.evaluate(peeking)) == seen[1] and tab.page.evaluate(LIT, "sparse") > 20
        tab.page.focus(map_field)
        tab.page.keyboard.press("ArrowDown")
        assert int(tab.page.evaluate(peeking)) == seen[1] + 1
        assert "read" in tab.page.get_attribute(map_field, "aria-valuetext")
        assert tab.page.get_attribute(map_field, "aria-valuenow") == str(seen[1] + 2)
        tab.page.keyboard.press("Escape")
        assert tab.page.evaluate(peeking) is None and tab.page.evaluate(LIT, "sparse") == 0
        tab.page.hover('.ss-literal[data-name="a2"]')
        readers = tab.page.locator(f"{pane} .reads-it").count()
        assert readers == 1 and tab.page.evaluate(LIT, "sparse") > 20


@pytest.fixture(scope="module")
def played() -> FakeSession:
    """Lanes that write 900 tokens a second."""
    return FakeSession(dense=900, sparse=900)


@pytest.fixture(scope="module")
def playing(serve, played) -> str:
    """The whole page with its recorded run, around a session that is soon over."""
    return serve(played, ("arithmetic", "summarize"), recorded=page_files.recorded())


@pytest.mark.browser
class TestArrival:
    @pytest.mark.parametrize("size", [(1440, 900), (1280, 720), (820, 1180), (390, 844)], ids=str)
    def test_the_page_at_every_size(self, playing, played, open_tab, size):
        """Maps below the fold or still, figures over each other or cut off, a jump at the end, lists that trap a wheel.

        One tab for all of it, in both colour schemes.
        """
        tab = open_tab(playing, size=size)
        loaded = time.monotonic()
        tab.page.wait_for_function(
            "least => Number(document.querySelector('.ss-pane[data-lane=\"sparse\"]').dataset.tokens) > least",
            arg=tab.tokens("sparse"),
        )
        assert time.monotonic() - loaded < 2 and tab.page.evaluate(PAINTED, "sparse")["bottom"] > 0.1
        self.check_first_screen(tab, size)
        pixels = "at => { const c = document.querySelector(at + ' canvas'); return [c.width, c.clientWidth]; }"
        drawn, shown = tab.page.evaluate(pixels, field("dense"))
        assert abs(drawn - shown) <= 1
        assert tab.page.evaluate(CROWDED) == []
        assert UNREAD["light"] in tab.page.evaluate(PAINTED, "sparse")["share"]
        tab.page.emulate_media(color_scheme="dark")
        tab.page.wait_for_function("document.body.classList.contains('dark')")
        self.check_first_screen(tab, size)
        assert tab.page.evaluate(CROWDED) == []
        assert UNREAD["dark"] in tab.page.evaluate(PAINTED, "sparse")["share"]
        with played.held(tokens=150):  # the run is under way until the page is watched
            tab.page.click("#run")
            tab.page.wait_for_function(
                "[...document.querySelectorAll('.ss-pane')].every((pane) => pane.dataset.tokens === '150')"
            )
            assert tab.page.evaluate(CROWDED) == []
            self.check_wheel(tab)
            tab.page.evaluate(NOTE_SHIFTS)
        tab.wait("done")
        tab.page.wait_for_timeout(200)
        assert tab.page.evaluate("window.shift") <= 0.05 and tab.page.evaluate(CROWDED) == []
        bars = [tab.page.locator(f"{tab.pane(lane)} .ss-kv-track").bounding_box() for lane in ("dense", "sparse")]
        assert all(bar["width"] > 40 for bar in bars)

    @staticmethod
    def check_first_screen(tab, size: tuple[int, int]) -> None:
        """Both maps lie on the first screen, and nothing beside it."""
        for lane in ("dense", "sparse"):
            box = tab.page.locator(field(lane)).bounding_box()
            assert box["height"] > 100 and box["width"] > 300
            assert box["y"] > 0 and box["y"] + box["height"] <= size[1]
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= size[0]

    @staticmethod
    def check_wheel(tab) -> None:
        """A wheel above a list that is at its end, a map or the chart moves the page."""
        for selector in (f"{tab.pane('sparse')} .ss-scroll", field("sparse"), ".ss-plots"):
            area = tab.page.locator(selector)
            area.evaluate("node => node.scrollIntoView({ block: 'center', behavior: 'instant' })")
            # To where the page has room, with the list at that end.
            down = tab.page.evaluate("scrollY + innerHeight < document.documentElement.scrollHeight - 40")
            area.evaluate("(node, down) => (node.scrollTop = down ? node.scrollHeight : 0)", down)
            before, box = tab.page.evaluate("scrollY"), area.bounding_box()
            tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            tab.page.mouse.wheel(0, 300 if down else -300)
            tab.page.wait_for_function("before => scrollY !== before", arg=before, timeout=3000)

    def test_a_phone_says_what_each_lane_reads_in_full(self, playing, open_tab):
        """Would catch "reads what it …", which leaves out the one word that tells the lanes apart."""
        tab = open_tab(playing, size=(390, 844), reduced_motion="reduce")
        tab.wait("played")
        script = """() => [...document.querySelectorAll(".ss-map-way, .ss-way")].map((node) => {
            const range = document.createRange();
            range.selectNodeContents(node);
            const [text, box] = [range.getBoundingClientRect(), node.getBoundingClientRect()];
            return [node.textContent, text.width <= box.width + 1 && box.right <= innerWidth];
        })"""
        ways = [["reads everything", True], ["reads what it named", True]]
        for width in (390, 360, 320):
            tab.page.set_viewport_size({"width": width, "height": 844})
            assert tab.page.evaluate(script) == ways * 2, width

    def test_the_form_is_a_bar_in_reach_during_a_run(self, playing, played, open_tab):
        """A Stop that scrolled away, options that take the screen during a run, and a form that never opens again."""
        tab = open_tab(playing, size=(1280, 720))
        assert not tab.page.is_visible("#drafts")
        tab.open_options()
        assert tab.page.is_visible("#drafts")
        with played.held(tokens=60):  # at the end of a run, Stop leaves the bar
            tab.page.click("#run")
            tab.wait("running")
            tab.page.mouse.wheel(0, 900)
            stop = tab.page.locator("#stop").bounding_box()
            assert 0 <= stop["y"] <= 720 - stop["height"] and not tab.page.is_visible("#drafts")
        tab.wait("done")
        tab.page.click("#expression textarea")
        assert tab.page.is_visible("#drafts") and tab.page.is_visible("#surprise")

    def test_a_recorded_run_says_so_and_gives_way(self, playing, open_tab):
        """A recording that passes for a live run, plays on into one, or cannot be seen again shows here."""
        tab = open_tab(playing)
        recorded = json.loads(page_files.recorded())
        assert tab.state == "playing" and "A recorded run" in tab.text(".ss-status")
        assert tab.text(".ss-title") == f"Recorded {recorded['date']} on {recorded['machine']}"
        tab.wait("played")
        assert tab.text(".ss-status") == recorded["end"]["headline"]["text"]
        tab.page.click(".ss-replay")
        tab.wait("playing")
        tab.run(SHORT)
        tab.wait("done")
        assert tab.lines("sparse") == right_lines(SHORT) and "Recorded" not in tab.text(".ss-title")
        time.sleep(0.3)
        assert tab.lines("dense") == right_lines(SHORT) and not tab.page.is_visible(".ss-replay")

    def test_reduced_motion_rests(self, playing, open_tab):
        """Motion that a visitor has asked not to see."""
        tab = open_tab(playing, reduced_motion="reduce")
        tab.wait("played", timeout=1000)
        assert tab.page.evaluate(PAINTED, "sparse")["bottom"] > 0.98
        assert len(tab.lines("sparse")) == len(tab.lines("dense")) > 20 and tab.page.is_visible(".ss-replay")
        assert all(len(line) > 20 and line[-1][0] > 90 for line in tab.page.evaluate(CHARTED)["lines"].values())

    def test_a_large_model_s_figures_are_those_of_the_file(self, playing, open_tab):
        """Figures of another cell than the chosen one, one that was never measured, a choice that no keyboard makes."""
        tab = open_tab(playing, reduced_motion="reduce")
        measured, where = {}, set()
        for file in sorted((ROOT / "assets" / "results").glob("drafts_*.json"), reverse=True):
            results = json.loads(file.read_text(encoding="utf-8"))
            where.add(f"{results['machine']['gpu']}, {results['date']}: random weights")
            measured |= {
                (shape, cell["text"], cell["batch"]): cell["lanes"]
                for shape, parts in results["shapes"].items()
                for cell in parts.get("answers", ())
                if "lanes" in cell
            }
        assert not tab.page.is_visible(".ss-large table")
        tab.page.press(".ss-large summary", "Enter")
        for key, lanes in measured.items():
            for name, value in zip(("shape", "text", "batch"), key, strict=True):
                tab.page.select_option(f'[data-choice="{name}"]', str(value))
            for lane, figures in lanes.items():
                shown = tab.page.locator(f'.ss-large [data-lane="{lane}"] td').all_text_contents()
                step, speed, tokens, answer = (float(text.removesuffix(" s").replace(",", "")) for text in shown)
                assert step == pytest.approx(figures["ms_per_step"], rel=0.01)
                assert speed == pytest.approx(figures["tokens_per_second_per_row"], rel=0.01, abs=0.51)
                assert tokens == pytest.approx(figures["tokens"], abs=0.51)
                assert answer == pytest.approx(figures["seconds_to_answer"], rel=0.01)
                ratio = lanes["plain dense"]["seconds_to_answer"] / figures["seconds_to_answer"]
                judged = tab.page.get_attribute(f'.ss-large [data-lane="{lane}"]', "data-judged")
                assert int(judged) == direction(ratio), "a loss in the colour of a gain"
        assert any(one in tab.text(".ss-large-note") for one in where)
        tab.page.select_option('[data-choice="shape"]', "7B")
        tab.page.select_option('[data-choice="text"]', "6000-token articles")
        tab.page.select_option('[data-choice="batch"]', "128")
        tab.page.focus('[data-choice="shape"]')
        tab.page.keyboard.type("13")
        enabled = '[data-choice="{}"] option:enabled'
        chosen = {name: tab.page.input_value(f'[data-choice="{name}"]') for name in ("shape", "text", "batch")}
        assert chosen == {"shape": "13B", "text": "6000-token articles", "batch": "64"}, "128 do not fit"
        texts = {text for shape, text, _ in measured if shape == "13B"}
        assert set(tab.page.locator(enabled.format("text")).all_text_contents()) == texts
        batches = sorted(batch for shape, text, batch in measured if (shape, text) == ("13B", chosen["text"]))
        assert tab.page.locator(enabled.format("batch")).all_text_contents() == [str(batch) for batch in batches]
        assert "65B" not in tab.text('[data-choice="shape"]')


def test_without_results_no_large_model_is_shown(tmp_path):
    """Would catch a server that does not start where only the package is installed."""
    assert large_models(tmp_path) == [] and large_models()


def test_a_recording_holds_the_whole_run():
    """Would catch a frame that is left out, text that a browser might read as a tag, and a file that is too large."""
    session = FakeSession(dense=3000, sparse=3000, extra_text="<b>")
    request = Request("arithmetic", SHORT)
    facts = {"machine": {"cpu": "fast", "cores": 2}, "date": "2026-01-02", "commit": "c", "dirty": False}
    written = dumps(recording(session.compare(request), facts))
    made = json.loads(written)
    assert "<" not in written and made["machine"] == "fast, 2 cores"
    text = "".join(item[0] for _, lanes in made["frames"] for item in lanes["sparse"]["items"] if item[1] in (0, 6))
    lane = session.ticks[-1]["lanes"]["sparse"]
    assert text.strip() == lane["output"] and made["end"]["lanes"]["sparse"]["answer"] == "2907"
    times = [at for at, _ in made["frames"]]
    assert times == sorted(times)
    shipped = page_files.recorded()
    assert len(shipped.encode()) <= MAX_BYTES and json.loads(shipped)["end"]["lanes"]["sparse"]["correct"]
