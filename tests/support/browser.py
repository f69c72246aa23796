"""A tab of Debian's Chromium with the app in it, and what it must never do."""

import time
from collections.abc import Callable
from pathlib import Path

SIGNS = str.maketrans("*/-", "×÷−")
"""The page sets arithmetic in type."""

CHROMIUM = "/usr/bin/chromium"

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Tab:
    """One page of the app, and what it must never do: log an error, or ask any host but its own for anything."""

    def __init__(self, window, url: str, size: tuple[int, int] = (1280, 1100), **media: str) -> None:
        self.complaints: list[str] = []
        self.calls: list[str] = []
        self.page = window.new_page()
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(**{"color_scheme": "light", **media})
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("request", lambda request: self._on_request(request.url, url.partition("?")[0]))
        for moment in ("request", "requestfinished", "requestfailed"):
            self.page.on(moment, lambda request, moment=moment: self._note(moment, request.method, request.url))
        self._arrive(lambda: self.page.goto(url))

    def _arrive(self, go: Callable[[], object]) -> None:
        # Until gradio has wired its buttons, a click is lost; its first heartbeat says that it has.
        with self.page.expect_response(lambda response: "/heartbeat/" in response.url):
            go()
        self.page.wait_for_selector(".ss-pane")

    def reload(self) -> None:
        """The same address once more, in the same tab. What gradio says of connections that end so is no complaint."""
        before = list(self.complaints)
        self._arrive(self.page.reload)
        new = self.complaints[len(before) :]
        self.complaints = [
            *before,
            *(one for one in new if "AbortError" not in one and "Connection errored" not in one),
        ]

    def close(self) -> None:
        """Nothing of it is left for the next tab."""
        if not self.page.is_closed():
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.page.close()

    def _on_console(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text}")

    def _note(self, moment: str, method: str, asked: str) -> None:
        """For the message of a wait that ends in vain: calls, their streams, and when."""
        _, is_call, route = asked.partition("/gradio_api/queue/")
        if is_call:
            self.calls.append(f"{time.monotonic():.2f} s {moment} {method} {route.partition('?')[0]}")

    def _on_request(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:", "blob:")):
            self.complaints.append(f"external request: {asked}")

    def run(self, text: str) -> None:
        """Type an expression and press Run."""
        self.page.fill("#expression textarea", text)
        self.page.click("#run")

    def turn(self, name: str) -> None:
        """To the tab of another task."""
        self.page.get_by_role("tab", name=name).click()
        self.page.wait_for_selector(f'[role="tab"][aria-selected="true"] >> text="{name}"')
        self.page.locator(".ss-stop >> visible=true").wait_for()

    def clipboard(self) -> None:
        """From here on what the page copies lies in `copied`, whatever the system's clipboard may do."""
        self.page.evaluate("() => { navigator.clipboard.writeText = async (text) => void (window.copied = text); }")

    @property
    def copied(self) -> str:
        """What the page copied last, once it says so."""
        return self.page.wait_for_function("window.copied").json_value()

    def saved(self, kind: str) -> bytes:
        """What a button of "Keep and share" downloads: trace, steps, bitmap or drawing."""
        if self.page.locator(".ss-keep[open]").count() == 0:
            self.page.click(".ss-keep summary")
        with self.page.expect_download() as download:
            self.page.click(f'[data-file="{kind}"]')
        return Path(download.value.path()).read_bytes()

    def open_options(self) -> None:
        """Open the row of options, which is closed on arrival, and the form, which is a bar since a run."""
        if self.page.locator(".ss-bar").count():
            self.page.locator(".ss-bar textarea >> visible=true").click()
        toggle = self.page.locator(".ss-toggle >> visible=true")
        if toggle.get_attribute("aria-expanded") == "false":
            toggle.click()

    def compare_plain(self) -> None:
        """Choose the plain adapter for the dense lane."""
        self.open_options()
        self.page.click("text=Plain adapter against span adapter")

    def wait(self, state: str, timeout: float = 60_000) -> None:
        """Until the race is in `state`. Raises an AssertionError that says what the page has done instead."""
        from playwright.sync_api import Error  # not there where vLLM is tested

        try:
            self.page.wait_for_selector(f'.ss[data-state="{state}"]', timeout=timeout)
        except Error as error:
            said = self.page.locator(".toast-wrap, .ss-alert").all_inner_texts()
            seen = f"the race is {self.state}, not {state}; said: {said}; {self.complaints}; calls: {self.calls}"
            raise AssertionError(seen) from error

    @property
    def state(self) -> str:
        """idle, waiting, starting, running, done, stopped or failed."""
        return self.page.get_attribute(".ss", "data-state")

    @property
    def alert(self) -> str:
        """The message beside the box."""
        return self.page.text_content(".ss-alert")

    def pane(self, lane: str) -> str:
        """Selector of a lane's pane."""
        return f'.ss-pane[data-lane="{lane}"]'

    def text(self, selector: str) -> str:
        """Text of one element."""
        return self.page.text_content(selector)

    def lines(self, lane: str) -> list[str]:
        """The worked steps on the screen without chips and marks: working and result, a line each."""
        script = """pane => [...document.querySelectorAll(pane + ' .ss-step')].map(step => {
            const copy = step.cloneNode(true);
            copy.querySelectorAll('.ss-chip, .ss-mark, .ss-malformed').forEach(node => node.remove());
            return copy.textContent;
        })"""
        return self.page.evaluate(script, self.pane(lane))

    def tokens(self, lane: str) -> int:
        """Tokens so far, as the pane says."""
        return int(self.page.get_attribute(self.pane(lane), "data-tokens") or 0)
