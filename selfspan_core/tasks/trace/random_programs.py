"""Random programs that run for an exact number of steps, for training, for evaluation and for "Surprise me".

A program grows by blocks. Each is run on the state that those before it left, and dropped if it breaks a limit or runs
for too long; so every block is run once, and the steps are there when the program is. A fixed part of all programs, by
the hash of how they begin, is kept for evaluation.
"""

import hashlib
import random
from dataclasses import dataclass

from selfspan_core.errors import InputError
from selfspan_core.tasks.trace.machine import Machine, RawStep
from selfspan_core.tasks.trace.names import FUNCTIONS
from selfspan_core.tasks.trace.parse import parse_block
from selfspan_core.tasks.trace.program import MAX_LINES, Function, Line, Program, Statement
from selfspan_core.tasks.trace.random_lines import LineWriter, Scope

HELD_OUT_SHARE = 32
OPENING_LINES = 2
"""Lines by which a program is on one side of the split: two that begin alike are on the same."""
ATTEMPTS = 60
STEPS_OF_A_BODY = 1.4
"""What a line of a block costs, the conditions in it included."""


def is_held_out(text: str) -> bool:
    """Whether a canonical program is kept for evaluation: one in HELD_OUT_SHARE, by a hash of its first lines."""
    opening = "\n".join(text.split("\n")[:OPENING_LINES])
    return hashlib.blake2b(opening.encode(), digest_size=8).digest()[-1] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Ran:
    """A program with its whole run."""

    program: Program
    steps: tuple[RawStep, ...]
    printed: tuple[str, ...]


class _Stuck(Exception):
    """Nothing more fits."""


def random_program(rng: random.Random, num_steps: int, held_out: bool | None = None) -> Ran:
    """A program of exactly `num_steps` steps, 3 or more; `held_out` True or False: of one side of the split only."""
    while True:
        try:
            grower = _Grower(rng, num_steps)
            grower.open(held_out)
            ran = grower.grow()
        except _Stuck:
            continue
        # The shortest programs have more lines than they open with.
        if held_out is None or is_held_out(ran.program.text) == held_out:
            return ran


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


