"""Small worlds with rules: a few dozen ids, a few letters, short bodies."""

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from selfspan_core.engine.batch_parts import grammar_of
from selfspan_core.engine.device_rules import (
    BYTE,
    CLOSES,
    ENDS,
    JOINT,
    LETTER,
    NUM_CHARACTERS,
    UNFIT,
    Bounds,
    DeviceRules,
    IdTables,
)
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.rules import Rules
from selfspan_core.engine.tabled_rules import TabledRules, words_of
from selfspan_core.spans.render import Example, Part, Rendered, render
from tests.support.ruled_rounds import TEXT_LENGTH, RuledReference, World, begin_row, drafter_of
from tests.support.ruled_walks import allowed
from tests.support.span_examples import FIRST_TEXT, MARKERS, NUM_NAMES, VOCAB

OPENING = VOCAB - 1
"""The id that opens a step of rows without names."""
PIECES = (
    *(b" a", b" b", b"a", b"b", b" A", b"-", b"'", b".", b" ", b"_", b" a b", b" b-a", b" a b a b", b" a" * 12),
    *(
        "\u2019".encode(),
        b"\xc3",
        b"\xa9",
        b"\xe2",
        b"\x80",
        b"\x99",
        b"\xf0\x9f",
        b"\x98\x80",
        b"\xff",
        b"\xed",
        b"\xa0",
    ),
    *("\u00e9".encode(), b" \xe2\x80", b"\xe0", b"\x9f", b"\x00", b"", b"\xf4\x90", b" b."),
)


def small_tables(rng: random.Random) -> IdTables:
    """Ids that stand for few letters, joints and parts of characters; of some tables, byte by byte."""
    characters = np.zeros(NUM_CHARACTERS, dtype=np.int32)
    for letter in "ab_\u00e9":
        characters[ord(letter)] = LETTER | ord(letter)
    characters[ord("A")] = LETTER | ord("a")
    for joint, code in (("-", "-"), ("'", "'"), ("\u2019", "'"), (".", ".")):
        characters[ord(joint)] = JOINT | ord(code)
    pieces = [b""] * FIRST_TEXT + [rng.choice(PIECES) for _ in range(VOCAB - FIRST_TEXT)]
    classes = np.zeros(VOCAB, dtype=np.uint8)
    classes[:FIRST_TEXT] = UNFIT
    is_by_byte = rng.random() < 0.5
    if is_by_byte:  # whole characters, and single bytes
        pieces = [piece if len(piece) == 1 else piece.decode(errors="ignore").encode() for piece in pieces]
    for token in range(FIRST_TEXT, VOCAB):
        if is_by_byte and len(pieces[token]) == 1 and (pieces[token][0] > 127 or rng.random() < 0.3):
            classes[token] |= BYTE
        classes[token] |= rng.choices((0, ENDS, CLOSES, UNFIT), (20, 3, 2, 1))[0]
    classes[OPENING] |= UNFIT
    starts = np.cumsum([0, *(len(piece) for piece in pieces)]).astype(np.int32)
    return IdTables(classes, np.frombuffer(b"".join(pieces), dtype=np.uint8), starts, characters)


def small_prompt(rng: random.Random, tables: IdTables, annotated: bool) -> tuple[Rendered, DeviceRules]:
    """A prompt of a few short segments, often with the same ids, and rules with small numbers."""
    num, offset = rng.randint(0, 6), rng.randrange(NUM_NAMES)
    liked = rng.sample(range(FIRST_TEXT, VOCAB), 6)
    text = lambda most: tuple(rng.choices(liked, k=rng.randint(0, most)))  # noqa: E731
    names = [MARKERS.anchors[(offset + i) % NUM_NAMES] for i in range(num + 8)]
    parts = [Part(text(8), names[i] if annotated else None) for i in range(num)]
    prompt = render(Example((MARKERS.bos, *text(3)), (*parts, Part(text(2))), ()), MARKERS)
    segments = {name: (start + 1, end) for name, (start, end) in prompt.prompt.segments.items()}
    ids, most = prompt.ids[: prompt.prompt.num_tokens], rng.randint(1, 5)
    longest = rng.randint(4, 24)
    numbers = (rng.randint(1, most), most, rng.randint(1, 3), rng.randint(1, 4), longest)
    words = {name: words_of(tables, ids[start:end])[:9] for name, (start, end) in segments.items()}
    rules = DeviceRules(
        tables,
        Bounds(*numbers, rng.randint(2, 4), rng.randint(2, 4)),
        annotated,
        MARKERS.ref if annotated else OPENING,
        ids,
        prompt.prompt.scaffold_end,
        segments,
        [name for name in segments if rng.random() < 0.9],
        names[num : num + most],
        words,
    )
    return prompt, rules


def small_walk(rng: random.Random, rules: Rules, prompt: Sequence[int]) -> list[int]:
    """Ids that rules allow, mostly copied from the prompt."""
    ids: list[int] = []
    at = 0
    while len(ids) < 150 and MARKERS.eos not in ids:
        may_come, at = allowed(rules.limits(), VOCAB), at + 1
        if rng.random() < 0.3 or at >= len(prompt):
            at = rng.randrange(len(prompt))
        follows = [token for token in (prompt[at], MARKERS.end) if may_come[token]]
        token = follows[0] if follows and rng.random() < 0.8 else int(rng.choice(np.flatnonzero(may_come)))
        ids.append(token)
        rules.push(token)
    return ids


def small_rows(make: Callable[..., Any], rng: random.Random, num_rows: int = 3):
    """A batch of such rows, and what to expect of it."""
    rows, references = make(grammar_of(MARKERS, VOCAB), num_rows, TEXT_LENGTH, True), []
    hints, tables = DraftHints(rng.randint(1, 2), behind=(MARKERS.end,)), small_tables(rng)
    for row in range(num_rows):
        annotated, found = rng.random() < 0.7, None
        while found is None:
            with contextlib.suppress(ValueError):  # words for which there is no room
                found = small_prompt(rng, tables, annotated)
        prompt, form = found
        kept = TabledRules(form, MARKERS)
        stream = small_walk(rng, kept.fork(), form.prompt[: prompt.prompt.num_tokens])
        begin_row(rows, row, prompt, annotated, form, stream[0], hints)
        world = World(MARKERS, VOCAB, (form.opening, MARKERS.end, *range(FIRST_TEXT, FIRST_TEXT + 4)))
        references.append(RuledReference(world, prompt, annotated, kept, stream, drafter_of(hints, MARKERS, annotated)))
    return rows, references
