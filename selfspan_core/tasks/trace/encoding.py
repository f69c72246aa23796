"""Programs and steps as text for a model: compact, a space before each word and nowhere else, digits one by one.

    for i in range(10):        0 for i in range(10):       the level of indentation as a digit, then the line
        total += i             1 total+= i

So a word that a tokenizer knows is one id, and a string's characters are one each: an index into it counts ids.
"""

import re

from selfspan_core.tasks.base import Tokenizer
from selfspan_core.tasks.trace.names import KEYWORDS, ONE_ID
from selfspan_core.tasks.trace.program import Line

INSTRUCTION = "Run:\n"
_LEXEME = re.compile(r" ?[A-Za-z_][A-Za-z_0-9]*|'[^']*'|.", re.DOTALL)
_SOURCE = re.compile(r"[A-Za-z_][A-Za-z_0-9]*|'[^']*'|\S")


def line_text(line: Line) -> str:
    """A line as a model sees it."""
    found = _SOURCE.findall(line.text)
    words = (f" {one}" if one[0].isalpha() or one[0] == "_" else one for one in found)
    return f"{line.level}{''.join(words)}\n"


def most_ids(text: str) -> int:
    """Most ids of a compact text; a word whose length is not known has one an ASCII character."""
    return sum(_most_of(lexeme) for lexeme in _LEXEME.findall(text))


def _most_of(lexeme: str) -> int:
    word = lexeme.strip()
    return 1 if word in ONE_ID else KEYWORDS.get(word, len(lexeme))


class Encoder:
    """Compact text to ids of one tokenizer, lexeme by lexeme."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        markers = tokenizer.markers
        start = () if markers.bos is None else (markers.bos,)
        self.scaffold = (*start, *tokenizer.encode(INSTRUCTION))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a compact text."""
        known = self._known
        ids: list[int] = []
        for lexeme in _LEXEME.findall(text):
            found = known.get(lexeme)
            ids.extend(self._learn(lexeme) if found is None else found)
        return tuple(ids)

    def _learn(self, lexeme: str) -> tuple[int, ...]:
        pieces = lexeme if lexeme.startswith("'") else [lexeme]
        ids = tuple(token for one in pieces for token in self.tokenizer.encode(one))
        if len(self._known) < 10_000:  # words of users come and go
            self._known[lexeme] = ids
        return ids
