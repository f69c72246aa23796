"""Marks of other formats: HTML entities, Markdown, reference marks, and the times of transcripts.

Every repeat of a pattern is bounded, and each is tried at a line's start or from a mark on: the work is linear.
"""

import html
import itertools
import re
from collections import Counter
from html.entities import html5

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_HEADING = re.compile(r"#{1,6} (?=\S)")
_CLOSING_HASHES = re.compile(r" #{1,6}\Z")
_QUOTED = re.compile(r"(?:> ?){1,20}")
_RULE = re.compile(r"(?:[-*_=~#] ?){3,200}")
_FENCE = re.compile(r"(?:```|~~~)[\w+-]{0,20}")
_TABLE_RULE = re.compile(r"(?=[^|]{0,100}\|)\|? ?:?-{1,100}:? ?(?:\| ?:?-{1,100}:? ?){0,60}\|?")
_DEFINITION = re.compile(r"\[[^\[\]]{1,100}\]: ?(?:<?https?://\S{1,1000})?(?: ?[\"'(].{1,200}[\"')])?")
_ADDRESS = r"\((?:[^()\s]|\([^()\s]{0,100}\)){0,300}(?: \"[^\"]{0,200}\")?\)"
_IMAGE = re.compile(rf"!\[[^\[\]]{{0,300}}\]{_ADDRESS}")
_LINK = re.compile(rf"\[([^\[\]]{{1,300}})\]{_ADDRESS}")
_EMPHASIS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![\w*])\*\*(?=[^\s*])([^*]{1,500})(?<=\S)\*\*(?![\w*])",
        r"(?<!\w)__(?=[^\s_])([^_]{1,500})(?<=\S)__(?!\w)",
        r"(?<![\w*])\*(?=[^\s*])([^*]{1,500})(?<=\S)\*(?![\w*])",
        r"(?<![\w_])_(?=[^\s_])([^_]{1,500})(?<=\S)_(?![\w_])",
        r"~~(?=[^\s~])([^~]{1,500})(?<=\S)~~",
        r"(?<!`)`(?!`)([^`]{1,500})`(?!`)",
    )
)
_NUMBERS = r"\d{1,3}(?: ?[,–-] ?\d{1,3}){0,9}"
_NOTES = (
    r"citations? needed|clarification needed|better source needed|page needed|verification needed|failed verification|"
    r"dubious(?: ?[–-] ?discuss)?|by whom\?|who\?|when\?|where\?|which\?|according to whom\?|update|edit|"
    r"(?:note|nb|n|fn) \d{1,3}"
)
# Behind something: a list of sources, whose lines begin with such marks, keeps them.
_REFERENCE = re.compile(rf"(?<=[^\s\[]) ?\[(?:{_NUMBERS}|{_NOTES}|(?<=[.,;!?”\"’)\]]\[)[a-z])\]", re.IGNORECASE)
_TIME = re.compile(r"[\[(]?(?:(\d{1,2}):)?(\d{1,2}):([0-5]\d)(?:[.,]\d{1,3})?[\])]?(?: ?[-–]?(?: |\Z))(?![ap]\.?m\b)")
_CAPTION_TIME = re.compile(r"[\d:.,]{4,15} ?-{2}> ?[\d:.,]{4,15}.{0,100}")
MIN_TIMES, MIN_TIMES_SHARE = 3, 0.3


def entities_read(text: str, tally: Counter) -> str:
    """HTML entities as the characters that they stand for."""

    def character(match: re.Match) -> str:
        if match[0][1] != "#" and match[0][1:] not in html5:
            return match[0]
        tally["entities"] += 1
        return html.unescape(match[0])

    return _ENTITY.sub(character, text) if "&" in text else text


def blocks_left_out(lines: list[str], tally: Counter) -> list[str]:
    """Without tables, fenced code, rules between parts, and definitions of links; with headings without their marks.

    A rule under a line makes that line a heading.
    """
    lines = _without_tables(_without_code(lines, tally), tally)
    kept = []
    for line in lines:
        if line[:1] in ("-", "*", "_", "=", "~", "#") and _RULE.fullmatch(line):
            tally["rules"] += 1
            line = ""
        elif line.startswith("[") and _DEFINITION.fullmatch(line):
            tally["links"] += 1
            continue
        elif heading := _HEADING.match(line):
            tally["headings"] += 1
            kept.append("")
            kept.append(_CLOSING_HASHES.sub("", line[heading.end() :]))
            line = ""
        kept.append(line)
    return kept


