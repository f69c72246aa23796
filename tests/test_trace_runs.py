"""Runs of programs: against Python itself, step by step against what a body sees, and the programs written by hand."""

import ast
import contextlib
import io
import json
import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.errors import InputError
from selfspan_core.spans.tracker import MAX_READS, Phase, Tracker
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.trace.random_programs import OPENING_LINES, is_held_out
from selfspan_core.tasks.trace.task import PRINTED_TOGETHER, random_problem
from tests.support.arithmetic_tools import CharacterTokenizer
from tests.support.paths import ROOT
from tests.support.slow import examples
from training.data.generated import evaluation_set, problems
from training.evaluation.given import given_problems

TASK = get_task("trace")
TOKENIZER = CharacterTokenizer()
BY_HAND = ROOT / "training" / "inputs" / "trace.json"


def traced(most: int = 120):
    """Random problems of the generator."""
    return st.builds(
        lambda seed, size: random_problem(random.Random(seed), size), st.integers(0, 2**32), st.integers(3, most)
    )


def python_prints(text: str) -> list[str]:
    """What Python itself prints of a program that this project's own generator made."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(text, "generated", "exec"), {"__name__": "generated"})
    return shown.getvalue().splitlines()


@given(traced())
@settings(max_examples=examples(80, 800), deadline=None)
def test_the_machine_agrees_with_python(problem):
    """Would catch an operator, a scope, a loop or a jump that means something else than in Python."""
    assert PRINTED_TOGETHER.join(python_prints(problem.text)) == problem.expected


@given(traced())
@settings(max_examples=examples(60, 500), deadline=None)
def test_text_says_all_of_a_program(problem):
    """Would catch a generator whose own statements are not those of its text, or steps that a user's run has not."""
    again = TASK.parse(problem.text)
    assert (again.text, again.expected, again.display) == (problem.text, problem.expected, problem.display)
    assert again.reductions == problem.reductions


@given(st.integers(0, 2**32), st.sampled_from([3, 4, 7, 10, 40, 100, 200]))
@settings(max_examples=examples(30, 200), deadline=None)
def test_programs_run_for_as_many_steps_as_asked(seed, size):
    """Would catch a size that is only about right, by which figures would be of another length than they say."""
    problem = random_problem(random.Random(seed), size)
    assert problem.num_steps == size and len(problem.program.lines) <= 40


@given(traced(), st.integers(0, 1000))
@settings(max_examples=examples(60, 400), deadline=None)
def test_rendered_steps_are_well_formed(problem, offset):
    """Would catch a step that the tracker refuses, too many reads or intervals, and a bound that is too small."""
    rendered = TASK.render(problem, TOKENIZER, annotated=True, offset=offset, with_steps=True)
    tracker = Tracker(TOKENIZER.markers, rendered.prompt)
    states = [tracker.push(token) for token in rendered.ids[rendered.prompt.num_tokens :]]
    assert tracker.num_malformed == 0 and states[-1].phase is Phase.DONE
    assert max(map(len, rendered.visibility)) <= TASK.max_reads_intervals
    assert all(len(step.reads) <= MAX_READS for step in problem.reductions)
    for record, step in zip(tracker.steps, problem.reductions, strict=True):
        assert TOKENIZER.decode(rendered.ids[slice(*tracker.segments[record.name])]) == step.result


def values_in(text: str) -> dict[str, str]:
    """Variables with their values in a step's result."""
    return dict(re.findall(r"(\w+)=((?:'[^']*'|\[[^\]]*\]|[^,<>])*)", text))


@given(traced())
@settings(max_examples=examples(60, 400), deadline=None)
def test_a_body_follows_from_what_its_step_reads(problem):
    """Would catch a step whose variables' last values are not among what it names: a body could only guess them."""
    num_lines, results = len(problem.program.lines), {}
    for step in problem.reductions:
        line, *reads = step.reads
        text = problem.program.lines[line].text
        assert line < num_lines and not text.startswith(("def ", "else"))
        read: dict[str, str] = {}
        # A step that sets two variables is read for one of them: of the other, the newest value counts.
        for one in sorted(reads):
            assert one < step.name
            read |= values_in(results[one]) if one >= num_lines else {}
        results[step.name] = step.result
        plain = re.fullmatch(r"(\w+) = (\w+) ([-+]) (\w+)", text)
        if plain and step.work and "'" not in step.work and "[" not in step.work:
            sides = [read.get(name, name) for name in (plain[2], plain[4])]
            assert re.sub(r"[()]", "", step.work) == f"{sides[0]}{plain[3]}{sides[1]}="
            assert values_in(step.result)[plain[1]] == str(eval(f"{sides[0]}{plain[3]}({sides[1]})"))


NUMBERS = st.sampled_from(["0", "1", "7", "-3", "12", "a", "b", "len(xs)", "len(s)", "xs[1]", "xs[-1]", "abs(b)"])
STRINGS = st.sampled_from(["s", "'xyz'", "''", "s[0]", "s[-1]", "s[1:]", "s[:-1]", "s[a:9]", "str(b)", "s[b:a]"])
LISTS = st.sampled_from(["xs", "[]", "[a, 2]", "xs[1:]", "xs[:b]", "xs[-2:]", "[s, 'q']", "[True, a]"])


