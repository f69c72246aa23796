"""Splits a user's text into sentences: clean it, check it with plain error messages, split it.

Sentence ends are found by sentencex (Wikimedia's splitter: rules and lists of abbreviations, nothing to download).
sentencex keeps quoted text in one piece and pairs the quotation marks by counting, so that one missing mark joins
sentences. It therefore gets the text without quotation marks; this file adds them back to their sentences.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable

import sentencex

from selfspan_core.errors import InputError
from selfspan_core.tasks.summarize.cleaning.characters import is_ended, visible_lines
from selfspan_core.tasks.summarize.sentence_ends import corrected

MAX_CHARACTERS = 60_000
MIN_WORDS, MIN_SENTENCES = 30, 3
MAX_SENTENCE_CHARACTERS = 2_000
WINDOW, MARGIN = 4_000, 500
"""Characters that the sentence splitter gets at a time, and at the end of them those that it may be wrong about. A
sentence that no window holds is too long anyway."""
MIN_LATIN_SHARE = 0.7
MIN_COMMON_SHARE = 0.15
MIN_WORDS_TO_JUDGE = 40
MAX_CAPITALS_SHARE = 0.6
MIN_WHOLE_SHARE = 0.25

_WORD = re.compile(r"\w+(?:[’']\w+)*")
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>|<!(?:--|doctype)", re.IGNORECASE)
_PAGE_TAG = re.compile(r"<(?:html|head|body|div|p|br|table|tr|td|ul|li)\b", re.IGNORECASE)
_QUOTES = re.compile(r"[“”«»()\[\]]|(?<!\w)['‘’]|['‘’](?!\w)")
_CLOSING_NEXT = re.compile(r"\s*[”»)\]'’](?=\s|$|[”»)\]])\s*")
_OPENING = frozenset("“«([‘")
_COMMON_WORDS = (
    "the a an of to in and on for with at by from that which who it its is are was were be been has have had he she "
    "they his her their this these as but or not will would said after before when than more about into over i you we"
)
_COMMON = frozenset(_COMMON_WORDS.split())


def clean(text: str) -> str:
    """The text without control and invisible characters, unusual spaces, emoji, and text that looks like markers."""
    return "\n".join(line for line in visible_lines(text) if line)


def check(text: str) -> None:
    """Whether a cleaned text can be summarized at all.

    Raises:
        InputError: it is empty, too long, HTML, or no English prose; the message says what to do.
    """
    if not text:
        raise InputError("The input is empty. Paste an article of some sentences.")
    words = _WORD.findall(text)
    tags = _TAG.findall(text)
    if len(tags) > 2 and (20 * len(tags) > len(words) or _PAGE_TAG.search(text)):
        raise InputError(
            f"This is HTML ({len(tags):,} tags such as {tags[0][:20]}). Paste the text as the browser shows it."
        )
    letters = [c for c in text if c.isalpha()]
    num_latin = sum(c.isascii() or unicodedata.name(c, "").startswith("LATIN") for c in letters)
    if num_latin < MIN_LATIN_SHARE * len(letters) or not letters:
        raise InputError(
            "This is not written in Latin letters; the model reads English only. Paste an English article."
        )
    if sum(c.isupper() for c in letters) > MAX_CAPITALS_SHARE * len(letters):
        raise InputError(
            "This is written in capital letters, which the model has not learned to copy. Paste it in ordinary ones."
        )
    if len(words) < MIN_WORDS:
        raise InputError(
            f"The text has {len(words)} word{'s' * (len(words) != 1)}; a summary needs an article of at least "
            f"{MIN_WORDS} words and {MIN_SENTENCES} sentences."
        )
    num_common = sum(word.lower() in _COMMON for word in words)
    if len(words) >= MIN_WORDS_TO_JUDGE and num_common < MIN_COMMON_SHARE * len(words):
        raise InputError(
            "This does not look like English prose (hardly any of its words is a common English one); the model was "
            "trained on English articles only."
        )


def sentences_of(text: str) -> list[str]:
    """Sentences of a cleaned text, in order; nothing but the spaces between them is left out.

    A line break always ends a sentence.
    """
    found = []
    for line in text.split("\n"):
        found += _sentences_of_line(line)
    return found


def checked_sentences(text: str) -> list[str]:
    """Sentences of a cleaned and checked text.

    Raises:
        InputError: there are too few sentences, one is too long, or most pieces are not sentences.
    """
    sentences = sentences_of(text)
    longest = max(sentences, key=len)
    if len(longest) > MAX_SENTENCE_CHARACTERS:
        raise InputError(
            f'No sentence ends in {len(longest):,} characters, from "{longest[:40]}…" on; the limit is '
            f"{MAX_SENTENCE_CHARACTERS:,}. Put full stops or line breaks where sentences end."
        )
    if len(sentences) < MIN_SENTENCES:
        raise InputError(
            f"The text has {len(sentences)} sentence{'s' * (len(sentences) != 1)}; a summary needs at least "
            f"{MIN_SENTENCES}."
        )
    num_whole = sum(map(is_sentence, sentences))
    if num_whole < MIN_WHOLE_SHARE * len(sentences):
        raise InputError(
            f"Only {num_whole} of {len(sentences)} lines and sentences end in a full stop, question or exclamation "
            "mark: this looks like a list or a table. Paste prose."
        )
    return sentences


def first_sentences(text: str, num_characters: int) -> str:
    """The sentences of a cleaned text that end within so many characters; empty if not even the first does."""
    return " ".join(sentences_of(text[:num_characters])[:-1])


def is_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does: in a full stop, question or exclamation mark, quotes behind it or not."""
    return is_ended(text)


