"""The README's pictures: the app, really running, as a film of a run or in the middle of one; an article, summarized.

python -m tests.support.screenshot --out assets/app.png
python -m tests.support.screenshot --film --out assets/run.gif
python -m tests.support.screenshot --task summarize --out assets/articles.png
"""

import argparse
import io
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import app
from selfspan_core.serve import page_files
from selfspan_core.tasks.page import COMPARISONS
from selfspan_core.tasks.registry import get_task
from tests.support.browser import CHROMIUM, CHROMIUM_FLAGS

WIDTH = 1280
HEIGHTS = {"arithmetic": 1080, "summarize": 1260}  # px: down to the steps that light up, above the bar
COLOURS = 256
FILM = {"width": 1180, "height": 820}
FILM_SIZE = (760, 528)
FILM_COLOURS = 64
FRAME_MS = 50
SLOWER = 4
"""A film shows the run, of three seconds, as many times slower."""
LOOK_MS = 2800


def example(num_operands: int) -> str:
    """The task's example with that many operands."""
    task = get_task("arithmetic")
    return next(text for text in task.examples if task.parse(text).num_operands == num_operands)


def picture(page: Page, url: str, text: str, comparison: str, min_tokens: int) -> bytes:
    """PNG of the page while a step that reads two segments is being written, from `min_tokens` tokens on."""
    with page.expect_response(lambda response: "/heartbeat/" in response.url):
        page.goto(url)
    page.locator(".ss-toggle >> visible=true").click()
    page.click(f"text={next(label for label, adapter in COMPARISONS if adapter == comparison)}")
    page.fill("#expression textarea", text)
    page.click("#run")
    freeze = page.context.new_cdp_session(page)
    page.wait_for_function(
        """least => {
            const pane = document.querySelector('.ss-pane[data-lane="sparse"]');
            return Number(pane.dataset.tokens) > least && pane.querySelectorAll('.ss-steps .lit').length > 0
                && document.querySelectorAll('#race .lit').length === 2;
        }""",
        arg=min_tokens,
        timeout=300_000,
    )
    freeze.send("Emulation.setScriptExecutionDisabled", {"value": True})
    return page.screenshot()


def article_picture(page: Page, url: str, comparison: str) -> bytes:
    """PNG of an article's summaries while a sentence of the self-selected one is pointed at: its source is lit."""
    with page.expect_response(lambda response: "/heartbeat/" in response.url):
        page.goto(url)
    page.get_by_role("tab", name="Articles").click()
    page.locator(".ss-toggle >> visible=true").click()
    page.click(f"text={next(label for label, adapter in COMPARISONS if adapter == comparison)} >> visible=true")
    page.fill("#article textarea", get_task("summarize").examples[0])
    page.click("#run-article")
    page.wait_for_selector('.ss[data-task="summarize"][data-state="done"]', timeout=300_000)
    page.hover('.ss-pane[data-lane="sparse"] .ss-step:nth-child(2)')
    page.wait_for_selector(".ss-source .peeked")
    return page.screenshot()


def film(page: Page, url: str) -> list[tuple[int, Image.Image]]:
    """The page while it plays its recorded run of the shipped model, as (milliseconds that it is seen, frame).

    The page's clock is set forward by hand, so that the film keeps the run's own pace however long a picture takes.
    """
    with page.expect_response(lambda response: "/heartbeat/" in response.url):
        page.goto(url)
    page.wait_for_selector('.ss[data-state="played"]')
    frames: list[tuple[int, Image.Image]] = []

    def shoot(seen_ms: int) -> None:
        shot = page.screenshot(type="jpeg", quality=95)
        frames.append((seen_ms, Image.open(io.BytesIO(shot)).convert("RGB")))

    page.clock.install()
    page.clock.pause_at(time.time() + 3600)
    page.click(".ss-replay")
    while page.get_attribute(".ss", "data-state") != "played":
        page.clock.run_for(FRAME_MS)
        shoot(SLOWER * FRAME_MS)
    # What a step read is lit while somebody points at it.
    for number in (4, 9, 14):
        page.locator('.ss-map[data-lane="sparse"] .ss-map-field').hover(position={"x": 60, "y": 12 * number})
        page.clock.run_for(400)
        shoot(LOOK_MS)
    return frames


def write_film(frames: list[tuple[int, Image.Image]], out: Path) -> None:
    """A GIF that repeats for ever, one palette, so that what rests costs nothing."""
    small = [frame.resize(FILM_SIZE, Image.Resampling.LANCZOS) for _, frame in frames]
    both = Image.new("RGB", (FILM_SIZE[0], 2 * FILM_SIZE[1]))
    both.paste(small[len(small) // 2], (0, 0))
    both.paste(small[-1], (0, FILM_SIZE[1]))
    palette = both.quantize(FILM_COLOURS)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    durations = [seen_ms for seen_ms, _ in frames]
    reduced[0].save(out, save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    """Serve the app, run it, take the picture or the film, write it with few colours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("assets/app.png"))
    parser.add_argument("--task", choices=["arithmetic", "summarize"], default="arithmetic")
    parser.add_argument("--operands", type=int, default=24)
    parser.add_argument("--min-tokens", type=int, default=300)
    parser.add_argument("--comparison", choices=[adapter for _, adapter in COMPARISONS], default="span")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--film", action="store_true", help="a GIF of the recorded run")
    arguments = parser.parse_args()
    session = app.LazySession()
    device = app.SharedDevice(session)
    if not arguments.film:
        device.warm()
    recorded = page_files.recorded() if arguments.film else None
    demo = app.build_app(session, app.shipped_tasks(), device=device, recorded=recorded)
    _, url, _ = app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        scheme = "dark" if arguments.dark else "light"
        size = FILM if arguments.film else {"width": WIDTH, "height": HEIGHTS[arguments.task]}
        page = browser.new_page(viewport=size, color_scheme=scheme)
        if arguments.film:
            write_film(film(page, url), arguments.out)
        elif arguments.task == "summarize":
            data = article_picture(page, url, arguments.comparison)
        else:
            data = picture(page, url, example(arguments.operands), arguments.comparison, arguments.min_tokens)
        browser.close()
    demo.close(verbose=False)
    if not arguments.film:
        Image.open(io.BytesIO(data)).convert("RGB").quantize(COLOURS).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