def _without_code(lines: list[str], tally: Counter) -> list[str]:
    """Without code between two fences; a fence without a second one is left out alone."""
    fences = [place for place, line in enumerate(lines) if line[:3] in ("```", "~~~") and _FENCE.fullmatch(line)]
    if not fences:
        return lines
    gone = set(fences)
    for opening, closing in zip(fences[::2], fences[1::2], strict=False):
        gone.update(range(opening, closing + 1))
    tally["code"] += (len(fences) + 1) // 2
    return ["" if place in gone else line for place, line in enumerate(lines)]


def _without_tables(lines: list[str], tally: Counter) -> list[str]:
    """Without Markdown's tables: a header, a rule of dashes and strokes, and the rows below."""
    gone: set[int] = set()
    for place, line in enumerate(lines):
        if place in gone or "|" not in line or not _TABLE_RULE.fullmatch(line):
            continue
        tally["tables"] += 1
        gone.add(place)
        if place and "|" in lines[place - 1]:
            gone.add(place - 1)
        for row in range(place + 1, len(lines)):
            if "|" not in lines[row]:
                break
            gone.add(row)
    return ["" if place in gone else line for place, line in enumerate(lines)] if gone else lines


def quotes_opened(lines: list[str], tally: Counter) -> list[str]:
    """Quoted mail and quotations without the marks that begin their lines."""
    opened = []
    for line in lines:
        if line.startswith(">") and (mark := _QUOTED.match(line)):
            tally["quoted"] += 1
            line = line[mark.end() :]
        opened.append(line)
    return opened


def inline_read(lines: list[str], tally: Counter) -> list[str]:
    """Links as their words, emphasis without its marks, no reference marks and no images."""
    return [_inline(line, tally) if set(line) & _INLINE_MARKS else line for line in lines]


_INLINE_MARKS = frozenset("[*_~`")


def _inline(line: str, tally: Counter) -> str:
    if "[" in line:
        line, num_images = _IMAGE.subn("", line)
        line, num_links = _LINK.subn(r"\1", line)
        line, num_references = _REFERENCE.subn("", line)
        tally["images"] += num_images
        tally["links"] += num_links
        tally["references"] += num_references
    for pattern in _EMPHASIS:
        line, num_marked = pattern.subn(r"\1", line)
        tally["emphasis"] += num_marked
    return line


def times_taken_off(lines: list[str], tally: Counter) -> list[str]:
    """Without the times of a transcript: at least MIN_TIMES lines begin with one, and none is before the one above.

    Lines of captions that hold nothing but a number and a span of time go as a whole.
    """
    lines = _without_captions(lines, tally)
    found = {
        place: match for place, line in enumerate(lines) if line[:1] in _TIME_STARTS and (match := _TIME.match(line))
    }
    if len(found) < max(MIN_TIMES, MIN_TIMES_SHARE * sum(map(bool, lines))):
        return lines
    seconds = [3600 * int(match[1] or 0) + 60 * int(match[2]) + int(match[3]) for match in found.values()]
    if any(later < earlier for earlier, later in itertools.pairwise(seconds)):
        return lines
    tally["times"] += len(found)
    cut = [line[found[place].end() :] if place in found else line for place, line in enumerate(lines)]
    # A time alone is no paragraph's end.
    return [line for place, line in enumerate(cut) if line or place not in found]


_TIME_STARTS = frozenset("[(0123456789")


def _without_captions(lines: list[str], tally: Counter) -> list[str]:
    spans = {place for place, line in enumerate(lines) if "->" in line and _CAPTION_TIME.fullmatch(line)}
    if len(spans) < MIN_TIMES:
        return lines
    tally["times"] += len(spans)
    numbers = {place - 1 for place in spans if place and lines[place - 1].isdigit()}
    kept = [line for place, line in enumerate(lines) if place not in spans | numbers and line != "WEBVTT"]
    # Each caption is a block of its own, wherever its sentence ends.
    return [line for line in kept if line]
