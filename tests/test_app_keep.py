"""What a visitor takes along: addresses that fill the form, copied text, files, and the list of this browser's runs."""

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from urllib.parse import quote

import pytest
from PIL import Image

from selfspan_core.compare.read_rows import ROW_KINDS
from selfspan_core.models.registry import choices
from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import EXPRESSION, SHORT
from tests.support.fake_session import FakeSession

ARTICLE = get_task("summarize").examples[0]
TASKS = ("arithmetic", "summarize")
MARKUP = "<img src=x onerror='window.pwned=1'>"
FORMULA = '=HYPERLINK("http://example.org","all of it"), said the mayor of Ellmoor & her <b>deputy</b> on Monday. '
KEY = "selfspan.runs"


@pytest.fixture(scope="module")
def both(serve) -> tuple[str, FakeSession]:
    """A page with both tasks around a session that is quick."""
    session = FakeSession(dense=2000, sparse=2600)
    return serve(session, TASKS), session


def done(tab, text=SHORT):
    counted = "document.querySelector('.ss-history summary').textContent"
    before = tab.page.evaluate(counted)
    tab.run(text)
    tab.page.wait_for_function(f"before => {counted} !== before", arg=before)


def summarized(tab, text):
    tab.turn("Articles")
    tab.page.fill("#article textarea", text)
    tab.page.click("#run-article")
    tab.wait("done")


def said(tab) -> str:
    tab.page.wait_for_selector(".ss-said:not(:empty)")
    return tab.text(".ss-said")


def inputs(tab) -> list[str]:
    return tab.page.locator(".ss-again").all_text_contents()


@pytest.mark.browser
class TestAddress:
    def test_an_address_fills_the_form_and_runs_nothing(self, both, open_tab):
        """Values that look filled in and are not what is run, or an address that runs what a stranger wrote."""
        url, session = both
        events = len(session.events)
        tab = open_tab(f"{url}?task=summarize&compare=plain&text={quote(ARTICLE)}&unknown=1&__theme=light")
        plain = "the comparison “Plain adapter against span adapter: time to answer”"
        assert said(tab) == f"The link’s text is in the box. Under Options this was set: {plain}. Press Summarize."
        assert tab.page.input_value("#article textarea") == ARTICLE
        assert tab.page.is_checked('#compare-article input[value="plain"]')
        tab.page.wait_for_timeout(400)
        assert len(session.events) == events and tab.state == "idle"
        tab.page.click("#run-article")
        tab.wait("done")
        assert tab.text(f"{tab.pane('dense')} .ss-adapter") == "plain adapter"
        assert tab.page.locator(".ss-source .ss-seg").count() == len(get_task("summarize").parse(ARTICLE).segments)

    def test_a_link_says_what_it_chose(self, both, open_tab):
        """Would catch a comparison or a model that a stranger's link chose, unseen, behind closed Options."""
        tab = open_tab(f"{both[0]}?compare=plain")
        told = said(tab)
        assert told.startswith("Under Options this was set: the comparison “Plain adapter against")
        assert told.endswith("”. Press Run.") and not tab.page.is_visible("#compare")
        models = choices("summarize")
        if len(models) > 1:  # with adapters of several
            tab = open_tab(f"{both[0]}?task=summarize&compare=span&model={models[1]}")
            assert said(tab) == f"Under Options this was set: the model “{models[1]}”. Press Summarize."

    def test_unknown_values_are_ignored_and_named(self, both, open_tab):
        """Values of a stranger that reach the page as markup, fail silently, or take the valid ones with them."""
        text = f"1+2 {MARKUP}" + "{{7*7}}${7*7}"
        hostile = f"?task={quote(MARKUP)}&model={quote('../' * 40)}&compare=both&text={quote(text)}"
        tab = open_tab(both[0] + hostile)
        notice = said(tab)
        assert "task “<img src=x onerror='window.pw…” here" in notice and "comparison “both”" in notice
        assert "no model “../" in notice and len(notice) < 300
        assert tab.page.input_value("#expression textarea") == text
        assert tab.page.evaluate("window.pwned") is None and tab.page.is_checked('#compare input[value="span"]')

    def test_a_text_without_end_is_ignored(self, both, open_tab):
        """A box filled with what nobody can have meant to send."""
        tab = open_tab(f"{both[0]}?text={'1%2B' * 2000}1")
        assert "the text has 4,001 characters, more than 4,000" in said(tab)
        assert tab.page.input_value("#expression textarea") == get_task("arithmetic").examples[3]

    def test_a_link_leads_back_to_its_input(self, both, open_tab):
        """Links that lose a plus, a line break or the comparison, and long ones that are cut off on their way."""
        tab = open_tab(both[0])
        tab.clipboard()
        tab.compare_plain()
        done(tab, "79 × 36 + 63")
        tab.page.fill("#expression textarea", "1+1")  # the link is of the run in sight
        tab.page.click(".ss-keep summary")
        tab.page.click(".ss-link")
        link = tab.copied
        assert link.startswith(both[0] + "?") and "79 × 36 + 63" in said(tab)
        other = open_tab(link)
        said(other)
        assert other.page.input_value("#expression textarea") == "79 × 36 + 63"
        assert other.page.is_checked('#compare input[value="plain"]')
        tab.page.evaluate("window.copied = null")
        tab.page.bring_to_front()  # a page behind another is drawn once a second: gradio's first values come late
        tab.turn("Articles")
        tab.page.fill("#article textarea", "word " * 900)
        tab.page.click(".ss-link")
        assert said(tab).startswith("The text is too long for a link: 4,500 characters, at most 4,000 fit.")
        assert tab.page.evaluate("window.copied") is None


