"""The arithmetic task: what may be typed, canonical text, worked steps, prompt and answer."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.errors import InputError
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import Phase, Tracker
from selfspan_core.tasks.arithmetic.parse import parse_expression
from selfspan_core.tasks.arithmetic.task import MAX_TOKENS, is_held_out, problem_of, random_problem
from selfspan_core.tasks.arithmetic.tree import Literal, Operation, canonical
from selfspan_core.tasks.registry import get_task
from tests.support.arithmetic_problems import TASK, TOKENIZER, num_literals, problems, trees
from tests.support.arithmetic_tools import MergingTokenizer, value
from tests.support.clock import least_s
from tests.support.paths import SHIPPED
from tests.support.slow import examples


@pytest.fixture
def task():
    return get_task("arithmetic")


# ------------------------------------------------------------------------------------------------------- typed text


@pytest.mark.parametrize(
    ("typed", "text", "expected"),
    [
        ("79*36+63", "79*36+63", "2907"),
        ("  79 * 36\t+\n63 = ", "79*36+63", "2907"),
        ("79×36−63", "79*36-63", "2781"),
        ("84÷12·3", "84/12*3", "21"),
        ("８４＋（１２－３）＝", "84+(12-3)", "93"),
        ("٣+٤", "3+4", "7"),
        ("3\u200b+\ufeff4\u00a0", "3+4", "7"),
        ("3–5", "3-5", "-2"),
        ("3➕️4", "3+4", "7"),
        ("𝟛+𝟺", "3+4", "7"),
        ("3--5", "3-(-5)", "8"),
        ("--5+3", "-(-5)+3", "8"),
        ("+5+3", "5+3", "8"),
        ("3-+5", "3-5", "-2"),
        ("3*-5", "3*(-5)", "-15"),
        ("-5*3", "-5*3", "-15"),
        ("2+-5*3", "2+(-5)*3", "-13"),
        ("-(5)+1", "-5+1", "-4"),
        ("-0+1", "0+1", "1"),
        ("((3))+(((4)))", "3+4", "7"),
        ("(1+2)+3", "1+2+3", "6"),
        ("1+(2+3)", "1+(2+3)", "6"),
        ("6/(2*3)", "6/(2*3)", "1"),
        ("(6/2)*3", "6/2*3", "9"),
        ("2*(3+4)", "2*(3+4)", "14"),
        ("2--(3+4)", "2-(-(3+4))", "9"),
        ("-(3+4)*2", "-(3+4)*2", "-14"),
        ("(-3+4)*2", "(-3+4)*2", "2"),
        ("3" + " " * 15_000 + "+4", "3+4", "7"),
    ],
)
def test_typed_text_becomes_canonical(task, typed, text, expected):
    """Catches a spelling that users paste being refused, or a minus or parenthesis changing sides."""
    problem = task.parse(typed)
    assert (problem.text, problem.expected) == (text, expected)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "empty"),
        ("   \n ", "empty"),
        ("=", "empty"),
        ("\u200b", "empty"),
        ("abc", '"abc" cannot be used'),
        ("two plus two", '"two"'),
        ("3x4", 'write "*"'),
        ("3+4=7", '"=" may stand at the end only'),
        ("2**9", 'A power ("**")'),
        ("2^9", 'A power ("^")'),
        ("2²+1", 'A power ("²")'),
        ("10%3", 'remainders ("%")'),
        ("9//2", '"//"'),
        ("9%2", '"%"'),
        ("3<4", '"<"'),
        ("3.5+1", "no decimals"),
        ("1,000+1", '","'),
        ("5²+1", '"²"'),
        ("½+1", '"½"'),
        ("1/0", "Division by zero: 1/0."),
        ("5/(3-3)", "Division by zero: 5/0."),
        ("7/2", "The division 7/2 does not come out whole: it gives 7/2."),
        ("3+10/4*2", "The division 10/4 does not come out whole: it gives 5/2."),
        ("-9/(-6)+1", "-9/(-6)"),
        ("(3+4", '1 "(" is never closed'),
        ("((3+4", '2 "(" are never closed'),
        ("3+4)", 'a ")" too many after "3+4"'),
        (")3+4(", 'a ")" too many at the beginning'),
        ("()", 'nothing between "(" and ")"'),
        ("3+()", 'nothing between "(" and ")"'),
        ("1 2", 'An operator is missing between "1" and "2"'),
        ("1 2+3", 'An operator is missing between "1" and "2"'),
        ("2(3+4)", 'An operator is missing between "2" and "("'),
        ("(3+4)2", 'An operator is missing between ")" and "2"'),
        ("(1+2)(3+4)", 'An operator is missing between ")" and "("'),
        ("3+", 'A number is missing after "+"'),
        ("*3", 'A number is missing before "*"'),
        ("(*3)", 'A number is missing before "*"'),
        ("3+*4", 'A number is missing after "+"'),
        ("(3-)+4", 'A number is missing after "-"'),
        ("-", 'A number is missing after "-"'),
        ("100+1", 'The number "100" is out of range; numbers go from 0 to 99'),
        ("1+-123", '"-123" is out of range; numbers go from -99 to 99'),
        ("1-123", '"123" is out of range; numbers go from 0 to 99'),
        ("-05+1", 'The number "-05" starts with a zero; write "-5"'),
        ("(1)-05", 'The number "05" starts with a zero; write "5"'),
        ("-5 3", 'An operator is missing between "-5" and "3"'),
        ("-5(3+4)", 'An operator is missing between "-5" and "("'),
        ("-5", '"-5" is a single number'),
        ("007+1", 'write "7"'),
        ("00+1", 'write "0"'),
        ("99*99*99", "9801*99 gives 970299"),
        ("-99*99*99", "-9801*99 gives -970299"),
        ("42", "single number"),
        ("-(-42)", "single number"),
        ("+".join(["1"] * 65), "65 numbers; the limit is 64"),
        ("1" * 100_000, "100,000 characters long; the limit is 20,000"),
        (" " * 100_000, "100,000 characters"),
        ("1+" * 1_500 + "1", "3,001 characters long without spaces; the limit is 2,000"),
        ("9" * 1_999, "out of range"),
        ("(" * 500 + "1+1" + ")" * 500, "nested 500 deep"),
        ("(" * 500, '500 "(" are never closed'),
        ("-" * 1_900 + "5+1", "minus signs"),
        ("+" * 1_900 + "5+1", "1,900 plus or minus signs"),
        ("-(" * 70 + "5+1" + ")" * 70, "70 minus signs"),
        ("__import__('os')", '"__import__"'),
        ("<|ref|>", '"<|ref|>"'),
        ("<|ref|><|a0|>3+4", '"<|ref|><|a"'),
        ("3+4;5", '";"'),
        ("lambda: 3", '"lambda:"'),
        ("1if 1else 2", '"if"'),
        ("0x1+1", '"x"'),
        ("1_0+1", '"_"'),
        ("1e5+1", '"e"'),
        ("3+4 # comment", '"#"'),
        ("3+\\\n4", '"\\"'),
        ("\x00", "cannot be used"),
        ("3+4\x00", "cannot be used"),
        ("\ud800+1", "cannot be used"),
        ("𝟛+x²", '"x²"'),
    ],
)
def test_bad_input_says_what_is_wrong(task, typed, says):
    """Catches a crash, a wrong answer or an empty message where the user's text cannot be used."""
    with pytest.raises(InputError) as caught:
        task.parse(typed)
    message = str(caught.value)
    assert says in message
    assert len(message) <= 200, "the message repeats the input at length"
    assert message.endswith(".")
    assert message.isprintable(), "the message cannot be printed or sent"


