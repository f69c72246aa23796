"""The arithmetic task's worked steps: every part of a body says the same, and steps reduce the expression."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.tasks.arithmetic.steps import work_out
from selfspan_core.tasks.arithmetic.tree import MAX_VALUE
from tests.support.arithmetic_problems import TASK, problems
from tests.support.arithmetic_tools import check_body, value
from tests.support.slow import examples

# ------------------------------------------------------------------------------------------------------ worked steps


@pytest.mark.parametrize(
    ("left", "op", "right", "body"),
    [
        (12, "+", 34, "12+34=|46"),
        (63, "-", 5, "63-5=|58"),
        (-63, "-", -5, "-63-(-5)=-(63-5)=|-58"),
        (5, "-", 63, "5-63=-(63-5)=|-58"),
        (-5, "+", 63, "-5+63=63-5=|58"),
        (-63, "-", 5, "-63-5=-(63+5)=|-68"),
        (63, "-", -5, "63-(-5)=63+5=|68"),
        (-5, "+", 5, "-5+5=5-5=|0"),
        (0, "-", 5, "0-5=-(5-0)=|-5"),
        (79, "*", 6, "79*6=|474"),
        (40, "*", 79, "40*79=|3160"),
        (79, "*", 40, "79*40=|3160"),
        (100, "*", 316, "100*316=|31600"),
        (1, "*", -316, "1*(-316)=-(1*316)=|-316"),
        (79, "*", 36, "79*36=2370+474=|2844"),
        (-79, "*", 36, "-79*36=-(79*36)=-(2370+474)=|-2844"),
        (-79, "*", -36, "-79*(-36)=79*36=2370+474=|2844"),
        (-5, "*", 0, "-5*0=|0"),
        (0, "*", -36, "0*(-36)=|0"),
        (316, "*", 45, "316*45=12000+400;12400+240;12640+1500;14140+50;14190+30=|14220"),
        (-316, "*", 7, "-316*7=-(316*7)=-(2100+70;2170+42)=|-2212"),
        (84, "/", 12, "84/12=|7"),
        (84, "/", -12, "84/(-12)=-(84/12)=|-7"),
        (0, "/", -7, "0/(-7)=|0"),
        (4200, "/", 10, "4200/10=|420"),
        (2844, "/", 36, "2844/36=70:2844-2520=324;9:324-324=0=|79"),
        (-2844, "/", 36, "-2844/36=-(2844/36)=-(70:2844-2520=324;9:324-324=0)=|-79"),
        (2020, "/", 20, "2020/20=100:2020-2000=20;1:20-20=0=|101"),
    ],
)
def test_worked_bodies(left, op, right, body):
    """Catches a change of the format that trained adapters have learned."""
    work, result = work_out(left, op, right)
    assert f"{work}|{result}" == body


VALUES = st.one_of(st.integers(-99, 99), st.integers(-MAX_VALUE, MAX_VALUE))


@given(VALUES, st.sampled_from("+-*/"), VALUES)
@settings(max_examples=examples(600, 2000))
def test_every_part_of_a_body_says_the_same(left, op, right):
    """Catches a wrong partial product, running sum, sign or long-division clause."""
    if op == "*" and abs(left * right) > MAX_VALUE:
        right = right % max(1, MAX_VALUE // abs(left))
    if op == "/":
        right = right or 7
        left = left // right * right
    work, result = work_out(left, op, right)
    assert work.endswith("=")
    assert check_body(f"{work}{result}") == result
    assert value(work.split("=")[0]) == result


@given(problems())
@settings(max_examples=300, deadline=None)
def test_steps_reduce_the_expression(problem):
    """Catches a step that reads a name nobody has, reads one twice, or a last step that is not the answer."""
    results = [(int(text), name) for text, name in problem.display if name is not None]
    known = {name: number for number, name in results}
    assert list(known) == list(range(problem.num_operands))
    unread = set(known)
    for step in problem.reductions:
        assert step.name == len(known)
        assert set(step.reads) <= unread and len(set(step.reads)) == len(step.reads)
        operation = step.work.split("=")[0]
        read = [known[name] for name in step.reads]
        if len(read) == 2:
            assert operation.startswith(str(read[0])) and operation.strip("()").endswith(str(read[1]))
        else:
            assert operation == f"-({read[0]})"
        assert check_body(step.work + step.result) == int(step.result)
        unread = unread - set(step.reads) | {step.name}
        known[step.name] = int(step.result)
    assert unread == {problem.reductions[-1].name}
    assert problem.reductions[-1].result == problem.expected
    assert value(problem.text) == int(problem.expected)
    assert all(abs(number) <= MAX_VALUE for number in known.values())


@given(problems(20))
@settings(max_examples=200, deadline=None)
def test_generated_text_parses_to_the_same_problem(problem):
    """Catches training on a canonical form that serving does not produce."""
    assert TASK.parse(problem.text) == problem


def test_steps_are_in_post_order():
    """Catches a change of the reduction order: left operand, right operand, operation."""
    steps = TASK.parse("1+2*(3-4)-(5+6)").reductions
    assert [step.work.split("=")[0] for step in steps] == ["3-4", "2*(-1)", "1+(-2)", "5+6", "-1-11"]
    assert [step.reads for step in steps] == [(2, 3), (1, 6), (0, 7), (4, 5), (8, 9)]
    assert [step.name for step in steps] == [6, 7, 8, 9, 10]
