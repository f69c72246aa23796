"""Random arithmetic: valid, reproducible, split from evaluation, covering what people type."""

import itertools
import random
import re
import subprocess
import sys

import pytest

from selfspan_core.tasks.arithmetic.random_trees import DIFFERENCES_MIX, Grower, Mix, random_tree
from selfspan_core.tasks.arithmetic.task import MAX_TOKENS, Arithmetic, Lengths, is_held_out, random_problem
from selfspan_core.tasks.arithmetic.tree import MAX_VALUE, Literal, Operation, canonical, evaluate
from tests.support.arithmetic_tools import CharacterTokenizer, value
from training.arithmetic_data import Statistics
from training.data import generated
from training.data.generated import evaluation_set, examples, problems

TOKENIZER = CharacterTokenizer()
TASK = Arithmetic()


@pytest.fixture(scope="module")
def sampled():
    return list(itertools.islice(problems(TASK, seed=5), 400))


def test_every_problem_is_valid(sampled):
    """Catches a number, value or length out of the limits, or an answer that is wrong."""
    for problem in sampled:
        assert 2 <= problem.num_operands <= 64
        assert value(problem.text) == int(problem.expected)
        assert all(abs(int(step.result)) <= MAX_VALUE for step in problem.reductions)
        assert problem.num_tokens <= MAX_TOKENS


@pytest.mark.parametrize("shape", ["flat", "groups", "binary", "chain"])
@pytest.mark.parametrize("operators", ["+-*/", "-", "*", "/", "*/"])
def test_nothing_stalls_or_crashes(shape, operators):
    """Catches a mix of shape and operators in which nothing fits, or whose values are wrong."""
    mix = Mix(((shape, 1.0),), tuple((op, 1.0 if op in operators else 0.001) for op in "+-*/"), 0.3, 0.4, 0.3)
    rng = random.Random(2)
    for _ in range(60):
        tree = random_tree(rng, rng.choice((2, 3, 9, 33, 64)), mix)
        assert value(canonical(tree)) == evaluate(tree)


@pytest.mark.parametrize("known", [MAX_VALUE, -MAX_VALUE, 99_971, 1, 0, -1])
@pytest.mark.parametrize("ops", ["+-*/", "+-", "*/"])
def test_a_number_fits_next_to_any_value(known, ops):
    """Catches a corner where no operator fits, as a signed number next to a value at the limit: training would end."""
    grower = Grower(random.Random(4), Mix(negative_literal=0.5))
    other = Operation("+", Literal(1), Literal(2)), known
    for _ in range(300):
        for pair in ((other, None), (None, other), (other, other)):
            assert abs(grower.join(*pair, ops)[1]) <= MAX_VALUE


@pytest.mark.parametrize("num_operands", [2, 3, 7, 31, 64])
def test_operand_count_is_exact(num_operands):
    """Catches evaluation at one length measuring another."""
    rng = random.Random(1)
    for _ in range(20):
        problem = random_problem(rng, num_operands, False)
        assert problem.num_operands == num_operands
        assert Arithmetic().parse(problem.text) == problem


