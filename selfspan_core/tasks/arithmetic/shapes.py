"""Shapes of random expressions: trees of operations without operators or numbers yet.

`flat` (no parentheses, precedence decides), `groups` (short parenthesised groups in a flat chain), `binary` (any
tree), `chain` (one number at a time joins on the left or the right of the tree so far), `pairs` (sums of two products
each, summed up).
"""

import random
from dataclasses import dataclass

SUM, PRODUCT = "+-", "*/"
ANY = SUM + PRODUCT


@dataclass(frozen=True, slots=True)
class Join:
    """An operation of a shape: `ops` are the operators it may get, None is a number."""

    left: "Join | None"
    right: "Join | None"
    ops: str


Shape = Join | None


def _split(rng: random.Random, total: int, most: int) -> list[int]:
    """Cut `total` into random positive sizes of at most `most`, small ones likelier."""
    sizes = []
    while total:
        size = min(total, rng.randint(1, rng.randint(1, most)))
        sizes.append(size)
        total -= size
    return sizes


def _fold(shapes: list[Shape], ops: str) -> Shape:
    """Join shapes from left to right."""
    folded = shapes[0]
    for shape in shapes[1:]:
        folded = Join(folded, shape, ops)
    return folded


def _flat(rng: random.Random, num_operands: int) -> Shape:
    return _fold([_fold([None] * size, PRODUCT) for size in _split(rng, num_operands, 5)], SUM)


def _groups(rng: random.Random, num_operands: int) -> Shape:
    terms = []
    for size in _split(rng, num_operands, 10):
        factors = [_flat(rng, part) if rng.random() < 0.7 else _binary(rng, part) for part in _split(rng, size, 4)]
        terms.append(_fold(factors, PRODUCT))
    return _fold(terms, SUM)


def _binary(rng: random.Random, num_operands: int) -> Shape:
    if num_operands == 1:
        return None
    num_left = rng.randint(1, num_operands - 1)
    return Join(_binary(rng, num_left), _binary(rng, num_operands - num_left), ANY)


def _chain(rng: random.Random, num_operands: int) -> Shape:
    right_share = rng.choice((0.0, 0.0, 0.2, 0.5, 1.0))
    shape: Shape = None
    for _ in range(num_operands - 1):
        shape = Join(None, shape, ANY) if rng.random() < right_share else Join(shape, None, ANY)
    return shape


def _pairs(rng: random.Random, num_operands: int) -> Shape:
    terms = []
    while num_operands:
        size = min(num_operands, rng.randint(4, 7))
        num_operands -= size
        sizes = [size] if size < 4 else [num_left := rng.randint(2, size - 2), size - num_left]
        terms.append(_fold([_fold([None] * part, "*") for part in sizes], SUM))
    return _fold(terms, SUM)


SHAPES = {"flat": _flat, "groups": _groups, "binary": _binary, "chain": _chain, "pairs": _pairs}