def _sentences_of_line(line: str) -> list[str]:
    directed = directed_quotes(line)
    bounds = _split_bounds(_QUOTES.sub(" ", directed))
    settled = _Boundaries(directed)
    starts = [settled.of(bound) for bound in bounds[:-1]]
    pieces = [line[start:end] for start, end in itertools.pairwise([0, *starts, len(line)])]
    return [sentence for piece in corrected(pieces) if (sentence := piece.strip())]


def _split_bounds(line: str) -> list[int]:
    """Where the splitter's sentences end, the last one with the line.

    It gets WINDOW characters at a time: for each mark that it takes for an opening quotation mark it looks for the
    closing one up to the end, which is quadratic work. A window begins where a sentence does; ends near a window's own
    end, where what follows is not seen, are left to the next one.
    """
    bounds: list[int] = []
    start = 0
    while start < len(line):
        window = line[start : start + WINDOW]
        ends = list(itertools.accumulate(map(len, sentencex.segment("en", window))))
        if ends[-1] != len(window):
            raise RuntimeError("the sentence splitter lost some of the text")
        if start + len(window) < len(line):
            ends = [end for end in ends if end <= len(window) - MARGIN]
        bounds += [start + end for end in ends]
        start += ends[-1] if ends else len(window) - MARGIN
    return bounds


def directed_quotes(line: str) -> str:
    """Straight double quotation marks as opening and closing ones; as many characters as before."""
    if '"' not in line:
        return line
    out, is_open = [], False
    for i, character in enumerate(line):
        if character == '"':
            after_space = i == 0 or line[i - 1].isspace() or line[i - 1] in "([—–-"
            before_space = i + 1 == len(line) or line[i + 1].isspace() or line[i + 1] in ".,;:!?)]"
            opens = not is_open if after_space == before_space else after_space
            character = "“" if opens else "”"
        if character in "“”":
            is_open = character == "“"
        out.append(character)
    return "".join(out)


class _Boundaries:
    """Boundaries of a line with closing marks before them and opening ones behind them.

    Ways are remembered: a line of marks only, with a boundary at each, would be walked along as often as it is long.
    """

    def __init__(self, directed: str) -> None:
        self._directed = directed
        self._behind_closing: dict[int, int] = {}
        self._before_opening: dict[int, int] = {}

    def of(self, bound: int) -> int:
        """Where the boundary found at `bound` belongs."""
        return _walk(_walk(bound, self._closing, self._behind_closing), self._opening, self._before_opening)

    def _closing(self, bound: int) -> int:
        """Behind the closing mark that follows, or `bound` itself."""
        closing = _CLOSING_NEXT.match(self._directed, bound)
        return closing.end() if closing else bound

    def _opening(self, bound: int) -> int:
        """Before the opening mark that stands last, or `bound` itself."""
        directed, at = self._directed, bound
        while at and directed[at - 1].isspace():
            at -= 1
        if not at:
            return bound
        mark = directed[at - 1]
        opens = mark in _OPENING or (mark == "'" and at > 1 and directed[at - 2].isspace())
        return at - 1 if opens else bound


def _walk(start: int, step: Callable[[int], int], known: dict[int, int]) -> int:
    """Where repeated steps end; places passed on the way are remembered in `known`."""
    passed, at = [], start
    while at not in known:
        passed.append(at)
        if (following := step(at)) == at:
            known[at] = at
            break
        at = following
    for place in passed:
        known[place] = known[at]
    return known[at]