def test_longest_expressions_are_understood(task):
    """Catches a nesting or recursion limit that refuses 64 operands nested as deep as they can be."""
    deep = "".join("1+(-(" for _ in range(63)) + "1+1" + "))" * 63
    with pytest.raises(InputError, match="66 numbers"):
        task.parse("0+" + deep)
    deep = "".join("1+(-(" for _ in range(62)) + "1+1" + "))" * 62
    problem = task.parse(deep)
    assert problem.num_operands == 64
    assert task.parse(problem.text).text == problem.text


def test_too_long_to_work_out_is_an_error(task):
    """Catches an expression within every other limit whose worked steps overrun the model's context."""
    assert task.parse("73*17" + "*79/79" * 15).num_tokens <= MAX_TOKENS
    with pytest.raises(InputError, match=r"tokens; the limit is 4,096"):
        task.parse("73*17" + "*79/79" * 31)


@given(st.text(max_size=60))
@settings(max_examples=examples(250, 500))
def test_any_text_is_a_problem_or_an_input_error(text):
    """Catches any exception but InputError on what users can type."""
    try:
        TASK.parse(text)
    except InputError as error:
        assert str(error).isprintable()


@given(st.text(alphabet="0123456789+-*/()= ×÷−", max_size=40))
@settings(max_examples=examples(400, 1000))
def test_what_parses_has_the_value_of_what_was_typed(text):
    """Catches normalisation or canonical form that changes the value."""
    try:
        problem = TASK.parse(text)
    except InputError:
        return
    typed = text.replace(" ", "").replace("×", "*").replace("÷", "/").replace("−", "-").removesuffix("=")
    # Python's own parser is the judge here; the text has digits and operators only.
    assert int(problem.expected) == eval(typed.replace("/", "//"))
    assert value(problem.text) == int(problem.expected)


