"""Random valid expressions, for training, for evaluation and for the "surprise me" button.

A tree's shape is drawn first, then operators and numbers from the leaves up, with every intermediate value known. An
operation that is not allowed (a product too large, a division with a remainder) is repaired at once: by another number,
by a changed number in the left or right operand so that it divides, or by another operator. Only an expression whose
worked steps would not fit the model's context is discarded.
"""

import random
from dataclasses import dataclass
from math import gcd

from selfspan_core.tasks.arithmetic.shapes import PRODUCT, SHAPES, SUM, Shape
from selfspan_core.tasks.arithmetic.tree import MAX_LITERAL, MAX_VALUE, Literal, Negation, Node, Operation


@dataclass(frozen=True)
class Mix:
    """The distribution of random expressions; weights need not sum to one.

    Attributes:
        shapes: weights of the shapes (`shapes`).
        operators: weights of the operators to try first.
        small_literal: share of numbers drawn from 1 to 12 instead of 0 to 99.
        negative_literal: share of numbers with a minus.
        negation: share of operations put into `-(...)`.
        wide_divisor: how often a division whose divisor is a number is set up to have a two-digit divisor.
        near_difference: how often a sum of two worked-out operands, the second of them a product, is set up so that
            leading digits cancel (1994-1932): rare by chance, and what models miscalculate most.
    """

    shapes: tuple[tuple[str, float], ...] = (("flat", 0.25), ("groups", 0.25), ("binary", 0.3), ("chain", 0.2))
    operators: tuple[tuple[str, float], ...] = (("+", 0.25), ("-", 0.25), ("*", 0.3), ("/", 0.2))
    small_literal: float = 0.2
    negative_literal: float = 0.05
    negation: float = 0.03
    wide_divisor: float = 0.6
    near_difference: float = 0.0


DEFAULT_MIX = Mix()
DIFFERENCES_MIX = Mix(shapes=(*DEFAULT_MIX.shapes, ("pairs", 0.3)), near_difference=0.8)
"""Three times as many differences whose leading digits cancel; for training only."""


def random_tree(rng: random.Random, num_operands: int, mix: Mix = DEFAULT_MIX) -> Node:
    """A valid expression with exactly `num_operands` (2 or more) numbers, every value within +-MAX_VALUE."""
    if num_operands < 2:
        raise ValueError(f"an expression has at least 2 operands, not {num_operands}")
    names, weights = zip(*mix.shapes, strict=True)
    shape = SHAPES[rng.choices(names, weights)[0]](rng, num_operands)
    return Grower(rng, mix).grow(shape)[0]


Grown = tuple[Node, int]
"""A node and its value."""


def _literal_divisors(value: int) -> tuple[int, ...]:
    """Divisors of a positive value from 2 to MAX_LITERAL."""
    return tuple(d for d in range(2, MAX_LITERAL + 1) if value % d == 0)


