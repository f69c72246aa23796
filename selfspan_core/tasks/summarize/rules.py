"""Decoding rules for a summary: whole steps, sentences that end, no repetition, the requested length.

The rules are the same for both lanes. They never choose an id; they only remove ids from the model's choice:

* A span lane's headers are well formed: one or two segments of the article, in its order, that no earlier step has
  read, then the next free name. Not named are segments with REPEATED_WORDS words in a row that the summary already has,
  and those that end like no sentence (headings, lines of a list), unless the article has no others. (A plain lane
  writes no headers; a line break opens each of its steps.)
* A body ends only behind a full stop, question or exclamation mark, or where a segment ends that it reads and that has
  none; it has at least MIN_BODY tokens beside such marks, or is a whole source that has fewer, and ends after MAX_BODY
  at the latest.
* Within a body no run of NGRAM tokens comes twice, and no body begins with the START tokens that an earlier one begins
  with: no loops, no sentence twice. (A plain lane is led to sentences that it has not begun: `beginnings`.)
* A summary has MIN_STEPS to MAX_STEPS steps (`summarize.MIN_STEPS`), by the requested length; fewer if no segment is
  left that may be named.
* If words are to be "copied": only those of the segments it reads (in a plain lane, of one of the article), in their
  order; the first letter of a body may be made large.
* If words are the model's "own" (*rewrite*), in addition: a body has no name and no number that the article has not,
  and no REPEATED_WORDS words in a row that the summary already has (`own_words`).
No torch here. A captured step can keep these rules by itself where words are "free" (`on_device`).
"""

import copy
import functools
import re
from collections.abc import Sequence
from typing import Literal

from selfspan_core.engine.device_rules import Bounds, DeviceRules, HostOnly, IdTables
from selfspan_core.engine.rules import Limits
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.tasks.base import Tokenizer
from selfspan_core.tasks.summarize.beginnings import START, Beginnings, Onward
from selfspan_core.tasks.summarize.form import CUE, MAX_READS, MAX_STEPS, MIN_STEPS, STEP_SEPARATOR, Length
from selfspan_core.tasks.summarize.own_words import OwnWords, PieceTables, word_runs
from selfspan_core.tasks.summarize.tabled import id_tables, words_by_name

Words = Literal["free", "copied", "own"]
"""What bodies are made of; "free" leaves it to the model."""
MIN_BODY, MAX_BODY = 5, 160
NGRAM = 8

_ENDING = re.compile(r"[.!?…]+[\"'”’)\]]*\Z")
_CLOSING = re.compile(r"[\"'”’)\]]+")
_STARTING = re.compile(r"[\s,;:.!?…\"“”)\]]")


