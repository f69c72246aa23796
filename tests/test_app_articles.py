"""The page's tab for articles, around a session that plays scripts: sources lit, bad input, an article too long."""

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.fake_session import FakeSession, layout

ARTICLE = get_task("summarize").examples[0]
TASKS = ("arithmetic", "summarize")
ASK = "#run-article"


def open_articles(tab):
    tab.turn("Articles")
    tab.page.wait_for_selector(ASK)
    return tab


def summarize(tab, text=ARTICLE):
    tab.page.fill("#article textarea", text)
    tab.page.click(ASK)


@pytest.fixture
def articles(stage, open_tab):
    """A page on its second tab, around a session with options."""
    return lambda **options: open_articles(open_tab(stage(FakeSession(dense=2000, sparse=2000, **options), TASKS)))


COME_TO_REST = """async node => {
  node.scrollIntoView({ block: "center" });
  const frame = () => new Promise(requestAnimationFrame);
  for (let top, same = 0; same < 10; ) {
    await frame();
    const now = node.getBoundingClientRect().top;
    same = now === top ? same + 1 : 0;
    top = now;
  }
}"""
"""Scrolls to a node, and waits until what is above it has its height: a tap would hit its neighbour."""


@pytest.mark.browser
class TestArticles:
    def test_a_sentence_of_a_summary_lights_its_source(self, articles):
        """Would catch a summary without its sources, the wrong sentence lit, and an article that stays dimmed."""
        tab = articles()
        summarize(tab)
        tab.wait("done")
        segments = get_task("summarize").parse(ARTICLE).segments
        shown = tab.page.locator(".ss-source .ss-seg").all_text_contents()
        assert shown == [f"a{number}{text}" for number, text in enumerate(segments)]
        assert tab.text(".ss-status").endswith("cached tokens. Same summary.")
        assert tab.text(".ss-rules") == get_task("summarize").rules_text
        for lane in ("dense", "sparse"):
            pane = tab.pane(lane)
            for number in (2, 1):
                tab.page.hover(f"{pane} .ss-step:nth-child({number})")
                lit = tab.page.locator(".ss-source .peeked")
                assert lit.get_attribute("data-name") == f"a{number - 1}"
                assert tab.page.locator(".ss-source.peek").count() == 1
            tab.page.mouse.move(5, 5)
            assert tab.page.locator(".ss-source .peeked, .ss-source.peek, .ss-source.focus").count() == 0
            assert tab.text(f"{pane} .ss-badge") == "3 sentences"
            tab.page.click(f"{pane} .ss-copy")
            tab.page.wait_for_function(f"document.querySelector('{pane} .ss-copy').textContent === 'Copied'")

    def test_from_one_task_to_the_other(self, articles):
        """Would catch what an article leaves behind when a sum is next, and the other way round."""
        tab = articles()
        summarize(tab)
        tab.wait("done")
        tab.page.get_by_role("tab", name="Arithmetic").click()
        tab.page.wait_for_selector("#run")
        tab.run("1+2")
        tab.page.wait_for_selector('.ss[data-task="arithmetic"][data-state="done"]')
        assert tab.text(".ss-source-name") == "The expression"
        assert tab.text(f"{tab.pane('sparse')} .ss-badge") == "✓ right"
        assert tab.text(f"{tab.pane('sparse')} .ss-answer-label") == "Answer"
        assert tab.page.locator(".ss-literal").count() == 2

    def test_bad_articles(self, articles):
        """Would catch a text that cannot be summarized and loads a model, hangs, or says nothing to its author."""
        tab = articles()
        page = "<html><body>" + "<p>One <b>two</b> three.</p>" * 50
        for text in ("", "Ten words are not an article that has a summary.", page, "word " * 5000, "статья " * 100):
            before = tab.page.evaluate("document.querySelector('#ask-article .ss-alert').dataset.run ?? ''")
            summarize(tab, text)
            tab.page.wait_for_function(
                "old => (document.querySelector('#ask-article .ss-alert').dataset.run ?? '') !== old", arg=before
            )
            assert 10 < len(tab.text("#ask-article .ss-alert")) < 400
            assert tab.page.get_attribute("#article textarea", "aria-invalid") == "true"
        assert tab.state == "idle"

    def test_the_beginning_of_a_long_article(self, articles):
        """Would catch an article that is cut silently, or an offer that does nothing."""
        tab = articles(beginning=ARTICLE)
        summarize(tab, ARTICLE + "\n" + ARTICLE)
        tab.wait("failed")
        assert tab.text(".ss-status") == "The article is too long."
        tab.page.click(".ss-begin")
        assert tab.page.input_value("#article textarea") == ARTICLE
        tab.page.click(ASK)
        tab.wait("done")
        assert tab.page.is_hidden(".ss-begin")

    def test_what_is_typed_after_a_long_article_is_not_overwritten(self, articles):
        """Would catch a verdict on the article before, beside another input, and a button that puts that one back."""
        tab = articles(beginning=ARTICLE)
        summarize(tab, ARTICLE + "\n" + ARTICLE)
        tab.wait("failed")
        assert tab.page.is_visible(".ss-begin")
        tab.page.fill("#article textarea", "Another text.")
        assert tab.page.is_hidden(".ss-begin") and tab.state == "idle"
        assert "too long" not in tab.text(".ss-status")

    def test_the_beginning_of_a_book(self, articles):
        """Would catch a text that is refused before it is split being offered nothing."""
        tab = articles()
        summarize(tab, ARTICLE * 80)
        tab.wait("failed")
        assert "the limit is 60,000 characters" in tab.text(".ss-status")
        tab.page.click(".ss-begin")
        assert 4000 < len(tab.page.input_value("#article textarea")) < 6000
        summarize(tab, tab.page.input_value("#article textarea"))
        tab.wait("done")

    def test_an_article_longer_than_learned_is_cautioned_about(self, articles):
        """Would catch a caution that nobody sees, and one that stays for the next article."""
        tab = articles(caution="This article is <b>long</b>.")
        summarize(tab)
        tab.wait("done")
        assert tab.text(".ss-caution") == "This article is <b>long</b>."
        tab.page.click(".ss-begin")
        assert tab.page.input_value("#article textarea") == "The beginning."
        summarize(tab, get_task("summarize").examples[1])
        tab.page.wait_for_selector(".ss-caution", state="hidden")
        tab.wait("done")
        assert tab.page.is_hidden(".ss-caution") and tab.page.is_hidden(".ss-begin")

    def test_what_was_said_of_one_article_is_not_said_of_the_next(self, articles):
        """Would catch a caution, rules and figures of the article before beside an error, and its verdict later on."""
        tab = articles(caution="This article is long.")
        summarize(tab)
        tab.wait("done")
        assert tab.page.is_visible(".ss-caution") and tab.page.is_visible(".ss-constrained")
        summarize(tab, ARTICLE * 80)
        tab.wait("failed")
        assert "the limit is 60,000 characters" in tab.text(".ss-status")
        assert not tab.page.is_visible(".ss-caution") and not tab.page.is_visible(".ss-constrained")
        tab.page.click(".ss-begin")
        tab.wait("idle")
        said = [tab.text(f"{tab.pane(lane)} .ss-outcome").strip() for lane in ("dense", "sparse")]
        assert said == ["", ""] and not tab.page.is_visible(".ss-tiles") and tab.text(".ss-line") == ""
        assert not tab.page.is_visible(f"{tab.pane('dense')} .ss-copy")

    def test_words_that_the_article_does_not_have_are_remarked_upon(self, articles):
        """Would catch gibberish that passes for a summary, and a remark that stays for the next one."""
        tab = articles(wrong=("sparse",), extra_text=" <b>")
        summarize(tab)
        tab.wait("done")
        remark = f"{tab.pane('sparse')} .ss-remark"
        assert tab.text(remark) == "1 of 1 words (100 %) is not in the article: “13”."
        assert tab.page.is_visible(remark) and not tab.page.is_visible(f"{tab.pane('dense')} .ss-remark")
        assert tab.text(f"{tab.pane('sparse')} .ss-badge") == "3 sentences"
        tab.page.get_by_role("tab", name="Arithmetic").click()
        tab.run("1+2")
        tab.page.wait_for_selector('.ss[data-task="arithmetic"][data-state="done"]')
        assert not tab.page.is_visible(remark)

    def test_a_tap_on_a_phone_shows_the_sentences_that_were_read(self, articles):
        """Would catch a source that is lit far off the screen, and a card of another sentence, or behind the bar."""
        tab = articles()
        tab.page.set_viewport_size({"width": 390, "height": 844})
        summarize(tab)
        tab.wait("done")
        touch = tab.page.context.new_cdp_session(tab.page)
        for lane, number in (("dense", 1), ("dense", 2), ("sparse", 1)):
            steps = tab.page.locator(f"{tab.pane(lane)} .ss-step")
            steps.nth(number).evaluate(COME_TO_REST)
            box = steps.nth(number).bounding_box()
            at = {"x": box["x"] + 100, "y": box["y"] + 12}
            touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
            card = tab.page.locator(f"{tab.pane(lane)} .ss-cited")
            card.wait_for()
            sentence = get_task("summarize").parse(ARTICLE).segments[number]
            assert card.locator("p").all_text_contents() == ["Drawn from", f"a{number}{sentence}"]
            assert steps.nth(number).locator(".ss-cited").count() == 1
            seen, scrolls = card.bounding_box(), tab.page.locator(f"{tab.pane(lane)} .ss-scroll").bounding_box()
            bar = tab.page.locator("#ask-article").bounding_box()
            assert scrolls["y"] - 1 <= seen["y"] and seen["y"] + seen["height"] <= scrolls["y"] + scrolls["height"] + 1
            assert seen["y"] >= 0 and seen["y"] + seen["height"] <= bar["y"]
        tab.page.keyboard.press("Escape")
        assert tab.page.locator(f"{tab.pane('sparse')} .ss-cited").count() == 0

    def test_a_tap_on_a_phone_s_map_leaves_the_page_where_it_is(self, articles):
        """Would catch a map that is tapped and gone, as the page scrolls to the step far below it."""
        tab = articles()
        tab.page.set_viewport_size({"width": 390, "height": 844})
        summarize(tab)
        tab.wait("done")
        field = tab.page.locator('.ss-map[data-lane="sparse"] .ss-map-field')
        field.evaluate(COME_TO_REST)
        before, box = tab.page.evaluate("scrollY"), field.bounding_box()
        at = {"x": box["x"] + 100, "y": box["y"] + 0.8 * box["height"]}
        touch = tab.page.context.new_cdp_session(tab.page)
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        card = tab.page.locator(f"{tab.pane('sparse')} .ss-step.pinned .ss-cited")
        card.wait_for()
        tab.page.wait_for_timeout(300)
        assert tab.page.evaluate("scrollY") == before
        seen, scrolls = card.bounding_box(), tab.page.locator(f"{tab.pane('sparse')} .ss-scroll").bounding_box()
        assert scrolls["y"] - 1 <= seen["y"] < scrolls["y"] + scrolls["height"]

    def test_what_a_refused_article_leaves_in_sight_is_named(self, articles):
        """Would catch maps and text of the article before that pass for the result of one that is too long."""
        tab = articles()
        summarize(tab, ARTICLE * 80)
        tab.wait("failed")
        labels = tab.page.locator(".ss-previous >> visible=true")
        assert labels.count() == 0  # there is no run before it
        for _ in range(2):
            summarize(tab)
            tab.wait("done")
            assert labels.count() == 0
            summarize(tab, ARTICLE * 80)
            tab.wait("failed")
            told = labels.all_text_contents()
            assert len(told) == 2 and all(text.startswith("Previous run: ") for text in told)
            for label, below in zip(labels.all(), (".ss-maps", ".ss-source"), strict=True):
                assert label.bounding_box()["y"] < tab.page.locator(below).bounding_box()["y"]
            tab.page.set_viewport_size({"width": 390, "height": 844})
        tab.turn("Arithmetic")
        assert labels.count() == 0
        tab.turn("Articles")
        tab.page.click(".ss-begin")
        assert labels.count() == 2
        tab.page.click(ASK)
        tab.wait("done")
        assert labels.count() == 0

    def test_a_long_prompt_says_how_far_it_is(self, stage, open_tab):
        """Would catch a page that stands still for the minute that a laptop takes for a long article, a bar that stays
        behind the prompt or behind Stop, and a time left that forgets the lane that has not begun."""
        session = FakeSession(dense=2000, sparse=2000)
        tab = open_articles(open_tab(stage(session, TASKS)))
        size = layout(get_task("summarize").parse(ARTICLE))[0]
        bars = tab.page.locator(".ss-prompt-bar >> visible=true")
        status = tab.page.locator(".ss-status")
        for is_stopped in (False, True):
            with session.held(0):
                session.prompt_done = {"dense": 20}
                summarize(tab)
                left = f"about {round((2 * size - 20) / 10)} s left"
                said = f"{left}: 20 of {size} tokens of the prompt are read"
                tab.page.locator(f"{tab.pane('dense')} .ss-caption", has_text=said).wait_for()
                assert status.text_content() == f"Reading the prompt: {200 // (2 * size)}0\u202f%, {left}."
                assert bars.count() == 1 and tab.text(f"{tab.pane('sparse')} .ss-caption") == ""
                session.prompt_done = {"dense": 20, "sparse": 30}
                said = f"about {round((2 * size - 50) / 10)} s left: 30 of {size} tokens of the prompt are read"
                tab.page.locator(f"{tab.pane('sparse')} .ss-caption", has_text=said).wait_for()
                assert bars.count() == 2
                assert bars.last.get_attribute("aria-valuenow") == f"{round(100 * 30 / size)}"
                if is_stopped:
                    tab.page.click(".ss-stop >> visible=true")
                    tab.wait("stopped")
                session.prompt_done = {}
                if not is_stopped:
                    tab.page.locator(".ss-status", has_text="Running.").wait_for()
                assert bars.count() == 0
            if not is_stopped:
                tab.wait("done")

    def test_a_run_that_waits_leaves_no_prompt_half_read(self, stage, open_tab):
        """Would catch a bar that stands still, and a time left that is nobody's, where a second run of the same task
        waits behind somebody else's."""
        session = FakeSession(dense=2000, sparse=2000)
        url = stage(session, TASKS)
        mine, other = open_tab(url), open_tab(url)
        with session.held(0):
            session.prompt_done = {"dense": 5}
            mine.run("79*36+63")
            mine.page.locator(".ss-prompt-bar >> visible=true").wait_for()
            other.run("1+2")
            other.wait("waiting")
            mine.page.press("#expression textarea", "Enter")
            mine.wait("waiting")
            other.page.locator(".ss-prompt-bar >> visible=true").wait_for()
            assert mine.page.locator(".ss-prompt-bar >> visible=true").count() == 0
            assert mine.text(f"{mine.pane('dense')} .ss-flag") == "stopped"
        session.prompt_done = {}
        for tab in (other, mine):
            tab.wait("done")

    def test_markup_in_an_article_is_text(self, articles):
        """Would catch an article that becomes part of the page."""
        tab = articles()
        summarize(tab, "A <img src=x onerror='window.pwned=1'> is ${7*7} and {{7*7}}, the mayor said. " + ARTICLE)
        tab.wait("done")
        assert "<img src=x onerror='window.pwned=1'>" in tab.page.locator(".ss-source .ss-seg").first.text_content()
        assert tab.page.evaluate("window.pwned") is None

    def test_what_was_cleaned_is_shown_and_undone(self, articles):
        """Would catch a cleaning that its author cannot see or refuse, and a note that stays for the next text."""
        tab = articles()
        first, *others = ARTICLE.split("\n")
        summarize(tab, "\n\n".join([f"{first} <b>It's</b> so.[1]", *others]))
        tab.wait("done")
        note = tab.page.locator("#ask-article .ss-cleaning")
        assert tab.text("#ask-article .ss-cleaning-done") == "1 reference mark taken off."
        note.locator("summary").click()
        assert tab.text("#ask-article .ss-cleaned").startswith(f"{first} <b>It's</b> so.\n")
        assert "[1]" not in tab.text(".ss-source")
        tab.page.click("#ask-article .ss-as-pasted")
        assert note.is_hidden() and tab.page.is_checked(".ss-as-is input")
        tab.page.click(ASK)
        tab.page.wait_for_function("document.querySelector('.ss-source').textContent.includes('[1]')")
        tab.wait("done")
        assert note.is_hidden()
