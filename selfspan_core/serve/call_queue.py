"""Gradio's queue of calls, which no caller can stop and which keeps little of calls that nobody hears. No torch here.

For a call over plain HTTP gradio makes a session with values of all of the page's components, some 85 KB, and keeps the
newest few hundred; of every session it keeps a queue of messages and a set without end, and statistics of all calls.
These lie between what runs need and give back, so a crowd of short visits made the process grow by more than they take.
Of 2,001 queues the oldest was dropped, whoever was reading it; and a call whose queue was gone ended the server.
"""

import asyncio
import traceback
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from gradio.queueing import Event, Queue

from selfspan_core.serve.bodies import BODY_BYTES

MOST_IDLE = 1000
MOST_UNREAD = 10_000
"""Sessions whose calls are over, their messages read or not, and that nobody reads, and messages of all of them: those
that called last are kept."""
MOST_UNTOLD = 150
MOST_OF_ONE = 2000
"""Calls of a session whose ends nobody has read, and messages that nobody has, while calls are taken. All calls for MCP
clients are of one session: 40 at once."""
MOST_HELD_BYTES = 64 * 10**6
LARGE_BYTES = 100_000
"""Of requests whose calls wait or run: over the first, no large one is let in."""
TOO_MANY_UNTOLD = "This session has {:,} calls whose ends nobody has read. Read them first."
TOO_LARGE = "Texts of {:.0f} MB wait for their turn already. Try again in a minute."


