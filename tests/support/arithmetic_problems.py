"""Random arithmetic problems and trees."""

import random

from hypothesis import strategies as st

from selfspan_core.tasks.arithmetic.task import Arithmetic, random_problem
from selfspan_core.tasks.arithmetic.tree import Literal, Negation, Operation
from tests.support.arithmetic_tools import CharacterTokenizer

TASK = Arithmetic()
TOKENIZER = CharacterTokenizer()


def problems(most=64):
    """Random valid problems of 2 to `most` operands."""
    return st.builds(
        lambda seed, n: random_problem(random.Random(seed), n), st.integers(0, 2**32), st.integers(2, most)
    )


def literals():
    return st.builds(Literal, st.integers(-99, 99))


def trees():
    """Any tree, valid in value or not."""
    return st.recursive(
        literals(),
        lambda inner: st.one_of(
            st.builds(Operation, st.sampled_from("+-*/"), inner, inner),
            inner.map(lambda node: node if isinstance(node, Literal) and node.value >= 0 else Negation(node)),
        ),
        max_leaves=20,
    )


def num_literals(tree):
    if isinstance(tree, Literal):
        return 1
    if isinstance(tree, Negation):
        return num_literals(tree.operand)
    return num_literals(tree.left) + num_literals(tree.right)
