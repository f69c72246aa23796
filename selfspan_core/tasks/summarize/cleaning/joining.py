"""Lines that were broken to fit a width, joined again; headings, items of lists and paragraphs stay apart.

A break is certain where a line ends within a sentence and the next goes on in a small letter, or where a word is
hyphenated. Such breaks tell how long the text's lines are; from these lengths follow the breaks before capitals
("North / Marlow"): the next line's first word would not have fitted. A line that was ended early was ended on purpose;
one without a full stop behind a sentence's end is a heading; a few words that come as a line several times are a label,
such as a speaker's name.

A word hyphenated at a line's end loses the hyphen, unless it is a compound. It is taken for one if the second part
begins with a capital or a figure, the first one ends in a figure or has one letter, either has another hyphen, the text
has the compound elsewhere and not the word in one, or has either part, of MIN_PART letters at least, as a word; if the
first part is in FIRST_PARTS and the second not in ENDINGS, or the second one in LAST_PARTS and the first not in
PREFIXES.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfspan_core.tasks.summarize.cleaning.characters import is_ended

_FIRST_PARTS = (
    "all anti back best better cross double early east eight ever far fast fifth first five forty four free front "
    "full good half hard heavy high hot ill large late left life light little live long low many mid middle mind much "
    "multi near neo never new next nine non north off old one open quasi ready real right risk road "
    "sci second self seven short single sixty small south still strong super then third thirty three top triple twelve "
    "twenty twice two upside vice waist well west wide world zero"
)
FIRST_PARTS = frozenset(_FIRST_PARTS.split())
_LAST_PARTS = (
    "affiliated aged altering area armed averse away backed based born bound breaking budget built by called capped "
    "caught causing certified class collar controlled covered decade deep dollar driven edge educated elect ending "
    "equipped established eyed faced fashioned filled fired five foot founder founders four free friendly funded "
    "general generated grader grossing growing half handed haired hearted high host hosts hour husband in inch "
    "increase inspired inspiring keeping known language lasting law leading legged level like listed long "
    "looking loving made making member metre mile minded minister minute month needed nine obsessed of off old on "
    "operated out owned paced packed page paid party point pound powered president produced producing proof quarter "
    "ranked ranking reaching ready related resistant rich ridden right rise risk rooted run running sapping "
    "saving scale scorer selling sensitive seven shaped sharing sided six sized speaking speed sponsored star starring "
    "stars state stopping strong style supervised supported taking tech term themed third threatening three time timer "
    "to top torn trained two type up watched weather week wide wife winner winning worker workers worn worst "
    "wrote year"
)
LAST_PARTS = frozenset(_LAST_PARTS.split())
_ENDINGS = (
    "ation dency dom er ern est hood ice ing ion ity land lance less light ly ment mes ness night pack ship side sion "
    "sions some tain teen tion tions tual tually ty ward wards water way ways while wise work"
)
ENDINGS = frozenset(_ENDINGS.split())
"""Behind a first part one of these is no word of its own: "free-/dom", "high-/way"."""
_PREFIXES = "ad al be com con de dis em en ex fore im in inter mis out over per pre re sub super trans un under"
PREFIXES = frozenset(_PREFIXES.split())
"""Before one of these a last part is no sign of a compound: "un-/like"."""
MIN_PART = 5
"""Letters of both parts, each of which the text has as a word, of a compound that is known by that alone."""
_LIST_ENDS = frozenset(",:;")
"""What follows may be an item of a list in small letters: the lengths of the lines decide."""
_SUSPENDED = frozenset(("and", "or", "to"))
_MARK_ITEM = re.compile(r"[•‣▪◦●○■*] ")
# Such a mark begins a line of running text, too: it is an item's only where the line before has ended.
_OTHER_ITEM = re.compile(r"(?:[-+–—]|\(?\d{1,3}[.)]|\(?(?:[ivx]{1,5}|[a-zA-Z])\)|[A-Z][A-Z .'’-]{1,30}:) ")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S{1,500}|\S{1,100}@\S{1,100}")
_MARK_ALONE = re.compile(r"[•‣▪◦●○■]|\(?\d{1,3}[.)]")
_BULLET = re.compile(r"[-+*•‣▪◦●○■] ")
_OPENERS = "\"“‘'(["
_HYPHENATED = re.compile(r"[^\W_]-\Z")
_WORDS = re.compile(r"[^\W\d_]{1,40}(?:-[^\W\d_]{1,40}){0,4}")
_WITH_END = re.compile(r"[.!?…][\"”’')\]]{0,3}(?:\s|\Z)")
MIN_CERTAIN, MIN_CERTAIN_SHARE = 2, 1 / 3
MIN_OWN = 3
"""Certain breaks of a block that has a width of its own."""
MAX_LONGER = 1.25
MIN_PROSE_WORDS = 6
MAX_WIDTH = 200
"""Longer lines are paragraphs, whatever follows them."""
FULL, MIN_FULL_SHARE = 0.7, 0.75
"""So many of the lines with certain breaks are so full, compared with the longest, or the text is no broken prose."""
MIN_ALONE = 24
"""Characters of a line that is joined for its letters alone, where the lengths of lines tell nothing."""
MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS = 4, 40


@dataclass(frozen=True)
class _Width:
    """How long broken lines are: `fewest` characters that they and the next word come to, `longest` of a line."""

    fewest: int
    longest: int

    def breaks(self, line: str, following: str) -> bool:
        """Whether the next line's first word would not have fitted."""
        return _sum(line, following) >= self.fewest and len(line) <= MAX_LONGER * self.longest


