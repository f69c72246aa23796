"""Rules for bodies in a model's own words: no name and no number that the article does not have, no four words twice.

What looks like a name or a number is a run of letters and digits with a capital letter or a digit in it, "1,400" as one
run. It has to stand in the article, letter by letter; at the beginning of a sentence, where any word has a capital
letter, small ones will do, or a common word. So ids are judged by the text that they make: while such a word is being
written it has to be the beginning of one of the article's, and it may end only where it is a whole one.

Tables of the vocabulary are made once per tokenizer, and what an article forbids once per row, so that an id costs a
few look-ups. No torch here.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

REPEATED_WORDS = 4

_UNIT = re.compile(r"[^\W_]+(?:(?<=\d)[.,:](?=\d)[^\W_]+)*")
# The unit that a text ends in, which may go on; behind a digit also with a mark that may turn out to be part of it.
_OPEN_UNIT = re.compile(r"[^\W_]+(?:(?<=\d)[.,:](?=\d)[^\W_]+)*(?:(?<=\d)[.,:])?\Z")
_LEAD = re.compile(r"[^\W_]*")
_SENTENCE_START = re.compile(r"(?:\A|[.!?…:][\"'”’)\]]*|[\"“‘'(\[])\s*\Z")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_MAX_TAIL = 80
_SMALL = "small"
"""Stands for any word in small letters: they are all alike, unless one of the article's begins so and goes on large."""
_OPENERS = (
    "a about according after all although an and another any are as at because before both but by can despite do "
    "does during each early even every few first following for four from had has have he her here hers his how "
    "however i if in is it its just last later many more most much nearly neither new next no nobody none not "
    "nothing now of on once one only or other others our over people police several she since so some such ten than "
    "that the their then there these they this those though three to today tomorrow two under until was we were "
    "what when where whether which while who why will with without would yesterday you your"
)


