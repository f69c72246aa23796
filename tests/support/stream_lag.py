"""How far the page is behind its server, and its longest standstill, while lanes write faster than any model here.

python -m tests.support.stream_lag

Lanes that play scripts write at given rates; the browser notes at each frame how many tokens its panes show. Behind is
how long ago the server had sent what a frame shows first. On a busy machine the figures are the machine's: what says so
is how long the server's threads waited for a core. With `--out`, and from a clean commit only, all runs go to a file.
"""

import argparse
import itertools
import json
import os
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

from playwright.sync_api import sync_playwright

import app
from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
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


def waits() -> dict[int, float]:
    """Milliseconds that each thread has waited for a core; not the main one, which drives the browser."""
    found = {}
    for thread in threading.enumerate():
        account = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        if thread is not threading.main_thread() and account.is_file():
            found[thread.native_id] = int(account.read_text().split()[1]) / 1e6
    return found


class TimedSession(FakeSession):
    """A session that notes when it has how many tokens of each lane, by the wall clock in milliseconds.

    Attributes:
        sent: time and tokens of the lanes, for each tick.
        waited_ms: of all the server's threads together, for a core, from the first tick to the last.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.sent: list[tuple[float, int, int]] = []
        self.waited_ms = 0.0

    def compare(self, request):
        before = waits()
        for tick in super().compare(request):
            if tick["kind"] == "tick":
                lanes = tick["lanes"]
                self.sent.append((1000 * time.time(), lanes["dense"]["tokens"], lanes["sparse"]["tokens"]))
            elif tick["kind"] == "end":
                self.waited_ms = sum(after - before[thread] for thread, after in waits().items() if thread in before)
            yield tick


def figures(sent: list, frames: list) -> dict:
    """Milliseconds behind the server and between two changes on the screen, both from the first tokens on.

    Raises:
        RuntimeError: the page never showed what was sent.
    """
    changes = [frames[0]]
    for frame in frames[1:]:
        if frame[1:3] != changes[-1][1:3]:
            changes.append(frame)
    shown = [frame for frame in changes if frame[1] and frame[2]]
    behind = []
    for at, *tokens in sent:
        seen = [frame[0] for frame in shown if frame[1] >= tokens[0] and frame[2] >= tokens[1]]
        if not seen:
            raise RuntimeError(f"the page never showed {tokens} tokens")
        behind.append(seen[0] - at)
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
    return figures(session.sent, frames) | {"waited_for_a_core_ms": round(session.waited_ms)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options; a mistake among them is told in a line, and ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--out", type=place, help="a results file, from a clean commit only")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure all cases several times, print a line of JSON for each run, and write them all."""
    arguments = parse_arguments(argv)
    document = provenance() | {"clock": "host", "seed": None, "input": EXPRESSION, "repeats": arguments.repeat}
    if arguments.out and document["dirty"]:
        sys.exit("figures are written from a clean commit only: commit first")
    document["load_average_before"] = os.getloadavg()[0]
    document["cases"] = {name: CASES[name] | {"runs": []} for name in arguments.case or CASES}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        document["versions"] |= {"chromium": browser.version, "playwright": metadata.version("playwright")}
        window = browser.new_context()
        for name, case in document["cases"].items():
            for _ in range(arguments.repeat):
                case["runs"].append(measure(window, CASES[name]))
                print(json.dumps({"case": name, **case["runs"][-1]}), flush=True)
        browser.close()
    if arguments.out:
        write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
