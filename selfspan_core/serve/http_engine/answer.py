"""A streamed completion of vLLM: its messages as they arrive, each with its time. No torch here.

A thread of its own asks and reads, so that a message's time is when it arrived, whatever the reader of its ids did
meanwhile, and so that whoever waits can leave at any moment, before the server has said a word, too.
"""

import contextlib
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from selfspan_core.errors import ServerError

MOST_WORDS = 200
LOOK_S = 0.25
"""The longest wait between two looks at whether the run is still wanted."""
MOST_LINE_BYTES = 1 << 22
"""The first message repeats the prompt's ids."""
DATA, DONE = b"data:", b"[DONE]"
Trace = Callable[[str, Mapping[str, Any]], None]
"""Is told what httpx does with a connection: its extension `trace`."""
_OVER, _TOO_LONG = "ended the connection", "sent more than such an answer can be"


SEE_ABOVE, SEE_LOG = "See stack trace (above) for the root cause.", "Its log has the cause."
"""What vLLM tells a client whose answer was lost with the process that computes, and what the client can do."""


def words(text: Any) -> str:
    """What a server said, as one line of a message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * MOST_WORDS]).split())
    return line if len(line) <= MOST_WORDS else f"{line[:MOST_WORDS]}…"


def refusal(said: Any) -> str:
    """The reason in vLLM's object of an error; empty where there is none."""
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return words(message.replace(SEE_ABOVE, SEE_LOG)) if isinstance(message, str) else ""


@dataclass(frozen=True, slots=True)
class Part:
    """What one message brought.

    Attributes:
        ids: the next ids of the answer; several where they were ready together.
        at: seconds from the request to its arrival.
        prompt: the prompt's ids as the server took them; of the first message only.
        finish: why the answer is over ("stop", "length", "abort"), or None.
        num_tokens: ids of the whole answer, as the server counts them; of the last message.
        times: seconds until the first token, and from there to the last one, by the server's clock; of the last
            message, where the server was asked to measure.
    """

    ids: tuple[int, ...]
    at: float
    prompt: tuple[int, ...] | None = None
    finish: str | None = None
    num_tokens: int | None = None
    times: tuple[float, float] | None = None


NOTHING = Part((), 0.0)
"""In place of a message, where none came for a moment."""


