"""Worked steps: an expression is reduced one operation at a time, and each reduction is one step.

Order: post-order (left operand, right operand, operation), so each step is the leftmost operation whose operands are
both known. Names are numbers: the literals from left to right, then one per step. A step reads the names of its
operands and nothing else, so its body must follow from their values alone. Each name is read exactly once; only the
last step's name is read by none.

A body is `work` and `result`, cut behind the last `=`; the result alone can be cited. The bar below is that cut, where
`<|res|>` stands. All bodies open with the operation itself, its second operand in parentheses when negative.

Sums are brought to one addition or subtraction of magnitudes, larger first:

    12+34=|46     63-5=|58       both known to be non-negative, first one not smaller: nothing to rewrite
    5-63=-(63-5)=|-58     -5+63=63-5=|58     -63-5=-(63+5)=|-68     63-(-5)=63+5=|68     -5+5=5-5=|0

Negation:

    -(2844)=|-2844     -(-7)=|7     -(0)=|0

Products: signs first, then partial products, then their sum. A zero factor gives 0 at once. The *multiplier* is the
factor with fewer digits; on a tie the one with fewer nonzero digits; on a tie the second. It is cut into digits, the
other factor (the *multiplicand*) too unless it has one or two digits. Zero digits are left out. The partials run over
the multiplier's digits, highest place first, and for each of them over the multiplicand's, highest place first. One
partial alone, or a factor that is a power of ten (1 included), needs no working:

    79*6=|474     40*79=|3160     100*316=|31600
    79*36=2370+474=|2844
    -79*36=-(79*36)=-(2370+474)=|-2844     -79*(-36)=79*36=2370+474=|2844     -5*0=|0

Three or more partials are added up one at a time, `running sum + next partial`, clauses separated by `;`:

    316*45=12000+400;12400+240;12640+1500;14140+50;14190+30=|14220

Divisions: signs first, then long division, one clause for each nonzero digit of the quotient, highest place first:
`part of the quotient : rest - part * divisor = new rest`. A dividend of 0, a quotient of one digit and a divisor that
is a power of ten need no working:

    84/12=|7     0/(-7)=|0     4200/10=|420
    2844/36=70:2844-2520=324;9:324-324=0=|79
    -2844/36=-(2844/36)=-(70:2844-2520=324;9:324-324=0)=|-79
"""

from dataclasses import dataclass

from selfspan_core.tasks.arithmetic.tree import Literal, Negation, Node, operation_text

POWERS_OF_TEN = frozenset(10**k for k in range(6))


@dataclass(frozen=True, slots=True)
class Reduction:
    """One step: `reads` and `name` are indices of names, `work` ends with `=`, `result` is the value as text."""

    reads: tuple[int, ...]
    name: int
    work: str
    result: str


def reductions(tree: Node, num_literals: int) -> tuple[Reduction, ...]:
    """The worked steps of a valid expression with `num_literals` literals, in order; the last result is its value."""
    steps: list[Reduction] = []
    next_literal = 0

    def reduce(node: Node) -> tuple[int, int]:
        """Work a node out; its value and the index of its name."""
        nonlocal next_literal
        if isinstance(node, Literal):
            next_literal += 1
            return node.value, next_literal - 1
        if isinstance(node, Negation):
            operand, operand_name = reduce(node.operand)
            reads: tuple[int, ...] = (operand_name,)
            work, value = f"-({operand})=", -operand
        else:
            left, left_name = reduce(node.left)
            right, right_name = reduce(node.right)
            reads = (left_name, right_name)
            work, value = work_out(left, node.op, right)
        name = num_literals + len(steps)
        steps.append(Reduction(reads, name, work, str(value)))
        return value, name

    reduce(tree)
    return tuple(steps)


def work_out(left: int, op: str, right: int) -> tuple[str, int]:
    """The work (with its final `=`) and the value of one operation; a division must come out whole."""
    if op in "+-":
        return _sum(left, op, right)
    return _product(left, right) if op == "*" else _quotient(left, right)


def _sum(left: int, op: str, right: int) -> tuple[str, int]:
    text = operation_text(left, op, right)
    value = left + right if op == "+" else left - right
    if left >= 0 and right >= 0 and (op == "+" or value >= 0):
        return f"{text}=", value
    addend = right if op == "+" else -right
    larger, smaller = max(abs(left), abs(addend)), min(abs(left), abs(addend))
    if left >= 0 and addend >= 0:
        magnitudes = f"{left}+{addend}"
    elif left < 0 and addend < 0:
        magnitudes = f"{-left}+{-addend}"
    else:
        magnitudes = f"{larger}-{smaller}"
    return (f"{text}=-({magnitudes})=" if value < 0 else f"{text}={magnitudes}="), value


def _product(left: int, right: int) -> tuple[str, int]:
    if left == 0 or right == 0:
        return f"{operation_text(left, '*', right)}=", 0
    return _signed(left, "*", right, _partial_sums(abs(left), abs(right))), left * right


def _quotient(left: int, right: int) -> tuple[str, int]:
    if left == 0:
        return f"{operation_text(left, '/', right)}=", 0
    magnitude = abs(left) // abs(right)
    value = magnitude if (left < 0) == (right < 0) else -magnitude
    return _signed(left, "/", right, _long_division(abs(left), abs(right))), value


def _signed(left: int, op: str, right: int, working: str) -> str:
    """The operation, then with its signs taken out where it has any, then the working of the magnitudes if any."""
    text = f"{operation_text(left, op, right)}="
    if left > 0 and right > 0:
        return f"{text}{working}=" if working else text
    magnitudes = f"{abs(left)}{op}{abs(right)}"
    if (left < 0) == (right < 0):
        return f"{text}{magnitudes}={working}=" if working else f"{text}{magnitudes}="
    return f"{text}-({magnitudes})=-({working})=" if working else f"{text}-({magnitudes})="


def _place_values(number: int) -> list[int]:
    """Nonzero digits with their places, highest first: 405 -> [400, 5]."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - 1 - i) for i, digit in enumerate(digits) if digit != "0"]


def _partial_sums(left: int, right: int) -> str:
    """Working of a product of two positive numbers: empty, `p+q`, or running sums."""
    if left in POWERS_OF_TEN or right in POWERS_OF_TEN:
        return ""
    left_parts, right_parts = _place_values(left), _place_values(right)
    left_is_multiplier = (len(str(left)), len(left_parts)) < (len(str(right)), len(right_parts))
    parts, multiplicand, chunks = (
        (left_parts, right, right_parts) if left_is_multiplier else (right_parts, left, left_parts)
    )
    if multiplicand <= 99:
        chunks = [multiplicand]
    partials = [part * chunk for part in parts for chunk in chunks]
    if len(partials) == 1:
        return ""
    total = partials[0]
    clauses = []
    for partial in partials[1:]:
        clauses.append(f"{total}+{partial}")
        total += partial
    return ";".join(clauses)


def _long_division(dividend: int, divisor: int) -> str:
    """Working of a whole division of positive numbers: empty, or one clause for each nonzero quotient digit."""
    quotient = dividend // divisor
    if quotient <= 9 or divisor in POWERS_OF_TEN:
        return ""
    rest = dividend
    clauses = []
    for part in _place_values(quotient):
        clauses.append(f"{part}:{rest}-{part * divisor}={rest - part * divisor}")
        rest -= part * divisor
    return ";".join(clauses)
