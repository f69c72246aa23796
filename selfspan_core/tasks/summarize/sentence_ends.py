"""Corrections of the splitter's sentence ends, in one place.

sentencex ends a sentence behind every "a.m." before a capital, behind a list's number, and never behind "Ave.". What
follows decides: a day, a month or a time zone belongs to the time before it; a number alone belongs to what it counts;
behind a street a sentence begins if a small word follows its first one ("Park Ave. Parking is scarce"), unless it reads
like a name ("Park Ave. Synagogue"), which is not told apart where a verb follows it.
"""

import re
from collections.abc import Iterable, Sequence

_TIME = re.compile(r"\b[ap]\.m\.\s*\Z", re.IGNORECASE)
_OF_TIME = re.compile(
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?(?!['’]s\b)|"
    r"(?:New Year['’]?s|Christmas|Thanksgiving|Easter|Independence|Memorial|Labor|Boxing|Good) "
    r"(?:Day|Eve|Sunday|Monday|Friday)\b(?!['’]s\b)|(?:Mon|Tues?|Wed|Thu|Thur|Thurs|Fri|Sat|Sun)\b\.?|"
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)(?= \d)|"
    r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.|"
    r"(?:Eastern|Central|Mountain|Pacific|Atlantic|Alaska|Hawaii|Greenwich|Moscow|Beijing|Tokyo|London|Paris|"
    r"Jerusalem|Israel|Standard|Daylight|Local|British|European|Australian)(?= (?:[a-z]+ )?(?:time|standard|daylight|"
    r"summer|European|Time|Standard|Daylight|Summer|Mean)\b)|"
    r"Eastern\b(?=[ ,.;)/])(?! [A-Z])|(?:Central|Mountain|Pacific)(?=[,.;)])|"
    r"(?:[ECMP][SD]?T|GMT|UTC|BST|CEST|CET|AEST|AEDT|AKDT|AKST|HST|IST|JST|MSK|WAT|EAT|SAST|Zulu)\b|\(\d|\([A-Z]{2,4}\b)"
)
_NUMBER = re.compile(r"\s*\(?(?:\d{1,3}|[ivxIVX]{1,5}|[A-Za-z])[.)]\s*")
_LETTER = re.compile(r"\A\s{0,3}\(?(?:[ivx]{1,4}|[a-z])\) (?=[A-Z])")
# "St." is a street behind a name or a number with "on" or "along" before; "on Lake St. Clair" is none.
_NAMED_STREET = re.compile(
    r"\b(?:(?:on|along|On|Along) (?!(?:Port|Fort|Mount|Mt\.?|Sault|Lake|Cape|Island|Bay|The|Old|Pope)\b)"
    r"(?:\w{1,20} )?[A-Z]\w{1,20}|"
    r"\d{1,5} [A-Z]\w{1,20}|\d{1,3}(?:st|nd|rd|th)) \Z"
)
# Where a sentence could begin inside of a piece; the splitter takes these for parts of a name or of a time.
_STREET = re.compile(r"(?<=\w )(?:Ave|Blvd|Rd|St|Dr|Ln|Hwy|Pkwy|Sq)\. (?=[A-Z])")
_OPENING = re.compile(r"([A-Z]\w{0,30})(?:['’]s)?,? ([a-z0-9]\w{0,30})?")
_NAMES = frozenset(
    ("church", "school", "station", "hotel", "theater", "theatre", "synagogue", "bridge", "armory", "park")
)
_OPENERS = "\"“”'‘("


def corrected(pieces: Sequence[str]) -> list[str]:
    """Pieces of a line, which are all of it, joined and split where the splitter is wrong about them."""
    return _continued([part for piece in _led(_timed(pieces)) for part in _split(piece)])


def _timed(pieces: Iterable[str]) -> list[str]:
    """A time of day put together with its day or zone: "2 a.m. Friday"."""
    timed: list[list[str]] = []
    end = ""
    for piece in pieces:
        if timed and _TIME.search(end) and _OF_TIME.match(piece):
            timed[-1].append(piece)
            end = (end + piece)[-12:]
        else:
            timed.append([piece])
            end = piece[-12:]
    return list(map("".join, timed))


def _led(pieces: Sequence[str]) -> list[str]:
    """A number or letter of a list, alone as a piece, put before what it counts."""
    led: list[str] = []
    waiting = ""
    for piece in pieces:
        if _NUMBER.fullmatch(piece):
            waiting += piece
        else:
            led.append(waiting + piece)
            waiting = ""
    return [*led, waiting] if waiting else led


def _split(piece: str) -> list[str]:
    """A piece in two where it goes on behind a street."""
    parts, start = [], 0
    for street in _STREET.finditer(piece):
        is_title = street[0][:2] in ("St", "Dr") and not _NAMED_STREET.search(
            piece[max(0, street.start() - 60) : street.start()]
        )
        if _is_opening(piece[street.end() : street.end() + 70], is_title):
            parts.append(piece[start : street.end()])
            start = street.end()
    return [*parts, piece[start:]]


def _is_opening(following: str, is_title: bool) -> bool:
    """Whether a sentence begins so: a capital, then a small word. "St." and "Dr." stand before names, too."""
    match = _OPENING.match(following)
    return not is_title and match is not None and bool(match[2]) and match[1].lower() not in _NAMES


def _continued(pieces: Sequence[str]) -> list[str]:
    """Pieces that go on in a small letter put back together ("No 1. player"), unless the text has no capitals."""
    # "(a) It is" begins with the capital.
    starts = [_LETTER.sub("", piece).lstrip(_OPENERS)[:1] for piece in pieces]
    if sum(start.islower() for start in starts) > 0.3 * len(starts) + 1:
        return list(pieces)
    joined: list[list[str]] = []
    for piece, start in zip(pieces, starts, strict=True):
        if joined and (start.islower() or not any(map(str.isalnum, piece))):
            joined[-1].append(piece)
        else:
            joined.append([piece])
    return list(map("".join, joined))