@pytest.mark.browser
class TestCopy:
    def test_answer_and_steps_are_plain_lines(self, both, open_tab):
        """A copy with names, marks and glued lines; one without the steps; two buttons for the same."""
        tab = open_tab(both[0])
        tab.clipboard()
        done(tab)
        steps = [step.work + step.result for step in get_task("arithmetic").parse(SHORT).reductions]
        for lane in ("dense", "sparse"):
            copy = tab.page.locator(f"{tab.pane(lane)} .ss-copy")
            assert copy.text_content() == "Copy answer and steps"
            tab.page.evaluate("window.copied = null")
            copy.click()
            assert tab.copied == "\n".join([f"{SHORT} = 2907", "", *steps])
        tab.page.evaluate("window.copied = null")
        summarized(tab, ARTICLE)
        tab.page.click(f"{tab.pane('sparse')} .ss-copy")
        assert tab.copied == "\n".join(get_task("summarize").parse(ARTICLE).segments[:3])


@pytest.mark.browser
class TestFiles:
    def test_the_trace_is_the_whole_run(self, serve, open_tab):
        """A trace without what was written, read or asked, or with what a browser's dropped payloads left over."""
        session = FakeSession(dense=900, sparse=1200, malformed_step=2)
        tab = open_tab(serve(session, TASKS))
        tab.page.click(".ss-keep summary")
        assert tab.page.is_disabled('[data-file="trace"]')
        done(tab, EXPRESSION)
        trace = json.loads(tab.saved("trace"))
        assert (trace["input"], trace["state"], trace["task"]) == (EXPRESSION, "done", "arithmetic")
        assert {"adapter": "span", "drafts": "auto", "temperature": 0, "seed": 0}.items() <= trace["options"].items()
        assert trace["comparison"]["read_share"] == 0.31 and trace["device"] == "fake, float32"
        ticks = [tick for tick in session.ticks if tick["kind"] == "tick"]
        for name, lane in trace["lanes"].items():
            last, result = ticks[-1]["lanes"][name], session.ticks[-1]["lanes"][name]
            written = "".join(piece["text"] for piece in lane["pieces"] if piece["kind"] in ("text", "newline"))
            assert written.strip() == result["output"] and lane["answer"] == result["answer"]
            assert len(lane["steps"]) == len(result["steps"]) and lane["steps"][2]["malformed"]
            assert [step["reads"] for step in lane["steps"]] == [step["reads"] for step in result["steps"]]
            figures = ("tokens", "elapsed_s", "ms_per_token", "first_token_ms", "attended_tokens")
            assert [lane[figure] for figure in figures] == [last[figure] for figure in figures]
            rows = {}
            for tick in ticks:
                news = tick["lanes"][name]
                rows |= {news["rows_from"] + index: row for index, row in enumerate(news["rows"])}
            read = [(row["step"], row["start"], row["kind"], row["reads"], row["own"]) for row in lane["read"]]
            assert read == [
                tuple(row[key] for key in ("step", "start", "kind", "reads", "own")) for row in rows.values()
            ]
            assert {row["kind"] for row in lane["read"]} <= set(ROW_KINDS)
            assert sum(row["count"] for row in lane["read"]) == lane["tokens"]

    def test_the_table_has_a_line_a_step_and_no_formulas(self, both, open_tab):
        """Quotes and commas that tear a table apart, and a sentence that a spreadsheet would execute."""
        tab = open_tab(both[0])
        summarized(tab, FORMULA + ARTICLE)
        data = tab.saved("steps").decode("utf-8-sig")
        lines = list(csv.DictReader(io.StringIO(data, newline="")))
        segments = get_task("summarize").parse(FORMULA + ARTICLE).segments
        assert segments[0].startswith("=HYPERLINK(") and len(lines) == 6
        for lane, own in (("dense", lines[:3]), ("self-selected", lines[3:])):
            assert [line["lane"] for line in own] == [lane] * 3 and [line["reads"] for line in own] == [
                "a0",
                "a1",
                "a2",
            ]
            texts = [(line["working"] + line["result"]) for line in own]
            assert texts == ["'" + segments[0], *segments[1:3]]
        assert lines[0]["intervals"].startswith("[0,") and lines[3]["intervals"].startswith("[0,7) ")
        assert 0 < int(lines[3]["cached_tokens_read"]) < int(lines[0]["cached_tokens_read"])
        done(tab := self.back(tab), "0-5*3")
        signed = list(csv.DictReader(io.StringIO(tab.saved("steps").decode("utf-8-sig"), newline="")))
        assert [line["result"] for line in signed][:2] == ["15", "-15"]  # numbers stay numbers

    @staticmethod
    def back(tab):
        tab.turn("Arithmetic")
        return tab

    def test_the_map_as_picture(self, both, open_tab):
        """An empty picture, one of a map that reads everything, and text that breaks out of a drawing."""
        tab = open_tab(both[0])
        summarized(tab, FORMULA + ARTICLE)
        drawing = ElementTree.fromstring(tab.saved("drawing").decode())
        space = "{http://www.w3.org/2000/svg}"
        texts = [node.text for node in drawing.iter(f"{space}text")]
        assert FORMULA[:60] in texts[0] and {"Dense", "Self-selected"} <= set(texts)
        assert {node.tag for node in drawing.iter()} == {f"{space}{tag}" for tag in ("svg", "rect", "text", "polygon")}
        assert all(node.get("fill", "#").startswith("#") for node in drawing.iter() if node is not drawing)
        for scheme, unread in {"light": (238, 241, 245), "dark": (34, 43, 58)}.items():
            tab.page.emulate_media(color_scheme=scheme)
            tab.page.wait_for_function("is => document.body.classList.contains('dark') === is", arg=scheme == "dark")
            picture = Image.open(io.BytesIO(tab.saved("bitmap"))).convert("RGB")
            assert picture.size == (2400, 920)
            halves = [picture.crop((left, 190, left + 1100, 860)) for left in (50, 1250)]
            counts = [dict((colour, count) for count, colour in half.getcolors(1 << 20)) for half in halves]
            assert counts[0].get(unread, 0) == 0 and counts[1][unread] > 20_000


