"""What gradio still holds of calls whose answers have been heard, and nobody asks for again. No torch here.

For a call over plain HTTP gradio makes a session with values of all of the page's components, some 85 KB, and keeps the
newest few hundred; of every session it keeps a queue and a set without end. They lie between what runs need and give
back, so a crowd of short visits made the process grow by more than they take.
"""

import re
from collections import Counter
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALL = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/(?P<call>[^/]+)/?")
"""The stream of one call by its endpoint's name. Where its caller named no session that has the call's name."""
DATA = "/gradio_api/queue/data"
"""The stream of a session that its caller has named: a page's, or gradio's client's."""


class Leftovers:
    """ASGI middleware that drops what is left of calls whenever the stream of one is over, read to its end or not.

    Args:
        app: whose streams are watched; within gradio's own, which each request's scope names.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._heard: Counter[str] = Counter()  # streams that are open, by session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and clear up behind a stream."""
        session, is_named = _session(scope) if scope["type"] == "http" and scope["method"] == "GET" else ("", True)
        if not session:
            await self._app(scope, receive, send)
            return
        self._heard[session] += 1
        is_left = False

        async def received() -> Message:
            nonlocal is_left
            message = await receive()
            is_left = is_left or message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, received, send)
        finally:
            self._heard -= Counter([session])
            if not is_named:
                forget_values(scope["app"], session)
            if not is_named or (is_left and session not in self._heard):
                forget_messages(scope["app"], session)
            forget_heard(scope["app"], self._heard)


def _session(scope: Scope) -> tuple[str, bool]:
    """The session whose messages a request asks for, empty for none, and whether its caller named it."""
    path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    match = CALL.fullmatch(path)
    if match:
        call = scope["app"].get_blocks()._queue.event_ids_to_events.get(match["call"])
        session = match["call"] if call is None else call.session_hash
        return session, session != match["call"]
    if path == DATA:
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return asked.get("session_hash", [""])[-1], True
    return "", True


def forget_values(app: Any, session: str) -> None:
    """Drop what the components of a session hold.

    Args:
        app: gradio's.
        session: its name.
    """
    with app.state_holder.lock:
        app.state_holder.session_data.pop(session, None)
        app.state_holder.time_last_used.pop(session, None)


def forget_messages(app: Any, session: str) -> None:
    """Drop what was to be said to a caller who is gone, unless a call goes on that they have asked for since.

    Args:
        app: gradio's.
        session: the caller's.
    """
    queue = app.get_blocks()._queue
    if not any(call.alive and call.session_hash == session for call in queue.event_ids_to_events.values()):
        queue.pending_event_ids_session.pop(session, None)
        queue.pending_messages_per_session.pop(session, None)


def forget_heard(app: Any, heard: Counter[str]) -> None:
    """Drop queues and sets of sessions whose calls are all over and have nothing more to say.

    No `await` in here: a new call of such a session comes before or after it.

    Args:
        app: gradio's.
        heard: streams that are open, by session; these read their queue and set until they end.
    """
    queue = app.get_blocks()._queue
    messages = queue.pending_messages_per_session
    for session, calls in list(queue.pending_event_ids_session.items()):
        # Gradio says how a call ended before it forgets the call.
        is_over = calls.isdisjoint(queue.event_ids_to_events)
        if is_over and session not in heard and (session not in messages or messages[session].empty()):
            del queue.pending_event_ids_session[session]
            messages.pop(session, None)
