"""The times of transcripts and captions taken off."""

import itertools
import re
from collections import Counter

_CLOCK = r"[\[(]?(?:(\d{1,2}):)?(\d{1,2}):([0-5]\d)(?:[.,]\d{1,3})?[\])]?"
_FIRST = re.compile(rf"{_CLOCK}(?: ?[-–]?(?: |\Z))(?![ap]\.?m\b)", re.IGNORECASE)
# Behind a speaker's name, alone in a line.
_LAST = re.compile(rf"(?<=[^\s\d]) {{0,3}}{_CLOCK}\Z")
_CAPTION_TIME = re.compile(r"[\d:.,]{4,15} ?-{2}> ?[\d:.,]{4,15}.{0,100}")
_VOICE = re.compile(r"<v(?:\.\w{1,20})? ([^<>]{1,60})>")
_STARTS = frozenset("[(0123456789")
_ENDS = frozenset("])0123456789")
MAX_SPEAKER_WORDS, MAX_SPEAKER_CHARACTERS = 5, 60
MIN_TIMES, MIN_TIMES_SHARE = 3, 0.3
MIN_CLOCK = 5 * 60
"""From "5:00" on, times that are all multiples of five may be a clock's."""


def times_taken_off(lines: list[str], tally: Counter) -> list[str]:
    """Without the times of a transcript: at least MIN_TIMES lines begin, or name a speaker and end, with one.

    None is before the one above. Lines of captions that hold nothing but a number and a span of time go as a whole.
    """
    lines = _without_captions(lines, tally)
    first = {place: match for place, line in enumerate(lines) if line[:1] in _STARTS and (match := _FIRST.match(line))}
    if _are_times(first, lines):
        tally["times"] += len(first)
        cut = [line[first[place].end() :] if place in first else line for place, line in enumerate(lines)]
        # A time alone is no paragraph's end.
        return [line for place, line in enumerate(cut) if line or place not in first]
    last = {
        place: match
        for place, line in enumerate(lines)
        if line[-1:] in _ENDS
        and len(line) <= MAX_SPEAKER_CHARACTERS
        and line.count(" ") <= MAX_SPEAKER_WORDS
        and (match := _LAST.search(line, max(0, len(line) - 18)))
    }
    if not _are_times(last, lines):
        return lines
    tally["times"] += len(last)
    # A speaker's line stays one of its own.
    named = [
        f"{line[: last[place].start()].rstrip(' :,-–')}:" if place in last else line for place, line in enumerate(lines)
    ]
    return named


def _are_times(found: dict[int, re.Match], lines: list[str]) -> bool:
    """Whether so many lines have times, one after the other, that they are those of a transcript."""
    if len(found) < max(MIN_TIMES, MIN_TIMES_SHARE * sum(map(bool, lines))):
        return False
    seconds = [3600 * int(match[1] or 0) + 60 * int(match[2]) + int(match[3]) for match in found.values()]
    # "9:30 The doors open" is a programme's.
    if (
        seconds[0] >= MIN_CLOCK
        and not any(match[1] for match in found.values())
        and not any(one % 5 for one in seconds)
    ):
        return False
    return all(earlier <= later for earlier, later in itertools.pairwise(seconds))


def _without_captions(lines: list[str], tally: Counter) -> list[str]:
    spans = {place for place, line in enumerate(lines) if "->" in line and _CAPTION_TIME.fullmatch(line)}
    if len(spans) < MIN_TIMES:
        return lines
    tally["times"] += len(spans)
    numbers = {place - 1 for place in spans if place and lines[place - 1].isdigit()}
    kept = [line for place, line in enumerate(lines) if place not in spans | numbers and line != "WEBVTT"]
    # Each caption is a block of its own, wherever its sentence ends.
    return [_VOICE.sub(r"\1: ", line).replace("</v>", "") for line in kept if line]
