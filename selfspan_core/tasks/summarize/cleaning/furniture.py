"""Lines of a web page that are not its article: menus, notices about cookies, adverts, bylines and the like.

A line goes only if it is such a line as a whole, by its wording; words that are a headline elsewhere ("Sport", "Save")
go only among others of their kind. Every pattern is tried at the beginning of a short line, with bounded repeats.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from selfspan_core.tasks.summarize.cleaning.characters import is_ended

MAX_CHARACTERS = 300
"""Of a line of furniture; a longer one is a paragraph."""
MAX_BYLINE_PLACE = 20
MAX_MENU_WORDS = 3
MIN_MENU_LINES, MIN_MENU_SHARE = 3, 2 / 3
MAX_TOPICS = 8

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DAY = r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?"
_CLOCK = r"(?:,? ?(?:at )?\d{1,2}[:.]\d\d ?(?:[ap]\.?m\.?)? ?(?:[A-Z]{2,4}|eastern|et)?)"
_DATE = rf"(?:{_DAY},? )?(?:\d{{1,2}} {_MONTH}(?:,? \d{{4}})?|{_MONTH} \d{{1,2}}(?:,? \d{{4}})?){_CLOCK}?"
_AGO = r"(?:\d{1,3}|an?|one) (?:minute|min|hour|hr|day|week|month|year)s? ago"
_KINDS: dict[str, tuple[str, ...]] = {
    "cookies": (
        r"(?:accept|reject|decline|allow|refuse)(?: all)?(?: (?:optional |additional )?cookies)?(?: and close)?",
        r"(?:manage|set|change|customi[sz]e|review|your)(?: my| your)? (?:cookies?|privacy)?(?: ?and )?"
        r"(?:preferences|settings|options|choices)",
        r"(?:cookie|privacy)(?:s)? (?:settings|policy|preferences|notice|choices|statement)",
        r"(?:we|(?:this|our) (?:web)?site|we and our (?:\d{1,5} )?partners) (?:uses?|store) .{0,60}cookies\b.{0,200}",
        r"by (?:clicking|continuing|using|browsing|closing) .{0,100}\b(?:cookies|you agree|you consent)\b.{0,150}",
        r"(?:necessary|strictly necessary|essential) cookies only",
        r"we (?:value|respect|care about) your privacy[.!]?|got it!?",
        r"(?:accept|agree) (?:and|&) (?:close|continue|proceed)|(?:continue|proceed) without (?:accepting|agreeing)",
    ),
    "adverts": (
        r"advertisement(?: ?[-–—:] ?.{0,40})?",
        r"(?:advert|advertising|sponsored(?: content| post| by .{1,40})?|promoted(?: content)?|paid content)",
        r"(?:story|article|content) continues (?:below|after)(?: (?:this |the )?(?:advertisement|ad|promotion))?",
        r"(?:skip|remove|report|close) (?:this |past )?(?:ad|ads|advert|advertisement|promotion|newsletter promotion)",
        r"scroll (?:down )?(?:to continue|for more)(?: reading)?",
        r"after newsletter promotion",
    ),
    "more": (
        r"(?:read|see|learn|find out|discover|view|show|load|watch) more(?: ?[:>»→…]{1,3} ?.{0,150}|\.{0,3})",
        r"(?:also read|read also|read next|see also|up next|related|more on this|don['’]t miss) ?[:>»] ?.{0,150}",
        r"(?:continue reading|read (?:the )?full (?:story|article)|keep reading)[ .…→>»]{0,5}",
        r"(?:related|recommended|more)(?: (?:topics|tags|articles|stories|content|reading|links|internet links|news))?"
        r"(?: (?:for you|on this story|from .{1,30}))?:?",
        r"(?:most (?:read|popular|viewed|watched)|trending(?: now)?|top stories|you (?:may|might) also like|"
        r"editors['’] picks?|recommended for you|around the web|more stories|more on this story)",
    ),
    "shares": (
        r"share(?: (?:this (?:article|story|page|post|video)\b.{0,60}|(?:this|via)\b[^.!?]{0,60}|"
        r"(?:on|by|to|with) (?:facebook|twitter|x|linkedin|whatsapp|reddit|e-?mail|social media|pinterest)\b.{0,40}))?",
        r"(?:tweet|save|print|e-?mail|copy link|link copied|pin it|bookmark|listen(?: to this (?:article|story))?)",
        r"(?:facebook|twitter|whatsapp|linkedin|reddit|messenger|pinterest|telegram|instagram|x)(?: messenger)?",
        r"(?:follow|like|join) us (?:on|at) .{1,60}",
        r"(?:(?:view|show|leave|post|add|see)(?: all| a)? )?(?:\d{1,6} )?comments?(?: ?\(\d{1,6}\))?",
    ),
    "newsletters": (
        r"(?:sign up|subscribe|register (?:for|now|today|to (?:get|receive)))\b.{0,120}"
        r"\b(?:newsletters?|inbox|updates|alerts|e-?mails?|briefing)\b.{0,150}",
        r"get (?:the|our|all|your)\b.{0,100}\b(?:in|to) your inbox\b.{0,100}",
        r"(?:enter )?(?:your )?e-?mail(?: address)?|subscribe(?: now| today)?[.!]?|sign up(?: now| today| here)?[.!]?",
        r"(?:download|get) (?:our|the)(?: free)?(?: \w{1,20}){0,2} app\b.{0,80}",
        r"(?:click|tap) here to (?:subscribe|sign up|register|join)\b.{0,120}",
        r"(?:create (?:a )?free account|already a subscriber\?.{0,40}|already have an account\?.{0,40})",
    ),
    "copyrights": (
        r"(?:©|\(c\)|copyright\b).{0,200}",
        r"[^.!?]{0,60}\ball rights reserved\b.{0,100}",
        r"(?:(?:terms (?:of (?:use|service)|and conditions|& conditions)|privacy policy|cookies?(?: policy)?|"
        r"accessibility(?: statement)?|contact us|about us|do not sell [^|·•]{0,40})(?: ?[|·•] ?|\Z)){2,8}",
        r"(?:terms (?:of (?:use|service)|and conditions|& conditions)|privacy policy|accessibility(?: statement)?)",
    ),
    "credits": (
        r"image (?:source|copyright|credit)(?:[,:] ?| )[^.!?]{1,60}|(?:image|media) caption[,:]? [^.!?]{1,60}",
        r"(?:image|media) (?:caption|source|copyright),?|this video can ?not be played.{0,40}",
        r"(?:photo|photograph|picture|image)s?(?: credit| courtesy)?(?: ?: ?| by )[^.!?]{2,80}",
        r"(?:getty images|shutterstock|istock(?:photo)?|alamy)(?: ?/ ?[^.!?/]{1,40}){0,3}",
        r"[^.!?]{2,50} ?/ ?(?:getty images|reuters|afp|ap|shutterstock|alamy|bloomberg)(?: via [^.!?]{2,40})?",
    ),
}
_KIND = re.compile("|".join(f"(?P<{kind}>{'|'.join(patterns)})" for kind, patterns in _KINDS.items()), re.IGNORECASE)
_TWO_SENTENCES = re.compile(r"[.!?][\"”’')]? [A-Z\"“]")
_COPYRIGHT_SURE = re.compile(
    r"©|\(c\) ?\d{4}|(?i:copyright) (?:©|\(c\)|\d{4})|(?i:all rights reserved)|(?i:terms|privacy|access)"
)
_NAME = r"(?:[A-Z]\.|[A-Z][\w’'-]{1,20}|de|van|von|der|la|al|bin)"
_OFFICE = rf"(?:{_NAME}|and|&|for|in|of|at|the|[a-z]{{2,14}})"
_BYLINE = re.compile(
    rf"(?:Words |Story |Report )?[Bb](?:y|Y):? {_NAME}(?: {_NAME}){{1,3}}"
    rf"(?:(?:,| and| &) {_OFFICE}(?:,? {_OFFICE}){{0,8}})?"
)
_DATED = re.compile(
    r"(?:(?:first |last )?(?:published|updated|posted|modified)(?: on| at)?:? ?"
    rf"(?:{_DATE}|{_AGO}|\d{{1,2}}[:.]\d\d(?: ?[ap]\.?m\.?)?(?: [a-z]{{2,4}})?"
    rf"|\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}{_CLOCK}?)"
    rf"|{_DATE}|{_AGO}|\d{{1,3}} min(?:ute)?s? read)",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"(?:(?<!caption),|;| (?:a|an|and|at|by|for|from|in|of|on|or|the|to|with))\Z")
_PARTS = re.compile(r" ?[|•·] ?")
_PUBLISHED = frozenset(("published", "updated", "last updated", "posted"))
# A date without year and hour may begin a letter or a diary.
_BARE_DATE = re.compile(_DATE, re.IGNORECASE)
_EXACT = re.compile(r"\d{4}|\d[:.]\d\d")
_WEAK = frozenset(("shares", "copyrights", "newsletters", "cookies"))
_ANSWERS = frozenset(("got it",))
_MENU_ENTRIES = (
    "home|news|sport|sports|weather|business|world|politics|opinion|culture|travel|menu|search|sign in|log in|login|"
    "register|subscribe|contact|contact us|about|about us|video|videos|tech|technology|science|health|lifestyle|"
    "entertainment|more|skip to content|skip to main content|uk|us|europe|asia|africa|local|life|arts|money|finance|"
    "markets|football|cricket|tennis|music|film|tv|radio|food|fashion|style|education|environment|climate|audio|"
    "podcasts|live|latest|headlines|obituaries|classifieds|jobs|shop|help|faq|account|my account|innovation|earth|"
    "cars|property|crosswords|puzzles|games|photos|pictures|letters|editorial|features|blogs|topics|sections|"
    "newsletters|my profile|log out|sign out|jump to content|skip navigation|open menu|close menu|"
    "advertise|advertise with us|privacy|terms|careers|notifications|settings|profile|events|books|"
    "international|national|society|gallery|magazine|close|back|next|previous|back to top"
)
_MENU_WORDS = frozenset(_MENU_ENTRIES.split("|"))
_SURE_ENTRIES = frozenset(
    ("skip to content", "skip to main content", "jump to content", "skip navigation", "back to top", "open menu")
)
_SEPARATORS = re.compile(r" ?[|>»•·/›] ?")
_TOPICS = re.compile(r"(?:related )?(?:topics|tags)(?: in this (?:story|article))?:?", re.IGNORECASE)


def furniture_dropped(lines: list[str], tally: Counter) -> list[str]:
    """Lines without furniture; an empty line, which keeps the parts around it apart, stands where it was."""
    kinds: list[str | None] = [
        None if _goes_on(line, following) else _kind(line)
        for line, following in itertools.zip_longest(lines, lines[1:], fillvalue="")
    ]
    for start, end in _menus(lines):
        kinds[start:end] = ["menus"] * (end - start)
    for place in _bylines(lines):
        kinds[place] = "bylines"
    for place in _topics(lines):
        kinds[place] = "more"
    # Among others of its kind, or of any, a single word is furniture; alone it may be a heading.
    for place, kind in enumerate(kinds):
        is_weak = (kind in _WEAK or lines[place].lower() == "advertising") and (
            lines[place].isalpha() or lines[place].lower().strip(",.!") in _ANSWERS
        )
        if is_weak and not _has_neighbour(lines, kinds, place):
            kinds[place] = None
    for kind in filter(None, kinds):
        tally[kind] += 1
    return ["" if kind else line for line, kind in zip(lines, kinds, strict=True)]


def _goes_on(line: str, following: str) -> bool:
    """Whether a line goes on below: it is judged when it is whole, in the next pass."""
    return following[:1].islower() or (bool(following) and bool(_GOES_ON.search(line, max(0, len(line) - 8))))


def _kind(line: str) -> str | None:
    """The kind of furniture that a line is by its words alone."""
    if not line or len(line) > MAX_CHARACTERS:
        return None
    match = _KIND.fullmatch(line)
    kind = match.lastgroup if match else None
    if kind == "copyrights" and not _COPYRIGHT_SURE.match(line) and "rights reserved" not in line.lower():
        return None
    if kind == "more" and _TWO_SENTENCES.search(line):
        return None
    if kind is None and (_is_menu_line(line) or line.lower() in _SURE_ENTRIES):
        return "menus"
    return kind


def _is_menu_line(line: str) -> bool:
    """Whether a line is a menu or a path of a page: "Home | News | Sport"."""
    parts = [part for part in _SEPARATORS.split(line) if part] if set(line) & set("|>»•·/›") else []
    return len(parts) >= MIN_MENU_LINES and _are_entries(parts)


def _are_entries(parts: Sequence[str]) -> bool:
    known = sum(part.lower() in _MENU_WORDS for part in parts)
    are_short = all(part.count(" ") < MAX_MENU_WORDS or part.lower() in _MENU_WORDS for part in parts)
    return are_short and known >= MIN_MENU_SHARE * len(parts)


def _menus(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(start, end) of runs of short lines, most of them well-known entries; both ends are such entries."""
    run: list[int] = []
    before = ""
    for place in range(len(lines) + 1):
        line = lines[place] if place < len(lines) else None
        is_entry = line is not None and (line.count(" ") < MAX_MENU_WORDS or line.lower() in _MENU_WORDS)
        if line and len(line) < 30 and is_entry and not is_ended(line):
            run.append(place)
            continue
        if line == "" and run:  # entries often stand in paragraphs of their own
            continue
        known = [at for at in run if lines[at].lower() in _MENU_WORDS]
        # Below a colon such words are a list of the article.
        if len(known) >= MIN_MENU_LINES and not before.endswith(":"):
            inner = [lines[at] for at in run if known[0] <= at <= known[-1]]
            if _are_entries(inner):
                yield known[0], known[-1] + 1
        before, run = line or before, []