class CallQueue(Queue):
    """See gradio.

    Attributes:
        streams: open ones, by session; a stream reads its session's messages and calls until it ends.
        callers: open requests that calls are made for, by name: those of MCP clients, for whom gradio calls itself.
    """

    streams: Counter[str]
    callers: set[str]

    @classmethod
    def take_over(cls, queue: Queue) -> "CallQueue":
        """A new queue of gradio's as one of these."""
        made = cls.__new__(cls)
        vars(made).update(vars(queue))
        made.streams, made.callers = Counter(), set()
        made.pending_messages_per_session = _Messages(made)  # type: ignore[assignment]
        # After every call gradio reckons statistics of all of them anew; the page that shows them is closed.
        made.ANALYTICS_MAX_EVENTS = 0
        return made

    def send_message(self, event: Event, event_message: Any) -> None:
        """See gradio, which fails for a session that is gone, and with it the loop that begins all calls."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)

    def set_server_app(self, app: Any) -> None:
        """See gradio, where a call that is cancelled twice at once fails, and what is over stays to be begun anew."""
        super().set_server_app(app)
        app.iterators, app.iterators_to_reset = _Iterators(app.iterators), _OfCalls(self.event_ids_to_events)

    async def push(self, body: Any, request: Any, username: Any) -> tuple[bool, str, Any]:
        """See gradio; a session that reads nothing and a server that holds too much get no more calls."""
        session, num_bytes = body.session_hash, _num_bytes(request)
        held = sum(_num_bytes(event.request) for event in self.event_ids_to_events.values())
        if num_bytes > LARGE_BYTES and held + num_bytes > MOST_HELD_BYTES:
            return False, TOO_LARGE.format(held / 10**6), "queue_full"
        num_untold = len(self.pending_event_ids_session.get(session, ()))
        messages = self.pending_messages_per_session.get(session)
        if num_untold >= MOST_UNTOLD or (messages is not None and messages.qsize() > MOST_OF_ONE):
            return False, TOO_MANY_UNTOLD.format(num_untold), "queue_full"
        if messages is not None:
            self.pending_messages_per_session.move_to_end(session)
        self.make_room()
        return await super().push(body, request, username)

    async def clean_events(self, *, session_hash: str | None = None, event_id: str | None = None) -> None:
        """See gradio, which ends a session's calls with any of its streams, though another one reads them."""
        self.end_reading()
        if session_hash is None or session_hash not in self.streams:
            await super().clean_events(session_hash=session_hash, event_id=event_id)

    async def process_events(self, events: list[Event], *arguments: Any, **options: Any) -> None:
        """See gradio; calls are forgotten however they end, and a run that is cancelled in a tick ends with it.

        Such a run is held by nothing but the frames of the error, in a circle: it would have its place on the device
        until Python next looks for garbage, which may take minutes.
        """
        try:
            await super().process_events(events, *arguments, **options)
        except asyncio.CancelledError as error:
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__context__
            raise
        finally:
            for event in events:
                self._forget_call(event)

    def _forget_call(self, event: Event) -> None:
        """A call is over. Where its session's stream has ended before it, nobody will be told of its end."""
        self.event_ids_to_events.pop(event._id, None)
        if self.server_app is not None:
            self.server_app.iterators_to_reset.discard(event._id)
        session = event.session_hash
        if not event.alive or session not in self.pending_messages_per_session:
            calls = self.pending_event_ids_session.get(session, set())
            calls.discard(event._id)
            if not calls:
                self.pending_event_ids_session.pop(session, None)

    @contextmanager
    def read(self, session: str) -> Iterator[None]:
        """While a stream reads a session's messages they are kept."""
        reader = _Reader(session)
        self.streams[session] += 1
        token = _READER.set(reader)
        try:
            yield
        finally:
            self.end_reading()
            _READER.reset(token)

    def end_reading(self) -> None:
        """The stream that this is called in reads no more: where two of a session end at once, one is the last."""
        reader = _READER.get()
        if reader is not None and reader.is_there:
            reader.is_there = False
            self.streams -= Counter([reader.session])

    def session_of(self, call: str) -> str | None:
        """The session of a call that runs or that somebody may still ask about; None where there is no such call."""
        event = self.event_ids_to_events.get(call)
        if event is not None:
            return event.session_hash
        sessions = self.pending_event_ids_session.items()
        return next((session for session, calls in sessions if call in calls), None)

    def is_told(self, session: str) -> bool:
        """Whether whoever listens for a session has heard how all of its calls ended."""
        messages = self.pending_messages_per_session.get(session)
        return not self.pending_event_ids_session.get(session) and (messages is None or messages.empty())

    def make_room(self) -> None:
        """Forget sessions whose calls are over, or their ends told, and that nobody reads, but for the last ones."""
        live = {
            event.session_hash
            for event in self.event_ids_to_events.values()
            if event.alive and event._id in self.pending_event_ids_session.get(event.session_hash, ())
        }
        messages = self.pending_messages_per_session
        for session in [one for one in self.pending_event_ids_session if one not in messages and one not in live]:
            self.forget(session)
        idle = [one for one in reversed(messages) if one not in live and one not in self.streams]
        num_unread = 0
        for number, session in enumerate(idle):
            num_unread += messages[session].qsize()
            if number >= MOST_IDLE or (number and num_unread > MOST_UNREAD):
                self.forget(session)

    def forget(self, session: str) -> None:
        """Drop the messages and the calls of a session.

        No `await` in here, nor where it is called for an idle one: a new call of it comes before or after that.
        """
        self.pending_event_ids_session.pop(session, None)
        self.pending_messages_per_session.pop(session, None)


@dataclass
class _Reader:
    """A stream that reads a session's messages."""

    session: str
    is_there: bool = True


_READER: ContextVar[_Reader | None] = ContextVar("reader", default=None)
"""Of the request that is being answered."""


class _Messages(OrderedDict):
    """Queues of messages by session, in the order of their last calls."""

    def __init__(self, queue: CallQueue) -> None:
        super().__init__()
        self._queue = queue

    def __delitem__(self, session: str) -> None:
        """A stream that breaks off takes its session's messages with it, but not from another one that reads them."""
        self._queue.end_reading()
        if session not in self._queue.streams and session in self:
            super().__delitem__(session)


class _Iterators(dict):
    """Iterators by call. Gradio looks for one, closes it, and takes out what may have been taken out meanwhile."""

    def __delitem__(self, call: str) -> None:
        self.pop(call, None)


class _OfCalls(set):
    """Names of calls that are not over, and of no others."""

    def __init__(self, calls: Mapping[str, Event]) -> None:
        super().__init__()
        self._calls = calls

    def add(self, call: str) -> None:
        if call in self._calls:
            super().add(call)


def _num_bytes(request: Any) -> int:
    """How long the body of a call was; 0 where nothing has counted it."""
    return getattr(request, "scope", {}).get(BODY_BYTES, 0)
