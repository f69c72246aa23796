"""Runs a program of the subset exactly, and writes down every line that it executes as a step.

A step reads its line and the newest steps that wrote the variables of the line, and writes values or a branch:

    x = a + b             3+4= x=7              a, b = b, a         a=4, b=3
    if / elif / while     7>3= yes              one step a test, ` yes` or ` no`; `else` is no step
    for i in range(2, n)   i=2<5                 then i=3<5 from the step before alone, ` end` at last
    for x in xs            0: x=8                the place, too, from where the next step goes on
    xs.append(4)           xs=[8,4]              the whole list; xs[0] = 5 and xs.pop() likewise
    y = f(3)               f: a=3                reads the line and that of `def`, binds the parameters
    return a + 1          3+1= return:4
    y = f(3)               y=4                   the same line again, reads the step that returned
    print(x, s)            print:7,'ab'

`break`, `continue` and `pass` write themselves. `def` is no step.
"""

import ast
from collections.abc import Callable, Sequence
from typing import NamedTuple

from selfspan_core.errors import InputError
from selfspan_core.tasks.trace.program import MAX_STEPS, MAX_VALUE, Call, Function, Program, Statement, wrong
from selfspan_core.tasks.trace.values import Value, element, kind_of, printed, value_text
from selfspan_core.tasks.trace.working import Working


class RawStep(NamedTuple):
    """One executed line; in `reads` a line is its index, and step k is -1 - k."""

    reads: tuple[int, ...]
    work: str
    result: str


class Slot(NamedTuple):
    """A variable's last value, the step that wrote it, and whether it is a list that the caller of a function has."""

    value: Value
    step: int
    is_borrowed: bool = False


class Returned(NamedTuple):
    """What a function returned, and the step that did; None if it ended without."""

    value: Value | None
    step: int


Outcome = str | Returned | None
"""How a block ended: "break", "continue", a return, or at its end."""


class Frame(NamedTuple):
    """The variables of a function's call, and the names that are its own."""

    slots: dict[str, Slot]
    own: frozenset[str]


class Mark(NamedTuple):
    """A state of a machine between two statements."""

    slots: dict[str, Slot]
    num_steps: int
    num_printed: int


