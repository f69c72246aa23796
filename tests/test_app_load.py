"""The page under load: other requests, long streams, slow and small screens."""

import time

import pytest

from selfspan_core.tasks.registry import get_task
from tests.support.app_tools import EXPRESSION, SHORT, count
from tests.support.browser import SIGNS
from tests.support.fake_session import FakeSession


@pytest.mark.browser
class TestSimultaneousRequests:
    SLIDER = '#load input[type="range"]'

    def set_load(self, tab, load: int) -> None:
        tab.page.wait_for_selector(f"{self.SLIDER}:enabled", state="attached")
        tab.open_options()
        tab.page.fill('#load input[type="number"]', str(load))
        tab.page.press('#load input[type="number"]', "Tab")

    def test_without_a_gpu_the_slider_says_why_it_is_off(self, url, open_tab):
        """A control that is missing, or dead without a word, or one that a CPU then refuses, shows here."""
        tab = open_tab(url)
        time.sleep(1)  # for the answer of the server, which must not enable it
        tab.open_options()
        assert tab.page.is_disabled(self.SLIDER)
        assert "on a CUDA GPU, which" in tab.page.inner_text("#load")
        tab.run(SHORT)
        tab.wait("done")
        assert not any(tab.page.is_visible(f"{tab.pane(lane)} .ss-total") for lane in ("dense", "sparse"))
        assert not tab.page.is_visible('[data-tile="total"]')

    @pytest.mark.parametrize("width", [1280, 390])
    def test_both_panes_show_what_all_requests_get(self, stage, open_tab, width):
        """A load that never reaches the lanes, sums that stay after it is gone, or a page that overflows shows here."""
        session = FakeSession(dense=150, sparse=220, can_load=True)
        tab = open_tab(stage(session))
        tab.page.set_viewport_size({"width": width, "height": 1100})
        self.set_load(tab, 32)
        assert "need" not in tab.page.inner_text("#load")
        tab.run(EXPRESSION)
        tab.wait("running")
        total = f'{tab.pane("sparse")} [data-figure="total_tokens_per_second"]'
        tab.page.wait_for_function("at => document.querySelector(at).textContent !== '–'", arg=total)
        assert tab.page.is_visible(total)
        assert session.ticks[0]["load"] == 32
        tab.wait("done")
        assert tab.text(total) == "7,040"
        assert tab.page.inner_text(f"{tab.pane('dense')} .ss-total") == "4,800 tokens/s over all 32 requests"
        assert tab.text(".ss-title") == "Same adapter, mask off and on, 32 requests at once"
        assert tab.text('[data-tile="total"]') == "1.47×"
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        self.set_load(tab, 1)
        with session.held(2):  # it would be over before a busy browser has looked
            tab.run(SHORT)
            tab.wait("running")
        tab.wait("done")
        assert not tab.page.is_visible(total) and not tab.page.is_visible('[data-tile="total"]')
        assert tab.text(".ss-title") == "Same adapter, mask off and on"


