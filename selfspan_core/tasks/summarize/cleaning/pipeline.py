"""The one cleaning step between a text as it was pasted and the parser of articles.

Passes are repeated until a text does not change any more, so that a cleaned text is a fixed point: cleaning it again
changes nothing. A text that has not settled after MAX_PASSES (built to be decoded again and again, say) keeps all but
its invisible characters, and so does one of which nothing would be left, and one of more than MAX_LINES lines.
"""

from collections import Counter

from selfspan_core.tasks.base import Cleaned
from selfspan_core.tasks.summarize.cleaning.characters import num_controls, paragraphs
from selfspan_core.tasks.summarize.cleaning.furniture import furniture_dropped
from selfspan_core.tasks.summarize.cleaning.joining import lines_joined
from selfspan_core.tasks.summarize.cleaning.markup import (
    blocks_left_out,
    entities_read,
    inline_read,
    quotes_opened,
)
from selfspan_core.tasks.summarize.cleaning.pages import page_numbers_taken_off
from selfspan_core.tasks.summarize.cleaning.references import references_taken_off
from selfspan_core.tasks.summarize.cleaning.transcripts import times_taken_off

MAX_TYPED_CHARACTERS = 600_000
"""Most characters of a typed text; a longer one is refused by the parser and returned as it is."""
MAX_CLEANED_CHARACTERS = 120_000
"""Most characters beside unusual spaces and the like: twice what an article may have; a longer text keeps its form."""
MAX_LINES = 10_000
"""Lines of a text that is cleaned: an article of more has hardly a word in each."""
MAX_PASSES = 8
MAX_WORK = MAX_PASSES * MAX_CLEANED_CHARACTERS // 2
"""Characters of all passes together: who builds a text that changes in every pass waits for no more of them."""

WORDS = {
    "controls": ("control character dropped", "control characters dropped"),
    "entities": ("HTML entity read", "HTML entities read"),
    "tables": ("table left out", "tables left out"),
    "code": ("code block left out", "code blocks left out"),
    "images": ("image left out", "images left out"),
    "rules": ("rule between parts left out", "rules between parts left out"),
    "headings": ("heading mark taken off", "heading marks taken off"),
    "quoted": ("quoted line opened", "quoted lines opened"),
    "links": ("link address taken off", "link addresses taken off"),
    "emphasis": ("emphasis mark pair taken off", "emphasis mark pairs taken off"),
    "references": ("reference mark taken off", "reference marks taken off"),
    "notes": ("note left out", "notes left out"),
    "times": ("time taken off", "times taken off"),
    "pages": ("page number taken off", "page numbers taken off"),
    "breaks": ("line break joined", "line breaks joined"),
    "hyphens": ("hyphenated word joined", "hyphenated words joined"),
    "bullets": ("list bullet taken off", "list bullets taken off"),
    "menus": ("menu line dropped", "menu lines dropped"),
    "cookies": ("cookie line dropped", "cookie lines dropped"),
    "adverts": ("advert dropped", "adverts dropped"),
    "bylines": ("byline or date dropped", "bylines and dates dropped"),
    "shares": ("share line dropped", "share lines dropped"),
    "more": ("line about other stories dropped", "lines about other stories dropped"),
    "newsletters": ("newsletter line dropped", "newsletter lines dropped"),
    "credits": ("picture credit dropped", "picture credits dropped"),
    "copyrights": ("copyright line dropped", "copyright lines dropped"),
}
"""What was done, for one and for several, in the order in which it is told."""


def cleaned(text: str) -> Cleaned:
    """A text in the form of an article, and what was done to it, in counts."""
    if len(text) > MAX_TYPED_CHARACTERS:
        return Cleaned(text)
    first = paragraphs(text)
    if len(first) > MAX_CLEANED_CHARACTERS or first.count("\n") >= MAX_LINES:
        return Cleaned(first)
    tally = Counter({"controls": num_controls(text)})
    current = first
    for _ in range(min(MAX_PASSES, MAX_WORK // max(1, len(first)))):
        following = _one_pass(current, tally)
        if following == current:
            break
        current = following
    else:
        return Cleaned(first)
    return Cleaned(current, _told(tally)) if current else Cleaned(first)


def _one_pass(text: str, tally: Counter) -> str:
    lines = paragraphs(entities_read(text, tally)).split("\n")
    for step in (
        blocks_left_out,
        quotes_opened,
        page_numbers_taken_off,
        times_taken_off,
        inline_read,
        references_taken_off,
        furniture_dropped,
        lines_joined,
    ):
        lines = step(lines, tally)
    return paragraphs("\n".join(lines))


def _told(tally: Counter) -> tuple[str, ...]:
    """Counts in words."""
    return tuple(f"{tally[kind]:,} {words[tally[kind] != 1]}" for kind, words in WORDS.items() if tally[kind])
