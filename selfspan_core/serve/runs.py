"""The page's runs: inputs checked, jobs streamed, the newest run of each tab, Stop. Imports gradio, no torch."""

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import gradio as gr

from selfspan_core.errors import InputError, NotReady, TooLongError
from selfspan_core.params import Request
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.feed import Feed, dumps
from selfspan_core.serve.lazy_session import public
from selfspan_core.serve.newest_runs import NewestRuns
from selfspan_core.serve.visitors import Listener
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.page import LOAD_INFO, NO_LOAD_INFO, Controls
from selfspan_core.tasks.registry import get_task

log = logging.getLogger("selfspan")

MAX_KEPT_TEXT = 60_000
"""Characters of an input that a page can fill in again: known to `assets/app/race/history.js`, too."""


class PageRuns:
    """The callbacks of the page's controls.

    Args:
        device: runs the requests.
    """

    def __init__(self, device: SharedDevice) -> None:
        self._device = device
        self._numbers = itertools.count(1)
        self._newest = NewestRuns()

    def check(self, controls: Controls, text: str, values: tuple, tab: str) -> tuple:
        """Bad input: the reason, and nothing else changes. Good input: how it was cleaned, and a job for `stream`."""
        number, request, cleaning = next(self._numbers), None, None
        try:
            request = controls.request(text or "", values)
            task = get_task(request.task, **request.options)
            _, cleaned = read_pasted(task, request.text, request.clean)
            cleaning = dumps({"done": cleaned.done, "text": cleaned.text}) if cleaned.done else None
        except TooLongError:
            pass  # the run reports this error and offers the part that fits
        except InputError as error:
            return json.dumps({"run": number, "message": str(error)}), None, gr.skip(), gr.skip()
        self._newest.check(tab, number)
        waiting = Feed(str(number)).note("waiting", task=request.task)
        return None, cleaning, waiting, {"run": number, "request": request}

    def stream(self, job: dict | None, request: gr.Request) -> Iterator[str]:
        """The payloads of a checked job; none where a session has none, whoever asks for it."""
        if not job:
            return
        tab, number = request.session_hash, job["run"]
        feed, is_heard = Feed(str(number), asked_of(job["request"])), Listener()
        self._newest.begin(tab, number)

        def is_wanted() -> bool:
            return self._newest.is_newest(tab, number) and is_heard()

        try:
            with closing(self._device.compare(job["request"], tab, is_wanted)) as ticks:
                for tick in ticks:
                    yield _waiting(feed, tick) if tick["kind"] == "waiting" else feed.add(tick)
        except TooLongError as error:
            yield feed.note("failed", str(error), beginning=error.beginning)
        except (InputError, NotReady) as error:
            yield feed.note("failed", str(error))
        except Exception as error:
            log.exception("a run failed")
            yield feed.note("failed", f"The run failed: {public(error)}")
        finally:
            self._newest.end(tab, number)

    def halt(self, request: gr.Request):
        """Stop: the tab's newest run ends within a tick, or as soon as its turn comes.

        Not gradio's `cancels`: the page knows the name of what it would cancel only when the server has answered, and
        until then a Stop would be shown and not happen.
        """
        number = self._newest.forget(request.session_hash)
        return gr.skip() if number is None else Feed(str(number)).note("stopped")

    def forget(self, request: gr.Request) -> None:
        """A tab is closed."""
        self._newest.forget(request.session_hash)


def asked_of(request: Request) -> dict[str, Any]:
    """What was asked, for the page to keep; a text of more than MAX_KEPT_TEXT characters is None there."""
    text = request.text if len(request.text) <= MAX_KEPT_TEXT else None
    named = ("model", "adapter", "load", "drafts", "clean")
    settings = {name: getattr(request, name) for name in named}
    return {"text": text, **request.options, **settings, **asdict(request.sampling)}


def _waiting(feed: Feed, tick: dict) -> str:
    """The note about a run that waits for its turn, or for the models."""
    return feed.note("waiting" if tick["for"] == "device" else "starting", tick["message"])


def offered_load(can_load: bool):
    """The slider of simultaneous requests, with this device's limits."""
    return gr.update(interactive=can_load, info=LOAD_INFO if can_load else NO_LOAD_INFO)