class RuleTables:
    """The classes of a tokenizer's ids that the rules distinguish; one object for any number of rows.

    Attributes:
        ends: ids that end a sentence.
        closes: closing marks, which may stand behind such an id.
        starts: ids at which a word or a mark begins, so that the word before them is complete.
        body_banned: ids that no body may hold.
        separator: the id that opens a plain lane's step.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.markers = markers = tokenizer.markers
        structural = {markers.eos, tokenizer.pad_id, *markers.ids}
        if markers.bos is not None:
            structural.add(markers.bos)
        self._pieces = pieces = {i: tokenizer.piece(i) for i in range(tokenizer.vocab_size) if i not in structural}
        self.ends = frozenset(i for i, piece in pieces.items() if _ENDING.search(piece))
        self.closes = frozenset(i for i, piece in pieces.items() if _CLOSING.fullmatch(piece))
        self.starts = frozenset(i for i, piece in pieces.items() if _STARTING.match(piece))
        breaks = {i for i, piece in pieces.items() if "\n" in piece}
        self.separator = tokenizer.encode(STEP_SEPARATOR)[-1]
        self.body_banned = tuple(sorted(structural | breaks))

    @functools.cached_property
    def words(self) -> PieceTables:
        """For rows in own words, made when the first of them begins."""
        return PieceTables(self._pieces)

    @functools.cached_property
    def ids(self) -> IdTables | None:
        """For rows whose rules are kept on the device; None if the tokenizer's text is not made of its ids' bytes."""
        return id_tables(self.tokenizer, self.ends, self.closes, self.body_banned)


class SummaryRules:
    """The rules of one row: `limits` before each id, `push` after it.

    Args:
        tables: of the tokenizer.
        prompt: the row's prompt ids.
        layout: positions of its segments; without names for a plain lane, whose segments then are `segments`.
        length: of the summary.
        annotated: whether it is a span lane.
        words: what bodies are made of.
        segments: ids of the article's segments, for a plain lane that is to copy.
    """

    def __init__(
        self,
        tables: RuleTables,
        prompt: Sequence[int],
        layout: PromptLayout,
        length: Length,
        annotated: bool,
        words: Words = "free",
        segments: Sequence[Sequence[int]] = (),
    ) -> None:
        self._tables, self._annotated, self._words = tables, annotated, words
        self._prompt, self._layout = prompt, layout
        self._fewest, self._most = MIN_STEPS[length], MAX_STEPS[length]
        # Without the segment's name, which a body does not copy.
        self._segments = {name: prompt[start + 1 : end] for name, (start, end) in layout.segments.items()}
        self._fresh = self._fresh_names(list(layout.segments))
        self._plain_sources = [list(ids) for ids in segments]
        self._article = tuple(prompt[layout.scaffold_end :])
        self._copies_only = words == "copied"
        # Whole sentences; in a text without any, all segments.
        whole = [name for name, ids in self._segments.items() if self._is_ended(ids)]
        self._unread = dict.fromkeys(whole or self._segments)
        self._new = tuple(self._unread)
        self._runs: dict[int, frozenset[tuple[str, ...]]] = {}
        self._read: list[Sequence[int]] = []
        self._bodies: list[list[int]] = []
        self._said: frozenset[tuple[str, ...]] = frozenset()  # runs of words of the bodies that are done
        self._body: list[int] | None = None
        self._header: list[int] | None = None
        self._copy: _Copy | None = None
        self._own_words: OwnWords | None = None
        if words == "own":
            self._own_words = OwnWords(tables.words, tables.tokenizer.decode(self._article).removesuffix(CUE))

    @property
    def num_steps(self) -> int:
        """Steps begun so far."""
        return len(self._bodies) + (self._body is not None or self._header is not None)

    def limits(self) -> Limits:
        """The limits on the next id."""
        if self._body is not None:
            return self._in_body(self._body)
        if self._header is not None:
            return Limits(self._in_header(self._header), ())
        return Limits(self._between(len(self._bodies)), ())

    def push(self, token: int) -> None:
        """Process the id chosen within `limits`."""
        markers = self._tables.markers
        if self._header is not None:
            if token == markers.go:
                self._read = [self._segments[read] for read in self._header[:-1]]
                self._header = None
                self._open_body([[token for ids in self._read for token in ids]])
            else:
                self._header.append(token)
                self._unread.pop(token, None)
        elif self._body is not None and token not in (markers.end, markers.eos, self._tables.separator):
            if self._copy is not None:
                self._copy.push(token, self._num_said(self._body) >= MIN_BODY)
            self._body.append(token)
        else:
            self._push_between(token)

    def on_device(self) -> DeviceRules | HostOnly:
        """See `engine.device_rules.Tabled`."""
        tables, layout = self._tables, self._layout
        if self._words != "free":
            return HostOnly("what bodies may hold is decided on their text")
        if tables.ids is None:
            return HostOnly("the tokenizer's text is not the bytes of its ids")
        words = words_by_name({name: tables.tokenizer.decode(ids) for name, ids in self._segments.items()})
        if words is None:
            return HostOnly("the article has a sigma, whose small letter depends on its place in a word")
        try:
            return DeviceRules(
                tables.ids,
                Bounds(self._fewest, self._most, MAX_READS, MIN_BODY, MAX_BODY, NGRAM, START),
                self._annotated,
                tables.markers.ref if self._annotated else tables.separator,
                tuple(self._prompt[: layout.num_tokens]),
                layout.scaffold_end,
                {name: (start + 1, end) for name, (start, end) in layout.segments.items()},
                tuple(self._new),
                tuple(self._fresh),
                words,
            )
        except ValueError as error:
            return HostOnly(str(error))

    def fork(self) -> "SummaryRules":
        """See Rules. Shared is what never changes: tables, segments, bodies that are done, runs of words by segment."""
        other = copy.copy(self)
        other._unread, other._bodies = dict(self._unread), list(self._bodies)
        other._header = None if self._header is None else list(self._header)
        other._body = None if self._body is None else list(self._body)
        other._copy = None if self._copy is None else copy.copy(self._copy)
        return other

    def _push_between(self, token: int) -> None:
        markers = self._tables.markers
        if self._body is not None:
            self._bodies.append(self._body)
            said = frozenset(word_runs(self._tables.tokenizer.decode(self._body)))
            self._leave_out(said)
            self._said |= said
            self._body = self._copy = None
        if token == markers.ref:
            self._header = []
        elif token == self._tables.separator and not self._annotated:
            self._open_body(self._plain_sources)

    def _open_body(self, sources: Sequence[Sequence[int]]) -> None:
        self._body = []
        self._copy = _Copy(self._tables, sources) if self._copies_only else None

    def _between(self, num_done: int) -> tuple[int, ...]:
        """The step that follows `num_done` others, or the end."""
        another = self._tables.markers.ref if self._annotated else self._tables.separator
        can_go_on = num_done < self._most and (bool(self._new) or not self._annotated)
        if not can_go_on:
            return (self._tables.markers.eos,)
        return (another,) if num_done < self._fewest else (another, self._tables.markers.eos)

    def _in_header(self, header: Sequence[int]) -> tuple[int, ...]:
        if header and header[-1] not in self._segments:
            return (self._tables.markers.go,)
        if not header:
            return self._new
        # A second one stands behind the first in the article.
        places = list(self._segments)
        behind = places[places.index(header[0]) + 1 :] if len(header) < MAX_READS else ()
        return (*(name for name in behind if name in self._new), self._fresh[len(self._bodies)])

    def _leave_out(self, said: frozenset[tuple[str, ...]]) -> None:
        """Exclude from later headers the segments read, and segments that repeat words of a body: its runs of words."""
        decode = self._tables.tokenizer.decode
        left = []
        for name in self._new:
            if name not in self._runs:
                self._runs[name] = frozenset(word_runs(decode(self._segments[name])))
            if name in self._unread and said.isdisjoint(self._runs[name]):
                left.append(name)
        self._new = tuple(left)

    def _in_body(self, body: Sequence[int]) -> Limits:
        tables, markers = self._tables, self._tables.markers
        ending = (markers.end,) if self._annotated else self._between(len(self._bodies) + 1)
        if len(body) >= MAX_BODY:
            return Limits(ending, ())
        is_long = self._num_said(body) >= MIN_BODY
        is_whole = is_long and (self._is_ended(body) or self._is_at_open_end(body))
        is_whole = is_whole or (not is_long and self._is_short_source(body))
        onward = self._onward(body)
        banned = (*tables.body_banned, *self._repeated(body), *onward.banned)
        if self._own_words is not None:
            text = tables.tokenizer.decode(body)
            may_end, unfit = self._own_words.may_end(text), self._own_words.banned(text)
            banned = (*banned, *unfit, *self._own_words.repeating(text, self._said))
            if not may_end and not tables.words.all_ids - set(banned):
                # A name has begun that can only be finished as four words that were said before: finished it is.
                banned = (*tables.body_banned, *unfit)
                if not tables.words.all_ids - set(banned):
                    return Limits(ending, ())
            is_whole = is_whole and may_end
        if self._copy is not None:
            allowed = self._copy.allowed(is_long) - set(banned)
            if not allowed:
                return Limits(ending, ())
            allowed = allowed.intersection(onward.ways) or allowed
            return Limits((*sorted(allowed), *(ending if is_whole else ())), ())
        if ways := set(onward.ways) - set(banned):
            return Limits((*sorted(ways), *(ending if is_whole else ())), ())
        if is_whole:
            banned = tuple(token for token in banned if token not in ending)
        return Limits(None, banned)

    def _num_said(self, body: Sequence[int]) -> int:
        """Tokens beside marks that end a sentence or stand behind such a mark."""
        return sum(token not in self._tables.ends and token not in self._tables.closes for token in body)

    def _is_ended(self, ids: Sequence[int]) -> bool:
        """Whether ids end as a sentence does."""
        last = next((token for token in reversed(ids) if token not in self._tables.closes), None)
        return bool(ids) and (ids[-1] in self._tables.ends or last in self._tables.ends)

    def _is_at_open_end(self, body: Sequence[int]) -> bool:
        """Whether the body has come to the end of a segment that it reads and that has no full stop."""
        last = list(body[-MIN_BODY:])
        return any(list(ids[-MIN_BODY:]) == last and not self._is_ended(ids) for ids in self._read)

    def _is_short_source(self, body: Sequence[int]) -> bool:
        """Whether the body is a whole source: what it reads, or one segment of it; in a plain lane, a sentence."""
        if self._annotated:
            whole = [token for ids in self._read for token in ids]
            return any(list(ids) == list(body) for ids in (*self._read, whole))
        if not self._is_ended(body):
            return False
        article, length = self._article, len(body)
        return any(
            article[at : at + length] == tuple(body) and (at == 0 or self._is_ended(article[max(0, at - 4) : at]))
            for at, token in enumerate(article)
            if token == body[0]
        )

    def _repeated(self, body: Sequence[int]) -> list[int]:
        """Ids that would make a run of tokens come twice in a body."""
        if len(body) < NGRAM:
            return []
        window = body[len(body) - NGRAM + 1 :]
        return [body[i + NGRAM - 1] for i in range(len(body) - NGRAM + 1) if body[i : i + NGRAM - 1] == window]

    def _onward(self, body: Sequence[int]) -> Onward:
        """How a body goes on so that it does not begin as an earlier one."""
        at = len(body)
        if not self._annotated:
            return self._beginnings.onward(body, self._bodies)
        if at != START - 1:
            return Onward((), ())
        return Onward(tuple(other[at] for other in self._bodies if len(other) >= START and other[:at] == body), ())

    @functools.cached_property
    def _beginnings(self) -> Beginnings:
        tables = self._tables
        marks = tables.ends.union(tables.closes, tables.body_banned)
        return Beginnings(self._article, marks, tables.body_banned)

    def _fresh_names(self, taken: list[int]) -> list[int]:
        """Names for the steps: those behind the last segment's, as in training."""
        if not taken:
            return []
        anchors = self._tables.markers.anchors
        last = self._tables.markers.anchor_index[taken[-1]]
        return [anchors[(last + 1 + number) % len(anchors)] for number in range(self._most)]