def words_of(text: str) -> list[str]:
    """Words in small letters, marks dropped."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def word_runs(text: str) -> list[tuple[str, ...]]:
    """Every run of REPEATED_WORDS words."""
    words = words_of(text)
    return [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]


def is_checked(unit: str) -> bool:
    """Whether a run of letters and digits looks like a name or a number."""
    return any(c.isupper() or c.isdigit() for c in unit)


@dataclass(frozen=True)
class _Behind:
    """What an id's text has behind its first boundary: its units that look like names or numbers.

    Attributes:
        units: (unit, whether it begins a sentence; None if that depends on what stands before the id).
        is_open: whether the last one may go on.
    """

    token: int
    units: tuple[tuple[str, bool | None], ...]
    is_open: bool


class PieceTables:
    """The texts of a tokenizer's ids, sorted by what they do to a word; one object for any number of rows.

    Args:
        pieces: id -> text.
    """

    def __init__(self, pieces: Mapping[int, str]) -> None:
        by_text: dict[str, list[int]] = defaultdict(list)
        whole: dict[str, list[int]] = defaultdict(list)
        closed: dict[str, list[int]] = defaultdict(list)
        self.behind: list[_Behind] = []
        boundaries = []
        for token, piece in pieces.items():
            if not piece or _INCOMPLETE in piece:  # a character in parts is judged when it is whole
                continue
            by_text[piece.lower()].append(token)
            lead = _LEAD.match(piece).group()  # type: ignore[union-attr]
            if not lead:
                boundaries.append(token)
            else:
                (whole if lead == piece else closed)[lead].append(token)
            found = _behind(token, piece, len(lead))
            if found.units:
                self.behind.append(found)
        self.by_text = {text: tuple(tokens) for text, tokens in by_text.items()}
        self.whole, self.closed, self.boundaries = dict(whole), dict(closed), tuple(boundaries)
        self.marks = {mark: self.by_text.get(mark, ()) for mark in ".,:"}
        self.checked_leads = tuple(
            token for group in (whole, closed) for lead, tokens in group.items() if is_checked(lead) for token in tokens
        )


def _behind(token: int, piece: str, start: int) -> _Behind:
    units, end = [], start
    for match in _UNIT.finditer(piece, start):
        end = match.end()
        if is_checked(match.group()):
            before = piece[: match.start()]
            begins = None if before.isspace() or not before else bool(_SENTENCE_START.search(before))
            units.append((match.group(), begins))
    return _Behind(token, tuple(units), bool(units) and end == len(piece))


class OwnWords:
    """What one article allows; shared by all copies of a row's rules.

    Args:
        tables: of the tokenizer.
        article: its text.
    """

    def __init__(self, tables: PieceTables, article: str) -> None:
        self._tables = tables
        units = set(_UNIT.findall(article))
        small = {unit.lower() for unit in units} | set(_OPENERS.split())
        self._whole = {False: units, True: small}
        self._begun = {begins: _prefixes(known) for begins, known in self._whole.items()}
        # Beginnings in small letters of what goes on with a capital letter or a digit, as "iPhone" does.
        self._small_begun = {start for start in _prefixes(filter(is_checked, units)) if not is_checked(start)}
        self._banned: dict[tuple[str, bool, bool], tuple[int, ...]] = {}

    def may_end(self, text: str) -> bool:
        """Whether a body that came so far ends in no half name."""
        unit, begins = _open_unit(text)
        return self._is_whole(unit, begins)

    def banned(self, text: str) -> tuple[int, ...]:
        """Ids that would make a name or number that the article does not have, behind so much of a body."""
        unit, unit_begins = _open_unit(text)
        next_begins = bool(_SENTENCE_START.search(text[-_MAX_TAIL:]))
        is_small = bool(unit) and not is_checked(unit) and unit not in self._small_begun
        key = (_SMALL, False, next_begins) if is_small else (unit, unit_begins, next_begins)
        if key not in self._banned:
            self._banned[key] = tuple(self._find(*key))
        return self._banned[key]

    def _find(self, unit: str, unit_begins: bool, next_begins: bool) -> set[int]:
        tables = self._tables
        found: set[int] = set()
        found.update(behind.token for behind in tables.behind if not self._allows(behind, next_begins))
        if not self._is_whole(unit, unit_begins):
            found.update(tables.boundaries)
            for mark, tokens in tables.marks.items():
                if unit[-1:].isdigit() and unit + mark in self._begun[unit_begins]:
                    found.difference_update(tokens)
        # A mark behind a digit belongs to the number only if a digit follows.
        stem = unit.rstrip(".,:")
        begins = unit_begins if unit and unit == stem else next_begins
        if unit == _SMALL:
            found.update(tables.checked_leads)
            return found
        for group, is_open in ((tables.whole, True), (tables.closed, False)):
            for lead, ids in group.items():
                joined = unit + lead if unit == stem or lead[0].isdigit() else lead
                fits = self._is_begun(joined, begins) if is_open else self._is_whole(joined, begins)
                if not fits or (joined == lead and not self._is_whole(unit, unit_begins)):
                    found.update(ids)
        return found

    def _allows(self, behind: _Behind, next_begins: bool) -> bool:
        for place, (unit, begins) in enumerate(behind.units):
            first = next_begins if begins is None else begins
            is_last = place + 1 == len(behind.units)
            if not (self._is_begun(unit, first) if is_last and behind.is_open else self._is_whole(unit, first)):
                return False
        return True

    def _is_whole(self, unit: str, begins: bool) -> bool:
        unit = unit.rstrip(".,:")
        return not is_checked(unit) or (unit.lower() if begins else unit) in self._whole[begins]

    def _is_begun(self, unit: str, begins: bool) -> bool:
        return not is_checked(unit) or (unit.lower() if begins else unit) in self._begun[begins]

    def repeating(self, text: str, said: Sequence[str]) -> tuple[int, ...]:
        """Ids that would complete four words in a row which one of the texts `said` has, or `text` itself."""
        words, (unit, _) = words_of(text), _open_unit(text)
        is_open = bool(unit) and unit[-1].isalnum()
        begun = words.pop() if is_open and words else ""
        before = tuple(words[1 - REPEATED_WORDS :])
        if len(before) < REPEATED_WORDS - 1:
            return ()
        found: list[int] = []
        for other in (*said, text):
            for run in word_runs(other):
                if run[:-1] == before and run[-1].startswith(begun) and run[-1] != begun:
                    rest = run[-1][len(begun) :]
                    forms = (rest,) if begun else (f" {rest}", rest)
                    found += [token for form in forms for token in self._tables.by_text.get(form, ())]
        return tuple(found)


def _open_unit(text: str) -> tuple[str, bool]:
    """The unit in which a text ends, "" if in none, and whether it begins a sentence."""
    tail = text[-_MAX_TAIL:]
    match = _OPEN_UNIT.search(tail)
    if match is None:
        return "", False
    return match.group(), bool(_SENTENCE_START.search(tail[: match.start()]))


def _prefixes(units: Iterable[str]) -> set[str]:
    return {unit[:end] for unit in units for end in range(1, len(unit) + 1)}
