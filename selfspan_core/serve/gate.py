"""What of the server's routes is open, how large a request may be, and answers to malformed ones. No torch here.

Gradio serves files, uploads, streams of media, proxies and a development mode besides what this app uses. All of that
is closed here, before gradio reads a request.
"""

import asyncio
import logging
import traceback

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfspan_core.serve.bodies import BODY_BYTES, BY_NAME, CANCEL, WrongBody, read

MAX_BODY_BYTES = 8 * 10**6
"""Of a request: the most characters that a text may have before it is cleaned, escaped as JSON may have them."""
BODY_S = 30.0
"""Seconds in which a request's body has to arrive."""
MOST_COMING_BYTES = 64 * 10**6
LARGE_BYTES = 100_000
"""Of all bodies that arrive: over the first, no more of a large one is taken."""
CLOSED = (
    *("/monitoring", "/svelte", "/login", "/logout"),
    *("/gradio_api/upload", "/gradio_api/process_recording", "/gradio_api/component_server", "/gradio_api/file"),
    *("/gradio_api/proxy", "/gradio_api/stream", "/gradio_api/custom_component", "/gradio_api/deep_link"),
    # Tools are served over streamable HTTP; these are of the older way.
    *("/gradio_api/mcp/sse", "/gradio_api/mcp/messages"),
    *("/gradio_api/dev", "/gradio_api/runs", "/gradio_api/run-history", "/gradio_api/vibe", "/gradio_api/undo-vibe"),
    "/gradio_api/profiling",
)
"""Beginnings of paths that the page, the API and MCP clients never ask for."""
API = "/gradio_api/"
NOTHING = "There is no such endpoint, function or run here."
FAILED = "The server failed at this request. Send it again; if it fails again, tell whoever runs the server."
CHECKING = ("get_fn", "construct_args")
"""Functions of gradio that look up what a request names, and fail at what is not there."""
log = logging.getLogger("selfspan")


class Gate:
    """ASGI middleware in front of gradio's routes.

    Args:
        app: what it guards.
        max_body_bytes, body_s: most bytes of a request, and seconds in which they have to come.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES, body_s: float = BODY_S) -> None:
        self._app = app
        self._max_body_bytes, self._body_s = max_body_bytes, body_s
        self._num_coming = 0  # bytes of bodies that have begun to arrive and not ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if path.startswith(CLOSED):
            await _refused(404, "Not found.")(scope, receive, send)
            return
        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            try:
                body = await asyncio.wait_for(self._body(receive), self._body_s)
            except TimeoutError:
                await _refused(408, f"The request did not arrive within {self._body_s:g} s.")(scope, receive, send)
                return
            except _TooLarge:
                most = f"{self._max_body_bytes / 10**6:g} MB"
                await _refused(413, f"The request is larger than {most}.")(scope, receive, send)
                return
            except _TooMuch:
                await _refused(503, "Too much is being sent at once. Try again in a minute.")(scope, receive, send)
                return
            except _Gone:
                return
            why = _wrong_with(path, body, scope)
            if why:
                await _refused(400, why)(scope, receive, send)
                return
            scope[BODY_BYTES] = len(body)
            receive = _replayed(body, receive)
            del body  # which the request has now, until it is read
        await self._answered(path, scope, receive, send)

    async def _body(self, receive: Receive) -> bytes:
        """A request's body. Raises _TooLarge, _TooMuch, _Gone."""
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                self._num_coming += len(message.get("body", b""))
                if len(body) > self._max_body_bytes:
                    raise _TooLarge
                if len(body) > LARGE_BYTES and self._num_coming > MOST_COMING_BYTES:
                    raise _TooMuch
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self._num_coming -= len(body)

    async def _answered(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; where gradio fails, the caller is told whether what was asked for is not there (400), or
        the server is at fault (500).

        The log has a line of it, without what was sent: anybody can ask for what is not there, and after a restart
        every open page does.
        """
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            if not path.startswith(API):
                raise
            is_callers, place = _is_callers(path, error), _place_of(error)
            level = logging.WARNING if is_callers else logging.ERROR
            log.log(level, "%s %.80r: gradio failed with %s%s", scope["method"], path, type(error).__name__, place)
            log.debug("where it failed", exc_info=error)
            if has_begun:  # what streams has said so by itself
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                answer = _refused(400, _said(path, error)) if is_callers else _refused(500, FAILED)
                await answer(scope, receive, send)


def _wrong_with(path: str, body: bytes, scope: Scope) -> str:
    """What is wrong with what a request says beside its values; empty: nothing, or gradio says it."""
    try:
        said = read(path, body, Headers(scope=scope).get("content-type", ""))
    except WrongBody as wrong:
        return str(wrong)
    if path.rstrip("/") != CANCEL or not isinstance(said, dict) or "app" not in scope:
        return ""
    call = scope["app"].get_blocks()._queue.event_ids_to_events.get(said.get("event_id"))
    is_theirs = call is None or (call.session_hash, call.fn._id) == (said.get("session_hash"), said.get("fn_index"))
    return "" if is_theirs else NOTHING


def _is_callers(path: str, error: Exception) -> bool:
    """Whether gradio failed at what the request names: an endpoint, a function or an argument that is none."""
    if isinstance(error.__cause__, HTTPException):  # a stream that had begun when its call turned out to be none
        return True
    if isinstance(error, KeyError) and path.startswith(BY_NAME):
        return error.args == (f"/{path.removeprefix(BY_NAME).rstrip('/')}",)
    return _frames(error)[-1].name in CHECKING


def _place_of(error: Exception) -> str:
    """Where it failed, without the values there."""
    last = _frames(error)[-1]
    return f" in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"


def _frames(error: Exception) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__, limit=-1)


def _said(path: str, error: Exception) -> str:
    """Why a request was refused, as far as gradio's error tells it to who asked by name."""
    if not path.startswith(BY_NAME):
        return NOTHING
    return f"There is no endpoint {error}." if isinstance(error, KeyError) else str(error)


class _TooLarge(Exception):
    """A request has more bytes than one may have."""


class _TooMuch(Exception):
    """All requests that arrive have more bytes than they may have."""


class _Gone(Exception):
    """Who sends the request is gone."""


def _refused(status: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status_code=status)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which came already, then what comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