class Answer:
    """Iterates over the parts of a streamed completion; `close` ends the connection, and with it the request.

    Args:
        ask: sends the request, over a connection of its own that it traces, and returns the response, its body not
            read; raises ServerError.
        most_tokens, most_bytes: more are not taken.
        silence_s: the longest wait for a message.

    Raises:
        ServerError: while iterating, where the server refuses, or the stream breaks, breaks off, or is not what vLLM
            sends.
    """

    def __init__(
        self, ask: Callable[[Trace], httpx.Response], most_tokens: int, most_bytes: int, silence_s: float
    ) -> None:
        self._ask, self._begun = ask, time.perf_counter()
        self._ending, self._is_closed = threading.Lock(), False
        self._own: socket.socket | None = None  # the connection's, by a number that nobody else gives back
        self._most_tokens, self._most_bytes, self._silence_s = most_tokens, most_bytes, silence_s
        self._num_tokens, self._is_bounded = 0, True
        self._arrived: queue.SimpleQueue[tuple[float, bytes | Exception | str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="http answer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection: vLLM stops decoding a request whose connection is gone. Twice is harmless."""
        with self._ending:
            self._is_closed = True
            if self._own is not None:
                # Closing alone does not wake a thread that waits for the next byte.
                with contextlib.suppress(OSError):
                    self._own.shutdown(socket.SHUT_RDWR)
        self._thread.join(self._silence_s)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the connection as soon as there is one; of an answer that was closed meanwhile there is none."""
        if event == "connection.connect_tcp.complete":
            connection = info["return_value"].get_extra_info("socket")
            with self._ending:
                if self._is_closed:
                    raise ServerError(self._after("was not waited for"))
                # A number of its own: httpx closes its one when the answer ends, and another connection may get it.
                self._own = socket.socket(fileno=os.dup(connection.fileno()))

    def __iter__(self) -> Iterator[Part]:
        since = time.perf_counter()
        while True:
            try:
                at, said = self._arrived.get(timeout=min(LOOK_S, self._silence_s))
            except queue.Empty:
                if time.perf_counter() - since >= self._silence_s:
                    raise ServerError(self._after(f"said nothing for {self._silence_s:g} s")) from None
                yield NOTHING
                continue
            if isinstance(said, str):
                raise ServerError(self._after(said))
            if isinstance(said, ServerError):
                raise said
            if isinstance(said, Exception):
                raise ServerError(self._after(f"lost the connection ({type(said).__name__})")) from said
            if said == DONE:
                return
            part = self._part(said, at)
            self._num_tokens += len(part.ids)
            if self._num_tokens > self._most_tokens:
                raise ServerError(self._after(f"wrote more than the {self._most_tokens} tokens that were asked for"))
            yield part
            since = time.perf_counter()

    def _after(self, what: str) -> str:
        """A message about a stream that went wrong."""
        return f"the vLLM server {what} after {self._num_tokens} tokens; see its log, and run again once it answers"

    def _part(self, said: bytes, at: float) -> Part:
        try:
            message = json.loads(said)
            part = None if isinstance(message, dict) and "error" in message else _read_part(message, at)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerError(self._after("sent something that is no message of a completion")) from error
        if part is None:
            raise ServerError(self._after(f"gave up ({refusal(message) or 'no reason given'})"))
        return part

    def _read(self) -> None:
        """In the thread: lines with their times, then how it ended."""
        try:
            with contextlib.closing(self._ask(self._trace)) as response:
                for line in self._lines(response):
                    if line.startswith(DATA):  # the others are comments that keep a connection alive, and empty
                        self._arrived.put((time.perf_counter() - self._begun, line.removeprefix(DATA).strip()))
            self._arrived.put((0.0, _OVER if self._is_bounded else _TOO_LONG))
        except Exception as error:
            self._arrived.put((0.0, error))
        finally:
            with self._ending:
                if self._own is not None:
                    self._own.close()
                self._own = None

    def _lines(self, response: httpx.Response) -> Iterator[bytes]:
        rest, num_bytes = b"", 0
        for piece in response.iter_bytes():
            num_bytes += len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            if num_bytes > self._most_bytes or len(rest) > MOST_LINE_BYTES:
                self._is_bounded = False
                return
            yield from lines


def _read_part(message: Mapping[str, Any], at: float) -> Part:
    """A message of vLLM. Raises ValueError, KeyError or TypeError on anything else."""
    choices = message["choices"]
    if not choices:
        usage, metrics = message["usage"], message.get("metrics")
        return Part((), at, num_tokens=_whole(usage["completion_tokens"]), times=_times(metrics))
    (choice,) = choices
    given, finish = choice.get("prompt_token_ids"), choice.get("finish_reason")
    if finish is not None and not isinstance(finish, str):
        raise TypeError("finish_reason")
    return Part(_ids(choice["token_ids"]), at, None if given is None else _ids(given), finish)


def _times(metrics: Any) -> tuple[float, float] | None:
    """Of an answer of one token there is no decoding."""
    if not isinstance(metrics, dict) or metrics.get("time_to_first_token_ms") is None:
        return None
    prefill, decode = (
        float(metrics.get(name) or 0) / 1000 for name in ("time_to_first_token_ms", "generation_time_ms")
    )
    if not (0 <= prefill < 1e6 and 0 <= decode < 1e6):
        raise ValueError("times")
    return prefill, decode


def _ids(given: Any) -> tuple[int, ...]:
    return tuple(_whole(one) for one in given)


def _whole(given: Any) -> int:
    if type(given) is not int or given < 0:
        raise TypeError("a whole number")
    return given
