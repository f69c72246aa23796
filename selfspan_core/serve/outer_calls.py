"""Requests of MCP clients, by name, while they are open: gradio answers them by calls of its own. No torch here."""

import secrets

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from selfspan_core.serve.bodies import TOOLS
from selfspan_core.serve.call_queue import CallQueue
from selfspan_core.serve.visitors import CALLER

MOST_CALLERS = 40
"""As many as gradio's own client makes calls at once; it would keep the arguments of others until their turn."""
TOO_MANY = "Too many tools are called already. Try again in a minute."


class OuterCalls:
    """ASGI middleware that gives such a request a name, which gradio passes on to its calls as a header.

    Gradio's own client hears a call to its end, whether the one it calls for is still there or not: a tool of a caller
    who has left would have the device for as long as a run may.

    Args:
        app: within gradio's own, which each request's scope names.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its name is known until it ends."""
        if not _is_tools(scope):
            await self._app(scope, receive, send)
            return
        callers = _queue_of(scope).callers
        if len(callers) >= MOST_CALLERS:
            await JSONResponse({"detail": TOO_MANY}, status_code=503)(scope, receive, send)
            return
        name, header = secrets.token_hex(8), CALLER.encode()
        headers = [(key, value) for key, value in scope["headers"] if key != header]
        callers.add(name)
        try:
            await self._app({**scope, "headers": [*headers, (header, name.encode())]}, receive, send)
        finally:
            callers.discard(name)


def _is_tools(scope: Scope) -> bool:
    """Whether a request may call a tool."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return bool(scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")).startswith(TOOLS))


def _queue_of(scope: Scope) -> CallQueue:
    queue: CallQueue = scope["app"].get_blocks()._queue
    return queue