@pytest.mark.browser
class TestHistory:
    def test_runs_are_kept_and_filled_in_again(self, both, open_tab):
        """A list that ends with the page, rows without their result, and a row that fills in what it shortened."""
        tab = open_tab(both[0])
        long = "1+2+3+4+5+6+7+8+9+" * 3 + "1"
        done(tab, long)
        tab.compare_plain()
        done(tab, "79*36 + 63")
        tab.reload()
        tab.page.click(".ss-history summary")
        assert tab.text(".ss-history summary") == "Your runs (2)" and inputs(tab) == ["79*36 + 63", long]
        cells = tab.page.locator(".ss-runs tbody tr").first.locator("td").all_text_contents()
        assert cells[0] and cells[1] == "31\u202f%" and cells[2].endswith("×") and cells[3] == "right"
        tab.page.locator(".ss-again").nth(1).click()
        assert "The input is in the box" in said(tab)
        assert tab.page.input_value("#expression textarea") == long
        assert tab.page.is_checked('#compare input[value="span"]') and tab.state == "idle"
        tab.page.locator(".ss-again").first.focus()
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_function("document.querySelector('#expression textarea').value === '79*36 + 63'")
        tab.page.wait_for_selector('#compare input[value="plain"]:checked', state="attached")
        summarized(tab, ARTICLE)
        tab.turn("Arithmetic")
        tab.page.locator(".ss-again").first.click()
        tab.page.wait_for_selector("#article textarea", state="visible")
        assert tab.page.locator(".ss-runs tbody tr").first.locator("td").last.text_content() == "same"
        tab.page.click(".ss-clear")
        assert tab.text(".ss-history summary") == "Your runs (0)" and tab.page.is_visible(".ss-none")
        assert tab.page.evaluate(f"localStorage.getItem('{KEY}')") is None

    def test_the_list_is_bounded_and_its_text_is_text(self, both, open_tab):
        """A storage that fills up for ever, and an input that becomes part of the page."""
        tab = open_tab(both[0])
        one = {"task": "arithmetic", "model": MARKUP, "compare": "span", "share": 0.5, "speed": None, "answer": "right"}
        kept = [one | {"text": MARKUP, "input": MARKUP}] + [
            one | {"text": f"1+{n}", "input": f"1+{n}"} for n in range(70)
        ]
        tab.page.evaluate(f"runs => localStorage.setItem('{KEY}', JSON.stringify(runs))", kept)
        tab.reload()
        assert len(inputs(tab)) == 50 and inputs(tab)[0] == MARKUP
        tab.reload()
        tab.run(SHORT)
        tab.wait("done")
        assert inputs(tab)[:2] == [SHORT, MARKUP] and len(inputs(tab)) == 50
        assert tab.page.evaluate(f"JSON.parse(localStorage.getItem('{KEY}')).length") == 50
        assert tab.page.evaluate("window.pwned") is None

    def test_broken_storage(self, both, open_tab):
        """A page that does not start, or never keeps anything again, for what lies in its storage."""
        tab = open_tab(both[0])
        for stored in ("{", "null", "7", '[null, 1, {"task": 7}, {"task": "arithmetic"}]', '{"0": {}}'):
            tab.page.evaluate(f"text => localStorage.setItem('{KEY}', text)", stored)
            tab.reload()
            done(tab)
            assert inputs(tab) == [SHORT], stored
            assert tab.page.locator(".ss-unkept").get_attribute("hidden") is not None
            assert json.loads(tab.page.evaluate(f"localStorage.getItem('{KEY}')"))[0]["text"] == SHORT

    @pytest.mark.parametrize("error", ["SecurityError", "QuotaExceededError"])
    def test_forbidden_and_full_storage(self, both, open_tab, error):
        """A run that fails at its end, or a list that claims to be kept, where the browser keeps nothing."""
        tab = open_tab(both[0])
        tab.page.add_init_script(f"""for (const name of ["getItem", "setItem", "removeItem"]) {{
            const real = Storage.prototype[name];
            Storage.prototype[name] = function (key, ...rest) {{
                const isFull = "{error}" === "QuotaExceededError";
                if (key === "{KEY}" && (!isFull || name === "setItem")) throw new DOMException("no", "{error}");
                return real.call(this, key, ...rest);
            }};
        }}""")
        tab.reload()
        done(tab)
        tab.page.click(".ss-history summary")
        assert inputs(tab) == [SHORT] and tab.page.is_visible(".ss-unkept")
        tab.page.click(".ss-clear")
        assert inputs(tab) == []


@pytest.mark.browser
def test_it_fits_a_telephone(both, open_tab):
    """A table wider than the screen, controls without a name, and some that a keyboard does not reach."""
    tab = open_tab(both[0], size=(390, 844))
    done(tab, EXPRESSION)
    for summary in (".ss-keep", ".ss-history"):
        tab.page.focus(f"{summary} summary")
        tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    for box in (tab.page.locator(part).bounding_box() for part in (".ss-keeping", ".ss-runs", ".ss-clear")):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] > 10
    for name in ("Copy link", "Download trace, JSON", "Download steps, CSV", "Download read map, PNG", "Clear"):
        assert tab.page.get_by_role("button", name=name).is_visible()
    tab.page.focus(".ss-link")
    reached = []
    for _ in range(8):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.dataset.file ?? document.activeElement.className"))
    assert reached[:4] == ["trace", "steps", "bitmap", "drawing"] and "ss-again" in reached
    tab.page.emulate_media(color_scheme="dark")
    tab.page.wait_for_function("document.body.classList.contains('dark')")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