def test_streams_are_reproducible_and_independent():
    """Catches workers that train on the same examples, or a seed that does not fix them."""
    first, again, other, seed = (
        [p.text for p in itertools.islice(problems(TASK, *key), 30)] for key in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert len({*first, *other, *seed}) > 85


def test_training_and_evaluation_never_share(sampled):
    """Catches evaluation on expressions that were trained on."""
    assert not any(is_held_out(problem.text) for problem in sampled)
    rng = random.Random(3)
    assert not any(is_held_out(random_problem(rng, 2, False).text) for _ in range(300))
    for num_operands in (2, 8):
        chosen = evaluation_set(TASK, num_operands, 50, seed=0)
        assert all(is_held_out(problem.text) for problem in chosen)
        assert len({problem.text for problem in chosen}) == 50
        assert {problem.num_operands for problem in chosen} == {num_operands}
    assert evaluation_set(TASK, 8, 5, seed=0) == evaluation_set(TASK, 8, 5, seed=0)
    assert evaluation_set(TASK, 8, 5, seed=0) != evaluation_set(TASK, 8, 5, seed=1)


def test_split_is_pinned():
    """Catches a change of the hash rule, which would put trained expressions into evaluation."""
    texts = [f"{a}+{b}" for a in range(100) for b in range(100)]
    held_out = [text for text in texts if is_held_out(text)]
    assert 100 < len(held_out) < 220
    assert held_out[:3] == ["0+6", "0+34", "0+66"]


@pytest.mark.parametrize("num_operands", [2, 5, 23, 64])
def test_more_differences_are_still_valid_expressions(num_operands):
    """Catches a number changed into one that no input may hold, or a value that the tree no longer has."""
    rng = random.Random(num_operands)
    for _ in range(40):
        problem = random_problem(rng, num_operands, False, DIFFERENCES_MIX)
        assert problem.num_operands == num_operands
        assert Arithmetic().parse(problem.text) == problem


def test_more_differences_are_more():
    """Catches a mix that no longer sets differences up so that leading digits cancel."""

    def share(variant: str) -> float:
        steps = [
            step for problem in itertools.islice(problems(TASK, 5, 0, variant), 250) for step in problem.reductions
        ]
        differences = [re.search(r"(\d{3,})-(\d+)\)?=$", step.work) for step in steps]
        cancelled = [d for d in differences if d and len(str(int(d[1]) - int(d[2]))) < len(d[1])]
        return len(cancelled) / len(steps)

    assert share("differences") > 2 * share("")


def test_evaluation_set_that_cannot_be_filled(monkeypatch):
    """Catches an endless loop where there are not enough different expressions."""
    monkeypatch.setattr(generated, "PATIENCE", 5)
    with pytest.raises(ValueError, match="different"):
        evaluation_set(TASK, 2, 5000, seed=0)


@pytest.mark.parametrize("annotated", [True, False])
def test_rendered_examples(annotated):
    """Catches examples past the context, or without random names."""
    rendered = list(itertools.islice(examples(TASK, TOKENIZER, annotated, 7, 0), 40))
    assert all(len(r.ids) <= MAX_TOKENS and len(r.ids) == len(r.loss_mask) == len(r.visibility) for r in rendered)
    assert all(r.ids[-1] == TOKENIZER.markers.eos for r in rendered)
    first_names = {min(r.prompt.segments, key=lambda name: r.prompt.segments[name]) for r in rendered if annotated}
    assert len(first_names) > 30 or not annotated


def test_lengths():
    """Catches a mix of lengths that is not the one asked for."""
    rng = random.Random(0)
    drawn = [Lengths(0.5, 4, 64).draw(rng) for _ in range(4000)]
    assert min(drawn) == 2 and max(drawn) == 64
    assert 0.5 < sum(n <= 4 for n in drawn) / len(drawn) < 0.58
    with pytest.raises(ValueError, match="2 to 64"):
        Lengths(most=65)
    with pytest.raises(ValueError, match="short_share"):
        Lengths(short_share=1.5)


def test_everything_is_well_represented():
    """Catches a generator that drifts into sums of large numbers, or never divides by more than one digit."""
    statistics = Statistics()
    rng = random.Random(11)
    for num_operands in [4, 8, 16, 48, 64] * 60:
        statistics.add(random_problem(rng, num_operands, False))
    report = statistics.report()
    for shares in (report["operators"], report["operators_from_48_operands"]):
        assert min(shares[op] for op in "+-*/") > 0.12 and shares["neg"] > 0.01
    assert all(report["result_digits"][digits] > 0.1 for digits in "12345")
    assert sum(share for partials, share in report["products_by_partials"].items() if int(partials) >= 3) > 0.15
    assert 1 - report["quotients_by_long_division_clauses"]["0"] > 0.25
    assert report["long_divisions_by_divisor_digits"]["2"] > 0.3


def test_command_line():
    """Catches the statistics command not running."""
    command = [sys.executable, "-m", "training.arithmetic_data", "--n", "20", "--workers", "2", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '"tokens_per_second"' in done.stdout
