"""Stand-ins and oracles of the arithmetic tests, independent of the code under test."""

import itertools
import re
from fractions import Fraction

from selfspan_core.spans.protocol import Markers


class CharacterTokenizer:
    """One id a character, newline included; the shape of a tokenizer that tasks need."""

    def __init__(self) -> None:
        self.markers = Markers(1, 2, 4, 5, 6, 7, tuple(range(8, 264)))

    def encode(self, text: str) -> list[int]:
        return [264 + ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token - 264) for token in ids if token >= 264)


class MergingTokenizer(CharacterTokenizer):
    """Merges pairs of characters, as tokenizers of other models do."""

    def encode(self, text: str) -> list[int]:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        return [1000 + ord(p) if len(p) == 1 else 10_000 + ord(p[0]) * 256 + ord(p[1]) for p in pairs]


def value(text: str) -> Fraction:
    """Exact value of an arithmetic text, by precedence climbing; raises ValueError on any other text."""
    tokens = re.findall(r"\d+|[-+*/()]", text)
    if "".join(tokens) != text or not tokens:
        raise ValueError(f"not arithmetic: {text!r}")
    result, rest = _sum(tokens)
    if rest:
        raise ValueError(f"left over: {rest} of {text!r}")
    return result


def _sum(tokens):
    total, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        op, (term, rest) = tokens[0], _product(tokens[1:])
        total, tokens = (total + term if op == "+" else total - term), rest
    return total, tokens


def _product(tokens):
    total, tokens = _atom(tokens)
    while tokens and tokens[0] in "*/":
        op, (factor, rest) = tokens[0], _atom(tokens[1:])
        total, tokens = (total * factor if op == "*" else total / factor), rest
    return total, tokens


def _atom(tokens):
    if not tokens:
        raise ValueError("a number is missing")
    if tokens[0] == "-":
        inner, rest = _atom(tokens[1:])
        return -inner, rest
    if tokens[0] == "(":
        inner, rest = _sum(tokens[1:])
        if not rest or rest[0] != ")":
            raise ValueError("not closed")
        return inner, rest[1:]
    if not tokens[0].isdigit():
        raise ValueError(f"not a number: {tokens[0]}")
    return Fraction(int(tokens[0])), tokens[1:]


_LONG_DIVISION = re.compile(r"\d+:\d+-\d+=\d+(;\d+:\d+-\d+=\d+)*")
_RUNNING_SUMS = re.compile(r"\d+\+\d+(;\d+\+\d+)+")


def check_body(body: str) -> Fraction:
    """The value of a worked body (`work` and `result` joined), every part of which must say the same.

    Long divisions and running sums are checked clause by clause and replaced by the value that they come to; what
    is left is a chain of plain arithmetic texts, all of one value.
    """
    divisor = re.fullmatch(r"\(?-?\d+/\(?-?(\d+)\)?", body.split("=")[0])
    chain = _LONG_DIVISION.sub(lambda match: str(_long_division(match[0], int(divisor[1]))), body)
    chain = _RUNNING_SUMS.sub(lambda match: str(_running_sums(match[0])), chain)
    values = [value(part) for part in chain.split("=")]
    assert len(values) >= 2, f"nothing is worked out in {body!r}"
    assert len(set(values)) == 1, f"{body!r} comes to {values}"
    return values[0]


def _running_sums(text: str) -> int:
    clauses = [tuple(map(int, clause.split("+"))) for clause in text.split(";")]
    for before, after in itertools.pairwise(clauses):
        assert sum(before) == after[0], text
    return sum(clauses[-1])


def _long_division(text: str, divisor: int) -> int:
    quotient, rest = 0, None
    for clause in text.split(";"):
        part, before, product, after = map(int, re.split("[:=-]", clause))
        assert rest is None or rest == before, text
        assert part * divisor == product and before - product == after >= 0, text
        assert after < divisor * 10 ** (len(str(part)) - 1), f"a larger part fits in {text}"
        quotient, rest = quotient + part, after
    assert rest == 0, text
    return quotient
