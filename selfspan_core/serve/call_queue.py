"""Gradio's queue of calls, which no caller can stop and which keeps little of calls that nobody hears. No torch here.

For a call over plain HTTP gradio makes a session with values of all of the page's components, some 85 KB, and keeps the
newest few hundred; of every session it keeps a queue of messages and a set without end, and statistics of all calls.
These lie between what runs need and give back, so a crowd of short visits made the process grow by more than they take.
Of 2,001 queues the oldest was dropped, whoever was reading it; and a call whose queue was gone ended the server.
"""

import asyncio
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradio.queueing import Event, Queue

MOST_IDLE = 200
"""Sessions whose calls are over, their messages read or not, and that nobody reads: the newest are kept."""


class CallQueue(Queue):
    """See gradio.

    Attributes:
        streams: open ones, by session; a stream reads its session's messages and calls until it ends.
    """

    streams: Counter[str]

    @classmethod
    def take_over(cls, queue: Queue) -> "CallQueue":
        """A new queue of gradio's as one of these."""
        made = cls.__new__(cls)
        vars(made).update(vars(queue))
        made.streams = Counter()
        made.pending_messages_per_session = _Messages(made)  # type: ignore[assignment]
        # After every call gradio reckons statistics of all of them anew; the page that shows them is closed.
        made.ANALYTICS_MAX_EVENTS = 0
        return made

    def send_message(self, event: Event, event_message: Any) -> None:
        """See gradio, which fails for a session that is gone, and with it the loop that begins all calls."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)

    async def reset_iterators(self, event_id: str) -> None:
        """See gradio, which fails where a cancel has done it meanwhile, and then never forgets the call."""
        try:
            await super().reset_iterators(event_id)
        except KeyError:
            return

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
                self.event_ids_to_events.pop(event._id, None)

    @contextmanager
    def read(self, session: str) -> Iterator[None]:
        """While a stream reads a session's messages they are kept."""
        self.streams[session] += 1
        try:
            yield
        finally:
            self.streams -= Counter([session])

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

    def idle(self) -> list[str]:
        """Sessions whose calls are over, or their ends told, and that nobody reads, the oldest first."""
        live = {
            event.session_hash
            for event in self.event_ids_to_events.values()
            if event.alive and event._id in self.pending_event_ids_session.get(event.session_hash, ())
        }
        known = {**self.pending_messages_per_session, **self.pending_event_ids_session}
        return [session for session in known if session not in live and session not in self.streams]

    def forget(self, session: str) -> None:
        """Drop the messages and the calls of a session.

        No `await` in here, nor where it is called for an idle one: a new call of it comes before or after that.
        """
        self.pending_event_ids_session.pop(session, None)
        self.pending_messages_per_session.pop(session, None)


class _Messages(dict):
    """Queues of messages by session: of idle ones the newest MOST_IDLE, all others however many there are."""

    def __init__(self, queue: CallQueue) -> None:
        super().__init__()
        self._queue = queue

    def __setitem__(self, session: str, messages: Any) -> None:
        if session not in self:
            for idle in self._queue.idle()[:-MOST_IDLE]:
                self._queue.forget(idle)
        super().__setitem__(session, messages)
