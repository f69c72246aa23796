"""Marks of other formats: HTML entities and Markdown.

Every repeat of a pattern is bounded, and each is tried at a line's start or from a mark on: the work is linear.
"""

import html
import itertools
import re
from collections import Counter
from html.entities import html5

from selfspan_core.tasks.summarize.cleaning.characters import is_ended

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_HEADING = re.compile(r"#{1,6} (?=\S)")
_CLOSING_HASHES = re.compile(r" #{1,6}\Z")
_QUOTED = re.compile(r"(?:> ?){1,20}")
_RULE = re.compile(r"(?:[-*_=~#] ?){3,200}")
_RULED = frozenset("-*_=~#")
_FENCE = re.compile(r"(?:```|~~~)[\w+-]{0,20}")
_TABLE_ROW = re.compile(r"\|[^|]{1,300}(?:\|[^|]{0,300}){1,60}\|")
MIN_ROWS = 2
"""Rows of a table that has no rule of dashes."""
_TABLE_RULE = re.compile(r"(?=[^|]{0,100}\|)\|? ?:?-{1,100}:? ?(?:\| ?:?-{1,100}:? ?){0,60}\|?")
_TITLE = r"(?: ?[\"'(].{1,200}[\"')])?"
# Without an address only under a name with a figure: "[Ida]: "Well."" is what somebody says.
_DEFINITION = re.compile(
    rf"\[([^\[\]^]{{1,100}})\]: ?<?(?:https?://|www\.|[/#.])\S{{1,1000}}{_TITLE}|"
    rf"\[([a-zA-Z_-]{{0,40}}\d[\w-]{{0,40}})\]:{_TITLE}"
)
_NAMED_LINK = re.compile(r"\[([^\[\]]{1,300})\] ?\[([^\[\]]{0,100})\]")
_ADDRESS = r"\((?:<[^<>]{0,300}>|(?:[^()\s]|\([^()\s]{0,100}\)){0,300})(?: \"[^\"]{0,200}\"| '[^']{0,200}')?\)"
_IMAGE = re.compile(rf"!\[[^\[\]]{{0,300}}\]{_ADDRESS}")
_LINK = re.compile(rf"\[([^\[\]]{{1,300}})\]{_ADDRESS}")
_BARE_ADDRESS = re.compile(r"<((?:https?://|mailto:|www\.)[^\s<>]{1,500}|[^\s<>@]{1,100}@[^\s<>@]{1,100})>")
_EMPHASIS = tuple(
    (mark, re.compile(pattern))
    for mark, pattern in (
        ("***", r"(?<![\w*])\*{3}(?=[^\s*])([^*]{1,500})(?<=\S)\*{3}(?![\w*])"),
        ("**", r"(?<![\w*])\*\*(?=[^\s*])([^*]{1,500})(?<=\S)\*\*(?![\w*])"),
        ("__", r"(?<!\w)__(?=[^\s_])([^_]{1,500})(?<=\S)__(?!\w)"),
        ("*", r"(?<![\w*])\*(?=[^\s*])([^*]{1,500})(?<=\S)\*(?![\w*])"),
        ("_", r"(?<![\w_])_(?=[^\s_])([^_]{1,500})(?<=\S)_(?![\w_])"),
        ("~~", r"~~(?=[^\s~])([^~]{1,500})(?<=\S)~~"),
        ("`", r"(?<!`)`(?!`)([^`]{1,500})`(?!`)"),
    )
)


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
    lines = _with_named_links(_without_tables(_without_code(lines, tally), tally), tally)
    kept = []
    for line in lines:
        if line[:1] in _RULED and (line == "--" or _RULE.fullmatch(line)):
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


def _with_named_links(lines: list[str], tally: Counter) -> list[str]:
    """Links whose addresses stand in definitions, "[the plan][1]" or "[plan][]", as their words."""
    names = {
        (match[1] or match[2]).lower()
        for line in lines
        if line.startswith("[") and (match := _DEFINITION.fullmatch(line))
    }
    if not names:
        return lines

    def words(match: re.Match) -> str:
        if (match[2] or match[1]).lower() not in names:
            return match[0]
        tally["links"] += 1
        return match[1]

    return [_NAMED_LINK.sub(words, line) if "][" in line or "] [" in line else line for line in lines]


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
    """Without Markdown's tables: a header, a rule of dashes and strokes, and rows; or rows between strokes alone."""
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
    rows = [place for place, line in enumerate(lines) if line[:1] == "|" and place not in gone]
    rows = [place for place in rows if _TABLE_ROW.fullmatch(lines[place])]
    for _, run in itertools.groupby(enumerate(rows), key=lambda numbered: numbered[1] - numbered[0]):
        together = [place for _, place in run]
        if len(together) >= MIN_ROWS:
            tally["tables"] += 1
            gone.update(together)
    return ["" if place in gone else line for place, line in enumerate(lines)] if gone else lines


def quotes_opened(lines: list[str], tally: Counter) -> list[str]:
    """Quoted mail and quotations without the marks that begin their lines, apart from what others say."""
    opened: list[str] = []
    before, depth_before = "", 0
    for line in lines:
        depth = 0
        if line.startswith(">") and (mark := _QUOTED.match(line)):
            tally["quoted"] += 1
            depth = mark[0].count(">")
            line = line[mark.end() :]
        # A quotation may go on without its mark, within a sentence only.
        if depth != depth_before and line and before and (is_ended(before) or before[-1] == ":"):
            opened.append("")
        opened.append(line)
        before, depth_before = line, depth
    return opened


def inline_read(lines: list[str], tally: Counter) -> list[str]:
    """Links as their words, emphasis without its marks, and no images."""
    return [_inline(line, tally) if set(line) & _INLINE_MARKS else line for line in lines]


_INLINE_MARKS = frozenset("[*_~`<")


def _inline(line: str, tally: Counter) -> str:
    if "](" in line:
        line, num_images = _IMAGE.subn("", line)
        line, num_links = _LINK.subn(r"\1", line)
        tally["images"] += num_images
        tally["links"] += num_links
    if ">" in line:
        line, num_addresses = _BARE_ADDRESS.subn(r"\1", line)
        tally["links"] += num_addresses
    for mark, pattern in _EMPHASIS:
        if mark in line:
            line, num_marked = pattern.subn(r"\1", line)
            tally["emphasis"] += num_marked
    return line
