"""Numbers of pages taken off: lines of their own that count on, at least one of them within a sentence."""

import itertools
import re
from collections import Counter

from selfspan_core.tasks.summarize.cleaning.characters import is_ended

_NUMBER = re.compile(r"(?:[-–—] )?(?:[Pp]age )?(\d{1,4})(?: (?:of|/) \d{1,4})?(?: [-–—])?")
MIN_PAGES = 2


def page_numbers_taken_off(lines: list[str], tally: Counter) -> list[str]:
    """Lines without page numbers; what a page's end parts is put below each other again."""
    found = [(place, int(match[1])) for place, line in enumerate(lines) if (match := _NUMBER.fullmatch(line))]
    if len(found) < MIN_PAGES or any(later[1] != earlier[1] + 1 for earlier, later in itertools.pairwise(found)):
        return lines
    gaps = {place: _gap(lines, place) for place, _ in found}
    if not any(_goes_on(lines, *gap) for gap in gaps.values()):
        return lines
    tally["pages"] += len(found)
    gone = set(gaps)
    for gap in gaps.values():
        if _goes_on(lines, *gap):
            gone.update(range(gap[0] + 1, gap[1]))
    return [line for place, line in enumerate(lines) if place not in gone]


def _gap(lines: list[str], place: int) -> tuple[int, int]:
    """Places of the lines above and below a number, one empty line on either side left out; they may be outside."""
    above, below = place - 1, place + 1
    above -= above >= 0 and not lines[above]
    below += below < len(lines) and not lines[below]
    return above, below


def _goes_on(lines: list[str], above: int, below: int) -> bool:
    """Whether a sentence goes on behind a number."""
    if above < 0 or below >= len(lines) or is_ended(lines[above]):
        return False
    return lines[below][:1].islower() and lines[above][-1:] not in ("", ":")
