"""Phrases that an English sentence can do without, found by punctuation and by closed classes of words.

They are: datelines, conjunctions and phrases in front of the subject, appositions and relative clauses between commas,
parentheses, attributions, clauses behind the main one, and phrases of time. There is no parser (`summary_words` holds
the classes of words); where a sentence can be read in two ways, no phrase is offered.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.data.summary_tokens import CLOSING_MARKS, DASHES, OPENING_MARKS, Token, text_of
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
    is_finite,
)

MIN_WORDS = 5
MAX_LEADING, MAX_ATTRIBUTION, MAX_APPOSITION = 16, 12, 18
_DATELINE = re.compile(
    r"^(?:\([A-Z][\w .]{1,25}\)\s*(?:--|-|–|—)?\s*"
    r"|[A-Z][\w.' ]{1,24}(?:, [A-Z][\w.' ]{1,20}){0,2}\s*\([A-Z][\w .]{1,25}\)\s*(?:--|-|–|—)?\s*"
    r"|[A-Z]{3}[A-Z.,' ]{0,24}(?:, [A-Z][\w.]{1,12}(?: [A-Z][\w.]{1,12})?)?\s+(?:--|-|–|—)\s+"
    r"|By [A-Z][\w.]+ [A-Z][\w.]+ )"
)


@dataclass(frozen=True)
class Cut:
    """Tokens `[start, end)` that may be left out; `kind` says why."""

    start: int
    end: int
    kind: str


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
    """Phrases in front of the main clause: a conjunction, a phrase, or an attribution."""
    yield from _leading_conjunction(tokens, stop)
    yield from _leading_phrase(tokens, stop)
    yield from _leading_report(tokens, stop)


def _leading_conjunction(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """ "But", "And," in front of a main clause."""
    if tokens and tokens[0].lower in CONJUNCTIONS:
        end = 2 if len(tokens) > 1 and tokens[1].text == "," else 1
        if _begins_clause(tokens, end, stop):
            yield Cut(0, end, "conjunction")


def _leading_phrase(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """ "After a long winter, ...": a phrase up to the comma behind which the main clause begins."""
    first = tokens[0].lower if tokens else ""
    if first not in LEADING:
        return
    for comma in range(1, min(stop, MAX_LEADING + 1)):
        # What begins with a preposition is no clause: a verb in it is another clause's.
        is_phrase = first in SUBORDINATORS or not any(is_finite(token.lower) for token in tokens[1:comma])
        if not is_phrase or not _is_plain(tokens[:comma]):
            return
        if tokens[comma].text == "," and _begins_clause(tokens, comma + 1, stop):
            listed = any(token.lower in ("and", "or") for token in tokens[comma + 1 : comma + 4])
            if tokens[comma + 1].lower in SUBJECT_STARTS or not listed:
                yield Cut(0, comma + 1, "leading")


def _leading_report(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """ "Police said (on Monday) that ...": a short subject, a verb of saying, and a clause."""
    for verb in range(1, min(7, stop)):
        if tokens[verb].text in ",;:" or tokens[verb].text in OPENING_MARKS:
            return
        if tokens[verb].lower in REPORTING:
            at = verb + 1
            while at < stop and tokens[at].lower in WEEKDAYS | {"on", "that"}:
                at += 1
            if _is_reported_clause(tokens, at, stop) and _is_plain(tokens[:at]):
                yield Cut(0, at, "said")
            return


def _is_reported_clause(tokens: Sequence[Token], at: int, stop: int) -> bool:
    """Whether a clause behind a verb of saying starts here, and can stand without who said it."""
    if at >= stop:
        return False
    first = tokens[at]
    starts = first.lower in SUBJECT_STARTS or first.text[0].isupper() or tokens[at - 1].lower == "that"
    # "SABMiller said its board ...": whose board, once the subject is gone?
    leans = first.lower in PRONOUNS | POSSESSIVES and tokens[0].lower not in PRONOUNS
    return starts and not leans and _begins_clause(tokens, at, stop)


def _is_plain(tokens: Sequence[Token]) -> bool:
    """Whether no quotation mark or bracket stands in a phrase."""
    return not any(token.text in OPENING_MARKS + CLOSING_MARKS or token.text in ";:" for token in tokens)


def _attribution(tokens: list[Token], stop: int, commas: list[int]) -> Iterator[Cut]:
    """ ", police said on Monday" and ", according to ..." at the end or between commas."""
    for number, comma in enumerate(commas):
        end = commas[number + 1] if number + 1 < len(commas) else stop
        inner = tokens[comma + 1 : end]
        if not inner or len(inner) > MAX_ATTRIBUTION or not _is_plain(inner) or tokens[comma - 1].text in CLOSING_MARKS:
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
            goes_on = any(is_finite(tokens[other + 1].lower) for other in commas if comma < other < len(tokens) - 1)
            if first in RELATIVE and goes_on:
                continue
            if first in ("as", "like", "until", "even") and not any(
                is_finite(t.lower) for t in tokens[comma + 2 : stop]
            ):
                continue
            yield Cut(comma, stop, "behind comma")


def _bracketed(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """Brackets, and text between dashes or behind one."""
    for start, token in enumerate(tokens):
        if token.text == "(":
            end = next((i for i in range(start + 1, len(tokens)) if tokens[i].text == ")"), None)
            is_quoted = sum(other.text in '"“”' for other in tokens[:start]) % 2
            # "a slice of life (through) the beauty": an editor's word, without which the sentence breaks.
            if end is not None and end < stop and not is_quoted:
                yield Cut(start, end + 1, "bracket")
    dashes = [i for i in range(1, stop) if tokens[i].text in DASHES and tokens[i].spaced]
    if tokens[0].lower in LEADING:
        return  # the dashes stand for the comma behind the leading phrase
    if len(dashes) == 2 and dashes[1] - dashes[0] <= 25:
        yield Cut(dashes[0], dashes[1] + 1, "dashes")
    elif len(dashes) == 1 and dashes[0] >= 2 * MIN_WORDS and any(is_finite(t.lower) for t in tokens[: dashes[0]]):
        yield Cut(dashes[0], stop, "dash")


def _times(tokens: list[Token], stop: int) -> Iterator[Cut]:
    """Phrases of time: "on Monday night", "last week", "earlier this year"."""
    words = [token.lower for token in tokens]
    for at in range(1, stop):
        end = _end_of_time(words, at)
        if end == at or end > stop:
            continue
        if end < stop and words[end] in DAY_PARTS:
            end += 1
        if _is_time_needed(words, at, end):
            continue
        before, behind = words[at - 1], words[end] if end < len(words) else ""
        if before == "," and behind == ",":
            yield Cut(at, end + 1, "time")
        elif before == "," and end == stop:
            yield Cut(at - 1, end, "time")
        else:
            yield Cut(at, end, "time")


def _end_of_time(words: Sequence[str], at: int) -> int:
    """Where a phrase of time that begins at `at` ends; `at` where none begins."""
    following = words[at + 1] if at + 1 < len(words) else ""
    if words[at] == "on" and following in WEEKDAYS:
        return at + 2
    if words[at] in WEEKDAYS and is_finite(words[at - 1]):
        return at + 1
    if words[at] == "earlier" and following == "this":
        return at + 3
    is_span = words[at] in ("last", "this", "next") and following in ("week", "month", "year", "night", "weekend")
    return at + 2 if is_span and words[at - 1] not in STOP_WORDS else at


def _is_time_needed(words: Sequence[str], at: int, end: int) -> bool:
    """Whether the words around a phrase of time lean on it: "since last week", "on Monday and", "Monday's"."""
    before, behind = words[at - 1], words[end] if end < len(words) else ""
    following = words[end + 1] if end + 1 < len(words) else ""
    if before in ("since", "until", "by", "from", "of", "for", "before", "after", "between", "and", "or", "the"):
        return True
    if behind in ("and", "or") or behind.startswith("'"):
        return True
    is_range = behind == "to" and following in WEEKDAYS
    return is_range or (behind == "," and following in ("the", "a", "an", "when", "where"))


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