def joined(sides, signs):
    """Expressions of two sides."""
    return st.tuples(sides, st.sampled_from(signs), sides).map(lambda made: f"({made[0]} {made[1]} {made[2]})")


SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        joined(inner, ["+", "-", "*", "//", "%"]),
        inner.map(lambda one: f"(-{one})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda made: f"{made[0]}({made[1]}, {made[2]})"),
    ),
    max_leaves=3,
)
TESTS = st.one_of(
    joined(SUMS, ["<", "<=", ">", ">=", "==", "!="]),
    joined(STRINGS, ["<", "==", "!=", "in", "not in", ">="]),
    joined(LISTS, ["==", "!="]),
    st.tuples(SUMS, st.sampled_from(["in", "not in"]), LISTS).map(" ".join),
)
EXPRESSIONS = st.one_of(
    *(
        SUMS,
        TESTS,
        joined(STRINGS, ["+"]),
        joined(LISTS, ["+"]),
        joined(TESTS, ["and", "or"]),
        joined(SUMS, ["and", "or"]),
    ),
    *(TESTS.map(lambda one: f"not {one}"), st.tuples(STRINGS | LISTS, st.sampled_from(["*"]), NUMBERS).map(" ".join)),
)


@given(EXPRESSIONS, st.integers(-20, 20), st.integers(-5, 5))
@settings(max_examples=examples(300, 3000), deadline=None)
def test_expressions_are_worth_what_python_says(expression, a, b):
    """Would catch an operator, a slice or a precedence that differs from Python's, and a limit that breaks a value."""
    text = f"a = {a}\nb = {b}\ns = 'hello'\nxs = [4, 0, 9]\nx = {expression}\nprint(x)"
    try:
        problem = TASK.parse(text)
    except InputError as error:
        assert "not Python" not in str(error)
        return
    assert problem.expected == "\n".join(python_prints(text)) == "\n".join(python_prints(problem.text))


def test_every_kind_of_statement_is_met():
    """Would catch a generator from which a part of the subset has gone, so that no model would learn it."""
    texts = [problem.text for problem in islice(problems(TASK, seed=3), 300)]
    assert all(
        any(re.search(pattern, text) for text in texts)
        for pattern in (
            *(r"\bwhile ", r"\belif ", r"\belse:", r"\bbreak", r"\bcontinue", r"def \w+\(", r"\.append\(", r"\.pop\("),
            *(
                r"for \w+ in range\(",
                r"for \w+ in \[",
                r"for \w+ in [a-z]+:",
                r"range\(.*-1\)",
                r"\w\[.+\] = ",
                r"\[1:\]",
            ),
            *(
                r" and | or ",
                r"\bnot ",
                r" in ",
                r"len\(",
                r"str\(",
                r"min\(|max\(",
                r"abs\(",
                r"//",
                r"%",
                r"\w, \w+ = ",
            ),
            *(r"True|False", r"\n        \S", r"\n            \S", r" \+= '", r"print\(.*,"),
        )
    )
    nodes = {type(node) for text in texts for node in ast.walk(ast.parse(text))}
    assert {ast.FunctionDef, ast.While, ast.For, ast.If, ast.AugAssign, ast.Return} <= nodes


def test_evaluation_programs_are_never_in_training():
    """Would catch a split by which a program, or one that begins as it does, is both trained on and measured."""
    trained = {problem.text for problem in islice(problems(TASK, seed=0), 400)}
    assert not any(map(is_held_out, trained)) and len(trained) == 400
    held_out = evaluation_set(TASK, 10, 20, seed=0)
    assert all(is_held_out(problem.text) for problem in held_out) and len({p.text for p in held_out}) == 20
    opening = held_out[0].text.split("\n")[:OPENING_LINES]
    assert is_held_out("\n".join([*opening, "print(1)"]))


def test_programs_written_by_hand():
    """Would catch a machine that disagrees with what Python printed of them, and a change of their number."""
    given_again = given_problems(TASK, BY_HAND)
    written = json.loads(BY_HAND.read_text(encoding="utf-8"))
    assert len(given_again) == len({one["name"] for one in written}) == 40
    for problem, one in zip(given_again, written, strict=True):
        assert problem.expected == one["expected"] and 5 < problem.num_steps <= 200
        rendered = TASK.render(problem, TOKENIZER, annotated=True, with_steps=True)
        assert max(map(len, rendered.visibility)) <= TASK.max_reads_intervals


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "no inputs"),
        ("{}", "no inputs|no list"),
        ('[{"text": "print(1)"}]', "no list of objects"),
        ("x", "no list of objects"),
        ('[{"text": "print(1)", "expected": "2"}]', "the answer is '1', not '2'"),
        ('[{"text": "print(", "expected": "2"}]', "input 1 of .*: Line 1"),
    ],
)
def test_a_file_of_inputs_that_cannot_be_used(tmp_path, content, says):
    """Would catch an evaluation that measures against a wrong answer, or ends in a traceback."""
    file = tmp_path / "inputs.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        given_problems(TASK, file)
