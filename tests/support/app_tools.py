"""What the page's tests type, and what the page then has to show."""

from selfspan_core.tasks.registry import get_task
from tests.support.browser import SIGNS

EXPRESSION = "79*36+63-(45-12)*8+(-(7*8))+96/12*(31+14)-88+5*(6-2*9)"
SHORT = "79*36+63"
BAD_INPUTS = {
    "empty": "",
    "blank": "   ",
    "letters": "two plus two",
    "power": "2**9",
    "division by zero": "1/0",
    "not whole": "7/2",
    "unbalanced": "(1+2",
    "nested": "(" * 500 + "1" + ")" * 500 + "+1",
    "too long": "1+" * 50_000,
    "number out of range": "1+100",
    "value out of range": "99*99*99",
    "code": "__import__('os')",
    "marker": "<|ref|>",
}


def count(text: str) -> int:
    return get_task("arithmetic").parse(text).num_operands


def right_lines(text: str) -> list[str]:
    return [(step.work + step.result).translate(SIGNS) for step in get_task("arithmetic").parse(text).reductions]
