"""Whose call it is that gradio makes right now, and whether anybody hears what it says."""

import time
from collections.abc import Callable

from gradio.context import LocalContext

UNHEARD_S = 30.0
"""Seconds that the messages of a run may lie unread before it is given up."""
CALLER = "x-selfspan-caller"
"""The header that names the request which gradio's own client calls for; `outer_calls` sets it."""


def visitor() -> str:
    """The session of the caller; empty outside of a call, and where gradio's own client calls for somebody else.

    All tools of MCP are called by one client inside the server: its session is nobody's in particular.
    """
    request = LocalContext.request.get(None)
    if request is None or request.headers.get("x-gradio-user") == "mcp":
        return ""
    return request.session_hash or ""


class Listener:
    """Whether a caller takes what the server has for them: false once something has lain unread for too long.

    A run that was asked for and never listened to, or whose connection is open and not read, would have the device for
    as long as a run may.

    Args:
        adds: messages for the caller between two questions; one who takes fewer, but some, is slow and not gone.
        num_unread: messages that wait for the caller; None: of the call that gradio makes right now.
        patience_s: seconds; None: UNHEARD_S.
        clock: seconds.
        is_open: whether the request is that the call is made for; None: of the call that gradio makes right now.
    """

    def __init__(
        self,
        adds: int = 1,
        num_unread: Callable[[], int] | None = None,
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_open: Callable[[], bool] | None = None,
    ) -> None:
        self._is_open = is_open or _open_of_call()
        self._adds, self._num_unread = adds, num_unread or _unread_of_call()
        self._patience_s, self._clock = UNHEARD_S if patience_s is None else patience_s, clock
        self._since = clock()
        self._before: float = float("inf")

    def __call__(self) -> bool:
        """Whether the caller is there, as far as one can know."""
        if not self._is_open():
            return False
        num_unread = self._num_unread()
        if num_unread == 0 or num_unread < self._before + self._adds:
            self._since = self._clock()
        self._before = num_unread
        return self._clock() - self._since < self._patience_s


def _unread_of_call() -> Callable[[], int]:
    """How many messages wait for the caller of this call; none, outside of one."""
    request, blocks = LocalContext.request.get(None), LocalContext.blocks.get(None)
    if request is None or blocks is None or not request.session_hash:
        return lambda: 0
    queues, session = blocks._queue.pending_messages_per_session, request.session_hash

    def num_unread() -> int:
        queue = queues.get(session)
        return 0 if queue is None else queue.qsize()

    return num_unread


def _open_of_call() -> Callable[[], bool]:
    """Whether the request that this call is made for is open; all calls but those for others count as their own."""
    request, blocks = LocalContext.request.get(None), LocalContext.blocks.get(None)
    name = None if request is None or blocks is None else request.headers.get(CALLER)
    if not name:
        return lambda: True
    callers = blocks._queue.callers
    return lambda: name in callers
