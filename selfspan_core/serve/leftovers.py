"""What gradio still holds of calls without a named session is dropped when their streams end. No torch here."""

import re
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from selfspan_core.serve.call_queue import CallQueue

CALL = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/(?P<call>[^/]+)")
"""The stream of one call by its endpoint's name. Where its caller named no session that has the call's name."""
DATA = "/gradio_api/queue/data"
"""The stream of a session that its caller has named: a page's, or gradio's client's."""


class Leftovers:
    """ASGI middleware that drops what is left of a call when its stream is over, read to its end or not.

    Args:
        app: whose streams are watched; within gradio's own, which each request's scope names.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and clear up behind a stream."""
        call, session = _asked_for(scope)
        if session is None:
            await self._app(scope, receive, send)
            return
        queue: CallQueue = scope["app"].get_blocks()._queue
        try:
            with queue.read(session):
                await self._app(scope, receive, send)
        finally:
            # A page may open its stream once more when all has been said: the session of a caller who named it stays
            # until there are many newer ones. That of one call alone nobody can ask for again.
            if session == call and (session not in queue.streams or queue.is_told(session)):
                queue.forget(session)
                _forget_values(scope, session)


def _asked_for(scope: Scope) -> tuple[str, str | None]:
    """The call and the session whose messages a request asks for; no session where it asks for none that is known."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return "", None
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    match = CALL.fullmatch(path)
    if match:
        return match["call"], scope["app"].get_blocks()._queue.session_of(match["call"])
    if path == DATA:
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return "", asked.get("session_hash", [None])[-1]
    return "", None


def _forget_values(scope: Scope, session: str) -> None:
    """Drop what the page's components hold for a session."""
    holder = scope["app"].state_holder
    with holder.lock:
        holder.session_data.pop(session, None)
        holder.time_last_used.pop(session, None)
