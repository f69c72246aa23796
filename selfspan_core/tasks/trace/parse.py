"""Parses a pasted program: a walk over Python's own syntax tree that accepts listed nodes only. Nothing is evaluated.

What is long is refused before it is parsed. Each message names the line, as it was typed, and what is not supported.
"""

import ast
import textwrap
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import cast

from selfspan_core.errors import InputError
from selfspan_core.tasks.trace.expressions import BUILTINS, check_expressions, check_name, variables
from selfspan_core.tasks.trace.program import (
    MAX_CHARACTERS,
    MAX_LEVELS,
    MAX_LINES,
    MAX_VARIABLES,
    OPERATORS,
    Call,
    Function,
    Line,
    Program,
    Statement,
    written,
    wrong,
)

_INSTEAD: dict[type[ast.AST], str] = {
    ast.Import: "import is not supported",
    ast.ImportFrom: "import is not supported",
    ast.ClassDef: "a class is not supported",
    ast.Try: "try is not supported",
    ast.With: "with is not supported",
    ast.Global: "global is not supported; a function returns what it changes",
    ast.Nonlocal: "nonlocal is not supported; a function returns what it changes",
    ast.Delete: "del is not supported",
    ast.AnnAssign: "a type behind a name is not supported",
    ast.AsyncFunctionDef: "async is not supported",
    ast.Match: "match is not supported; use if and elif",
    ast.Assert: "assert is not supported",
    ast.Raise: "raise is not supported",
    ast.FunctionDef: "a function inside of a block is not supported",
}
_ONE_AT_A_TIME = threading.Lock()
"""What is done with warnings is one setting of the process."""
_CHANGES = ("assign", "update", "set item", "append", "pop", "range", "items")


def parse_program(text: str) -> Program:
    """The program that a text is; it is not run.

    Raises:
        InputError: it is too long, no Python, or Python beyond the subset.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The program is {len(text):,} characters long; the limit is {MAX_CHARACTERS:,}.")
    if not text.strip():
        raise InputError("The program is empty. Type one, such as: total = 2 + 3, and on the next line: print(total)")
    if "\\" in text:
        number = text[: text.index("\\")].count("\n") + 1
        raise wrong(number, "a backslash is not supported.")
    try:
        tree = _tree(textwrap.dedent(text.replace("\r\n", "\n").expandtabs(4)))
        program = _Builder().program(tree.body)
    except SyntaxError as error:
        raise wrong(error.lineno or 1, f"this is not Python: {_plain(error.msg)}.") from None
    except InputError:
        raise
    except (ValueError, RecursionError, MemoryError):
        raise InputError("This is not a program that Python understands.") from None
    if not program.body:
        raise InputError("The program has nothing to run: comments or functions only.")
    return program


def parse_block(source: str, functions: dict[str, Function], num_lines: int) -> Program:
    """A piece of a program, its lines counted behind `num_lines` lines; `functions`: those before it.

    Raises:
        InputError: it is not of the subset, or the program grows beyond MAX_LINES.
    """
    return _Builder(functions, num_lines).program(ast.parse(source).body)


def _tree(text: str) -> ast.Module:
    """A text as Python reads it; what Python only warns of (`1or 2`) is no Python here, and nothing is printed."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        return ast.parse(text)


def _plain(message: str) -> str:
    return "".join(one if one.isprintable() else "�" for one in message[:100]).rstrip(".")


