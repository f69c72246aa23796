"""How a step works out expressions: one operation after the other, each a clause of what it writes.

    x = a + b           3+4=                with a 3 and b 4; the result follows
    x = a + 2 * b       2*4=8;3+8=
    if n % 2 == 0:      7%2=1;1==0=
    y = xs[i] - 1        xs[2]=5;5-1=
    x = 7, x = y        nothing to work out

A clause is an operation with its operands' values, a list or a string that is only looked into by its name. Of a
product of two numbers with several digits that are not zero, the digits of the shorter one are clauses of their own.
The value of the last clause is left out where it is the result. `and` and `or` are no clauses: what they yield is the
value of one of their sides, the last that Python looks at.
"""

import ast
from collections.abc import Callable

from selfspan_core.errors import InputError
from selfspan_core.tasks.trace.program import MAX_VALUE, OPERATORS, wrong
from selfspan_core.tasks.trace.values import (
    Value,
    ValueProblem,
    apply,
    bounded,
    builtin,
    element,
    piece,
    value_text,
)


class Working:
    """Works out the expressions of one step.

    Args:
        lookup: the value of a variable; raises InputError.
        number: the line's, for errors.
        most: the largest number that is allowed.
    """

    def __init__(self, lookup: Callable[[str], Value], number: int, most: int = MAX_VALUE) -> None:
        self._lookup, self._number, self._most = lookup, number, most
        self._clauses: list[tuple[str, str]] = []
        self._newest: tuple[ast.AST, int] | None = None

    def value(self, node: ast.expr) -> Value:
        """The exact value of an expression. Raises InputError, which names the line."""
        try:
            return self._value(node)
        except ValueProblem as problem:
            raise self.error(str(problem)) from None

    def checked(self, value: Value) -> Value:
        """A value that was made outside of expressions, if it is within the limits. Raises InputError."""
        try:
            return bounded(value, self._most)
        except ValueProblem as problem:
            raise self.error(str(problem)) from None

    def error(self, message: str) -> InputError:
        """An error that names the line."""
        return wrong(self._number, f"{message}.")

    def text(self, result: ast.expr | None = None) -> str:
        """What is written before the result; `result`: the expression whose value the result is, if it is one's."""
        if not self._clauses:
            return ""
        *before, (last, value) = self._clauses
        is_result = self._newest == (result, len(self._clauses))
        clauses = [f"{text}={known};" for text, known in before]
        return "".join([*clauses, f"{last}=" if is_result else f"{last}={value};"])

    def _value(self, node: ast.expr) -> Value:
        return bounded(_EVALUATORS[type(node)](self, node), self._most)

    def _clause(self, node: ast.expr, text: str, value: Value) -> Value:
        self._clauses.append((text, value_text(bounded(value, self._most))))
        self._newest = (node, len(self._clauses))
        return value

    def _constant(self, node: ast.Constant) -> Value:
        assert isinstance(node.value, int | str)
        return node.value

    def _name(self, node: ast.Name) -> Value:
        return self._lookup(node.id)

    def _elements(self, node: ast.List) -> Value:
        return tuple(self._value(one) for one in node.elts)

    def _binary(self, node: ast.BinOp) -> Value:
        left, right = self._value(node.left), self._value(node.right)
        value = apply(node.op, left, right)
        if isinstance(node.op, ast.Mult) and type(left) is int and type(right) is int:
            shown = self._partial_products(left, right)
            if shown:
                return self._clause(node, shown, value)
        return self._clause(node, f"{value_text(left)}{OPERATORS[type(node.op)]}{_operand(right)}", value)

    def _partial_products(self, left: int, right: int) -> str:
        """The partial products of two numbers of several digits as clauses; what is left to add up, or nothing."""
        longer, shorter = (left, right) if len(str(abs(left))) >= len(str(abs(right))) else (right, left)
        digits = str(abs(shorter))
        parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit != "0"]
        if abs(longer) < 10 or len(parts) < 2 or abs(longer) in (10, 100, 1000, 10_000) or min(left, right) < 0:
            return ""
        total = 0
        for part in parts:
            self._clauses.append((f"{longer}*{part}", str(longer * part)))
        products = [longer * part for part in parts]
        for product in products[:-1]:
            if total:
                self._clauses.append((f"{total}+{product}", str(total + product)))
            total += product
        return f"{total}+{products[-1]}"

    def _boolean(self, node: ast.BoolOp) -> Value:
        stops_at = isinstance(node.op, ast.Or)
        for one in node.values:
            value = self._value(one)
            if bool(value) is stops_at:
                break
        if self._newest is not None and self._newest[0] is one:
            self._newest = (node, self._newest[1])
        return value

    def _comparison(self, node: ast.Compare) -> Value:
        left, right = self._value(node.left), self._value(node.comparators[0])
        value, sign = apply(node.ops[0], left, right), OPERATORS[type(node.ops[0])]
        shown = sign if not sign[0].isalpha() else "".join(f" {word}" for word in sign.split())
        if isinstance(node.comparators[0], ast.Name) and isinstance(right, str | tuple) and sign[0].isalpha():
            return self._clause(node, f"{value_text(left)}{shown} {node.comparators[0].id}", value)
        return self._clause(node, f"{value_text(left)}{shown}{value_text(right)}", value)

    def _unary(self, node: ast.UnaryOp) -> Value:
        operand = self._value(node.operand)
        if isinstance(node.op, ast.Not):
            return self._clause(node, f" not({value_text(operand)})", not operand)
        if type(operand) is not int:
            raise ValueProblem("a minus stands in front of numbers only")
        if isinstance(node.operand, ast.Constant):
            return -operand
        return self._clause(node, f"-({operand})", -operand)

    def _subscript(self, node: ast.Subscript) -> Value:
        of = self._value(node.value)
        shown = f" {node.value.id}" if isinstance(node.value, ast.Name) else value_text(of)
        if isinstance(node.slice, ast.Slice):
            bounds = node.slice.lower, node.slice.upper
            low, high = (None if bound is None else self._value(bound) for bound in bounds)
            texts = ("" if bound is None else value_text(bound) for bound in (low, high))
            return self._clause(node, f"{shown}[{':'.join(texts)}]", piece(of, low, high))
        index = self._value(node.slice)
        return self._clause(node, f"{shown}[{value_text(index)}]", element(of, index))

    def _called(self, node: ast.Call) -> Value:
        assert isinstance(node.func, ast.Name)
        values = [self._value(argument) for argument in node.args]
        texts = [
            f" {argument.id}"
            if isinstance(argument, ast.Name) and isinstance(value, str | tuple)
            else value_text(value)
            for argument, value in zip(node.args, values, strict=True)
        ]
        return self._clause(node, f" {node.func.id}({','.join(texts)})", builtin(node.func.id, values))


def _operand(value: Value) -> str:
    """The second operand of an operation: a negative number in parentheses."""
    text = value_text(value)
    return f"({text})" if text.startswith("-") else text


_EVALUATORS: dict[type[ast.AST], Callable[..., Value]] = {
    ast.Constant: Working._constant,
    ast.Name: Working._name,
    ast.List: Working._elements,
    ast.BinOp: Working._binary,
    ast.BoolOp: Working._boolean,
    ast.Compare: Working._comparison,
    ast.UnaryOp: Working._unary,
    ast.Subscript: Working._subscript,
    ast.Call: Working._called,
}