class Machine:
    """The state of a run.

    Args:
        functions: of the program, by name; more may be added later.
        most: the largest number that is allowed.
    """

    def __init__(self, functions: dict[str, Function], most: int = MAX_VALUE) -> None:
        self.functions = functions
        self.globals: dict[str, Slot] = {}
        self.steps: list[RawStep] = []
        self.printed: list[str] = []
        self._frames: list[Frame] = []
        self._most = most

    def run(self, statements: Sequence[Statement]) -> None:
        """Execute statements that stand outside of functions. Raises InputError, which names the line."""
        self._block(statements)

    def mark(self) -> "Mark":
        """The state between two statements, to come back to."""
        return Mark(dict(self.globals), len(self.steps), len(self.printed))

    def back_to(self, mark: "Mark") -> None:
        """Forget what was run since; also behind an error, wherever it was."""
        self.globals = dict(mark.slots)
        del self.steps[mark.num_steps :], self.printed[mark.num_printed :]
        self._frames.clear()

    def _block(self, statements: Sequence[Statement]) -> Outcome:
        for statement in statements:
            outcome = _RUN[statement.kind](self, statement)
            if outcome is not None:
                return outcome
        return None

    # ---- variables

    def _slot(self, name: str) -> Slot | None:
        if self._frames and name in self._frames[-1].own:
            return self._frames[-1].slots.get(name)
        return self.globals.get(name)

    def _is_own(self, name: str) -> bool:
        return not self._frames or name in self._frames[-1].own

    def _working(self, number: int) -> Working:
        def lookup(name: str) -> Value:
            slot = self._slot(name)
            if slot is None:
                raise wrong(number, f"{name} has no value yet.")
            return slot.value

        return Working(lookup, number, self._most)

    def _bind(self, name: str, value: Value, is_borrowed: bool = False) -> None:
        """Give a name its value, written by the newest step."""
        slots = self._frames[-1].slots if self._frames else self.globals
        slots[name] = Slot(value, -len(self.steps), is_borrowed)

    def _require_new(self, node: ast.expr, value: Value, number: int) -> None:
        """A list must not get a second name: what changes it by one would change it by the other."""
        if isinstance(node, ast.Name | ast.BoolOp) and isinstance(value, tuple):
            raise wrong(number, "a second name for one list is not supported; a copy of xs is xs[:].")

    def _require_changeable(self, name: str, statement: Statement) -> Value:
        """The list that a statement changes in place. Raises InputError."""
        slot = self._slot(name)
        if slot is None:
            raise wrong(statement.number, f"{name} has no value yet.")
        if not isinstance(slot.value, tuple):
            raise wrong(statement.number, f"{name} is {kind_of(slot.value)}, not a list.")
        if slot.is_borrowed or not self._is_own(name):
            raise wrong(statement.number, "a function may not change a list of its caller; return a new one.")
        return slot.value

    # ---- steps

    def _step(self, statement: Statement, reads: Sequence[int], work: str, result: str) -> int:
        """Write a step down; the number by which others read it."""
        if len(self.steps) == MAX_STEPS:
            raise InputError(f"The program runs for more than {MAX_STEPS} steps, which is the limit.")
        self.steps.append(RawStep(tuple(dict.fromkeys((statement.line, *reads))), work, result))
        return -len(self.steps)

    def _read(self, statement: Statement) -> list[int]:
        slots = (self._slot(name) for name in statement.reads)
        return [slot.step for slot in slots if slot is not None]

    def _assign(self, statement: Statement) -> Outcome:
        number, targets = statement.number, statement.targets
        if statement.call:
            returned = self._call(statement, statement.call)
            if returned.value is None:
                raise wrong(number, f"{statement.call.function} ended without a value to return.")
            self._step(statement, [returned.step], "", f" {targets[0]}={value_text(returned.value)}")
            self._bind(targets[0], returned.value)
            return None
        working = self._working(number)
        values = [working.value(node) for node in statement.values]
        for node, value in zip(statement.values, values, strict=True):
            self._require_new(node, value, number)
        text = working.text(statement.values[0] if len(values) == 1 else None)
        pairs = list(zip(targets, values, strict=True))
        self._step(statement, self._read(statement), text, ",".join(f" {n}={value_text(v)}" for n, v in pairs))
        for name, value in pairs:
            self._bind(name, value)
        return None

    def _update(self, statement: Statement) -> Outcome:
        slot = self._slot(statement.targets[0])
        if slot is not None and isinstance(slot.value, tuple):
            self._require_changeable(statement.targets[0], statement)
        return self._assign(statement)

    def _set_item(self, statement: Statement) -> Outcome:
        name, working = statement.targets[0], self._working(statement.number)
        _, index_node, value_node = statement.values
        value = working.value(value_node)
        index = working.value(index_node)
        items = self._require_changeable(name, statement)
        assert isinstance(items, tuple)
        if kind_of(index) != "a number" or not -len(items) <= int(index) < len(items):  # type: ignore[arg-type]
            raise wrong(statement.number, f"there is no element {value_text(index)} in a list of {len(items)}.")
        place = int(index) % len(items)  # type: ignore[arg-type]
        changed = working.checked((*items[:place], value, *items[place + 1 :]))
        work = f"{working.text()} {name}[{value_text(index)}]={value_text(value)};"
        return self._changed(statement, name, work, changed)

    def _append(self, statement: Statement) -> Outcome:
        name, working = statement.targets[0], self._working(statement.number)
        value = working.value(statement.values[1])
        items = self._require_changeable(name, statement)
        assert isinstance(items, tuple)
        return self._changed(statement, name, working.text(), working.checked((*items, value)))

    def _changed(self, statement: Statement, name: str, work: str, value: Value) -> Outcome:
        self._step(statement, self._read(statement), work, f" {name}={value_text(value)}")
        self._bind(name, value)
        return None

    def _pop(self, statement: Statement) -> Outcome:
        *targets, name = statement.targets
        items = self._require_changeable(name, statement)
        assert isinstance(items, tuple)
        if not items:
            raise wrong(statement.number, f"{name} is empty: there is nothing to pop.")
        pairs = [*((target, items[-1]) for target in targets), (name, items[:-1])]
        result = ",".join(f" {target}={value_text(value)}" for target, value in pairs)
        self._step(statement, self._read(statement), "", result)
        for target, value in pairs:
            self._bind(target, value)
        return None

    def _holds(self, statement: Statement) -> bool:
        """Whether a condition holds, as a step."""
        working = self._working(statement.number)
        holds = bool(working.value(statement.values[0]))
        self._step(statement, self._read(statement), working.text(statement.values[0]), " yes" if holds else " no")
        return holds

    def _branch(self, statement: Statement) -> Outcome:
        return self._block(statement.body if self._holds(statement) else statement.orelse)

    def _repeat(self, statement: Statement) -> Outcome:
        while self._holds(statement):
            outcome = self._block(statement.body)
            if isinstance(outcome, Returned):
                return outcome
            if outcome == "break":
                break
        return None

    def _count(self, statement: Statement) -> Outcome:
        working = self._working(statement.number)
        bounds = [working.value(node) for node in statement.values]
        if {kind_of(bound) for bound in bounds} != {"a number"}:
            raise wrong(statement.number, "range takes numbers.")
        stop, stride = int(bounds[-1]), statement.stride  # type: ignore[arg-type]
        start = int(bounds[0]) if len(bounds) == 2 else 0  # type: ignore[arg-type]
        places = range(start, stop, stride)
        sign = f"{'<' if stride > 0 else '>'}{stop}"
        return self._loop(statement, working.text(), [(f" {statement.targets[0]}={i}{sign}", i) for i in places])

    def _each(self, statement: Statement) -> Outcome:
        working = self._working(statement.number)
        over = working.value(statement.values[0])
        if not isinstance(over, str | tuple):
            raise wrong(statement.number, f"a for loop does not run over {kind_of(over)}.")
        name = statement.targets[0]
        items = [(f"{i}: {name}={value_text(element(over, i))}", element(over, i)) for i in range(len(over))]
        return self._loop(statement, working.text(), items)

    def _loop(self, statement: Statement, work: str, items: Sequence[tuple[str, Value]]) -> Outcome:
        """One step an item, each from the one before, and one at the end."""
        entry = self._read(statement)
        again = entry if statement.kind == "items" else []
        reads = entry
        for result, value in items:
            step = self._step(statement, reads, work, result)
            self._bind(statement.targets[0], value)
            work, reads = "", [*again, step]
            outcome = self._block(statement.body)
            if isinstance(outcome, Returned):
                return outcome
            if outcome == "break":
                return None
        self._step(statement, reads, work, " end")
        return None

    def _call(self, statement: Statement, call: Call) -> Returned:
        function, working = self.functions[call.function], self._working(statement.number)
        values = [working.value(node) for node in call.arguments]
        pairs = list(zip(function.parameters, values, strict=True))
        bound = ",".join(f" {name}={value_text(value)}" for name, value in pairs)
        reads = [function.line, *self._read(statement)]
        self._step(statement, reads, working.text(), f" {call.function}:{bound}")
        self._frames.append(Frame({}, function.local_names))
        for name, value in pairs:
            self._bind(name, value, is_borrowed=isinstance(value, tuple))
        outcome = self._block(function.body)
        self._frames.pop()
        return outcome if isinstance(outcome, Returned) else Returned(None, -len(self.steps))

    def _called(self, statement: Statement) -> Outcome:
        assert statement.call is not None
        self._call(statement, statement.call)
        return None

    def _give_back(self, statement: Statement) -> Outcome:
        value, reads, work = self._whole_value(statement)
        result = " return" if value is None else f" return:{value_text(value)}"
        if statement.values and value is not None:
            node = statement.values[0]
            slot = self._slot(node.id) if isinstance(node, ast.Name) else None
            is_free = isinstance(node, ast.Name) and slot is not None and not slot.is_borrowed and self._is_own(node.id)
            if not is_free:  # a list of the function's own ends with it: what it returns is the only name
                self._require_new(node, value, statement.number)
        return Returned(value, self._step(statement, reads, work, result))

    def _whole_value(self, statement: Statement) -> tuple[Value | None, list[int], str]:
        """The value that a statement hands on, what is read for it, and its working."""
        if statement.call:
            returned = self._call(statement, statement.call)
            return returned.value, [returned.step], ""
        if not statement.values:
            return None, [], ""
        working = self._working(statement.number)
        value = working.value(statement.values[0])
        return value, self._read(statement), working.text(statement.values[0])

    def _show(self, statement: Statement) -> Outcome:
        if statement.call or len(statement.values) == 1:
            value, reads, work = self._whole_value(statement)
            if value is None:
                raise wrong(statement.number, "the function ended without a value to print.")
            values = [value]
        else:
            working = self._working(statement.number)
            values = [working.value(node) for node in statement.values]
            reads, work = self._read(statement), working.text()
        self._step(statement, reads, work, f" print:{','.join(map(value_text, values))}")
        self.printed.append(printed(values))
        return None

    def _word(self, statement: Statement) -> Outcome:
        self._step(statement, [], "", f" {statement.kind}")
        return None if statement.kind == "pass" else statement.kind


_RUN: dict[str, Callable[[Machine, Statement], Outcome]] = {
    "assign": Machine._assign,
    "update": Machine._update,
    "set item": Machine._set_item,
    "append": Machine._append,
    "pop": Machine._pop,
    "if": Machine._branch,
    "while": Machine._repeat,
    "range": Machine._count,
    "items": Machine._each,
    "call": Machine._called,
    "return": Machine._give_back,
    "print": Machine._show,
    "break": Machine._word,
    "continue": Machine._word,
    "pass": Machine._word,
}


def run(program: Program) -> Machine:
    """The machine behind a whole run of a program. Raises InputError."""
    machine = Machine(program.functions)
    machine.run(program.body)
    return machine
