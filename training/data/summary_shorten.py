"""Sentences made shorter by leaving words out: what a reference does not say goes, if what stays is still a sentence.

Words are never changed, moved or added; only a sentence that lost its beginning gets a capital letter. What may be left
out are whole phrases, found by punctuation and by words of closed classes (`summary_words`): datelines, conjunctions
and phrases in front of the subject, appositions and relative clauses between commas, parentheses, attributions,
clauses behind the main one, and when it was. Where in doubt, nothing is cut.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.data.summary_words import (
    CONJUNCTIONS,
    DAY_PARTS,
    LEADING,
    POSSESSIVES,
    PRONOUNS,
    RELATIVE,
    REPORTING,
    SAYING,
    STOP_WORDS,
    SUBJECT_STARTS,
    SUBORDINATORS,
    TIME_UNITS,
    TRAILING,
    WEEKDAYS,
    content,
    is_finite,
)

MIN_WORDS = 5
MAX_LEADING, MAX_ATTRIBUTION, MAX_APPOSITION = 16, 12, 18
_TERMINAL = re.compile(r"[.!?…]+[\"'”’)\]]*$")
_CHUNK = re.compile(r"^([\"“‘'(\[]*)(.*?)([\"”’')\],;:.!?…]*)$", re.DOTALL)
_GLUED = re.compile(r"(?<=\))(?=\w)")
_DATELINE = re.compile(
    r"^(?:\([A-Z][\w .]{1,25}\)\s*(?:--|-|–|—)?\s*"
    r"|[A-Z][\w.' ]{1,24}(?:, [A-Z][\w.' ]{1,20}){0,2}\s*\([A-Z][\w .]{1,25}\)\s*(?:--|-|–|—)?\s*"
    r"|[A-Z]{3}[A-Z.,' ]{0,24}(?:, [A-Z][\w.]{1,12}(?: [A-Z][\w.]{1,12})?)?\s+(?:--|-|–|—)\s+"
    r"|By [A-Z][\w.]+ [A-Z][\w.]+ )"
)
_DASHES = ("--", "—", "–", "-")
_OPENING, _CLOSING = "\"“‘'([", "\"”’')]"


@dataclass(frozen=True)
class Token:
    """A word or a mark of a sentence: its text, and whether a space stands before it."""

    text: str
    spaced: bool

    @property
    def lower(self) -> str:
        """In small letters, with plain apostrophes."""
        return self.text.lower().replace("’", "'")

    @property
    def is_word(self) -> bool:
        """Whether it holds a letter or digit."""
        return any(map(str.isalnum, self.text))


@dataclass(frozen=True)
class Cut:
    """Tokens `[start, end)` that may be left out; `kind` says why."""

    start: int
    end: int
    kind: str


def tokens_of(sentence: str) -> list[Token]:
    """Words and the marks around them. A full stop inside a sentence is part of its word ("Gov.")."""
    chunks = sentence.split()
    tokens = []
    for number, chunk in enumerate(chunks):
        is_last = number + 1 == len(chunks)
        # "(CNN)Good": a bracket ends a piece even where no space follows.
        for at, piece in enumerate(_GLUED.split(chunk)):
            before, word, behind = _CHUNK.match(piece).groups()
            if not is_last and behind.startswith(".") and word:
                word, behind = word + ".", behind[1:]
            marks = [*before, *([word] if word else []), *re.findall(r"[.!?…]+|.", behind)]
            tokens += [Token(mark, spaced=at + position == 0) for position, mark in enumerate(marks)]
    return tokens


def text_of(tokens: Sequence[Token]) -> str:
    """A sentence out of tokens, its first letter large."""
    text = "".join((" " if token.spaced and at else "") + token.text for at, token in enumerate(tokens))
    first = next((i for i, c in enumerate(text) if c.isalnum()), 0)
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def shorten(sentence: str, reference: str | None) -> str:
    """A sentence with the phrases left out that a reference says nothing of.

    Args:
        reference: what the sentence is cited for; None: leave out only what is never missed (a dateline, a
            conjunction in front).

    Returns:
        The shortened sentence, or the sentence as it is.
    """
    tokens = tokens_of(sentence)
    wanted = None if reference is None else content(reference)
    # Who said it matters if the reference says so, too.
    is_attributed = reference is not None and (":" in reference or any(t.lower in SAYING for t in tokens_of(reference)))
    kept_kinds = ("attribution", "said") if is_attributed else ()
    # A cut may make room for another: phrases inside phrases, one leading phrase behind another.
    for _ in range(6):
        shorter = _best_cut(tokens, wanted, kept_kinds)
        if shorter is None:
            break
        tokens = shorter
    return text_of(tokens)


def _best_cut(tokens: list[Token], wanted: set[str] | None, kept_kinds: Sequence[str]) -> list[Token] | None:
    """Tokens without the longest phrase that may go, or None. Phrases of `kept_kinds` stay."""
    # The dateline first: it says nothing of its own, and what is in it is no part of the sentence.
    for cut in sorted(cuts(tokens), key=lambda cut: (cut.kind != "dateline", cut.start - cut.end)):
        if cut.kind in kept_kinds or (wanted is None and cut.kind not in ("dateline", "conjunction")):
            continue
        left = _without(tokens, cut)
        if left is not None and (wanted is None or cut.kind == "dateline" or _keeps(tokens, left, cut, wanted)):
            return left
    return None


def _keeps(tokens: list[Token], left: list[Token], cut: Cut, wanted: set[str]) -> bool:
    """Whether what is left still says all that the whole said of the reference."""
    lost = content(text_of(tokens[cut.start : cut.end])) - content(text_of(left))
    return not lost & wanted


def _without(tokens: list[Token], cut: Cut) -> list[Token] | None:
    """What is left without a phrase; None where that is no sentence any more."""
    left = tokens[: cut.start] + tokens[cut.end :]
    while left and (left[0].text in ",;:" or left[0].text in _DASHES):
        left = left[1:]
    num_words = sum(token.is_word for token in left)
    if num_words < MIN_WORDS or not left[-1].text.startswith(tuple(".!?…\"”’')")):
        return None
    if not _TERMINAL.search(text_of(left)) or not _is_balanced(left):
        return None
    if not any(is_finite(token.lower) for token in left) and any(is_finite(token.lower) for token in tokens):
        return None
    for token, following in itertools.pairwise(left):
        if token.text.endswith(".") and following.text[0] == ".":  # "in the U.S." before another full stop
            return None
        if token.text in (*",;:", *_DASHES) and (following.text in ",;:" or following.text[0] in ".!?"):
            return None
    return left


def _is_balanced(tokens: Sequence[Token]) -> bool:
    text = " ".join(token.text for token in tokens)
    pairs = (("(", ")"), ("[", "]"), ("“", "”"))
    return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in pairs)


# ------------------------------------------------------------------------------------------------- phrases to leave out


def cuts(tokens: list[Token]) -> Iterator[Cut]:
    """Phrases that a sentence can do without."""
    stop = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].text[0] in ".!?…"), len(tokens))
    commas = [i for i in range(stop) if tokens[i].text == ","]
    yield from _dateline(tokens)
    yield from _leading(tokens, stop)
    yield from _attribution(tokens, stop, commas)
    yield from _between_commas(tokens, commas)
    yield from _behind_comma(tokens, stop, commas)
    yield from _bracketed(tokens, stop)
    yield from _times(tokens, stop)
    yield from _behind(tokens, stop)


def _dateline(tokens: list[Token]) -> Iterator[Cut]:
    found = _DATELINE.match(text_of(tokens))
    if found is None:
        return
    length = 0
    for end, token in enumerate(tokens):
        if length >= found.end():
            yield Cut(0, end, "dateline")
            return
        length += len(token.text) + (token.spaced and end > 0)
        # The space behind the dateline belongs to the next token.
        length += end + 1 < len(tokens) and tokens[end + 1].spaced and length + 1 == found.end()


def _begins_clause(tokens: Sequence[Token], at: int, stop: int) -> bool:
    """Whether a main clause seems to start here: a subject, and a verb before the next comma."""
    if at >= stop:
        return False
    first = tokens[at]
    if not (first.lower in SUBJECT_STARTS or first.text[0].isupper() or first.text[0].isdigit()):
        return False
    ahead = []
    for token in tokens[at + 1 : stop]:
        if token.text in ",;:":
            break
        ahead.append(token)
    return any(is_finite(token.lower) for token in ahead)


def _leading(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """A conjunction or phrase in front of the main clause."""
    first = tokens[0].lower if tokens else ""
    if first in CONJUNCTIONS:
        end = 2 if len(tokens) > 1 and tokens[1].text == "," else 1
        if _begins_clause(tokens, end, stop):
            yield Cut(0, end, "conjunction")
    if first in LEADING:
        for comma in range(1, min(stop, MAX_LEADING + 1)):
            # What begins with a preposition is no clause: a verb in it is another clause's.
            is_phrase = first in SUBORDINATORS or not any(is_finite(token.lower) for token in tokens[1:comma])
            if not is_phrase or not _is_plain(tokens[:comma]):
                break
            if tokens[comma].text == "," and _begins_clause(tokens, comma + 1, stop):
                listed = any(token.lower in ("and", "or") for token in tokens[comma + 1 : comma + 4])
                if tokens[comma + 1].lower in SUBJECT_STARTS or not listed:
                    yield Cut(0, comma + 1, "leading")
    # "Police said (on Monday) that ...": a short subject, a verb of saying, and a clause.
    for verb in range(1, min(7, stop)):
        if tokens[verb].text in ",;:" or tokens[verb].text in _OPENING:
            return
        if tokens[verb].lower in REPORTING:
            at = verb + 1
            while at < stop and tokens[at].lower in WEEKDAYS | {"on", "that"}:
                at += 1
            is_marked = tokens[at - 1].lower == "that"
            starts = at < stop and (tokens[at].lower in SUBJECT_STARTS or tokens[at].text[0].isupper() or is_marked)
            # "SABMiller said its board ...": whose board, once the subject is gone?
            leans = starts and tokens[at].lower in PRONOUNS | POSSESSIVES and tokens[0].lower not in PRONOUNS
            if starts and not leans and _begins_clause(tokens, at, stop) and _is_plain(tokens[:at]):
                yield Cut(0, at, "said")
            return


def _is_plain(tokens: Sequence[Token]) -> bool:
    """Whether no quotation mark or bracket stands in a phrase."""
    return not any(token.text in _OPENING + _CLOSING or token.text in ";:" for token in tokens)


def _attribution(tokens: list[Token], stop: int, commas: list[int]) -> Iterator[Cut]:
    """ ", police said on Monday" and ", according to ..." at the end or between commas."""
    for number, comma in enumerate(commas):
        end = commas[number + 1] if number + 1 < len(commas) else stop
        inner = tokens[comma + 1 : end]
        if not inner or len(inner) > MAX_ATTRIBUTION or not _is_plain(inner) or tokens[comma - 1].text in _CLOSING:
            continue
        words = [token.lower for token in inner]
        if (tokens[comma + 1 :][:1] and words[0] == "according") or (
            any(word in SAYING for word in words[:6])
            and (words[0] in SUBJECT_STARTS or inner[0].text[0].isupper() or words[-1] in SAYING)
            and words[0] not in ("and", "but")
            and "that" not in words
        ):
            # One comma stays where the sentence goes on, unless it would part a subject from its verb.
            takes_both = end < stop and is_finite(tokens[end + 1].lower)
            yield Cut(comma, end + 1 if takes_both else end, "attribution")


def _between_commas(tokens: list[Token], commas: list[int]) -> Iterator[Cut]:
    """An apposition, relative clause or age between two commas."""
    for start in commas:
        for end in commas:
            inner = tokens[start + 1 : end]
            if end <= start or not inner or len(inner) > MAX_APPOSITION or not _is_plain(inner):
                continue
            following = tokens[end + 1].lower if end + 1 < len(tokens) else ""
            if (
                following in ("and", "or", "but", "who", "which", "where", "whose")
                or tokens[start - 1].lower in WEEKDAYS
            ):
                continue
            if _is_insertion(inner, following) and any(is_finite(token.lower) for token in tokens[end + 1 :]):
                yield Cut(start, end if _closes_another(tokens, start, end) else end + 1, "inserted")


def _closes_another(tokens: Sequence[Token], start: int, end: int) -> bool:
    """Whether the comma behind an age is needed: "The suspect, Richard White, 63, died", "Ann, 19, from York, is"."""
    if end - start != 2:
        return False
    ahead = next((i for i in range(end + 1, len(tokens)) if tokens[i].text == "," or is_finite(tokens[i].lower)), end)
    return any(token.text == "," for token in tokens[max(0, start - 4) : start]) or tokens[ahead].text == ","


def _is_insertion(inner: Sequence[Token], following: str) -> bool:
    words = [token.lower for token in inner]
    has_verb = any(map(is_finite, words))
    num_commas = words.count(",")
    if words[0] in RELATIVE:
        return has_verb and num_commas <= 1 and (is_finite(following) or following in SUBJECT_STARTS)
    if len(words) == 1:
        return words[0].isdigit() or words[0] in ("however", "too", "meanwhile", "though", "also")
    follows_verb = is_finite(following)
    if words[0] in ("a", "an", "the", "his", "her", "their", "its", "one", "now", "formerly", "aged", "known", "born"):
        is_clause = has_verb and not any(word in RELATIVE for word in words)
        return follows_verb and not is_clause and num_commas == 0
    return words[0] in ("including", "such", "along", "like") and follows_verb and num_commas == 0


def _behind_comma(tokens: list[Token], stop: int, commas: list[int]) -> Iterator[Cut]:
    """A clause behind the main one, from a comma to the end."""
    for comma in commas:
        if comma < MIN_WORDS or comma + 2 >= stop:
            continue
        first, second = tokens[comma + 1].lower, tokens[comma + 2]
        joins = first in ("and", "but", "so", "yet") and (
            second.lower in SUBJECT_STARTS or second.text[0].isupper() or is_finite(second.lower)
        )
        if first in ("and", "but", "so", "yet") and not is_finite(second.lower):
            joins = joins and _begins_clause(tokens, comma + 2, stop)
        participle = first.endswith("ing") and len(first) > 5
        # "though Oakes, who ..., is keen": the clause in front of the comma must be whole.
        clause = max([0, *(other + 1 for other in commas if other < comma)])
        if (first in TRAILING or joins or participle) and any(is_finite(t.lower) for t in tokens[clause:comma]):
            goes_on = any(is_finite(tokens[other + 1].lower) for other in commas if other > comma)
            if first in RELATIVE and goes_on:
                continue
            if first in ("as", "like", "until", "even") and not any(
                is_finite(t.lower) for t in tokens[comma + 2 : stop]
            ):
                continue
            yield Cut(comma, stop, "behind comma")


def _bracketed(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """Brackets, and what stands between dashes or behind one."""
    for start, token in enumerate(tokens):
        if token.text == "(":
            end = next((i for i in range(start + 1, len(tokens)) if tokens[i].text == ")"), None)
            is_quoted = sum(other.text in '"“”' for other in tokens[:start]) % 2
            # "a slice of life (through) the beauty": an editor's word, without which the sentence breaks.
            if end is not None and end < stop and not is_quoted:
                yield Cut(start, end + 1, "bracket")
    dashes = [i for i in range(1, stop) if tokens[i].text in _DASHES and tokens[i].spaced]
    if tokens[0].lower in LEADING:
        return  # the dashes stand for the comma behind the leading phrase
    if len(dashes) == 2 and dashes[1] - dashes[0] <= 25:
        yield Cut(dashes[0], dashes[1] + 1, "dashes")
    elif len(dashes) == 1 and dashes[0] >= 2 * MIN_WORDS and any(is_finite(t.lower) for t in tokens[: dashes[0]]):
        yield Cut(dashes[0], stop, "dash")


def _times(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """When it was: "on Monday night", "last week", "earlier this year"."""
    words = [token.lower for token in tokens]
    for at in range(1, stop):
        end = at
        if words[at] == "on" and words[at + 1 : at + 2] and words[at + 1] in WEEKDAYS:
            end = at + 2
        elif words[at] in WEEKDAYS and is_finite(words[at - 1]):
            end = at + 1
        elif words[at] == "earlier" and words[at + 1 : at + 2] and words[at + 1] in ("this", "in", "on"):
            end = at + 3 if words[at + 1] == "this" else at
        elif (
            words[at] in ("last", "this", "next")
            and words[at + 1 : at + 2]
            and words[at + 1] in ("week", "month", "year", "night", "weekend")
            and words[at - 1] not in STOP_WORDS
        ):
            end = at + 2
        if end == at or end > stop:
            continue
        if end < stop and words[end] in DAY_PARTS:
            end += 1
        before, behind = words[at - 1], words[end] if end < len(words) else ""
        if before in ("since", "until", "by", "from", "of", "for", "before", "after", "between", "and", "or", "the"):
            continue
        is_range = behind == "to" and words[end + 1 : end + 2] and words[end + 1] in WEEKDAYS
        if behind in ("and", "or") or is_range or behind.startswith("'"):
            continue
        if behind == "," and words[end + 1 : end + 2] and words[end + 1] in ("the", "a", "an", "when", "where"):
            continue
        if before == "," and behind == ",":
            end += 1
        elif before == "," and end == stop:
            at -= 1
        yield Cut(at, end, "time")


def _behind(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """A clause behind the main one that no comma parts from it."""
    for at in range(7, stop - 2):
        word, before, behind = tokens[at].lower, tokens[at - 1].lower, tokens[at + 1]
        if word not in ("because", "while", "after", "although", "though", "amid", "when"):
            continue
        if (
            before in STOP_WORDS | TIME_UNITS
            or before in ",;:"
            or (before.endswith(("s", "ly")) and word in ("after", "when"))
        ):
            continue
        is_clause = behind.lower in SUBJECT_STARTS or behind.text[0].isupper() or behind.lower.endswith("ing")
        if (is_clause or word == "amid") and any(is_finite(t.lower) for t in tokens[1:at]):
            yield Cut(at, stop, "behind")


def is_pronoun_led(sentence: str) -> bool:
    """Whether a sentence starts with a pronoun, and so leans on the one before it."""
    words = sentence.split(maxsplit=1)
    return bool(words) and words[0].strip(_OPENING + _CLOSING + ",").lower() in PRONOUNS
