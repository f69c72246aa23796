"""Rounds of rows whose rules the drafting kernel keeps, compared with the same rules asked on the host, id by id."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cuda_kernels.drafts import MAX_BODIES, MAX_QUERIES, OWN_DRAFTS
from cuda_kernels.tracker import IDLE
from selfspan_core.engine.batch_parts import fixed_words, grammar_of
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.drafts import Drafter, DraftState, verifiable
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.rules import Rules
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import State, Tracker
from selfspan_core.tasks.summarize.rules import RuleTables
from tests.support.ruled_walks import allowed, made_article, ruled, walk

TEXT_LENGTH = 2048


@dataclass(frozen=True)
class World:
    """Marker ids, the vocabulary, and ids that come often where somebody drafts nonsense."""

    markers: Markers
    vocab_size: int
    liked: tuple[int, ...]


def world_of(tables: RuleTables) -> World:
    """Of summaries."""
    return World(tables.markers, tables.tokenizer.vocab_size, (tables.separator, *sorted(tables.ends)[:9]))


def drafter_of(hints: DraftHints, markers: Markers, annotated: bool) -> Drafter:
    """What the device proposes, in Python."""
    return DeviceDrafts(hints).drafter(markers, annotated)


@dataclass
class RuledReference:
    """One row in Python: its text, and its rules if it has any."""

    world: World
    prompt: Rendered
    annotated: bool
    rules: Rules | None
    stream: list[int]
    drafter: Drafter
    num_written: int = 1
    ids: list[int] = field(init=False)
    tracker: Tracker = field(init=False)
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.tracker = Tracker(self.world.markers, self.prompt.prompt, self.annotated)
        self.ids = self.prompt.ids[: self.prompt.prompt.num_tokens]
        self._take_in(self.stream[:1])
        # A drafter learns the order of the text when it is first asked, and some rounds bring drafts of their own.
        self._proposed(1)

    def _proposed(self, most: int) -> Sequence[int]:
        state = DraftState(self.ids, self.prompt.prompt.num_tokens, self.tracker, self.state)
        return self.drafter.propose(state, most)

    def _take_in(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.state = self.tracker.push(token)
            self.ids.append(token)
            if self.rules is not None:
                self.rules.push(token)

    def keep(self, tokens: Sequence[int]) -> None:
        """So many ids are written."""
        self._take_in(tokens)
        self.num_written += len(tokens)

    def expected(self, most: int, injected: Sequence[int] | None) -> tuple[list[int], list[np.ndarray | None]]:
        """The drafts that are fed, and what may come behind the last id and behind each of them."""
        drafts: Sequence[int] = () if injected is None else injected
        if injected is None and most > 0:
            drafts = self._proposed(most)
        vocab_size = self.world.vocab_size
        kept = verifiable(list(drafts)[: max(0, most)], self.tracker, self.state, vocab_size, MAX_BODIES)[0]
        if self.rules is None:
            return list(kept), [None] * (len(kept) + 1)
        rules = self.rules.fork()
        tables = [allowed(rules.limits(), vocab_size)]
        for place, token in enumerate(kept):
            if not tables[-1][token]:
                return list(kept[:place]), tables
            rules.push(token)
            tables.append(allowed(rules.limits(), vocab_size))
        return list(kept), tables


def begin_row(
    rows: Any, row: int, prompt: Rendered, annotated: bool, rules: DeviceRules | None, first: int, hints: DraftHints
) -> None:
    """A prompt is in the cache, and its first id is drawn."""
    rows.begin(row, prompt.ids, prompt.prompt, annotated, fixed_words(hints), first)
    rows.rules.begin(row, rules)


def ruled_rows(make: Callable[..., Any], tables: RuleTables, seed: int, num_rows: int = 3):
    """A batch of random articles, both lanes and both lengths, the last row without rules; and what to expect of it."""
    rng = random.Random(seed)
    tokenizer, markers = tables.tokenizer, tables.markers
    grammar = grammar_of(markers, tokenizer.vocab_size)
    rows, references = make(grammar, num_rows + 1, TEXT_LENGTH, True), []
    hints = DraftHints(1, behind=(markers.end,))
    for row in range(num_rows):
        annotated, sentences = rng.random() < 0.7, made_article(rng, rng.randint(1, 12))
        length = rng.choice(("short", "medium"))
        prompt, rules = ruled(tables, sentences, length, annotated, rng.randrange(256))
        stream = walk(rng, tables, rules.fork(), sentences, 300)
        form, is_last = rules.on_device(), row == num_rows - 1
        assert isinstance(form, DeviceRules), form
        begin_row(rows, row, prompt, annotated, None if is_last else form, stream[0], hints)
        kept, drafter = None if is_last else rules, drafter_of(hints, markers, annotated)
        references.append(RuledReference(world_of(tables), prompt, annotated, kept, stream, drafter))
    return rows, references


def given_drafts(rng: random.Random, reference: RuledReference) -> list[int] | None:
    """None: the row's own; else what comes, with wrong ids, markers and nonsense in it."""
    kind = rng.random()
    if kind < 0.4:
        return None
    markers, vocab_size = reference.world.markers, reference.world.vocab_size
    drafts = reference.stream[reference.num_written :][: rng.randint(0, MAX_QUERIES - 1)]
    if kind < 0.7:
        return drafts
    names = list(reference.prompt.prompt.segments) or list(markers.anchors[:3])
    others = [*names, *markers.anchors[:2], markers.ref, markers.go, markers.end, markers.eos, markers.res]
    others += [*reference.world.liked, vocab_size + 1]
    for place in range(len(drafts)):
        if rng.random() < 0.15:
            drafts[place] = rng.choice([*others, rng.randrange(vocab_size)])
    return drafts + rng.choices(others, k=rng.randint(0, 3)) if kind < 0.9 else drafts


