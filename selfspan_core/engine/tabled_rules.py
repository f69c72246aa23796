"""Rules as tables, kept in plain Python: the specification of `cuda_kernels/csrc/rules.cuh`. No torch here.

* A header names up to `most_reads` segments that are still readable, each behind the one before it in the text, then
  the step's fresh name.
* A body ends behind an id that ends a sentence, or where a segment ends that it reads and that ends otherwise; not
  before `shortest_body` ids, unless it is a whole source, and at `longest_body` at the latest. It holds no unfit id,
  no run of `ngram` ids twice, and does not begin with `start` ids as an earlier one did. Without headers it is kept
  from it where the sentences of the text that no body has begun yet lead elsewhere: at the first id by what they do
  not begin with; behind that it goes on as one of those does that have its beginning, if there is one.
* Readable are no longer: segments that a step has read, and those of which RUN_WORDS words in a row stand in a body.
* There are `fewest_steps` to `most_steps` steps, fewer only where nothing is readable.
"""

import copy
from collections.abc import Sequence
from itertools import groupby

from selfspan_core.engine.device_rules import (
    BYTE,
    CLOSES,
    CODE_BITS,
    ENDS,
    JOINT,
    LETTER,
    MOST_WAYS,
    NUM_CHARACTERS,
    RUN_WORDS,
    UNFIT,
    DeviceRules,
    IdTables,
)
from selfspan_core.engine.rules import Limits
from selfspan_core.spans.protocol import Markers

_BEFORE = 4
"""Ids before a sentence that are looked at to see whether another one ends there."""

Run = tuple[tuple[int, ...], ...]


def words_of(tables: IdTables, ids: Sequence[int]) -> list[tuple[int, ...]]:
    """The words of a text: letters, with single joints between two of them; each as codes."""
    text = _text_of(tables, ids)
    kinds = [int(tables.characters[ord(c)]) if ord(c) < NUM_CHARACTERS else 0 for c in text]
    words: list[list[int]] = []
    is_open = False
    for place, kind in enumerate(kinds):
        following = kinds[place + 1] if place + 1 < len(kinds) else 0
        if kind & LETTER or (kind & JOINT and is_open and following & LETTER):
            if not is_open:
                words.append([])
            words[-1].append(kind & CODE_BITS)
            is_open = True
        else:
            is_open = False
    return [tuple(word) for word in words]


def _text_of(tables: IdTables, ids: Sequence[int]) -> str:
    text = ""
    for is_byte, run in groupby(ids, key=lambda token: bool(tables.classes[token] & BYTE)):
        encoded = b"".join(tables.text[tables.starts[i] : tables.starts[i + 1]].tobytes() for i in run)
        try:
            text += encoded.decode("utf-8", errors="strict" if is_byte else "replace")
        except UnicodeDecodeError:
            text += "\N{REPLACEMENT CHARACTER}"
    return text


def runs_of(words: Sequence[tuple[int, ...]]) -> set[Run]:
    """Every RUN_WORDS words in a row."""
    return {tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)}