@pytest.mark.browser
class TestLoad:
    @pytest.mark.parametrize("slowdown", [1, 8])
    def test_long_streams_arrive_whole(self, stage, open_tab, slowdown):
        """A browser that drops values (a slow machine, a tab in the background) must still show every token."""
        session = FakeSession(dense=500, sparse=800, num_tokens=800)
        tab = open_tab(stage(session))
        tab.page.context.new_cdp_session(tab.page).send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
        tab.run(EXPRESSION)
        tab.wait("done", timeout=120_000)
        seen = tab.page.evaluate("performance.timeOrigin + performance.now()") / 1000
        lag = seen - (time.time() - (time.monotonic() - session.events[-1][1]))
        for lane in ("dense", "sparse"):
            items = [item for tick in session.ticks if tick["kind"] == "tick" for item in tick["lanes"][lane]["items"]]
            assert len(items) == 800
            text = "".join(item["text"] for item in items if item["kind"] in ("text", "newline"))
            assert "\n".join(tab.lines(lane)) == text.strip("\n").translate(SIGNS)
        print(f"\nlag behind the server at the end, browser slowed {slowdown} times: {lag:.2f} s")
        if slowdown == 1:
            assert lag < 2

    def test_what_a_frame_costs_does_not_grow_with_the_text(self, stage, open_tab):
        """Would catch work for every step that was ever written in each frame, of which a slow phone falls behind."""
        session = FakeSession(dense=3000, sparse=3000, num_tokens=3000)
        session.hold_at = 2900
        tab = open_tab(stage(session))
        tab.page.evaluate("""() => {
            Object.assign(window, { animated: 0, layouts: 0, asked: 0 });
            const { get } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollHeight");
            Object.defineProperty(Element.prototype, "scrollHeight", { get() {
                window.asked += 1;
                return get.call(this);
            } });
            const look = () => {
                window.animated = Math.max(window.animated, document.getAnimations().length);
                window.layouts = Math.max(window.layouts, window.asked);
                window.asked = 0;
                requestAnimationFrame(look);
            };
            look();
        }""")
        tab.run(EXPRESSION)
        tab.page.wait_for_function("document.querySelectorAll('.ss-pane')[1].dataset.tokens === '2900'")
        assert tab.page.evaluate("window.animated") < 20
        # The list of each lane, as it is followed and as it has scrolled, and the box of the source, once each.
        assert tab.page.evaluate("window.layouts") <= 8
        session.hold_at = None
        tab.wait("done")

    def test_scrolling_up_is_respected(self, stage, open_tab):
        """Steps that scroll away under the reader's eyes make reading impossible."""
        session = FakeSession(dense=1000, sparse=1000, num_tokens=900)
        session.hold_at = 600  # so that the run is not over before a busy machine's browser has come to the end of this
        tab = open_tab(stage(session))
        tab.run(EXPRESSION)
        tab.page.wait_for_function("document.querySelector('.ss-pane').dataset.tokens > 500")
        area = f"{tab.pane('sparse')} .ss-scroll"
        top = f"document.querySelector('{area}').scrollTop"
        assert tab.page.evaluate(top) > 0
        tab.page.hover(area)
        tab.page.mouse.wheel(0, -150)
        tab.page.wait_for_selector(f"{tab.pane('sparse')} .ss-follow", state="visible")
        before = tab.page.evaluate(top)
        session.hold_at = 800
        tab.page.wait_for_function("document.querySelectorAll('.ss-pane')[1].dataset.tokens === '800'")
        assert tab.page.evaluate(top) == before
        tab.page.click(f"{tab.pane('sparse')} .ss-follow")
        session.hold_at = None
        tab.wait("done")
        assert tab.page.evaluate(top) > before
        # Nothing is left to follow: the button would only lie over the verdict.
        end = tab.page.evaluate(top)
        tab.page.hover(area)
        tab.page.mouse.wheel(0, -150)
        tab.page.wait_for_function(f"{top} < {end}")
        assert not tab.page.is_visible(f"{tab.pane('sparse')} .ss-follow")

    def test_a_phone_shows_the_numbers_that_are_read(self, stage, open_tab):
        """A long expression scrolls on a phone: would catch a step whose lit numbers are out of sight."""
        tab = open_tab(stage(FakeSession(dense=250, sparse=250)))
        tab.page.set_viewport_size({"width": 390, "height": 844})
        tab.page.evaluate(
            """() => {
                Object.assign(window, { unseen: 0, read: new Set() });
                const look = () => {
                    const box = document.querySelector('.ss-source-text');
                    const lit = [...(box?.querySelectorAll(".lit") ?? [])];
                    const inside = (node) => {
                        const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
                        return inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
                    };
                    if (lit.length && !lit.some(inside)) window.unseen += 1;
                    for (const node of lit) window.read.add(node.dataset.name);
                    requestAnimationFrame(look);
                };
                look();
            }"""
        )
        tab.run(next(text for text in get_task("arithmetic").examples if count(text) == 48))
        tab.wait("done")
        box = "document.querySelector('.ss-source-text')"
        assert tab.page.evaluate(f"{box}.scrollHeight > {box}.clientHeight + 20")
        # A busy machine draws only some of the steps.
        assert tab.page.evaluate("window.read.size") > 5
        assert tab.page.evaluate("window.unseen") == 0

    @pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 720)])
    def test_a_small_screen_follows_the_race_and_keeps_stop_in_reach(self, serve, open_tab, width, height):
        """A race that starts below the edge of the screen goes unseen, and so does a Stop that scrolled away."""
        tab = open_tab(serve(FakeSession(dense=30, sparse=30)))
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.run(EXPRESSION)
        tab.wait("running")
        tab.page.wait_for_function("document.querySelector('.ss-steps .ss-step') !== null")
        below = "[...document.querySelectorAll('.ss-map-field')].at(-1).getBoundingClientRect().bottom"
        tab.page.wait_for_function(f"{below} > 0 && {below} <= innerHeight", timeout=3000)
        stop = tab.page.locator("#stop").bounding_box()
        assert 0 <= stop["y"] <= height - stop["height"]
        tab.page.click("#stop")
        tab.wait("stopped")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_narrow_screens_stack_the_panes(self, stage, open_tab, scheme):
        """Panes side by side on a phone, or a page that scrolls sideways."""
        tab = open_tab(stage(FakeSession()), color_scheme=scheme)
        tab.page.set_viewport_size({"width": 375, "height": 800})
        tab.run(EXPRESSION)
        tab.wait("done")
        dense = tab.page.locator(tab.pane("dense")).bounding_box()
        sparse = tab.page.locator(tab.pane("sparse")).bounding_box()
        assert sparse["y"] >= dense["y"] + dense["height"] and dense["width"] > 300
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 375
