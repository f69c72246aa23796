"""How far the page is behind its server, and its longest standstill, while lanes write faster than any model here.

python -m tests.support.stream_lag

Lanes that play scripts write at given rates; the browser notes at each frame how many tokens its panes show. Behind is
how long ago the server had sent what a frame shows first. On a busy machine the figures are the machine's.
"""

import argparse
import itertools
import json
import time

from playwright.sync_api import sync_playwright

import app
from tests.support.app_tools import EXPRESSION
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS, Tab
from tests.support.fake_session import FakeSession

CASES = {
    "3,000 tokens/s": {"rate": 3000, "tokens": 4096, "slowdown": 1, "size": (1280, 1100)},
    "7,000 tokens/s": {"rate": 7000, "tokens": 4096, "slowdown": 1, "size": (1280, 1100)},
    "phone, 4 times slower, 400 tokens/s": {"rate": 400, "tokens": 4096, "slowdown": 4, "size": (390, 844)},
}
NOTE_FRAMES = """() => {
    const panes = [...document.querySelectorAll(".ss-pane")];
    const steps = (pane) => pane.querySelector(".ss-steps").childElementCount;
    window.frames = [];
    const note = () => {
        const shown = panes.map((pane) => (steps(pane) ? Number(pane.dataset.tokens) : 0));
        frames.push([performance.timeOrigin + performance.now(), ...shown]);
        requestAnimationFrame(note);
    };
    note();
}"""


class TimedSession(FakeSession):
    """A session that notes when it has how many tokens of each lane, by the wall clock in milliseconds."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.sent: list[tuple[float, int, int]] = []

    def compare(self, request):
        for tick in super().compare(request):
            if tick["kind"] == "tick":
                lanes = tick["lanes"]
                self.sent.append((1000 * time.time(), lanes["dense"]["tokens"], lanes["sparse"]["tokens"]))
            yield tick


def figures(sent: list, frames: list) -> dict:
    """Milliseconds behind the server and between two changes on the screen, both from the first tokens on."""
    changes = [frames[0]]
    for frame in frames[1:]:
        if frame[1:3] != changes[-1][1:3]:
            changes.append(frame)
    shown = [frame for frame in changes if frame[1] and frame[2]]
    behind = []
    for at, *tokens in sent:
        seen = [frame[0] for frame in shown if frame[1] >= tokens[0] and frame[2] >= tokens[1]]
        behind.append(seen[0] - at if seen else float("inf"))
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(shown)]
    return {
        "behind_ms_most": round(max(behind)),
        "behind_ms_median": round(sorted(behind)[len(behind) // 2]),
        "gap_ms_most": round(max(gaps)),
        "gap_of_server_ms_most": round(max(after[0] - before[0] for before, after in itertools.pairwise(sent))),
        "updates": len(shown),
        "ticks": len(sent),
    }


def measure(window, case: dict) -> dict:
    """Figures of one run."""
    session = TimedSession(dense=case["rate"], sparse=case["rate"], num_tokens=case["tokens"])
    demo = app.build_app(session)
    _, url, _ = app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    tab = Tab(window, url, size=case["size"])
    tab.page.context.new_cdp_session(tab.page).send("Emulation.setCPUThrottlingRate", {"rate": case["slowdown"]})
    tab.page.evaluate(NOTE_FRAMES)
    tab.run(EXPRESSION)
    tab.wait("done", timeout=120_000)
    time.sleep(0.2)
    frames = tab.page.evaluate("window.frames")
    tab.close()
    demo.close(verbose=False)
    return figures(session.sent, frames)


def main() -> None:
    """Measure all cases several times and print a line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), action="append")
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        window = browser.new_context()
        for name in arguments.case or CASES:
            for _ in range(arguments.repeat):
                print(json.dumps({"case": name, **measure(window, CASES[name])}), flush=True)
        browser.close()


if __name__ == "__main__":
    main()
