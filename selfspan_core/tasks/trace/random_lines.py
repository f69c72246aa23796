"""Random lines and blocks of programs: text that is likely to run within the limits, written for a known set of names.

Nothing is run here: `random_programs` does that, and drops what goes beyond a limit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from selfspan_core.tasks.trace.names import FLAGS, LETTERS, LISTS, NUMBERS, STRINGS, WORDS

COMPARISONS = ("<", ">", "<=", ">=", "==", "!=")


@dataclass
class Scope:
    """Names that a line may use.

    Attributes:
        numbers, strings, lists, flags: variables by kind; lists are of numbers and not empty, as far as is known.
        empties: lists that are.
        fixed: those that no line writes: loops' variables, and what is looped over.
        counter: the innermost loop's variable, of numbers, if there is one.
        taken: names that are in use anywhere.
    """

    numbers: list[str] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    empties: list[str] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    counter: str = ""
    taken: set[str] = field(default_factory=set)

    def inner(self, **changes: object) -> "Scope":
        """The scope of a block inside, with names of its own added or replaced."""
        kinds = ([*self.numbers], [*self.strings], [*self.lists], [*self.flags], [*self.empties])
        own = Scope(*kinds, {*self.fixed}, self.counter, self.taken)
        for name, value in changes.items():
            setattr(own, name, value)
        return own

    def free(self, names: Sequence[str]) -> list[str]:
        """Those that may be written."""
        return [name for name in names if name not in self.fixed]


class LineWriter:
    """Random lines.

    Args:
        rng: source of all choices.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._letter_share = rng.choice((0.2, 0.5, 0.8))

    def chance(self, share: float) -> bool:
        """Whether something of that share happens now."""
        return self.rng.random() < share

    def new_name(self, scope: Scope, kind: str) -> str:
        """A name that nothing has, for a value of a kind."""
        pools = {"number": NUMBERS, "list": LISTS, "string": STRINGS, "flag": FLAGS}
        for _ in range(20):
            short = kind in ("number", "loop") and self.chance(self._letter_share if kind == "number" else 0.8)
            name = self.rng.choice(LETTERS if short else pools.get(kind, NUMBERS))
            if name not in scope.taken:
                break
        else:
            name = next(
                f"{first}{number}"
                for number in range(2, 9)
                for first in LETTERS
                if f"{first}{number}" not in scope.taken
            )
        scope.taken.add(name)
        return name

    # ---- expressions

    def literal(self) -> str:
        """A number, small ones more often."""
        return str(self.rng.randint(0, 9) if self.chance(0.6) else self.rng.randint(10, 99))

    def number(self, scope: Scope) -> str:
        """A variable with a number, or a number."""
        if scope.numbers and self.chance(0.85):
            return scope.counter if scope.counter and self.chance(0.3) else self.rng.choice(scope.numbers)
        return self.literal()

    def list_literal(self) -> str:
        """A list of numbers."""
        if self.chance(0.12):
            return "[]"
        large = self.chance(0.3)
        return f"[{', '.join(str(self.rng.randint(0, 50 if large else 9)) for _ in range(self.rng.randint(2, 6)))}]"

    def string_literal(self) -> str:
        """A short string."""
        return "''" if self.chance(0.1) else f"'{self.rng.choice(WORDS)}'"

    def index(self, scope: Scope, name: str) -> str:
        """An index into a list or a string, within it as far as is known."""
        if scope.counter and self.chance(0.6):
            near = f"{scope.counter} {self.rng.choice('+-')} 1" if self.chance(0.3) else scope.counter
            return f"{scope.counter} % len({name})" if self.chance(0.3) else near
        return self.rng.choice(("0", "1", "-1", "0"))

    def expression(self, scope: Scope) -> str:
        """A number worked out of others."""
        rng = self.rng
        form = rng.choices(
            ("sum", "two", "product", "divided", "of list", "built-in", "grouped"), (8, 3, 3, 3, 3, 2, 1)
        )
        a, b = self.number(scope), self.number(scope)
        small, sign = rng.randint(2, 9), rng.choice("+-")
        if form[0] == "of list":
            return self._looked_up(scope)
        texts = {
            "sum": f"{a} {sign} {b if self.chance(0.6) else self.literal()}",
            "two": f"{a} {sign} {b} {rng.choice('+-')} {self.literal()}",
            "product": rng.choice((*[f"{a} * {small}"] * 3, f"{a} {sign} {b} * {rng.randint(2, 5)}", f"{a} * {b}")),
            "divided": f"{a} {rng.choice(('//', '%'))} {small if self.chance(0.7) else rng.randint(10, 20)}",
            "built-in": rng.choice((f"max({a}, {b})", f"min({a}, {b})", f"abs({a} - {b})")),
            "grouped": f"({a} + {b}) * {small}"
            if self.chance(0.5)
            else f"({a} * {small} + {b}) % {rng.randint(5, 50)}",
        }
        return texts[form[0]]

    def _looked_up(self, scope: Scope) -> str:
        """A number out of a list or a length."""
        among = [*scope.lists, *scope.strings]
        if not among:
            return f"{self.number(scope)} + {self.rng.randint(1, 9)}"
        name = self.rng.choice(among)
        if name in scope.strings or self.chance(0.25):
            return f"len({name})" if self.chance(0.6) else f"len({name}) + {self.number(scope)}"
        chosen = self.rng.choice((*[f"{name}[{self.index(scope, name)}]"] * 4, f"min({name})", f"max({name})"))
        return chosen if self.chance(0.5) else f"{chosen} {self.rng.choice('+-')} {self.number(scope)}"

    def condition(self, scope: Scope) -> str:
        """Something that holds or does not."""
        rng = self.rng
        if self.chance(0.1):
            word, parts = rng.choice(("and", "or")), (self._comparison(scope), self._comparison(scope))
            return f" {word} ".join(parts)
        if scope.flags and self.chance(0.15):
            name = rng.choice(scope.flags)
            return name if self.chance(0.6) else f"not {name}"
        return self._comparison(scope)

    def _comparison(self, scope: Scope) -> str:
        rng, a = self.rng, self.number(scope)
        if scope.strings and self.chance(0.12):
            name = rng.choice(scope.strings)
            letter = f"'{rng.choice('abcdeorstn')}'"
            forms = (
                *(f"{letter} in {name}", f"{name} == {self.string_literal()}", f"len({name}) > {rng.randint(1, 6)}"),
                *(f"{name} {rng.choice(('==', '!='))} {letter}", f"{name}[{self.index(scope, name)}] == {letter}"),
            )
            return rng.choice(forms)
        if scope.lists and self.chance(0.25):
            name = rng.choice(scope.lists)
            if self.chance(0.3):
                return f"{a} {rng.choice(('in', 'not in'))} {name}"
            other = f"{name}[{self.index(scope, name)}]" if self.chance(0.3) else a
            return f"{name}[{self.index(scope, name)}] {rng.choice(COMPARISONS)} {other}"
        if self.chance(0.3):
            divisor = rng.randint(2, 5)
            return f"{a} % {divisor} {rng.choice(('==', '==', '!='))} {rng.randint(0, divisor - 1)}"
        return f"{a} {rng.choice(COMPARISONS)} {self.number(scope) if self.chance(0.4) else self.literal()}"

    # ---- lines

    def new_variable(self, scope: Scope) -> str:
        """A line that gives a new name a value."""
        kind = self.rng.choices(("number", "list", "string", "flag"), (6, 3.5, 2, 0.5))[0]
        name = self.new_name(scope, kind)
        given = {
            "number": self.literal,
            "list": self.list_literal,
            "string": self.string_literal,
            "flag": lambda: self.rng.choice(("True", "False")),
        }[kind]()
        getattr(scope, f"{kind}s").append(name)
        if given in ("[]", "''"):
            scope.empties += [name] if given == "[]" else []
            scope.lists = [one for one in scope.lists if one != name]
        return f"{name} = {given}"

    def line(self, scope: Scope) -> str:
        """A line without a block that changes something."""
        numbers, strings, lists = (scope.free(names) for names in (scope.numbers, scope.strings, scope.lists))
        kinds = ["number"] * 6 if numbers else []
        kinds += ["string"] if strings else []
        kinds += ["list"] * 3 if lists else []
        kinds += ["fill"] * 3 if scope.free(scope.empties) else []
        kinds += ["several"] if len(numbers) > 1 else []
        kinds += ["new"] if not kinds or self.chance(0.2) else []
        kind = self.rng.choice(kinds)
        if kind == "number":
            return self._change_number(scope, self.rng.choice(numbers))
        if kind == "string":
            return self._change_string(scope, self.rng.choice(strings))
        if kind == "list":
            return self._change_list(scope, self.rng.choice(lists))
        if kind == "fill":
            value = self.number(scope) if self.chance(0.6) else self.expression(scope)
            return f"{self.rng.choice(scope.free(scope.empties))}.append({value})"
        if kind == "several":
            a, b = self.rng.sample(numbers, 2)
            return self.rng.choice(
                (f"{a}, {b} = {b}, {a}", f"{a}, {b} = {b}, {a} + {b}", f"{a}, {b} = {a} + 1, {b} - 1")
            )
        name = self.new_name(scope, "number")
        text = f"{name} = {self.expression(scope)}"
        scope.numbers.append(name)
        return text

    def _change_number(self, scope: Scope, name: str) -> str:
        if self.chance(0.4):
            sign = self.rng.choices(("+", "-", "*", "//", "%"), (8, 4, 1, 1, 1))[0]
            by = self.number(scope) if sign in "+-" else str(self.rng.randint(2, 9))
            by = "1" if sign in "+-" and self.chance(0.3) else by
            return f"{name} {sign}= {by}"
        return f"{name} = {self.expression(scope)}"

    def _change_string(self, scope: Scope, name: str) -> str:
        letter = f"'{self.rng.choice('abcxyz!-')}'"
        added = [letter, f"str({self.number(scope)})", *scope.strings]
        by = self.rng.choice(added)
        return self.rng.choice(
            (f"{name} += {by}", f"{name} = {name} + {by}", f"{name} = {by} + {name}", f"{name} = {name}[1:]")
        )

    def _change_list(self, scope: Scope, name: str) -> str:
        at, value = self.index(scope, name), self.number(scope)
        forms = (
            f"{name}.append({value if self.chance(0.7) else self.expression(scope)})",
            f"{name}.append({value})",
            f"{name}[{at}] = {value if self.chance(0.5) else self.expression(scope)}",
            f"{name}[{at}] = {name}[{at}] + {self.rng.randint(1, 9)}",
            f"{name} = {name}[1:]",
            f"{name}.pop()",
            f"{name} = {name} + [{value}]",
        )
        return self.rng.choice(forms)

    def shown(self, scope: Scope) -> str:
        """A line that prints."""
        names = [*scope.numbers, *scope.strings, *scope.lists, *scope.flags, *scope.empties]
        first = self.rng.choice(names)
        if self.chance(0.2):
            return f"print({first}, {self.rng.choice(names)})"
        return f"print({first})" if self.chance(0.9) or not scope.numbers else f"print({self.expression(scope)})"
