"""Characters that are text: control and invisible characters, unusual spaces, emoji and lookalikes of markers go."""

import re
import unicodedata

CLOSERS = re.escape("\"”’'»)]")
ENDING = re.compile(rf"[.!?…][{CLOSERS}]{{0,8}}\Z")
"""The end of a text that ends as a sentence does."""
_LINE_ENDS = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
# What colours text in a terminal; without its first character, which is none, "[0m" would be left.
_TERMINAL = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
_SOFT_HYPHEN = re.compile(r"\u00ad[^\S\n]{0,200}\n[^\S\n]{0,200}(?=\S)")
_SPACES = re.compile(r"[^\S\n]+")
_LOOSE_MARK = re.compile(r"(?<=\w) {1,200}([.,;!?])(?=\s|$)")
# Text that looks like a marker is harmless, but a small model could not copy it.
_MARKER = re.compile(r"<\|[^|<>\s]{1,12}\|>")


def visible_lines(text: str) -> list[str]:
    """Lines of a text, each without what is no text and with single spaces; blank ones are empty.

    A second call with the joined lines gives the same.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _SOFT_HYPHEN.sub("", _TERMINAL.sub("", _LINE_ENDS.sub("\n", text)))
    text = text.translate(
        {ord(c): None for c in set(text) if c not in "\n\t" and not _is_visible(c)} | {ord("\t"): " "}
    )
    text = _LOOSE_MARK.sub(r"\1", _SPACES.sub(" ", _MARKER.sub(" ", text)))
    return [line.strip() for line in text.split("\n")]


def paragraphs(text: str) -> str:
    """The visible lines, with one empty line where there were several, and none at either end."""
    kept: list[str] = []
    for line in visible_lines(text):
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def num_controls(text: str) -> int:
    """Control characters of a text that stand for no space and no line break."""
    return sum(text.count(c) for c in set(text) if unicodedata.category(c) == "Cc" and not c.isspace())


def is_ended(text: str) -> bool:
    """Whether a text ends in a full stop, question or exclamation mark, closing marks behind it or not."""
    return bool(ENDING.search(text, max(0, len(text) - 10)))


def _is_visible(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    # Emoji and the like are four bytes each to the model, which loses count of them; ° and © stay.
    is_picture = character >= "\u2300" and unicodedata.category(character) in ("So", "Sk")
    return not is_picture and character != "\ufe0f" and unicodedata.category(character) not in ("Cc", "Cf", "Co")