def lines_joined(lines: list[str], tally: Counter) -> list[str]:
    """Lines as paragraphs and headings; empty lines stay."""
    items = _items(lines)
    blocks = list(_blocks(lines))
    certain = {
        place
        for start, end in blocks
        if _is_prose(lines[start:end])
        for place in range(start, end - 1)
        if not items[place + 1] and _is_certain(lines[place], lines[place + 1])
    }
    breaks = _breaks(lines, blocks, items, certain)
    return _with_marks(_glued(lines, breaks, tally), tally)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(start, end) of every run of lines that are not empty."""
    start = 0
    for place in range(len(lines) + 1):
        if place == len(lines) or not lines[place]:
            if place > start:
                yield start, place
            start = place + 1


def _items(lines: Sequence[str]) -> list[bool]:
    """Which lines begin an item of a list, or what another person says ("HOST: ")."""
    items: list[bool] = []
    before = ""
    for line in lines:
        ends_before = not before or items[-1] or is_ended(before) or before[-1] in ":;"
        is_item = bool(_MARK_ITEM.match(line)) or (ends_before and bool(_OTHER_ITEM.match(line)))
        items.append(is_item)
        before = line
    return items


def _is_prose(block: Sequence[str]) -> bool:
    """Whether lines are running text: with the end of a sentence somewhere, or many words each."""
    num_words = sum(line.count(" ") + 1 for line in block)
    return num_words >= MIN_PROSE_WORDS * len(block) or any(_WITH_END.search(line) for line in block)


def _is_certain(line: str, following: str) -> bool:
    """Whether the break is within a sentence, by its letters alone."""
    if line[-1] == "-" and line[-2:-1].isdigit() and following[:1].isdigit():
        return True
    if not following.lstrip(_OPENERS)[:1].islower() or line[-1] in _LIST_ENDS or is_ended(line):
        return False
    return any(map(str.isalpha, line)) and not _ADDRESS.fullmatch(following)


def _sum(line: str, following: str) -> int:
    """Characters of a line with the first word of the next."""
    space = following.find(" ")
    return len(line) + 1 + (len(following) if space < 0 else space)


def _breaks(
    lines: Sequence[str], blocks: Sequence[tuple[int, int]], items: Sequence[bool], certain: set[int]
) -> set[int]:
    """Places of the lines behind which a break goes: the certain ones, and those that follow from them."""
    num_pairs = sum(end - start - 1 for start, end in blocks)
    places = _firm(lines, sorted(certain))
    whole = _width(lines, places, lines)
    if whole is None or len(places) < max(MIN_CERTAIN, MIN_CERTAIN_SHARE * min(num_pairs, 2 * MIN_CERTAIN)):
        return _long_enough(lines, places)
    breaks = set(places)
    for start, end in blocks:
        own = [place for place in range(start, end - 1) if place in breaks]
        width = (_width(lines, own, lines[start:end]) if len(own) >= MIN_OWN else None) or whole
        # From the end: a heading is known by that it does not go on.
        for place in range(end - 2, start - 1, -1):
            line, following = lines[place], lines[place + 1]
            is_heading = is_ended(line) and not is_ended(following) and place + 1 not in breaks
            if not items[place + 1] and not is_heading and width.breaks(line, following):
                breaks.add(place)
    return breaks


def _firm(lines: Sequence[str], certain: Sequence[int]) -> list[int]:
    """Certain breaks without those at labels, and between lines in small letters below a colon, which may be a list.

    Only where lines are broken to a width are these breaks, too, if they fit it.
    """
    short = Counter(line for line in lines if len(line) <= MAX_LABEL_CHARACTERS and line.count(" ") < MAX_LABEL_WORDS)
    listed: set[int] = set()
    for place in certain:
        if place and (lines[place - 1][-1:] == ":" or place - 1 in listed):
            listed.add(place)
    return [
        place
        for place in certain
        if place not in listed and not any(short[line] > 1 and not is_ended(line) for line in lines[place : place + 2])
    ]


def _long_enough(lines: Sequence[str], certain: Sequence[int]) -> set[int]:
    """Certain breaks behind MIN_ALONE characters at least, those of lines that they join counted in."""
    kept: set[int] = set()
    length = 0
    for place in certain:
        length = len(lines[place]) + (length if place - 1 in kept else 0)
        if length >= MIN_ALONE or _HYPHENATED.search(lines[place], max(0, len(lines[place]) - 2)):
            kept.add(place)
    return kept


def _width(lines: Sequence[str], places: Sequence[int], among: Sequence[str]) -> _Width | None:
    """How long lines are that end in certain breaks; None if they, or those `among` which they stand, fit no width."""
    lengths = [len(lines[place]) for place in places if len(lines[place]) <= MAX_WIDTH]
    if not lengths or 2 * len(lengths) < len(places):
        return None
    longest = max(lengths)
    if sum(len(line) > MAX_LONGER * longest for line in among) > len(lengths):
        return None
    sums = [_sum(lines[place], lines[place + 1]) for place in places if len(lines[place]) <= MAX_WIDTH]
    if sum(one >= FULL * longest for one in sums) < MIN_FULL_SHARE * len(sums):
        return None
    return _Width(min(sorted(sums)[len(sums) // 10], longest + 1), longest)


def _glued(lines: Sequence[str], breaks: set[int], tally: Counter) -> list[str]:
    """Lines without the breaks behind some of them."""
    words: set[str] | None = None
    glued: list[str] = []
    parts: list[str] = []
    for place, line in enumerate(lines):
        parts.append(line)
        if place not in breaks:
            glued.append("".join(parts))
            parts = []
            continue
        tally["breaks"] += 1
        following = lines[place + 1]
        if not _HYPHENATED.search(line, max(0, len(line) - 2)) or following.split(" ", 1)[0] in _SUSPENDED:
            parts.append(" ")
            continue
        if words is None:
            words = _whole_words(lines, breaks)
        if not _is_compound(line, following, words):
            tally["hyphens"] += 1
            parts[-1] = line[:-1]
    return glued


def _whole_words(lines: Sequence[str], breaks: set[int]) -> set[str]:
    """Words of a text in small letters, without the parts of those that a break parts."""
    words: set[str] = set()
    for place, line in enumerate(lines):
        found = _WORDS.findall(line)
        is_rest = place - 1 in breaks and lines[place - 1].endswith("-")
        is_begun = place in breaks and line.endswith("-")
        words.update(word.lower() for word in found[is_rest : len(found) - is_begun])
    return words


def _is_compound(line: str, following: str, words: set[str]) -> bool:
    """Whether a word that is hyphenated at a line's end keeps its hyphen; the rule stands above."""
    head = line[:-1].rsplit(" ", 1)[-1].lstrip(_OPENERS)
    match = _WORDS.match(following)
    if match is None or "-" in match[0] or following[0].isupper() or not head.isalpha() or len(head) == 1:
        return True
    head, tail = head.lower(), match[0].lower()
    has_compound = f"{head}-{tail}" in words
    if head + tail in words or has_compound:
        return has_compound and head + tail not in words
    if min(len(head), len(tail)) >= MIN_PART and head in words and tail in words:
        return head not in PREFIXES
    return (head in FIRST_PARTS and tail not in ENDINGS) or (tail in LAST_PARTS and head not in PREFIXES)


def _with_marks(lines: Sequence[str], tally: Counter) -> list[str]:
    """Numbers and bullets that stand alone put before their items; bullets before whole sentences taken off."""
    marked: list[str] = []
    waiting = ""
    for line in lines:
        if waiting and line:
            tally["breaks"] += 1
            line, waiting = f"{waiting} {line}", ""
        elif waiting:
            marked.append(waiting)
            waiting = ""
        if _MARK_ALONE.fullmatch(line):
            waiting = line
            continue
        if line[1:2] == " " and _BULLET.match(line) and _is_whole(line[2:]):
            tally["bullets"] += 1
            line = line[2:]
        marked.append(line)
    return [*marked, waiting] if waiting else marked


def _is_whole(item: str) -> bool:
    """Whether an item is a sentence, which needs no mark to stand apart."""
    return is_ended(item) and " " in item and not item.lstrip(_OPENERS)[:1].islower()