def _bylines(lines: Sequence[str]) -> Iterator[int]:
    """Places of bylines and dates, near the beginning."""
    num_seen = 0
    for place, line in enumerate(lines):
        if not line or len(line) > 120:
            num_seen += bool(line)
            continue
        if num_seen >= MAX_BYLINE_PLACE:
            return
        num_seen += 1
        following = lines[place + 1] if place + 1 < len(lines) and len(lines[place + 1]) <= 120 else ""
        if all(map(_is_byline, _PARTS.split(line))) or (line.lower() in _PUBLISHED and _DATED.fullmatch(following)):
            yield place


def _is_byline(part: str) -> bool:
    """Whether a line, or a part of one between strokes, is a byline, or a date with its year or hour."""
    if _DATED.fullmatch(part):
        return _BARE_DATE.fullmatch(part) is None or bool(_EXACT.search(part))
    return part[:1] in tuple("BbWSR") and not is_ended(part) and bool(_BYLINE.fullmatch(part))


def _topics(lines: Sequence[str]) -> Iterator[int]:
    """Places of the tags below "Related topics": short lines, up to the next longer one."""
    place = 0
    while place < len(lines):
        if not lines[place] or not _TOPICS.fullmatch(lines[place]):
            place += 1
            continue
        yield place
        place += 1
        last = min(len(lines), place + MAX_TOPICS)
        while place < last and lines[place] and lines[place].count(" ") < 2 and not is_ended(lines[place]):
            yield place
            place += 1


def _has_neighbour(lines: Sequence[str], kinds: Sequence[str | None], place: int) -> bool:
    """Whether the line above or below, empty ones aside, is furniture."""
    for step in (-1, 1):
        at = place + step
        if 0 <= at < len(lines) and not lines[at]:
            at += step
        if 0 <= at < len(lines) and kinds[at]:
            return True
    return False
