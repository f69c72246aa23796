"""Which expressions the subset has: a walk over Python's syntax tree that accepts listed nodes only."""

import ast
from collections.abc import Callable, Iterator

from selfspan_core.errors import InputError
from selfspan_core.tasks.trace.program import MAX_NAME, MAX_OPERATORS, MAX_STRING, MAX_VALUE, OPERATORS, wrong

BUILTINS = {"len": (1, 1), "abs": (1, 1), "min": (1, 3), "max": (1, 3), "str": (1, 1)}
"""Least and most arguments."""
RESERVED = frozenset({*BUILTINS, "range", "print", "list", "int", "sum", "sorted", "input"})
_INSTEAD: dict[type[ast.AST], str] = {
    ast.Div: "/ gives fractions, which are not supported; use //",
    ast.Pow: "** is not supported; use *",
    ast.JoinedStr: "an f-string is not supported; use + and str()",
    ast.Tuple: "a tuple is not supported here; use a list",
    ast.IfExp: "a value with if and else is not supported; use an if statement",
    ast.Lambda: "lambda is not supported",
    ast.ListComp: "a list comprehension is not supported; use a for loop",
    ast.GeneratorExp: "a generator is not supported; use a for loop",
    ast.Dict: "a dictionary is not supported; there are whole numbers, strings, lists, True and False",
    ast.Set: "a set is not supported; there are whole numbers, strings, lists, True and False",
    ast.NamedExpr: ":= is not supported; assign on a line of its own",
    ast.Starred: "* in front of a value is not supported",
    ast.Is: "is not supported: use ==",
    ast.IsNot: "is not supported: use !=",
}


def variables(*nodes: ast.expr) -> tuple[str, ...]:
    """The variables in expressions, each once, in the order of the text."""
    return tuple(dict.fromkeys(name for node in nodes for name in _names(node)))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Call):
        for argument in node.args:
            yield from _names(argument)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def check_name(name: str, number: int) -> None:
    """Whether a variable or a function may be called so. Raises InputError."""
    if not name.isascii() or len(name) > MAX_NAME:
        raise wrong(number, f"a name has at most {MAX_NAME} letters from a to z, digits and _.")
    if name in RESERVED:
        raise wrong(number, f"the name {name} is Python's own; choose another.")


def check_expressions(nodes: tuple[ast.expr, ...], number: int) -> None:
    """Whether the expressions of one line are of the subset. Raises InputError, which names the line."""
    checker = _Checker(number)
    for node in nodes:
        checker.check(node)
    if checker.num_operators > MAX_OPERATORS:
        raise wrong(
            number, f"{checker.num_operators} operations in one line; the limit is {MAX_OPERATORS}. Use more lines."
        )


class _Checker:
    """Walks the expressions of one line."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_operators = 0

    def check(self, node: ast.AST) -> None:
        """Accept a node, or raise InputError."""
        accept = _ACCEPTED.get(type(node))
        if accept is None:
            raise self.refusal(node)
        accept(self, node)

    def refusal(self, node: ast.AST) -> InputError:
        """The error about a node that is not of the subset."""
        kind = type(node)
        return wrong(self.number, f"{_INSTEAD.get(kind, f'{kind.__name__} is not supported')}.")

    def constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, str):
            if len(value) > MAX_STRING:
                raise wrong(self.number, f"a string of {len(value):,} characters; the limit is {MAX_STRING}.")
            if not all(" " <= one <= "~" and one not in "'\"\\" for one in value):
                raise wrong(self.number, "a string has plain letters, digits and signs; no quotes, no backslash.")
        elif not isinstance(value, int):
            what = "a number with a decimal point" if isinstance(value, float) else type(value).__name__
            raise wrong(self.number, f"{what} is not supported; use whole numbers, strings, lists, True, False.")
        elif value > MAX_VALUE:
            raise wrong(self.number, f"a number beyond {MAX_VALUE:,} is not supported.")

    def name(self, node: ast.Name) -> None:
        check_name(node.id, self.number)

    def binary(self, node: ast.BinOp) -> None:
        self.operator(node.op)
        self.check(node.left)
        self.check(node.right)

    def boolean(self, node: ast.BoolOp) -> None:
        for value in node.values:
            self.check(value)

    def comparison(self, node: ast.Compare) -> None:
        if len(node.ops) > 1:
            raise wrong(self.number, "two comparisons in a row are not supported; join them with and.")
        self.operator(node.ops[0])
        self.check(node.left)
        self.check(node.comparators[0])

    def operator(self, node: ast.AST) -> None:
        self.num_operators += 1
        if type(node) not in OPERATORS:
            raise self.refusal(node)

    def unary(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.Not | ast.USub):
            raise wrong(self.number, f"{type(node.op).__name__} is not supported.")
        is_number = isinstance(node.operand, ast.Constant) and type(node.operand.value) is int
        self.num_operators += not is_number
        self.check(node.operand)

    def subscript(self, node: ast.Subscript) -> None:
        self.num_operators += 1
        if not isinstance(node.value, ast.Name | ast.Constant | ast.List):
            raise wrong(self.number, "[ ] stands behind a variable only.")
        self.check(node.value)
        if not isinstance(node.slice, ast.Slice):
            return self.check(node.slice)
        if node.slice.step is not None:
            raise wrong(self.number, "a slice with a step is not supported.")
        for bound in (node.slice.lower, node.slice.upper):
            if bound is not None:
                self.check(bound)
        return None

    def elements(self, node: ast.List) -> None:
        for element in node.elts:
            if isinstance(element, ast.List):
                raise wrong(self.number, "a list in a list is not supported.")
            self.check(element)

    def call(self, node: ast.Call) -> None:
        self.num_operators += 1
        if not isinstance(node.func, ast.Name):
            raise wrong(self.number, "a method is not supported here; there are only xs.append(x) and xs.pop().")
        name, known = node.func.id, ", ".join(BUILTINS)
        if name == "range":
            raise wrong(self.number, "range stands in a for loop only.")
        if name not in BUILTINS:
            raise wrong(
                self.number,
                f"{name[:MAX_NAME]}() cannot be called here. A function of the program is called on a line of its own, "
                f"as x = f(y); inside of an expression there are {known}.",
            )
        least, most = BUILTINS[name]
        if node.keywords or not least <= len(node.args) <= most:
            raise wrong(self.number, f"{name}() takes {least if least == most else f'{least} to {most}'} values.")
        for argument in node.args:
            self.check(argument)


_ACCEPTED: dict[type[ast.AST], Callable[..., None]] = {
    ast.Constant: _Checker.constant,
    ast.Name: _Checker.name,
    ast.BinOp: _Checker.binary,
    ast.BoolOp: _Checker.boolean,
    ast.Compare: _Checker.comparison,
    ast.UnaryOp: _Checker.unary,
    ast.Subscript: _Checker.subscript,
    ast.List: _Checker.elements,
    ast.Call: _Checker.call,
}
