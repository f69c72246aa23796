"""Ids to text for display, an id at a time, without half a character."""

from selfspan_core.models.tokenizer import SpanTokenizer

MAX_TOKENS_PER_CHARACTER = 4
"""UTF-8 needs at most four bytes, and a byte-fallback token is one byte."""


class TextStream:
    """Ids to text, one id at a time, without ever showing half a character.

    A token's text can depend on the token before it (spaces) and a character can be spread over several byte tokens.
    So the recent ids are decoded together, the text already returned is cut off, and the rest is held back while it
    ends in an incomplete character.
    """

    def __init__(self, tokenizer: SpanTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._num_given = 0

    def push(self, token: int) -> str:
        """Text that this id completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._pending_text()
        if text.endswith("\ufffd") and len(self._ids) - self._num_given < MAX_TOKENS_PER_CHARACTER:
            return ""
        # Keep the ids just decoded as the left context of the next ones, and drop the ids before them.
        self._ids = self._ids[self._num_given :]
        self._num_given = len(self._ids)
        return text

    def flush(self) -> str:
        """The text still held back, complete or not; the stream is then reset."""
        text = self._pending_text() if len(self._ids) > self._num_given else ""
        self._ids, self._num_given = [], 0
        return text

    def _pending_text(self) -> str:
        given = self._tokenizer.decode(self._ids[: self._num_given]) if self._num_given else ""
        return self._tokenizer.decode(self._ids)[len(given) :]
