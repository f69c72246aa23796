"""Parses a user's input into a tree: normalise, check with plain error messages, then walk Python's own syntax tree,
accepting listed nodes only. Python never evaluates the input.

The checks in front of `ast.parse` exist for their messages (and limit the length of the parser's input): each message
names the error and the allowed input, and quotes at most a few characters of the input.
"""

import ast
import re
import unicodedata
from collections.abc import Sequence

from selfspan_core.errors import InputError
from selfspan_core.tasks.arithmetic.tree import (
    MAX_LITERAL,
    MAX_NEGATIONS,
    MAX_OPERANDS,
    Literal,
    Negation,
    Node,
    Operation,
)

MAX_TYPED_CHARACTERS = 20_000
MAX_CHARACTERS = 2_000
MAX_NESTING = 140
MAX_SIGNS = MAX_OPERANDS + MAX_NEGATIONS

_ALLOWED = "whole numbers from 0 to 99, + - * / and parentheses"
_OPERATOR_VARIANTS = {
    **dict.fromkeys("×✕✖⨯·∙⋅•∗", "*"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("−–—‒‐‑➖", "-"),
    "➕": "+",
    "➗": "/",
}
# Compatibility forms that only look different from the plain character; superscripts and fractions are excluded.
_LOOKS_ONLY = ("<wide>", "<narrow>", "<small>", "<font>")
_TOKEN = re.compile(r"\s+|\d+|[-+*/()=]|[^-+*/()=\d\s]+")
_AST_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def parse_expression(text: str) -> Node:
    """The tree of an expression; values are not looked at.

    Raises:
        InputError: anything but an expression of 2 to MAX_OPERANDS numbers from 0 to MAX_LITERAL.
    """
    if len(text) > MAX_TYPED_CHARACTERS:
        raise InputError(f"The input is {len(text):,} characters long; the limit is {MAX_TYPED_CHARACTERS:,}.")
    tokens = _tokens(normalise(text))
    if tokens and tokens[-1] == "=":
        tokens.pop()
    if not tokens:
        raise InputError("The input is empty. Type an expression such as 79*36+63.")
    num_characters = sum(map(len, tokens))
    if num_characters > MAX_CHARACTERS:
        raise InputError(
            f"The expression is {num_characters:,} characters long without spaces; the limit is {MAX_CHARACTERS:,}."
        )
    _check_symbols(tokens)
    _check_parentheses(tokens)
    _check_neighbours(tokens)
    _check_numbers(tokens)
    try:
        syntax = ast.parse("".join(tokens), mode="eval")
        tree = _walk(syntax.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"This is not an expression of {_ALLOWED}.") from error
    _check_negations(tree)
    return tree


def normalise(text: str) -> str:
    """Other spellings of digits, operators and parentheses become plain ones; invisible characters are dropped."""
    return "".join(map(_normalise_character, text))


def _normalise_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _OPERATOR_VARIANTS:
        return _OPERATOR_VARIANTS[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return ""
    if unicodedata.decomposition(character).startswith(_LOOKS_ONLY):
        plain = unicodedata.normalize("NFKC", character)
        return _OPERATOR_VARIANTS.get(plain, plain)
    return character


def _tokens(text: str) -> list[str]:
    return [token for token in _TOKEN.findall(text) if not token.isspace()]


def _quote(text: str, limit: int = 20) -> str:
    """A short piece of the input, safe to print anywhere: nothing invisible, no half surrogate pairs."""
    shown = text if len(text) <= limit else text[:limit] + "…"
    return f'"{"".join(c if c.isprintable() else "�" for c in shown)}"'


def _check_symbols(tokens: list[str]) -> None:
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        if token == "=":
            raise InputError('"=" may stand at the end only.')
        if token + following in ("**", "//"):
            meaning = "A power" if token == "*" else "Division with a remainder"
            raise InputError(f'{meaning} ("{token + following}") is not supported; use {_ALLOWED}.')
        if token.isascii() and (token.isdigit() or token in "+-*/()"):
            continue
        raise InputError(_symbol_message(token))


def _symbol_message(token: str) -> str:
    if token in (".", ","):
        return f"{_quote(token)} cannot be used: only {_ALLOWED}, no decimals and no separators."
    if token == "^" or set(token) <= set("⁰¹²³⁴⁵⁶⁷⁸⁹"):
        return f"A power ({_quote(token)}) is not supported; use {_ALLOWED}."
    if token == "%":
        return f"Percent and remainders ({_quote(token)}) are not supported; use {_ALLOWED}."
    if token in ("x", "X"):
        return f'The letter {_quote(token)} cannot be used; write "*" for a multiplication.'
    return f"{_quote(token)} cannot be used: only {_ALLOWED}."


def _check_parentheses(tokens: list[str]) -> None:
    depth = deepest = 0
    for i, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        deepest = max(deepest, depth)
        if depth < 0:
            before = "".join(tokens[max(0, i - 5) : i])
            where = f"after {_quote(before)}" if before else "at the beginning"
            raise InputError(f'The parentheses do not match: a ")" too many {where}.')
    if depth > 0:
        raise InputError(f'The parentheses do not match: {depth} "(" {"is" if depth == 1 else "are"} never closed.')
    if deepest > MAX_NESTING:
        raise InputError(f"The parentheses are nested {deepest} deep; the limit is {MAX_NESTING}.")


def _is_operand(token: str) -> bool:
    return token.isdigit() or token == ")"


def _number(tokens: Sequence[str], at: int) -> str:
    """The number at a place, as it was meant: with the minus that belongs to it."""
    is_negative = at > 0 and tokens[at - 1] == "-" and not (at > 1 and _is_operand(tokens[at - 2]))
    return f"-{tokens[at]}" if is_negative and tokens[at].isdigit() else tokens[at]


def _check_neighbours(tokens: list[str]) -> None:
    """Check that operands and operators alternate, with plainer messages than those of `ast.parse`."""
    num_signs = 0
    previous = "("
    for at, token in enumerate([*tokens, ""]):
        after_operand = _is_operand(previous)
        starts_operand = token.isdigit() or token == "("
        if after_operand and starts_operand:
            raise InputError(f"An operator is missing between {_quote(_number(tokens, at - 1))} and {_quote(token)}.")
        if previous == "(" and token in (")", "") and token != previous:
            raise InputError('There is nothing between "(" and ")".')
        if not after_operand and token in ("*", "/", ")", ""):
            where = f"after {_quote(previous)}" if previous != "(" or token == "" else f"before {_quote(token)}"
            raise InputError(f"A number is missing {where}.")
        num_signs += not after_operand and token in ("+", "-")
        previous = token
    if num_signs > MAX_SIGNS:
        raise InputError(
            f"The expression has {num_signs:,} plus or minus signs in front of numbers, parentheses or other signs; "
            f"the limit is {MAX_SIGNS}."
        )


def _check_numbers(tokens: list[str]) -> None:
    numbers = [_number(tokens, at) for at, token in enumerate(tokens) if token.isdigit()]
    for number in numbers:
        digits, sign = number.lstrip("-"), number[: number.startswith("-")]
        if len(digits) > 1 and digits[0] == "0":
            plain = f"{sign}{digits.lstrip('0') or '0'}"
            raise InputError(f"The number {_quote(number)} starts with a zero; write {_quote(plain)}.")
        if len(digits) > 2:
            least = f"-{MAX_LITERAL}" if sign else "0"
            raise InputError(f"The number {_quote(number)} is out of range; numbers go from {least} to {MAX_LITERAL}.")
    if len(numbers) > MAX_OPERANDS:
        raise InputError(f"The expression has {len(numbers)} numbers; the limit is {MAX_OPERANDS}.")
    if len(numbers) == 1:
        raise InputError(f"{_quote(numbers[0])} is a single number; type an expression with at least two.")


def _walk(node: ast.expr) -> Node:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Literal(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _AST_OPERATORS:
        return Operation(_AST_OPERATORS[type(node.op)], _walk(node.left), _walk(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return _walk(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _walk(node.operand)
        if isinstance(operand, Literal) and operand.value >= 0:
            return Literal(-operand.value)
        return Negation(operand)
    raise InputError(f"This is not an expression of {_ALLOWED}.")


def _check_negations(tree: Node) -> None:
    num_negations, open_nodes = 0, [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, Negation):
            num_negations += 1
            open_nodes.append(node.operand)
        elif isinstance(node, Operation):
            open_nodes += (node.left, node.right)
    if num_negations > MAX_NEGATIONS:
        raise InputError(
            f"The expression has {num_negations} minus signs in front of parentheses or of another minus; "
            f"the limit is {MAX_NEGATIONS}."
        )