class Grower:
    """Fills a shape with operators and numbers."""

    def __init__(self, rng: random.Random, mix: Mix) -> None:
        self.rng = rng
        self.mix = mix
        self._operator_weights = dict(mix.operators)

    def grow(self, shape: Shape) -> Grown:
        """Node and value of a shape, negated now and then."""
        if shape is None:
            value = self._signed(self._number())
            return Literal(value), value
        left: Grown | None = None
        right: Grown | None = None
        if shape.right is None:
            left = self.grow(shape.left)
        else:
            left = None if shape.left is None else self.grow(shape.left)
            right = self.grow(shape.right)
        grown = self.join(left, right, shape.ops)
        if self.rng.random() < self.mix.negation:
            grown = Negation(grown[0]), -grown[1]
        return grown

    def join(self, left: Grown | None, right: Grown | None, ops: str) -> Grown:
        """Try operators in random order; None is a number yet to be drawn. A sum or a factor 1 always fits."""
        order = self._order(ops)
        if left and right and "/" in ops and abs(left[1]) >= 10 * abs(right[1]) >= 1000:
            # Rare, and hard to get by chance: a long division by three digits or more.
            order.sort(key="/".__ne__)
        for op in order:
            if op in SUM:
                joined = self._sum(left, op, right)
            elif op == "*":
                joined = self._product(left, right)
            else:
                joined = self._quotient(left, right)
            if joined is not None:
                return joined
        return self._last_resort(left, right, ops)

    def _order(self, ops: str) -> list[str]:
        """The operators of `ops`, drawn without replacement by weight."""
        weights = self._operator_weights
        return sorted(ops, key=lambda op: -(self.rng.random() ** (1 / weights[op])) if weights[op] else 1.0)

    def _number(self) -> int:
        if self.rng.random() < self.mix.small_literal:
            return self.rng.randint(1, 12)
        return self.rng.randint(0, MAX_LITERAL)

    def _signed(self, number: int) -> int:
        return -number if self.rng.random() < self.mix.negative_literal else number

    def _draw(self) -> Grown:
        value = self._signed(self._number())
        return Literal(value), value

    def _literal(self, magnitude: int) -> Grown:
        value = self._signed(magnitude)
        return Literal(value), value

    def _sum(self, left: Grown | None, op: str, right: Grown | None) -> Grown | None:
        if left and right and self.mix.near_difference and self.rng.random() < self.mix.near_difference:
            right = self._fit_near(left[1] if op == "-" else -left[1], right) or right
        left, right = left or self._draw(), right or self._draw()
        value = left[1] + right[1] if op == "+" else left[1] - right[1]
        return (Operation(op, left[0], right[0]), value) if abs(value) <= MAX_VALUE else None

    def _product(self, left: Grown | None, right: Grown | None) -> Grown | None:
        if left is None or right is None:
            known = (left or right or self._draw())[1]
            most = min(MAX_LITERAL, MAX_VALUE // abs(known)) if known else MAX_LITERAL
            if most < 2:
                return None
            magnitude = self._number()
            drawn = self._literal(magnitude if magnitude <= most else self.rng.randint(2, most))
            left, right = left or drawn, right or drawn
        value = left[1] * right[1]
        return (Operation("*", left[0], right[0]), value) if abs(value) <= MAX_VALUE else None

    def _quotient(self, left: Grown | None, right: Grown | None) -> Grown | None:
        if right is None:
            return self._by_number(left or self._draw())
        divisor = abs(right[1])
        if left is None:
            if not 1 <= divisor <= MAX_LITERAL:
                return None
            # zero is a multiple of everything, too easy to be drawn often
            low = 0 if self.rng.random() < 0.05 else 1
            left = self._literal(divisor * self.rng.randint(low, MAX_LITERAL // divisor))
        if divisor == 0 or left[1] % divisor or (divisor == 1 and self.rng.random() < 0.8):
            dividend = self._fit_dividend(left, divisor)
            if dividend is None:
                fitted = self._fit_divisor(left[1], right)
                if fitted is None:
                    return None
                right = fitted
            else:
                left = dividend
        return Operation("/", left[0], right[0]), left[1] // right[1]

    def _by_number(self, left: Grown) -> Grown | None:
        """Divide a known operand by a number."""
        rng = self.rng
        if isinstance(left[0], Literal):
            return self._small_quotient()
        if rng.random() < self.mix.wide_divisor:
            left = self._fit_dividend(left, rng.randint(11, MAX_LITERAL)) or left
        if left[1] == 0:
            number = max(1, self._number())
        else:
            divisors = _literal_divisors(abs(left[1]))
            if not divisors:
                return None
            wide = [d for d in divisors if d >= 11 and abs(left[1]) >= 10 * d]
            number = rng.choice(wide if wide and rng.random() < 0.6 else divisors)
        right = self._literal(number)
        return Operation("/", left[0], right[0]), left[1] // right[1]

    def _small_quotient(self) -> Grown:
        """One number over another; quotients of 0 and 1 would crowd out the others if left to chance."""
        rng = self.rng
        quotient = rng.randint(2, 20) if rng.random() < 0.85 else rng.randint(0, 1)
        divisor = rng.randint(1, MAX_LITERAL // max(1, quotient))
        left, right = self._literal(quotient * divisor), self._literal(divisor)
        return Operation("/", left[0], right[0]), left[1] // right[1]

    def _fit_dividend(self, left: Grown, divisor: int) -> Grown | None:
        """Change the last number of a sum or product so that `divisor`, 2 or more, divides it but not into 0."""
        node = left[0]
        if divisor < 2 or not isinstance(node, Operation) or not isinstance(node.right, Literal) or node.op == "/":
            return None
        if node.op == "*":
            return self._fit_product(left[1], node, node.right.value, divisor)
        return self._fit_sum(left[1], node, node.right.value, divisor)

    def _fit_sum(self, old_value: int, node: Operation, last: int, divisor: int) -> Grown | None:
        sign = 1 if node.op == "+" else -1
        base = old_value - sign * last
        number = -sign * base % divisor
        if number <= MAX_LITERAL:
            number += divisor * self.rng.randint(0, (MAX_LITERAL - number) // divisor)
        else:
            number -= divisor
        value = base + sign * number
        if number < -MAX_LITERAL or value == 0 or abs(value) > MAX_VALUE:
            return None
        return Operation(node.op, node.left, Literal(number)), value

    def _fit_product(self, old_value: int, node: Operation, last: int, divisor: int) -> Grown | None:
        if old_value == 0:
            return None
        base = old_value // last
        step = divisor // gcd(base, divisor)
        most = min(MAX_LITERAL, MAX_VALUE // abs(base)) // step
        if most == 0:
            return None
        number = step * self.rng.randint(1, most)
        return Operation("*", node.left, Literal(number)), base * number

    def _fit_near(self, target: int, right: Grown) -> Grown | None:
        """Change the last factor of a product so that its value comes close to `target`, on either side of it."""
        node = right[0]
        if not isinstance(node, Operation) or node.op != "*" or not isinstance(node.right, Literal) or right[1] == 0:
            return None
        base = right[1] // node.right.value
        number = target // base + self.rng.randint(0, 1)
        value = base * number
        if not 1 <= abs(number) <= MAX_LITERAL or abs(value) > MAX_VALUE:
            return None
        return Operation("*", node.left, Literal(number)), value

    def _fit_divisor(self, dividend: int, right: Grown) -> Grown | None:
        """Change the last number of a sum or product so that it divides `dividend`, by more than 1."""
        node = right[0]
        if not isinstance(node, Operation) or not isinstance(node.right, Literal) or node.op == "/" or dividend == 0:
            return None
        old = node.right.value
        if node.op == "*":
            if old == 0:
                return None
            base = right[1] // old
            fitting = [
                n for n in range(1, MAX_LITERAL + 1) if base and dividend % (base * n) == 0 and abs(base * n) > 1
            ]
        else:
            sign = 1 if node.op == "+" else -1
            base = right[1] - sign * old
            values = [(n, base + sign * n) for n in range(MAX_LITERAL + 1)]
            fitting = [n for n, value in values if abs(value) > 1 and abs(value) <= MAX_VALUE and dividend % value == 0]
        if not fitting:
            return None
        number = self.rng.choice(fitting)
        value = base * number if node.op == "*" else base + sign * number
        return Operation(node.op, node.left, Literal(number)), value

    def _last_resort(self, left: Grown | None, right: Grown | None, ops: str) -> Grown:
        """An operation that is always allowed: a factor or divisor 1, or the sum or difference that stays in range."""
        one = (Literal(1), 1)
        if ops == PRODUCT and left is not None and right is None:
            return Operation(self.rng.choice(PRODUCT), left[0], one[0]), left[1]
        if ops == PRODUCT and left is None and right is not None:
            return Operation("*", one[0], right[0]), right[1]
        left, right = left or self._draw(), right or self._draw()
        op = "+" if abs(left[1] + right[1]) <= MAX_VALUE else "-"
        return Operation(op, left[0], right[0]), left[1] + right[1] if op == "+" else left[1] - right[1]
