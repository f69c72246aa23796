"""Sentences as words and marks, and back: the form in which sentences are shortened."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from training.data.summary_words import PRONOUNS

OPENING_MARKS, CLOSING_MARKS = "\"“‘'([", "\"”’')]"
DASHES = ("--", "—", "–", "-")
_CHUNK = re.compile(r"^([\"“‘'(\[]*)(.*?)([\"”’')\],;:.!?…]*)$", re.DOTALL)
_GLUED = re.compile(r"(?<=\))(?=\w)")


@dataclass(frozen=True)
class Token:
    """A word or a mark of a sentence: its text, and whether a space stands before it."""

    text: str
    spaced: bool

    @property
    def lower(self) -> str:
        """In small letters, with plain apostrophes."""
        return self.text.lower().replace("’", "'")

    @property
    def is_word(self) -> bool:
        """Whether it holds a letter or digit."""
        return any(map(str.isalnum, self.text))


def tokens_of(sentence: str) -> list[Token]:
    """Words and the marks around them. A full stop inside a sentence is part of its word ("Gov.")."""
    chunks = sentence.split()
    tokens = []
    for number, chunk in enumerate(chunks):
        is_last = number + 1 == len(chunks)
        # "(CNN)Good": a bracket ends a piece even where no space follows.
        for at, piece in enumerate(_GLUED.split(chunk)):
            before, word, behind = _CHUNK.match(piece).groups()
            if not is_last and behind.startswith(".") and word:
                word, behind = word + ".", behind[1:]
            marks = [*before, *([word] if word else []), *re.findall(r"[.!?…]+|.", behind)]
            tokens += [Token(mark, spaced=at + position == 0) for position, mark in enumerate(marks)]
    return tokens


def text_of(tokens: Sequence[Token]) -> str:
    """A sentence out of tokens, its first letter large."""
    text = "".join((" " if token.spaced and at else "") + token.text for at, token in enumerate(tokens))
    first = next((i for i, c in enumerate(text) if c.isalnum()), 0)
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def is_pronoun_led(sentence: str) -> bool:
    """Whether a sentence starts with a pronoun, and so leans on the one before it."""
    words = sentence.split(maxsplit=1)
    return bool(words) and words[0].strip(OPENING_MARKS + CLOSING_MARKS + ",").lower() in PRONOUNS