@given(trees())
def test_canonical_text_keeps_the_tree(tree):
    """Catches a missing pair of parentheses: the order of operations would change."""
    text = canonical(tree)
    if num_literals(tree) >= 2:
        minus_zero_free = "-0" not in text
        if minus_zero_free:
            assert parse_expression(text) == tree


# ------------------------------------------------------------------------------------------------ prompt and answer


def test_prompt_pieces(task):
    """Catches operators inside a segment, a sign outside its literal, or a prompt that differs from its display."""
    problem = task.parse("79*(-36)+63")
    assert problem.display == (("79", 0), ("*(", None), ("-36", 1), (")+", None), ("63", 2), ("=", None))
    assert task.parse("1*(2+3)").display[-1] == (")=", None)
    rendered = task.render(problem, TOKENIZER, annotated=True)
    assert TOKENIZER.decode(rendered.ids) == "Calculate: 79*(-36)+63="
    assert rendered.prompt.scaffold_end == 1 + len("Calculate: ")
    assert rendered.loss_mask == [0] * len(rendered.ids)
    anchors = TOKENIZER.markers.anchors
    segments = {name: TOKENIZER.decode(rendered.ids[a:b]) for name, (a, b) in rendered.prompt.segments.items()}
    assert segments == {anchors[0]: "79", anchors[1]: "-36", anchors[2]: "63"}


def test_same_text_with_and_without_markers(task):
    """Catches the two adapters being trained on different worked steps."""
    problem = task.parse("79*36+63")
    annotated = task.render(problem, TOKENIZER, annotated=True, with_steps=True)
    plain = task.render(problem, TOKENIZER, annotated=False, with_steps=True)
    text = TOKENIZER.decode(plain.ids)
    assert text == "Calculate: 79*36+63=\n79*36=2370+474=2844\n2844+63=2907"
    assert TOKENIZER.decode(annotated.ids) == text.replace("\n", "")
    assert plain.ids[-1] == annotated.ids[-1] == TOKENIZER.markers.eos
    assert not set(plain.ids) & set(TOKENIZER.markers.ids)