class _Grower:
    """A program that grows."""

    def __init__(self, rng: random.Random, num_steps: int) -> None:
        self.rng, self.num_steps = rng, num_steps
        self.writer = LineWriter(rng)
        most = 9_999 if rng.random() < 0.1 else 999
        self.functions: dict[str, Function] = {}
        self.machine = Machine(self.functions, most)
        self.lines: list[Line] = []
        self.body: list[Statement] = []
        self.scope = Scope()

    # ---- growing

    def open(self, held_out: bool | None) -> None:
        """Functions and first variables, on one side of the split."""
        for _ in range(100 * HELD_OUT_SHARE):
            self.scope = Scope()
            pieces = self._opening()
            if held_out is None or is_held_out("\n".join("\n".join(piece) for piece in pieces)) == held_out:
                break
        else:
            raise _Stuck
        for piece in pieces:
            if not self.add(piece):
                raise _Stuck

    def _opening(self) -> list[list[str]]:
        pieces: list[list[str]] = []
        share = 0.0 if self.num_steps < 8 else 0.4
        while self.writer.chance(share) and len(pieces) < 2:
            pieces.append(self._function())
        num = min(self.rng.randint(OPENING_LINES, 4), self.num_steps - 2)
        first = self.writer.new_name(self.scope, "number")
        self.scope.numbers.append(first)
        pieces.append([f"{first} = {self.writer.literal()}"])
        return [*pieces, *([self.writer.new_variable(self.scope)] for _ in range(num - 1))]

    def add(self, source: list[str]) -> bool:
        """Run a piece behind all others; False, and all is as before, if it breaks a limit."""
        machine, before = self.machine, self.machine.mark()
        try:
            piece = parse_block("\n".join(source), self.functions, len(self.lines))
            machine.functions = piece.functions
            machine.run(piece.body)
            fits = len(machine.steps) < self.num_steps and len(self.lines) + len(piece.lines) < MAX_LINES
        except InputError:
            fits = False
        if not fits:
            machine.functions = self.functions
            machine.back_to(before)
            return False
        self.functions = piece.functions
        self.lines += piece.lines
        self.body += piece.body
        self._look()
        return True

    def _look(self) -> None:
        """Which names there are, and of what kind."""
        scope = self.scope
        scope.numbers, scope.strings, scope.lists, scope.flags, scope.empties = [], [], [], [], []
        for name, slot in self.machine.globals.items():
            value = slot.value
            if isinstance(value, bool):
                scope.flags.append(name)
            elif isinstance(value, int):
                scope.numbers.append(name)
            elif isinstance(value, str):
                scope.strings.append(name)
            else:
                (scope.lists if value else scope.empties).append(name)

    def grow(self) -> Ran:
        """Blocks until but one step is left, and a line that prints."""
        failures = 0
        while (left := self.num_steps - len(self.machine.steps) - 1) > 0:
            failures = 0 if self.add(self._piece(left)) else failures + 1
            if failures > ATTEMPTS:
                raise _Stuck
        self.num_steps += 1  # the last line may take what was kept for it
        for _ in range(ATTEMPTS):
            num_before = len(self.machine.steps)
            if self.add([self.writer.shown(self._recent())]) and len(self.machine.steps) == num_before + 1:
                program = Program(tuple(self.lines), self.functions, tuple(self.body))
                return Ran(program, tuple(self.machine.steps), tuple(self.machine.printed))
        raise _Stuck

    def _recent(self) -> Scope:
        """The names that were written last, which are worth printing."""
        slots = sorted(self.machine.globals.items(), key=lambda item: item[1].step)[:3]
        names = {name for name, _ in slots}
        scope, kinds = self.scope.inner(), ("numbers", "strings", "lists", "flags", "empties")
        for kind in kinds:
            setattr(scope, kind, [name for name in getattr(scope, kind) if name in names])
        return scope if any(getattr(scope, kind) for kind in kinds) else self.scope

    # ---- pieces

    def _piece(self, left: int) -> list[str]:
        """A line or a block for about so many steps, or fewer."""
        rng, room = self.rng, MAX_LINES - len(self.lines) - 2
        scope = self.scope.inner()
        if room < 3 and left > 2:
            raise _Stuck
        if left > 4 and self.functions and self.writer.chance(0.3):
            return [self._call(scope)]
        if left > 6 and self.writer.chance(0.75 if left > 20 else 0.5):
            most = left - 2
            target = int(most * rng.uniform(0.35, 1.0)) if left / room > 3 else rng.randint(5, max(5, most))
            return self._loop(scope, max(target, 5), room)
        if left > 3 and room > 4 and self.writer.chance(0.35):
            return self._branch(scope, rng.randint(2, 5))
        if self.writer.chance(0.15 if left > 5 else 0.02):
            return [self.writer.shown(scope)]
        if self.writer.chance(0.15):
            return [self.writer.new_variable(scope)]
        return [self.writer.line(scope)]

    def _branch(self, scope: Scope, most: int) -> list[str]:
        """An if, perhaps with elif and else, each with a line or two."""
        writer = self.writer
        lines = [f"if {writer.condition(scope)}:", *_indented(self._lines(scope.inner(), 2 if most > 4 else 1))]
        if most > 3 and writer.chance(0.3):
            lines += [f"elif {writer.condition(scope)}:", *_indented(self._lines(scope.inner(), 1))]
        if writer.chance(0.6):
            lines += ["else:", *_indented(self._lines(scope.inner(), 1))]
        return lines

    def _lines(self, scope: Scope, most: int) -> list[str]:
        return [self.writer.line(scope) for _ in range(self.rng.randint(1, most))]

    def _body(self, scope: Scope, most: int, jumps: tuple[str, ...] = ("break", "continue")) -> list[str]:
        """The lines of a loop, with what stands in it."""
        writer, lines = self.writer, self._lines(scope, 2 if most < 5 else 3)
        if most > 3 and writer.chance(0.55):
            lines[self.rng.randint(0, len(lines)) :] = self._branch(scope, most)
        if self.functions and writer.chance(0.15):
            lines.append(self._call(scope))
        if writer.chance(0.12) and most > 3:
            word = self.rng.choice(jumps)
            jump = [f"if {writer.condition(scope)}:", f"    {word}"]
            lines = [*jump, *lines] if writer.chance(0.5) else [*lines, *jump]
        if writer.chance(0.06):
            lines.append(writer.shown(scope))
        return lines

    def _loop(self, scope: Scope, target: int, room: int) -> list[str]:
        """A loop for about so many steps."""
        if target > 24 and room > 8 and self.writer.chance(0.4):
            return self._nested(scope, target)
        kind = self.rng.choices(("range", "items", "while"), (5, 3, 4))[0]
        most = min(7, room - 2, max(2, target // 3))
        if kind == "items" and target < 60:
            return self._over_items(scope, most)
        return (self._while if kind == "while" else self._range)(scope, target, most)

    def _nested(self, scope: Scope, target: int) -> list[str]:
        """A loop in a loop."""
        writer, rng = self.writer, self.rng
        outer = writer.new_name(scope, "loop")
        times = rng.randint(2, 5)
        inside = scope.inner(fixed={*scope.fixed, outer}, counter=outer)
        inside.numbers.append(outer)
        before = self._lines(inside, 1) if writer.chance(0.4) else []
        inner = self._loop_of(inside, max(4, target // times - 2), 4)
        after = self._lines(inside, 1) if writer.chance(0.4) else []
        return [f"for {outer} in range({times}):", *_indented([*before, *inner, *after])]

    def _loop_of(self, scope: Scope, target: int, most: int) -> list[str]:
        kind = self.rng.choices(("range", "items", "while"), (6, 2, 2))[0]
        if kind == "items":
            return self._over_items(scope, most)
        return (self._while if kind == "while" else self._range)(scope, target, most)

    def _range(self, scope: Scope, target: int, most: int) -> list[str]:
        writer, rng = self.writer, self.rng
        name = writer.new_name(scope, "loop")
        inside = scope.inner(fixed={*scope.fixed, name}, counter=name)
        inside.numbers.append(name)
        body = self._body(inside, most)
        times = max(1, min(round(target / (1 + STEPS_OF_A_BODY * len(body) * 0.8)), 40))
        start, stride = rng.choice((0, 0, 0, 1, 1, rng.randint(2, 9))), rng.choice((1, 1, 1, 1, 2, 3, -1))
        if stride < 0:
            over = f"{start + times}, {start}, -1"
        elif stride > 1:
            over = f"{start}, {start + times * stride}, {stride}"
        else:
            over = f"{start}, {start + times}" if start else f"{times}"
        if scope.lists and writer.chance(0.2):
            over = f"len({rng.choice(scope.lists)})"
        return [f"for {name} in range({over}):", *_indented(body)]

    def _over_items(self, scope: Scope, most: int) -> list[str]:
        writer, rng = self.writer, self.rng
        is_string = bool(scope.strings) and writer.chance(0.3)
        among = scope.strings if is_string else scope.lists
        over = rng.choice(among) if among and writer.chance(0.85) else ""
        name = writer.new_name(scope, "loop")
        inside = scope.inner(fixed={*scope.fixed, name, *([over] if over else [])})
        (inside.strings if is_string and over else inside.numbers).append(name)
        shown = over or writer.list_literal()
        return [f"for {name} in {shown}:", *_indented(self._body(inside, most))]

    def _while(self, scope: Scope, target: int, most: int) -> list[str]:
        """A loop that comes to an end: its counter goes one way."""
        writer, rng = self.writer, self.rng
        known = [name for name in scope.free(scope.numbers) if name in self.machine.globals]
        if not known:
            return self._range(scope, target, most)
        lists = [name for name in scope.free(scope.lists) if name in self.machine.globals]
        if lists and writer.chance(0.25):
            return self._until_short(scope, rng.choice(lists), most)
        name = rng.choice(known)
        slot = self.machine.globals.get(name)
        value = slot.value if slot is not None and isinstance(slot.value, int) else 0
        inside = scope.inner(fixed={*scope.fixed, name}, counter=name)
        body = self._body(inside, most, ("break",))  # with continue its counter would stand still
        times = max(1, round(target / (2 + STEPS_OF_A_BODY * len(body) * 0.8)))
        by = rng.randint(1, 5)
        if value > 20 and writer.chance(0.3):
            test, change = (
                f"{name} > {rng.randint(0, 5)}",
                rng.choice((f"{name} //= {rng.randint(2, 4)}", f"{name} = {name} // 2")),
            )
        elif value > times and writer.chance(0.5):
            test, change = (
                f"{name} > {max(0, value - by * times)}",
                rng.choice((f"{name} -= {by}", f"{name} = {name} - {by}")),
            )
        else:
            test, change = f"{name} < {value + by * times}", rng.choice((f"{name} += {by}", f"{name} = {name} + {by}"))
        return [f"while {test}:", *_indented([*body, change])]

    def _until_short(self, scope: Scope, name: str, most: int) -> list[str]:
        """A loop that takes elements off a list."""
        writer, rng = self.writer, self.rng
        takes = rng.choice((f"{name}.pop()", f"{name} = {name}[1:]"))
        inside = scope.inner(fixed={*scope.fixed, name})
        if writer.chance(0.5):
            taken = writer.new_name(scope, "number")
            takes = f"{taken} = {name}.pop()"
            inside.numbers.append(taken)
        body = self._body(inside, most, ("break",))
        return [f"while len({name}) > {rng.choice((0, 0, 1, 2))}:", *_indented([takes, *body])]

    # ---- functions

    def _function(self) -> list[str]:
        """A function of one or two numbers, or of a list."""
        writer, rng, taken = self.writer, self.rng, set(self.scope.taken)
        name = rng.choice([one for one in FUNCTIONS if one not in taken])
        self.scope.taken.add(name)
        own = Scope(taken={name, *taken})
        parameters = [writer.new_name(own, "number") for _ in range(rng.randint(1, 2))]
        own.numbers += parameters
        body: list[str] = []
        if writer.chance(0.5):
            value = writer.expression(own)
            body += [f"if {writer.condition(own)}:", f"    return {value}"]
        elif writer.chance(0.5):
            body += self._lines(own, 2)
        elif writer.chance(0.5):
            body += self._range(own, rng.randint(6, 14), 2)
        body.append(f"return {writer.expression(own)}")
        if writer.chance(0.5):  # else its names are used outside of it, too
            self.scope.taken |= own.taken
        return [f"def {name}({', '.join(parameters)}):", *_indented(body)]

    def _call(self, scope: Scope) -> str:
        name = self.rng.choice(list(self.functions))
        arguments = ", ".join(self.writer.number(scope) for _ in self.functions[name].parameters)
        targets = scope.free(scope.numbers)
        if self.writer.chance(0.1):
            return f"print({name}({arguments}))"
        if targets and self.writer.chance(0.6):
            target = self.rng.choice(targets)
        else:
            target = self.writer.new_name(scope, "number")
            scope.numbers.append(target)
        return f"{target} = {name}({arguments})"
