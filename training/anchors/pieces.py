"""Other pieces of a prompt behind the same names: an example is cut anew, and its steps read what holds what they read.

pairs            two numbers of an expression, with what is between them
three sentences  a paragraph's worth of an article
32 tokens        pieces of an article of one length, wherever sentences end
random           as many pieces as there are sentences, cut at random places
"""

import itertools
import random
from collections.abc import Sequence

from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Part, Rendered, Step
from selfspan_core.spans.tracker import MAX_READS

GROUPS = {"pairs": 2, "three sentences": 3}
FIXED_TOKENS = {"32 tokens": 32}
RANDOM = "random"
AS_THEY_ARE = "as they are"
PIECES = (AS_THEY_ARE, *GROUPS, *FIXED_TOKENS, RANDOM)


class TooManyReads(ValueError):
    """A step would have to read more pieces than a header names."""


def example_of(rendered: Rendered, markers: Markers) -> Example:
    """What was rendered: the inverse of `render.render`."""
    prompt, ids = rendered.prompt, rendered.ids
    parts, behind = [], prompt.scaffold_end
    for name, (start, end) in sorted(prompt.segments.items(), key=lambda item: item[1]):
        if behind < start:
            parts.append(Part(tuple(ids[behind:start])))
        parts.append(Part(tuple(ids[start + 1 : end]), name))
        behind = end
    if behind < prompt.num_tokens:
        parts.append(Part(tuple(ids[behind : prompt.num_tokens])))
    steps = tuple(_steps(ids[prompt.num_tokens :], markers))
    return Example(tuple(ids[: prompt.scaffold_end]), tuple(parts), steps, prompt.head_tokens)


def _steps(ids: Sequence[int], markers: Markers) -> list[Step]:
    steps, at = [], 0
    while at < len(ids) and ids[at] == markers.ref:
        go, end = ids.index(markers.go, at), ids.index(markers.end, at)
        *reads, name = ids[at + 1 : go]
        body = tuple(ids[go + 1 : end])
        opened = body.index(markers.res) if markers.res in body else None
        work, result = (body[:opened], body[opened + 1 :]) if opened is not None else ((), body)
        steps.append(Step(tuple(reads), name, work, result))
        at = end + 1
    return steps


def cut_anew(example: Example, pieces: str, markers: Markers, offset: int, rng: random.Random) -> Example:
    """The example with other pieces, whose names, and those of its steps behind them, begin at an anchor.

    Args:
        example: one whose parts' and steps' names are all different.
        pieces: one of PIECES.
        markers: of its tokenizer.
        offset: the anchor of the first piece.
        rng: draws the places of random cuts.

    Raises:
        TooManyReads: a step would have to read more than MAX_READS pieces.
        ValueError: there is no such kind of pieces.
    """
    if pieces not in PIECES:
        raise ValueError(f"pieces are {', '.join(PIECES)}, not {pieces!r}")
    first, last = _named_range(example.parts)
    before, named, behind = example.parts[:first], example.parts[first:last], example.parts[last:]
    cut, holders = _regrouped(named, pieces, rng)
    names = [markers.name(offset, number) for number in range(len(cut) + len(example.steps))]
    of_pieces = itertools.count()
    parts = tuple(Part(ids, names[next(of_pieces)] if is_named else None) for ids, is_named in cut)
    num_pieces = next(of_pieces)
    renamed = {name: [names[piece] for piece in held] for name, held in holders.items()}
    steps = []
    for number, step in enumerate(example.steps):
        reads = tuple(dict.fromkeys(name for read in step.reads for name in renamed[read]))
        if len(reads) > MAX_READS:
            raise TooManyReads(f"a step reads {len(reads)} pieces")
        own = names[num_pieces + number]
        renamed[step.name] = [own]
        steps.append(Step(reads, own, step.work, step.result))
    return Example(example.scaffold, (*before, *parts, *behind), tuple(steps), example.head_tokens)


def _named_range(parts: Sequence[Part]) -> tuple[int, int]:
    """First named part, and the one behind the last."""
    named = [number for number, part in enumerate(parts) if part.name is not None]
    return (named[0], named[-1] + 1) if named else (0, 0)


Cut = list[tuple[tuple[int, ...], bool]]
"""Ids of the new parts, and whether each is named."""
Holders = dict[int, list[int]]
"""Old name -> numbers of the named new parts that hold it."""


def _regrouped(parts: Sequence[Part], pieces: str, rng: random.Random) -> tuple[Cut, Holders]:
    if pieces == AS_THEY_ARE:
        numbers = itertools.count()
        cut = [(part.ids, part.name is not None) for part in parts]
        return cut, {part.name: [next(numbers)] for part in parts if part.name is not None}
    if pieces in GROUPS:
        return _groups(parts, GROUPS[pieces])
    ids = tuple(token for part in parts for token in part.ids)
    if pieces in FIXED_TOKENS:
        places = list(range(FIXED_TOKENS[pieces], len(ids), FIXED_TOKENS[pieces]))
    else:
        num = sum(part.name is not None for part in parts)
        places = sorted(rng.sample(range(1, len(ids)), min(num, len(ids)) - 1)) if ids else []
    bounds = list(itertools.pairwise([0, *places, len(ids)]))
    holders, at = {}, 0
    for part in parts:
        if part.name is not None:
            held = [n for n, (start, end) in enumerate(bounds) if start < at + len(part.ids) and at < end]
            holders[part.name] = held
        at += len(part.ids)
    return [(ids[start:end], True) for start, end in bounds], holders


def _groups(parts: Sequence[Part], size: int) -> tuple[Cut, Holders]:
    """Named parts by `size`, with what is between those of one group; what is between groups stays unnamed."""
    cut: Cut = []
    holders: Holders = {}
    group: list[int] = []
    between: list[int] = []
    num_in_group, number = 0, -1
    for part in parts:
        if part.name is None:
            between += part.ids
            continue
        if num_in_group in (0, size):
            if group:
                cut.append((tuple(group), True))
            if between:
                cut.append((tuple(between), False))
            group, num_in_group, number = [], 0, number + 1
        else:
            group += between
        between = []
        group += part.ids
        holders[part.name] = [number]
        num_in_group += 1
    cut += [(tuple(group), True)] if group else []
    return cut, holders
