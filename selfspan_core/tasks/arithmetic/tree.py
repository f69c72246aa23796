"""Expressions as trees: nodes, limits, canonical text, exact value.

The canonical text has as few parentheses as keep the tree: `1+(2+3)` keeps its pair, `(1+2)+3` is `1+2+3`. A minus
directly before a number belongs to the number; a negative number, like every `-(...)`, stands in parentheses unless
it begins the expression or follows an opening one: `3-(-5)`, `-5*3`, `2+(-(3+4))*5`.
"""

from dataclasses import dataclass
from fractions import Fraction

from selfspan_core.errors import InputError

MAX_LITERAL = 99
MAX_OPERANDS = 64
MAX_NEGATIONS = 64
MAX_VALUE = 99_999
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True, slots=True)
class Literal:
    """A number of the expression, its leading minus included: -99 to 99."""

    value: int


@dataclass(frozen=True, slots=True)
class Negation:
    """`-(operand)`; the operand is never a non-negative literal, since `-5` is a literal itself."""

    operand: "Node"


@dataclass(frozen=True, slots=True)
class Operation:
    """`left op right`, op one of `+ - * /`."""

    op: str
    left: "Node"
    right: "Node"


Node = Literal | Negation | Operation


def pieces(tree: Node) -> list[tuple[str, bool]]:
    """The canonical text as (text, is a literal) pieces; text between two literals is one piece."""
    out: list[tuple[str, bool]] = []
    _write(tree, True, out)
    joined: list[tuple[str, bool]] = []
    between = ""
    for text, is_literal in out:
        if not is_literal:
            between += text
            continue
        if between:
            joined.append((between, False))
            between = ""
        joined.append((text, True))
    if between:
        joined.append((between, False))
    return joined


def canonical(tree: Node) -> str:
    """The canonical text of a tree."""
    return "".join(text for text, _ in pieces(tree))


def _write(node: Node, bare_minus: bool, out: list[tuple[str, bool]]) -> None:
    """Append a node's pieces; `bare_minus`: a minus may stand here without a parenthesis before it."""
    if isinstance(node, Literal):
        if node.value >= 0 or bare_minus:
            out.append((str(node.value), True))
        else:
            out += (("(", False), (str(node.value), True), (")", False))
    elif isinstance(node, Negation):
        out.append(("-(" if bare_minus else "(-(", False))
        _write(node.operand, True, out)
        out.append((")" if bare_minus else "))", False))
    else:
        precedence = PRECEDENCE[node.op]
        _write_operand(node.left, precedence, bare_minus, out)
        out.append((node.op, False))
        _write_operand(node.right, precedence + 1, False, out)


def _write_operand(node: Node, min_precedence: int, bare_minus: bool, out: list[tuple[str, bool]]) -> None:
    if isinstance(node, Operation) and PRECEDENCE[node.op] < min_precedence:
        out.append(("(", False))
        _write(node, True, out)
        out.append((")", False))
    else:
        _write(node, bare_minus, out)


def operation_text(left: int | str, op: str, right: int | str) -> str:
    """`left op right` with values, the second one in parentheses when negative."""
    right = str(right)
    return f"{left}{op}({right})" if right.startswith("-") else f"{left}{op}{right}"


def evaluate(tree: Node) -> int:
    """The exact value of a tree.

    Raises:
        InputError: a division by zero or one that does not come out whole, or a value beyond +-MAX_VALUE on the way.
    """
    if isinstance(tree, Literal):
        return tree.value
    if isinstance(tree, Negation):
        return -evaluate(tree.operand)
    return _apply(evaluate(tree.left), tree.op, evaluate(tree.right))


def _apply(left: int, op: str, right: int) -> int:
    text = operation_text(left, op, right)
    if op == "/" and right == 0:
        raise InputError(f"Division by zero: {text}.")
    value = _exact(left, op, right)
    if value.denominator != 1:
        raise InputError(f"The division {text} does not come out whole: it gives {value}.")
    if abs(value) > MAX_VALUE:
        raise InputError(f"{text} gives {int(value)}; every value on the way must lie within ±{MAX_VALUE:,}.")
    return int(value)


def _exact(left: int, op: str, right: int) -> Fraction:
    if op == "+":
        return Fraction(left + right)
    if op == "-":
        return Fraction(left - right)
    if op == "*":
        return Fraction(left * right)
    return Fraction(left, right)
