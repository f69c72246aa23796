"""Requests that a server answers beside a shown one, so that its steps have as many rows as were asked for."""

import threading
from collections.abc import Callable, Iterator

from selfspan_core.errors import ServerError
from selfspan_core.serve.http_engine.answer import Answer


class Beside:
    """Keeps a number of requests under way, each followed by the next, until it is closed. Their ids are only counted.

    Args:
        asks: each begins one request; endless.
        num_rows: requests at a time.
    """

    def __init__(self, asks: Iterator[Callable[[], Answer]], num_rows: int) -> None:
        self._asks = asks
        self._news = threading.Condition()
        self._next = threading.Lock()  # not that of `_news`: making the next prompt takes a while
        self._open: set[Answer] = set()
        self._num_begun = self._num_tokens = 0
        self._failure: Exception | None = None
        self._is_over = False
        self._threads = [threading.Thread(target=self._row, name="beside", daemon=True) for _ in range(num_rows)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begun_within(self, seconds: float) -> bool:
        """Whether every row has its first id, now or within so many seconds: from then on steps have all rows.

        Raises:
            ServerError: a request failed.
        """
        with self._news:
            self._news.wait_for(lambda: self._failure is not None or self._has_begun(), seconds)
            if self._failure is None:
                return self._has_begun()
        self.taken()
        return False

    def _has_begun(self) -> bool:
        return self._num_begun >= len(self._threads)

    def taken(self) -> int:
        """Ids that arrived since the last call. Raises ServerError where a request failed: rows are missing then."""
        with self._news:
            if self._failure is not None:
                raise ServerError(f"one of the requests beside this one failed: {self._failure}") from self._failure
            num, self._num_tokens = self._num_tokens, 0
            return num

    def close(self) -> None:
        """End all connections, and so the requests."""
        with self._news:
            self._is_over = True
            answers = list(self._open)
        for answer in answers:
            answer.close()
        for thread in self._threads:
            thread.join()

    def _row(self) -> None:
        is_first = True
        try:
            while not self._is_over:
                with self._next:
                    ask = next(self._asks)
                for num in self._answered(ask):
                    with self._news:
                        self._num_tokens += num
                        self._num_begun += is_first
                        is_first = False
                        self._news.notify()
        except Exception as error:
            with self._news:
                if not self._is_over:
                    self._failure = self._failure or error
                self._news.notify()

    def _answered(self, ask: Callable[[], Answer]) -> Iterator[int]:
        """How many ids each message of an answer brings."""
        with ask() as answer:
            with self._news:
                self._open.add(answer)
                if self._is_over:  # `close` has gone by already
                    return
            try:
                yield from (len(part.ids) for part in answer if part.ids)
            finally:
                with self._news:
                    self._open.discard(answer)
