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
from collections.abc import Iterable, Mapping, Set
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
_NUMBER_MARKS = ".,:"
_SMALL = "\0"
"""Stands for any word in small letters: they are all alike, unless one of the article's begins so and goes on large."""
_OPENERS = (
    "a about according after all although an and another any are as at because before both but by can despite do "
    "does during each early even every few first following for four from had has have he her here hers his how "
    "however i if in is it its just last later many more most much nearly neither new next no nobody none not "
    "nothing now of on once one only or other others our over people police several she since so some such ten than "
    "that the their then there these they this those though three to today tomorrow two under until was we were "
    "what when where whether which while who why will with without would yesterday you your"
)


def found_words(text: str) -> list[str]:
    """Words as they stand there, marks dropped."""
    return _WORD.findall(text)


def words_of(text: str) -> list[str]:
    """Words in small letters, marks dropped."""
    return [word.lower().replace("’", "'") for word in found_words(text)]


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

    Attributes:
        by_text: text in small letters -> ids.
        whole, closed: of ids whose text begins with letters or digits, these -> ids: the whole text is of them, or not.
            Twice: as they are, and in small letters.
        leads, checked_leads: all of these ids, and those that look like a name or a number.
        boundaries: the other ids.
        all_ids: every id that has a text.
        incomplete: ids of parts of a character, which stand in none of the above.
        behind: what ids have behind their first boundary, where it is to be judged.
    """

    def __init__(self, pieces: Mapping[int, str]) -> None:
        self.by_text: dict[str, list[int]] = defaultdict(list)
        self.whole, self.closed = (
            {is_small: defaultdict[str, list[int]](list) for is_small in (False, True)} for _ in range(2)
        )
        self.leads, self.checked_leads, self.boundaries = set[int](), set[int](), set[int]()
        self.incomplete = set[int]()
        self.behind: list[_Behind] = []
        for token, piece in pieces.items():
            if not piece:
                continue
            if _INCOMPLETE in piece:
                self.incomplete.add(token)
                continue
            self.by_text[piece.lower()].append(token)
            lead = _LEAD.match(piece).group()  # type: ignore[union-attr]
            if lead:
                group = self.whole if lead == piece else self.closed
                group[False][lead].append(token)
                group[True][lead.lower()].append(token)
                self.leads.add(token)
                if is_checked(lead):
                    self.checked_leads.add(token)
            else:
                self.boundaries.add(token)
            found = _behind(token, piece, len(lead))
            if found.units:
                self.behind.append(found)
        self.all_ids = self.leads | self.boundaries | self.incomplete


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
        checked = set(filter(is_checked, units))
        # By whether a unit begins a sentence.
        self._whole = {False: checked, True: {unit.lower() for unit in units} | set(_OPENERS.split())}
        self._begun = {begins: _prefixes(known) for begins, known in self._whole.items()}
        # Beginnings in small letters of what goes on with a capital letter or a digit, as "iPhone" does.
        self._small_begun = {start for start in self._begun[False] if not is_checked(start)}
        self._banned: dict[tuple[str, bool, bool], tuple[int, ...]] = {}
        self._behind: dict[bool, set[int]] = {}

    def may_end(self, text: str) -> bool:
        """Whether a body that came so far ends in no half name."""
        unit, begins = _open_unit(text)
        return self._is_whole(unit, begins) or not self._is_begun(unit, begins)

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
        if next_begins not in self._behind:
            unfit = (one.token for one in tables.behind if not self._allows(one, next_begins))
            self._behind[next_begins] = set(unfit)
        # What came in parts of characters is judged too late: it may end.
        is_whole = self._is_whole(unit, unit_begins) or not self._is_begun(unit, unit_begins)
        fitting = self._leads(unit, unit_begins if unit else next_begins)
        if unit[-1:] in _NUMBER_MARKS and is_whole:  # a digit goes on with the number, a letter begins a word
            fitting |= self._leads("", next_begins)
        if is_whole and not (is_checked(unit) and unit[-1].isalnum()):
            return self._behind[next_begins] | (tables.checked_leads - fitting)
        found = self._behind[next_begins] | (tables.leads - fitting)
        if is_whole:
            return found
        if not self._goes_on_beyond_ascii(unit, unit_begins):
            found |= tables.incomplete
        marks = (mark for mark in _NUMBER_MARKS if unit[-1].isdigit() and self._is_begun(unit + mark, unit_begins))
        return found | (tables.boundaries - {token for mark in marks for token in tables.by_text[mark]})

    def _leads(self, unit: str, begins: bool) -> set[int]:
        """Ids whose first letters and digits make a unit go on as one of the article's does."""
        start, found = unit.lower() if begins else unit, set[int]()
        whole, closed = self._tables.whole[begins], self._tables.closed[begins]
        for known in self._whole[begins]:
            if known.startswith(start):
                rest = known[len(start) :]
                found.update(closed.get(rest, ()))
                for end in range(1, len(rest) + 1):
                    found.update(whole.get(rest[:end], ()))
        return found

    def _goes_on_beyond_ascii(self, unit: str, begins: bool) -> bool:
        start = unit.lower() if begins else unit
        return any(
            known.startswith(start) and not known[len(start)].isascii() for known in self._whole[begins] - {start}
        )

    def _allows(self, behind: _Behind, next_begins: bool) -> bool:
        for place, (unit, begins) in enumerate(behind.units):
            first = next_begins if begins is None else begins
            is_last = place + 1 == len(behind.units)
            if not (self._is_begun(unit, first) if is_last and behind.is_open else self._is_whole(unit, first)):
                return False
        return True

    def _is_whole(self, unit: str, begins: bool) -> bool:
        unit = unit.rstrip(_NUMBER_MARKS)
        return not is_checked(unit) or (unit.lower() if begins else unit) in self._whole[begins]

    def _is_begun(self, unit: str, begins: bool) -> bool:
        return not is_checked(unit) or (unit.lower() if begins else unit) in self._begun[begins]

    def repeating(self, text: str, said: Set[tuple[str, ...]]) -> tuple[int, ...]:
        """Ids that would complete REPEATED_WORDS words in a row that were said before, or that `text` itself has.

        Args:
            text: of a body so far.
            said: the runs of words (`word_runs`) of the bodies before it.
        """
        words, (unit, _) = words_of(text), _open_unit(text)
        is_open = bool(unit) and unit[-1].isalnum()
        # The last word may go on, or the next one begin behind it.
        ways = [(words, "", (" ",) if is_open else (" ", ""))]
        if is_open and words:
            ways.append((words[:-1], words[-1], ("",)))
        runs = said | set(word_runs(text))
        found: list[int] = []
        for before, begun, openings in ways:
            last = tuple(before[1 - REPEATED_WORDS :])
            rests = {run[-1][len(begun) :] for run in runs if run[:-1] == last and run[-1].startswith(begun)} - {""}
            for form in (opening + rest for opening in openings for rest in rests):
                found += self._tables.by_text.get(form, ())
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
