"""A program of the subset: its limits, its lines, and its statements, as the machine runs them.

A line is what can be named and read. Its text is canonical: four spaces a level, one space around operators, no
comments, no blank lines, whatever was typed.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass

from selfspan_core.errors import InputError

MAX_CHARACTERS = 4_000
MAX_LINES = 40
MAX_STEPS = 200
MAX_VALUE = 99_999
MAX_LIST = 10
MAX_STRING = 16
MAX_NAME = 12
MAX_LEVELS = 6
MAX_OPERATORS = 8
MAX_VARIABLES = 4
"""Different variables that one line reads: each of them is an interval that the step's tokens see."""

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.And: "and",
    ast.Or: "or",
}
_PRECEDENCE = {"or": 1, "and": 2, "not": 3, "+": 5, "-": 5, "*": 6, "//": 6, "%": 6}
_COMPARISON, _UNARY, _ATOM = 4, 7, 8


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the program: its level of indentation, its canonical text, and its number as it was typed."""

    level: int
    text: str
    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of the program's own functions, which is the whole value of its statement."""

    function: str
    arguments: tuple[ast.expr, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement; one that holds others begins a block.

    Attributes:
        kind: "assign", "update" (`x += 1`), "set item", "append", "pop", "if", "while", "range", "items", "print",
            "call", "return", "break", "continue" or "pass".
        line: index of its line; number: as it was typed.
        targets: variables that it writes.
        values: expressions that it works out, in order.
        reads: variables of these expressions, each once, in the order of the text.
        call: the function's call that stands in place of `values`.
        stride: of a range, 1 if it has none.
        body, orelse: the blocks inside.
    """

    kind: str
    line: int
    number: int
    targets: tuple[str, ...] = ()
    values: tuple[ast.expr, ...] = ()
    reads: tuple[str, ...] = ()
    call: Call | None = None
    stride: int = 1
    body: tuple["Statement", ...] = ()
    orelse: tuple["Statement", ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """A function: its line, its parameters, the names that are its own, and its statements."""

    line: int
    parameters: tuple[str, ...]
    local_names: frozenset[str]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Lines, functions by name, and the statements outside of them."""

    lines: tuple[Line, ...]
    functions: dict[str, Function]
    body: tuple[Statement, ...]

    @property
    def text(self) -> str:
        """The canonical text, without a line break at its end."""
        return "\n".join(f"{'    ' * line.level}{line.text}" for line in self.lines)


def wrong(number: int, message: str) -> InputError:
    """The error of a line, by its number as it was typed."""
    return InputError(f"Line {number}: {message}")


def written(node: ast.expr) -> str:
    """The canonical text of an expression, with as few parentheses as keep its tree."""
    return _WRITERS[type(node)](node)[0]


def _within(node: ast.expr, least: int) -> str:
    text, precedence = _WRITERS[type(node)](node)
    return f"({text})" if precedence < least else text


def _constant(node: ast.Constant) -> tuple[str, int]:
    return (f"'{node.value}'" if isinstance(node.value, str) else str(node.value)), _ATOM


def _binary(node: ast.BinOp) -> tuple[str, int]:
    sign = OPERATORS[type(node.op)]
    own = _PRECEDENCE[sign]
    return f"{_within(node.left, own)} {sign} {_within(node.right, own + 1)}", own


def _boolean(node: ast.BoolOp) -> tuple[str, int]:
    sign = OPERATORS[type(node.op)]
    own = _PRECEDENCE[sign]
    return f" {sign} ".join(_within(value, own + 1) for value in node.values), own


def _comparison(node: ast.Compare) -> tuple[str, int]:
    left, right = _within(node.left, _COMPARISON + 1), _within(node.comparators[0], _COMPARISON + 1)
    return f"{left} {OPERATORS[type(node.ops[0])]} {right}", _COMPARISON


def _unary(node: ast.UnaryOp) -> tuple[str, int]:
    if isinstance(node.op, ast.Not):
        return f"not {_within(node.operand, _PRECEDENCE['not'])}", _PRECEDENCE["not"]
    return f"-{_within(node.operand, _UNARY)}", _UNARY


def _subscript(node: ast.Subscript) -> tuple[str, int]:
    if isinstance(node.slice, ast.Slice):
        low, high = ("" if bound is None else written(bound) for bound in (node.slice.lower, node.slice.upper))
        return f"{_within(node.value, _ATOM)}[{low}:{high}]", _ATOM
    return f"{_within(node.value, _ATOM)}[{written(node.slice)}]", _ATOM


def _called(node: ast.Call) -> tuple[str, int]:
    return f"{written(node.func)}({', '.join(map(written, node.args))})", _ATOM


_WRITERS: dict[type[ast.AST], Callable[..., tuple[str, int]]] = {
    ast.Constant: _constant,
    ast.Name: lambda node: (node.id, _ATOM),
    ast.Attribute: lambda node: (f"{written(node.value)}.{node.attr}", _ATOM),
    ast.BinOp: _binary,
    ast.BoolOp: _boolean,
    ast.Compare: _comparison,
    ast.UnaryOp: _unary,
    ast.Subscript: _subscript,
    ast.List: lambda node: (f"[{', '.join(map(written, node.elts))}]", _ATOM),
    ast.Call: _called,
}