def run_ruled_rounds(rows: Any, references: Sequence[RuledReference], rng: random.Random) -> int:
    """Rounds until all streams are written; every query's limits are those of the host. How many drafts were fed."""
    live, num_fed = dict(enumerate(references)), 0
    while live:
        num = rng.choice((1, 4, 8, 16, 16))
        given = {row: given_drafts(rng, reference) for row, reference in live.items()}
        for row, drafts in given.items():
            own = [OWN_DRAFTS] if drafts is None else drafts
            rows.buffers.injected[row] = torch.tensor([*own, *[-1] * MAX_QUERIES][: MAX_QUERIES - 1])
        rows.draft(num, False)
        forbidden = rows.forbidden(num).numpy()
        drawn = torch.zeros(len(rows.tracks), num, dtype=torch.int64)
        wanted = {}
        for row, reference in live.items():
            most = min(num - 1, int(rows.limits[row]) - len(reference.ids))
            drafts, tables = reference.expected(most, given[row])
            num_fed += len(drafts)
            ids = rows.buffers.ids(num).view(-1, num)[row].tolist()
            assert ids == [reference.ids[-1], *drafts, *[0] * (num - 1 - len(drafts))]
            assert int(rows.buffers.num_drafts[row]) == len(drafts)
            for query, table in enumerate(tables[: len(drafts) + 1]):
                found = forbidden[row, query]
                assert (found == (False if table is None else ~table)).all(), (row, query, reference.ids[-20:])
            assert not forbidden[row, len(drafts) + 1 :].any()
            following = reference.stream[reference.num_written :][: len(drafts) + 1]
            drawn[row, : len(following)] = torch.tensor(following)
            right = [draft == token for draft, token in zip(drafts, following, strict=False)]
            wanted[row] = following[: 1 + (right.index(False) if False in right else len(right))]
        rows.accept(num, drawn.to(rows.tracks.device))
        for row, tokens in wanted.items():
            reference = live[row]
            reference.keep(tokens)
            if len(reference.stream) == reference.num_written:
                rows.tracks[row, 1] = IDLE
                del live[row]
    return num_fed
