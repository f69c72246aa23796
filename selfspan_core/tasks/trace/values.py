"""Values of the subset and what its operators make of them, exactly as Python does, within limits.

A list is a tuple here: no two names ever mean one list, so that a name's last value is all that there is to know.
"""

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

from selfspan_core.tasks.trace.program import MAX_LIST, MAX_STRING, MAX_VALUE

Value = int | str | bool | tuple[Any, ...]
_APPLY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_ARITHMETIC = (ast.Sub, ast.FloorDiv, ast.Mod)
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_EQUALITY = (ast.Eq, ast.NotEq)
_MEMBERSHIP = (ast.In, ast.NotIn)


class ValueProblem(Exception):
    """What is wrong with an operation, in words that go on behind the number of a line."""


def kind_of(value: Value) -> str:
    """The kind of a value, for messages and for checks."""
    if isinstance(value, bool):
        return "True or False"
    return "a number" if isinstance(value, int) else "a string" if isinstance(value, str) else "a list"


def value_text(value: Value) -> str:
    """How a step writes a value: no space in it but before a word."""
    if isinstance(value, tuple):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, bool):
        return f" {value}"
    return f"'{value}'" if isinstance(value, str) else str(value)


def printed(values: Sequence[Value]) -> str:
    """What Python prints of them."""
    return " ".join(str(list(value)) if isinstance(value, tuple) else str(value) for value in values)


def as_printed(text: str) -> str:
    """What Python prints of values as steps write them; of any other text something, never an error."""
    out: list[str] = []
    level, quoted = 0, False
    for one in text:
        if one == "'":
            quoted = not quoted
            if level > 0:
                out.append(one)
        elif quoted:
            out.append(one)
        elif one == ",":
            out.append(", " if level > 0 else " ")
        elif one != " ":
            level += (one == "[") - (one == "]")
            out.append(one)
    return "".join(out)


def bounded(value: Value, most: int = MAX_VALUE) -> Value:
    """The value itself, unless it is too large. Raises ValueProblem."""
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            raise ValueProblem(f"a string grows beyond {MAX_STRING} characters")
    elif isinstance(value, tuple):
        if len(value) > MAX_LIST:
            raise ValueProblem(f"a list grows beyond {MAX_LIST} elements")
        if any(isinstance(one, tuple) for one in value):
            raise ValueProblem("a list in a list is not supported")
    elif abs(value) > most:
        raise ValueProblem(f"a value beyond ±{most:,}")
    return value


def apply(sign: ast.AST, left: Value, right: Value) -> Value:
    """Python's value of an operation. Raises ValueProblem where the subset has none."""
    kinds, kind = {kind_of(left), kind_of(right)}, type(sign)
    if not _fits(kind, left, right, kinds):
        raise ValueProblem(f"{kind.__name__} of {kind_of(left)} and {kind_of(right)} is not supported")
    if kind in (ast.FloorDiv, ast.Mod) and right == 0:
        raise ValueProblem("a division by zero")
    if kind is ast.Mult:
        _require_room(left, right)
    return _APPLY[kind](left, right)


def _fits(kind: type[ast.AST], left: Value, right: Value, kinds: set[str]) -> bool:
    """Whether an operator is defined for such values here; Python defines more."""
    if kind in _MEMBERSHIP:
        return isinstance(right, tuple) or (isinstance(right, str) and isinstance(left, str))
    if kind in _EQUALITY:
        return len(kinds) == 1
    if kind in _ORDER:
        return kinds in ({"a number"}, {"a string"})
    if kind in _ARITHMETIC:
        return kinds == {"a number"}
    if kind is ast.Add:
        return len(kinds) == 1 and kinds != {"True or False"}
    return "a number" in kinds and "True or False" not in kinds


def _require_room(left: Value, right: Value) -> None:
    """A product of a string or a list, before it is made."""
    for one, times in ((left, right), (right, left)):
        if isinstance(one, str | tuple) and isinstance(times, int):
            most = MAX_STRING if isinstance(one, str) else MAX_LIST
            if len(one) * times > most:
                bounded(one * (most // max(len(one), 1) + 1))


def element(of: Value, index: Value) -> Value:
    """Python's `of[index]`. Raises ValueProblem."""
    if not isinstance(of, str | tuple) or kind_of(index) != "a number":
        raise ValueProblem(f"{kind_of(of)} has no element at {kind_of(index)}")
    assert isinstance(index, int)
    if not -len(of) <= index < len(of):
        raise ValueProblem(f"the index {index} is outside of {kind_of(of)} of {len(of)}")
    return of[index]


def piece(of: Value, low: Value | None, high: Value | None) -> Value:
    """Python's `of[low:high]`. Raises ValueProblem."""
    if not isinstance(of, str | tuple) or any(
        bound is not None and kind_of(bound) != "a number" for bound in (low, high)
    ):
        raise ValueProblem(f"{kind_of(of)} has no such slice")
    return of[low:high]  # type: ignore[index]


def builtin(name: str, values: Sequence[Value]) -> Value:
    """Python's value of a built-in function of the subset. Raises ValueProblem."""
    first, kinds = values[0], {kind_of(value) for value in values}
    if name == "len" and isinstance(first, str | tuple):
        return len(first)
    if name == "abs" and kinds == {"a number"}:
        assert isinstance(first, int)
        return abs(first)
    if name == "str" and kinds == {"a number"}:
        return str(first)
    if name in ("min", "max"):
        among = first if len(values) == 1 and isinstance(first, tuple) else tuple(values)
        if len(among) > 0 and {kind_of(one) for one in among} == {"a number"}:
            return min(among) if name == "min" else max(among)
    raise ValueProblem(f"{name}() of {', '.join(sorted(kinds))} is not supported")