class TabledRules:
    """The rules of one row; see `rules.Rules`.

    Args:
        rules: of the row.
        markers: the tokenizer's marker ids.
    """

    def __init__(self, rules: DeviceRules, markers: Markers) -> None:
        self._rules, self._bounds, self._markers = rules, rules.bounds, markers
        self._classes = rules.tables.classes
        self._unfit = tuple(int(i) for i in (self._classes & UNFIT).nonzero()[0])
        self._sources = {name: list(rules.prompt[start:end]) for name, (start, end) in rules.segments.items()}
        self._readable = list(rules.readable)
        self._bodies: list[list[int]] = []
        self._header: list[int] | None = None
        self._reads: list[int] = []
        self._body: list[int] | None = None

    def fork(self) -> "TabledRules":
        """See `rules.Rules`."""
        other = copy.copy(self)
        other._bodies = list(self._bodies)
        other._header = None if self._header is None else list(self._header)
        other._body = None if self._body is None else list(self._body)
        return other

    def push(self, token: int) -> None:
        """See `rules.Rules`."""
        markers = self._markers
        if self._header is not None:
            if token == markers.go:
                self._reads, self._header, self._body = self._header[:-1], None, []
            else:
                self._header.append(token)
            return
        ends_body = token in (markers.end, markers.eos) or (not self._rules.annotated and token == self._rules.opening)
        if self._body is not None and not ends_body:
            self._body.append(token)
            return
        if self._body is not None:
            self._bodies.append(self._body)
            self._leave_out(self._body)
            self._body = None
        if token == self._rules.opening:
            self._header, self._body = ([], None) if self._rules.annotated else (None, [])

    def _leave_out(self, body: Sequence[int]) -> None:
        if not self._rules.annotated or len(self._bodies) >= self._bounds.most_steps:
            return  # no header follows
        said = runs_of(words_of(self._rules.tables, body))
        self._readable = [
            name
            for name in self._readable
            if name not in self._reads and said.isdisjoint(runs_of(self._rules.words[name]))
        ]

    def limits(self) -> Limits:
        """See `rules.Rules`."""
        if self._body is not None:
            return self._in_body(self._body)
        if self._header is not None:
            return Limits(self._in_header(self._header), ())
        return Limits(self._between(len(self._bodies)), ())

    def _between(self, num_done: int) -> tuple[int, ...]:
        goes_on = num_done < self._bounds.most_steps and (bool(self._readable) or not self._rules.annotated)
        may_end = not goes_on or num_done >= self._bounds.fewest_steps
        return ((self._rules.opening,) if goes_on else ()) + ((self._markers.eos,) if may_end else ())

    def _in_header(self, header: Sequence[int]) -> tuple[int, ...]:
        if not header:
            return tuple(self._readable)
        if header[-1] not in self._sources:
            return (self._markers.go,)
        names = list(self._sources)
        behind = names[names.index(header[0]) + 1 :] if len(header) < self._bounds.most_reads else ()
        return (*(name for name in behind if name in self._readable), self._rules.fresh[len(self._bodies)])

    def _in_body(self, body: list[int]) -> Limits:
        bounds = self._bounds
        ending = (self._markers.end,) if self._rules.annotated else self._between(len(self._bodies) + 1)
        if len(body) >= bounds.longest_body:
            return Limits(ending, ())
        num_said = sum(not self._classes[token] & (ENDS | CLOSES) for token in body)
        if num_said >= bounds.shortest_body:
            may_end = self._is_ended(body) or self._is_at_open_end(body)
        else:
            may_end = self._is_source(body)
        repeated = self._repeated(body)
        begun, ways = self._begun_before(body)
        ways = [token for token in ways if token not in repeated][:MOST_WAYS]
        if ways:
            return Limits((*ways, *(ending if may_end else ())), ())
        banned = (*self._unfit, *repeated, *begun)
        return Limits(None, tuple(token for token in banned if not (may_end and token in ending)))

    def _is_ended(self, ids: Sequence[int]) -> bool:
        last = next((token for token in reversed(ids) if not self._classes[token] & CLOSES), None)
        return last is not None and bool(self._classes[last] & ENDS)

    def _is_at_open_end(self, body: Sequence[int]) -> bool:
        num = self._bounds.shortest_body
        sources = (self._sources[name] for name in self._reads)
        return any(source[-num:] == body[-num:] and not self._is_ended(source) for source in sources)

    def _is_source(self, body: list[int]) -> bool:
        """Whether a body is what it reads, or one segment of that; without headers, a sentence of the text."""
        if self._rules.annotated:
            sources = [self._sources[name] for name in self._reads]
            return body in [*sources, [token for source in sources for token in source]]
        if not self._is_ended(body):
            return False
        text = list(self._rules.prompt[self._rules.source_start :])
        return any(
            text[at : at + len(body)] == body and (at == 0 or self._is_ended(text[max(0, at - _BEFORE) : at]))
            for at in range(len(text))
        )

    def _repeated(self, body: list[int]) -> list[int]:
        ngram = self._bounds.ngram
        if len(body) < ngram:
            return []
        window = body[len(body) - ngram + 1 :]
        places = range(ngram - 1, len(body))
        return [body[place] for place in places if body[place - ngram + 1 : place] == window]

    def _begun_before(self, body: list[int]) -> tuple[list[int], list[int]]:
        """Ids that must not come, lest a body begins as an earlier one; and those of which one has to, if any."""
        at, start = len(body), self._bounds.start
        begun = [other for other in self._bodies if at < start <= len(other) and other[:at] == body]
        if self._rules.annotated:
            return [other[at] for other in begun if at == start - 1], []
        banned = [other[at] for other in begun if not self._fresh(other[: at + 1])]
        if at == 0 or not banned:
            return banned, []
        ways = [one[at] for one in self._fresh(body) if len(one) > at]
        return [], [token for token in ways if not self._classes[token] & UNFIT]

    def _fresh(self, ids: list[int]) -> list[tuple[int, ...]]:
        """Sentences of the text that begin with these ids, and that no body has begun: their first `start` ids."""
        text, start = self._rules.prompt[self._rules.source_start :], self._bounds.start
        opens = [bool(self._classes[token] & (ENDS | CLOSES | UNFIT)) for token in text]
        starts = (tuple(text[at : at + start]) for at in range(len(text)) if at == 0 or opens[at - 1])
        done = {tuple(other[:start]) for other in self._bodies if len(other) >= start}
        return [one for one in starts if one[: len(ids)] == tuple(ids) and one not in done]