_Place = tuple[int, int, tuple[int, ...]]
"""(source, position of the last id taken, ids still to come of a word made large)"""


class _Copy:
    """In-order choices of whole words out of sources; follows every way in which a body may have been copied.

    Nothing in it is changed in place: a shallow copy is an independent one. `may_end` says whether words may be left
    out up to a full stop.
    """

    def __init__(self, tables: RuleTables, sources: Sequence[Sequence[int]]) -> None:
        self._tables = tables
        self._sources = [list(source) for source in sources]
        self._places: set[_Place] | None = None

    def allowed(self, may_end: bool) -> set[int]:
        """The next ids of all possible ways of copying."""
        return {token for token, _ in self._moves(may_end)}

    def push(self, token: int, may_end: bool) -> None:
        """Process the chosen id."""
        self._places = {place for moved, place in self._moves(may_end) if moved == token}

    def _moves(self, may_end: bool) -> list[tuple[int, _Place]]:
        if self._places is None:
            return [move for source in range(len(self._sources)) for move in self._first(source, may_end)]
        moves: list[tuple[int, _Place]] = []
        earliest: dict[int, int] = {}
        for source, at, rest in self._places:
            ids = self._sources[source]
            if rest:
                moves.append((rest[0], (source, at, rest[1:])))
                continue
            if at + 1 < len(ids):
                moves.append((ids[at + 1], (source, at + 1, ())))
            if at + 1 == len(ids) or ids[at + 1] in self._tables.starts:
                earliest[source] = min(at, earliest.get(source, at))
        for source, at in earliest.items():
            moves += [(self._sources[source][q], (source, q, ())) for q in self._starts(source, may_end) if q > at + 1]
        return moves

    def _is_mark(self, token: int) -> bool:
        return token in self._tables.ends or token in self._tables.closes

    def _starts(self, source: int, may_end: bool) -> list[int]:
        return [
            q
            for q, token in enumerate(self._sources[source])
            if (q == 0 or token in self._tables.starts) and (may_end or not self._is_mark(token))
        ]

    def _first(self, source: int, may_end: bool) -> list[tuple[int, _Place]]:
        """The first id: any word's, as it is or with a large first letter."""
        ids, starts = self._sources[source], self._starts(source, may_end)
        moves: list[tuple[int, _Place]] = []
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            moves.append((ids[start], (source, start, ())))
            text = self._tables.tokenizer.decode(ids[start:end])
            word = text.lstrip()
            if word[:1].islower():
                large = self._tables.tokenizer.encode(f" {word[0].upper()}{word[1:]}")
                moves.append((large[0], (source, end - 1, tuple(large[1:]))))
        return moves