@given(problems(), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_rendered_steps_are_well_formed(problem, offset):
    """Catches a step that the tracker refuses, a body that sees more than it reads, an example longer than it says."""
    rendered = TASK.render(problem, TOKENIZER, annotated=True, offset=offset, with_steps=True)
    assert len(rendered.ids) == problem.num_tokens <= MAX_TOKENS
    assert max(map(len, rendered.visibility)) <= TASK.max_reads_intervals
    tracker = Tracker(TOKENIZER.markers, rendered.prompt)
    states = [tracker.push(token) for token in rendered.ids[rendered.prompt.num_tokens :]]
    assert tracker.num_malformed == 0 and states[-1].phase is Phase.DONE
    assert len(tracker.steps) == len(problem.reductions)
    for record, step in zip(tracker.steps, problem.reductions, strict=True):
        result = TOKENIZER.decode(rendered.ids[slice(*tracker.segments[record.name])])
        assert result == step.result and len(record.reads) == len(step.reads)


def test_names_wrap_around(task):
    """Catches an offset near the last anchor that runs past the table."""
    problem = task.parse("1+2+3")
    rendered = task.render(problem, TOKENIZER, annotated=True, offset=254)
    anchors = TOKENIZER.markers.anchors
    assert list(rendered.prompt.segments) == [anchors[254], anchors[255], anchors[0]]


def test_merging_tokenizer_encodes_whole_texts(task):
    """Catches character-by-character encoding with a tokenizer for which that is another sequence."""
    tokenizer = MergingTokenizer()
    example = task.example(task.parse("79*36+63"), tokenizer, with_steps=True)
    assert example.parts[0].ids == tuple(tokenizer.encode("79"))
    assert example.steps[0].work == tuple(tokenizer.encode("79*36=2370+474="))
    assert render(example, tokenizer.markers).ids
    # and one task object serves two tokenizers
    assert task.example(task.parse("1+2"), TOKENIZER).parts[0].ids == tuple(TOKENIZER.encode("1"))


def test_shipped_tokenizer(task):
    """Catches a shipped tokenizer that merges or splits arithmetic, or whose text is not what was trained on."""
    from selfspan_core.models.tokenizer import SpanTokenizer

    tokenizer = SpanTokenizer.load(SHIPPED)
    problem = task.parse(task.examples[-1])
    plain = task.render(problem, tokenizer, annotated=False, with_steps=True)
    annotated = task.render(problem, tokenizer, annotated=True, with_steps=True)
    lines = tokenizer.decode(plain.ids).split("\n")
    assert lines[0] == f"Calculate: {problem.text}="
    assert lines[1:] == [step.work + step.result for step in problem.reductions]
    assert tokenizer.encode(tokenizer.decode(plain.ids)) == plain.ids[1:-1]
    assert tokenizer.decode(annotated.ids) == "".join(lines)
    assert len(annotated.ids) <= problem.num_tokens <= len(annotated.ids) + len("Calculate: ")
    assert task.answer("\n".join(lines[1:])) == problem.expected


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("79*36=2370+474=2844\n2844+63=2907\n", "2907"),
        ("\n5-63=-(63-5)=-58", "-58"),
        ("2844/36=70:2844-2520=324;9:324-324=0=79", "79"),
        ("", None),
        ("  \n", None),
        ("79*36", None),
        ("79*36=", None),
        ("79*36=2370+474", None),
        ("79*36=2844\n28", None),
        ("79*36=2844x", None),
        ("hello = world", None),
    ],
)
def test_answer_is_the_last_result(task, output, answer):
    """Catches an unfinished or broken output being taken for an answer."""
    assert task.answer(output) == answer


def test_answer_is_checked(task):
    """Catches a check that lets a missing or a wrong answer pass."""
    problem = task.parse("79*36+63")
    assert task.check(problem, "2907")
    assert not task.check(problem, "2908")
    assert not task.check(problem, None)


def test_examples_and_surprises(task):
    """Catches an example in the app that is an input error, or a button that always says the same."""
    sizes = [task.parse(text).num_operands for text in task.examples]
    assert min(sizes) == 4 and max(sizes) == 48 and {8, 16, 24, 32} <= set(sizes)
    assert all(task.parse(text).text == text and is_held_out(text) for text in task.examples)
    stories = task.page.stories.values()
    assert all(task.parse(text).text == text and is_held_out(text) for text in stories)
    surprises = [task.surprise(seed) for seed in range(20)]
    assert len(set(surprises)) == 20 and surprises[3] == task.surprise(3)
    assert all(4 <= task.parse(text).num_operands <= 48 for text in surprises)


def test_unknown_task():
    """Catches an error that does not say which tasks there are."""
    with pytest.raises(InputError, match="arithmetic"):
        get_task("poetry")


def test_bad_input_is_refused_quickly(task):
    """Catches a parser that takes seconds over text that it refuses."""

    def refused() -> None:
        for typed in ("(" * 999 + ")" * 999, "-" * 1_999, "1+" * 9_999, "(1" * 900 + ")" * 900, "9*" * 999 + "9"):
            with pytest.raises(InputError):
                task.parse(typed)

    assert least_s(refused, enough_s=1) < 1


def test_problem_of_needs_no_text():
    """Catches a tree made by the generator being worked out unlike the same tree typed."""
    assert problem_of(Operation("-", Literal(3), Literal(-5))) == TASK.parse("3--5")


@pytest.mark.parametrize(("num_operands", "fewest", "most"), [(2, 2, 2), (3, 3, 3), (24, 18, 30), (64, 48, 64)])
def test_similar_problems(num_operands, fewest, most):
    """Would catch a load of another weight than the user's input, one that differs between lanes, or invalid inputs."""
    problem = random_problem(random.Random(1), num_operands)
    first, again, other = (list(itertools.islice(TASK.similar(problem, seed), 30)) for seed in (5, 5, 6))
    assert [one.text for one in first] == [one.text for one in again] != [one.text for one in other]
    assert all(fewest <= one.num_operands <= most for one in first)
    assert len({one.text for one in first}) > 20
    assert all(TASK.parse(one.text).expected == one.expected for one in first)