class _Builder:
    """Lines and statements, as they are met."""

    def __init__(self, functions: dict[str, Function] | None = None, num_lines: int = 0) -> None:
        self.lines: list[Line] = []
        self.functions = dict(functions or {})
        self._first = num_lines
        self._inside: str | None = None
        self._loops: list[str] = []
        self._variables: set[str] = set()

    def program(self, nodes: Sequence[ast.stmt]) -> Program:
        """All of a program."""
        body: list[Statement] = []
        for node in nodes:
            if isinstance(node, ast.FunctionDef):
                self._function(node)
            else:
                body.append(self.statement(node, 0))
        return Program(tuple(self.lines), self.functions, tuple(body))

    def statement(self, node: ast.stmt, level: int) -> Statement:
        """A statement at a level of indentation, with the blocks inside. Raises InputError."""
        build = _BUILDERS.get(type(node))
        if build is None:
            what = _INSTEAD.get(type(node), f"{type(node).__name__} is not supported")
            raise wrong(node.lineno, f"{what}.")
        if level > MAX_LEVELS:
            raise wrong(node.lineno, f"blocks inside of blocks, {level} deep; the limit is {MAX_LEVELS}.")
        return build(self, node, level)

    def _line(self, level: int, text: str, number: int) -> int:
        self.lines.append(Line(level, text, number))
        if self._first + len(self.lines) > MAX_LINES:
            raise InputError(
                f"The program has more than {MAX_LINES} lines, blank ones and comments not counted; the limit is "
                f"{MAX_LINES}."
            )
        return self._first + len(self.lines) - 1

    def _values(self, nodes: Sequence[ast.expr], number: int) -> tuple[tuple[ast.expr, ...], tuple[str, ...]]:
        values = tuple(nodes)
        check_expressions(values, number)
        reads = variables(*values)
        if len(reads) > MAX_VARIABLES:
            raise wrong(number, f"reads {len(reads)} variables; the limit is {MAX_VARIABLES} in one line.")
        return values, reads

    def _block(self, nodes: Sequence[ast.stmt], level: int) -> tuple[Statement, ...]:
        return tuple(self.statement(node, level) for node in nodes)

    def _function(self, node: ast.FunctionDef) -> None:
        number, asked = node.lineno, node.args
        check_name(node.name, number)
        if node.name in self.functions or node.name in self._variables:
            raise wrong(number, f"the name {node.name} is taken; choose another.")
        if node.decorator_list or node.returns or asked.vararg or asked.kwarg or asked.kwonlyargs or asked.defaults:
            raise wrong(number, "a function has a name and plain parameters, nothing else.")
        parameters = tuple(one.arg for one in (*asked.posonlyargs, *asked.args))
        if len(parameters) > MAX_VARIABLES:
            raise wrong(number, f"{len(parameters)} parameters; the limit is {MAX_VARIABLES}.")
        for name in parameters:
            self._own(name, number)
        line = self._line(0, f"def {node.name}({', '.join(parameters)}):", number)
        self._inside = node.name
        body = self._block(node.body, 1)
        self._inside = None
        own = frozenset((*parameters, *_written_in(body)))
        # Registered when it is whole: so it can call those above it only, and never itself.
        self.functions[node.name] = Function(line, parameters, own, body)

    # ---- statements

    def assign(self, node: ast.Assign, level: int) -> Statement:
        number, target = node.lineno, node.targets[0]
        if len(node.targets) > 1:
            raise wrong(number, "a = b = ... is not supported; use two lines.")
        if isinstance(target, ast.Subscript):
            return self._set_item(node, target, level)
        if isinstance(target, ast.Tuple):
            return self._assign_several(node, target, level)
        name = self._target(target, number)
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            return self._method(value, (name,), number, level)
        call, values, reads = self._called(value, number)
        text = written(value)
        return Statement("assign", self._line(level, f"{name} = {text}", number), number, (name,), values, reads, call)

    def _assign_several(self, node: ast.Assign, target: ast.Tuple, level: int) -> Statement:
        number, names = node.lineno, tuple(self._target(one, node.lineno) for one in target.elts)
        given = node.value.elts if isinstance(node.value, ast.Tuple) else []
        if len(given) != len(names) or len(set(names)) < len(names) or not 2 <= len(names) <= 3:
            raise wrong(number, "two or three different variables take as many values: a, b = b, a.")
        values, reads = self._values(given, number)
        text = f"{', '.join(names)} = {', '.join(map(written, values))}"
        return Statement("assign", self._line(level, text, number), number, names, values, reads)

    def _set_item(self, node: ast.Assign, target: ast.Subscript, level: int) -> Statement:
        number = node.lineno
        if not isinstance(target.value, ast.Name) or isinstance(target.slice, ast.Slice):
            raise wrong(number, "one element of a list can be assigned, as in xs[0] = 5.")
        values, reads = self._values((target.value, target.slice, node.value), number)
        text = f"{written(target)} = {written(node.value)}"
        name = self._target(target.value, number)
        return Statement("set item", self._line(level, text, number), number, (name,), values, reads)

    def update(self, node: ast.AugAssign, level: int) -> Statement:
        number = node.lineno
        name = self._target(node.target, number)
        value = ast.BinOp(ast.Name(name), node.op, node.value)
        values, reads = self._values((value,), number)
        sign = OPERATORS[type(node.op)]
        text = f"{name} {sign}= {written(node.value)}"
        return Statement("update", self._line(level, text, number), number, (name,), values, reads)

    def expression(self, node: ast.Expr, level: int) -> Statement:
        number, value = node.lineno, node.value
        if not isinstance(value, ast.Call):
            raise wrong(number, "a value alone does nothing; assign it or print it.")
        if isinstance(value.func, ast.Attribute):
            return self._method(value, (), number, level)
        name = value.func.id if isinstance(value.func, ast.Name) else ""
        if name == "print":
            return self._print(value, level)
        if name in BUILTINS:
            raise wrong(number, "a value alone does nothing; assign it or print it.")
        call, _, reads = self._called(value, number)
        if call is None:
            raise wrong(number, "this call is not supported.")
        return Statement("call", self._line(level, written(value), number), number, reads=reads, call=call)

    def _print(self, node: ast.Call, level: int) -> Statement:
        number = node.lineno
        if node.keywords or not 1 <= len(node.args) <= MAX_VARIABLES:
            raise wrong(number, f"print takes 1 to {MAX_VARIABLES} values and nothing else.")
        if len(node.args) == 1:
            call, values, reads = self._called(node.args[0], number)
        else:
            call, (values, reads) = None, self._values(node.args, number)
        text = f"print({', '.join(map(written, node.args))})"
        return Statement("print", self._line(level, text, number), number, (), values, reads, call)

    def _method(self, node: ast.Call, targets: tuple[str, ...], number: int, level: int) -> Statement:
        of = cast(ast.Attribute, node.func)
        takes = {"append": 1, "pop": 0}.get(of.attr)
        usable = isinstance(of.value, ast.Name) and not node.keywords and len(node.args) == takes
        if not usable or (of.attr == "append" and targets):
            raise wrong(number, "of lists there are xs.append(x), xs.pop() and x = xs.pop(), on a line of their own.")
        name = self._target(of.value, number)
        if name in targets:
            raise wrong(number, "x = x.pop() is not supported; use another name.")
        values, reads = self._values((of.value, *node.args), number)
        text = "".join(f"{target} = " for target in targets) + written(node)
        return Statement(of.attr, self._line(level, text, number), number, (*targets, name), values, reads)

    def _called(self, node: ast.expr, number: int) -> tuple[Call | None, tuple[ast.expr, ...], tuple[str, ...]]:
        """A call of the program's own function, or the expression that it is not; and the variables that it reads."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.func.id in BUILTINS:
            values, reads = self._values((node,), number)
            return None, values, reads
        name = node.func.id
        check_name(name, number)
        if name not in self.functions:
            why = "calls itself, which is not supported" if name == self._inside else "is no function above this line"
            raise wrong(number, f"{name} {why}.")
        parameters = self.functions[name].parameters
        if node.keywords or len(node.args) != len(parameters):
            raise wrong(number, f"{name} takes {len(parameters)} values, in order.")
        arguments, reads = self._values(node.args, number)
        return Call(name, arguments), (), reads

    def condition(self, node: ast.If | ast.While, level: int) -> Statement:
        return self._condition(node, level, "while" if isinstance(node, ast.While) else "if")

    def _condition(self, node: ast.If | ast.While, level: int, word: str) -> Statement:
        number = node.lineno
        values, reads = self._values((node.test,), number)
        line = self._line(level, f"{word} {written(node.test)}:", number)
        if isinstance(node, ast.While):
            if node.orelse:
                raise wrong(number, "else behind a loop is not supported.")
            return Statement("while", line, number, (), values, reads, body=self._loop("", node, level))
        body = self._block(node.body, level + 1)
        orelse: tuple[Statement, ...] = ()
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            # `else:` with an if inside is the same tree, and the same program.
            orelse = (self._condition(node.orelse[0], level, "elif"),)
        elif node.orelse:
            # No step names an else, but its block has to be seen to be one.
            self._line(level, "else:", node.orelse[0].lineno)
            orelse = self._block(node.orelse, level + 1)
        return Statement("if", line, number, (), values, reads, body=body, orelse=orelse)

    def _loop(self, over: str, node: ast.While | ast.For, level: int) -> tuple[Statement, ...]:
        self._loops.append(over)
        body = self._block(node.body, level + 1)
        self._loops.pop()
        for changed, number in _changes(body):
            if over and changed == over:
                raise wrong(number, f"{over} may not change while a loop runs over it.")
        return body

    def loop(self, node: ast.For, level: int) -> Statement:
        number, over = node.lineno, node.iter
        if node.orelse:
            raise wrong(number, "else behind a loop is not supported.")
        name = self._target(node.target, number)
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "range":
            return self._range(node, over, name, level)
        if not isinstance(over, ast.Name | ast.List | ast.Constant):
            raise wrong(number, "a for loop runs over range(...), a list or a variable.")
        if isinstance(over, ast.Name) and over.id == name:
            raise wrong(number, "a loop's variable and what it runs over have different names.")
        values, reads = self._values((over,), number)
        line = self._line(level, f"for {name} in {written(over)}:", number)
        body = self._loop(over.id if isinstance(over, ast.Name) else "", node, level)
        return Statement("items", line, number, (name,), values, reads, body=body)

    def _range(self, node: ast.For, over: ast.Call, name: str, level: int) -> Statement:
        number = node.lineno
        if over.keywords or not 1 <= len(over.args) <= 3:
            raise wrong(number, "range takes 1 to 3 values.")
        bounds, stride = over.args[:2], 1
        if len(over.args) == 3:
            stride = _whole(over.args[2])
            if not stride:
                raise wrong(number, "the third value of range is a number other than 0.")
        values, reads = self._values(bounds, number)
        line = self._line(level, f"for {name} in range({', '.join(map(written, over.args))}):", number)
        body = self._loop("", node, level)
        return Statement("range", line, number, (name,), values, reads, stride=stride, body=body)

    def result(self, node: ast.Return, level: int) -> Statement:
        number = node.lineno
        if self._inside is None:
            raise wrong(number, "return stands in a function only.")
        if node.value is None:
            return Statement("return", self._line(level, "return", number), number)
        call, values, reads = self._called(node.value, number)
        text = f"return {written(node.value)}"
        return Statement("return", self._line(level, text, number), number, (), values, reads, call)

    def word(self, node: ast.Break | ast.Continue | ast.Pass, level: int) -> Statement:
        kind = type(node).__name__.lower()
        if kind != "pass" and not self._loops:
            raise wrong(node.lineno, f"{kind} stands in a loop only.")
        return Statement(kind, self._line(level, kind, node.lineno), node.lineno)

    def _target(self, node: ast.expr, number: int) -> str:
        if not isinstance(node, ast.Name):
            raise wrong(number, "only a variable can be written here.")
        return self._own(node.id, number)

    def _own(self, name: str, number: int) -> str:
        """A name that a variable takes."""
        check_name(name, number)
        if name in self.functions or name == self._inside:
            raise wrong(number, f"{name} is a function; choose another name.")
        self._variables.add(name)
        return name


def _whole(node: ast.expr) -> int:
    """The number that a node writes down; 0 if it is none."""
    sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    return sign * inner.value if isinstance(inner, ast.Constant) and type(inner.value) is int else 0


def _inner(block: Sequence[Statement]) -> list[Statement]:
    return [one for own in block for one in (own, *_inner(own.body), *_inner(own.orelse))]


def _written_in(block: Sequence[Statement]) -> set[str]:
    """Names that a function's statements make its own: what is assigned, not what is only changed in place."""
    own = ("assign", "update", "range", "items")
    written_names = {name for one in _inner(block) if one.kind in own for name in one.targets}
    return written_names | {one.targets[0] for one in _inner(block) if one.kind == "pop" and len(one.targets) == 2}


def _changes(block: Sequence[Statement]) -> list[tuple[str, int]]:
    return [(name, one.number) for one in _inner(block) if one.kind in _CHANGES for name in one.targets]


_BUILDERS: dict[type[ast.AST], Callable[..., Statement]] = {
    ast.Assign: _Builder.assign,
    ast.AugAssign: _Builder.update,
    ast.Expr: _Builder.expression,
    ast.If: _Builder.condition,
    ast.While: _Builder.condition,
    ast.For: _Builder.loop,
    ast.Return: _Builder.result,
    ast.Break: _Builder.word,
    ast.Continue: _Builder.word,
    ast.Pass: _Builder.word,
}
