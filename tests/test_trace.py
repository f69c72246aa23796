"""The tracing task: what may be pasted, what is refused and in which words, canonical text, prompt and answer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.errors import InputError
from selfspan_core.spans.protocol import NUM_ANCHORS
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.trace import names
from selfspan_core.tasks.trace.encoding import line_text
from selfspan_core.tasks.trace.parse import parse_program
from selfspan_core.tasks.trace.program import MAX_CHARACTERS, MAX_LINES, MAX_STEPS
from selfspan_core.tasks.trace.task import problem_of, random_problem
from selfspan_core.tasks.trace.values import as_printed, printed, value_text
from tests.support.arithmetic_tools import CharacterTokenizer
from tests.support.clock import MOST_S, least_s
from tests.support.paths import SHIPPED
from tests.support.slow import examples

TASK = get_task("trace")
TOKENIZER = CharacterTokenizer()
TYPED = """
# a comment
def f( a,b ):

        if a>b : return a - (b*2)   # another
        return (a+b)

x=f(7,2)
if not (x==3 or x in [1,2]): pass
else:
        x+=1
print( x )
"""
CANONICAL = """\
def f(a, b):
    if a > b:
        return a - b * 2
    return a + b
x = f(7, 2)
if not (x == 3 or x in [1, 2]):
    pass
else:
    x += 1
print(x)"""


def test_typed_text_becomes_canonical():
    """Would catch a comment or a layout that reaches the model, and a pair of parentheses that is lost."""
    problem = TASK.parse(TYPED)
    assert problem.text == CANONICAL and problem.expected == "4"
    assert "".join(text for text, _ in problem.display) == CANONICAL + "\n"
    assert TASK.parse(problem.text).reductions == problem.reductions
    indented = TASK.parse("".join(f"  {line}\r\n" for line in CANONICAL.split("\n")))
    assert indented.text == CANONICAL


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "empty"),
        ("  \n\t\n", "empty"),
        ("# only a comment", "nothing to run"),
        ("def f():\n    return 1", "nothing to run"),
        ("x = 1", "prints nothing"),
        ("x = \nprint(x)", "Line 1: this is not Python"),
        ("x = 1\n\n# c\nprint(x", "Line 4: this is not Python"),
        ("import os\nprint(1)", "Line 1: import is not supported"),
        ("print(__import__('os'))", "a name has at most|is no function above"),
        ("print((1).__class__)", "Attribute is not supported"),
        ("x = 3.5\nprint(x)", "decimal point"),
        ("print(7 / 2)", "use //"),
        ("print(2 ** 9)", "** is not supported"),
        ("print(f'{1}')", "f-string"),
        ("x = 1\nprint(f'{x}')", "Line 2: an f-string"),
        ("print([x for x in [1]])", "list comprehension"),
        ("d = {}\nprint(d)", "dictionary"),
        ("print(1 < 2 < 3)", "two comparisons"),
        ("x = 5 if 1 < 2 else 6\nprint(x)", "if and else"),
        ("print(sum([1, 2]))", "Line 1"),
        ("sum = 3\nprint(sum)", "Python's own"),
        ("def f(n):\n    return f(n - 1)\nprint(f(3))", "Line 2: f calls itself"),
        ("print(g(3))\ndef g(n):\n    return n", "no function above"),
        ("def f(n):\n    return n\nx = f(1) + 1\nprint(x)", "line of its own"),
        ("def f(n):\n    return n\nx = f(1, 2)\nprint(x)", "f takes 1 values"),
        ("def f(n):\n    x = n\nx = f(1)\nprint(x)", "without a value to return"),
        ("while True:\n    x = 1", "more than 200 steps"),
        ("for i in range(300):\n    pass\nprint(1)", "more than 200 steps"),
        ("x = 1\nprint(y)", "Line 2: y has no value yet"),
        ("x = 0\nprint(5 // x)", "Line 2: a division by zero"),
        ("x = [1]\nprint(x[1])", "Line 2: the index 1 is outside of a list of 1"),
        ("print('a' + 1)", "Line 1: Add of a string and a number"),
        ("x = 99999\nprint(x * 2)", "beyond ±99,999"),
        ("print(100000)", "beyond 99,999"),
        ("x = 'ab'\nwhile True:\n    x += x", "beyond 16 characters"),
        ("x = [0] * 11\nprint(x)", "beyond 10 elements"),
        ("x = [0] * 99999\nprint(x)", "beyond 10 elements"),
        ("x = [1]\ny = x\nprint(y)", "a copy of xs is xs[:]"),
        ("x = [1]\ny = x or [2]\nprint(y)", "a copy of xs is xs[:]"),
        (
            "def f(x):\n    x.append(1)\n    return x\ny = [2]\nz = f(y)\nprint(z)",
            "may not change a list of its caller",
        ),
        ("def f(x):\n    return x\ny = [2]\nz = f(y)\nprint(z)", "a copy of xs is xs[:]"),
        ("x = [1]\nfor y in x:\n    x.append(y)\nprint(x)", "may not change while a loop runs over it"),
        ("x = [[1]]\nprint(x)", "a list in a list"),
        ("x = [1]\nx.sort()\nprint(x)", "xs.append(x), xs.pop()"),
        ("x = 1\nx\nprint(x)", "a value alone does nothing"),
        ("break\nprint(1)", "break stands in a loop only"),
        ("return 1\nprint(1)", "return stands in a function only"),
        ("for i in range(3):\n    pass\nelse:\n    pass\nprint(1)", "else behind a loop"),
        ("print(a + b + c + d + e)", "reads 5 variables; the limit is 4"),
        ("print('a\\n')", "a backslash is not supported"),
        ("x = 'é'\nprint(x)", "plain letters"),
        ("größe = 1\nprint(größe)", "letters from a to z"),
        ("a_very_long_name = 1\nprint(1)", "at most 12 letters"),
        ("x = '" + "a" * 17 + "'\nprint(x)", "17 characters; the limit is 16"),
        ("x = 1\n" * 40 + "print(x)", "more than 40 lines"),
        ("x = 1\n" * 4000, "24,000 characters long; the limit is 4,000"),
        ("(" * 3000 + ")" * 900, "Line 1|not a program"),
        ("print(" + "-" * 3000 + "1)", "Line 1|not a program"),
        ("print(" + "1+" * 1500 + "1)", "Line 1|not a program"),
        ("print(" + "not " * 900 + "1)", "Line 1|not a program"),
        ("x = 1\x00\nprint(x)", "Python"),
        ("print('\ud800')", "Python|Line 1"),
        ("eval('1')", "Line 1"),
        ("open('f')", "Line 1"),
        ("global x", "Line 1: global is not supported"),
        ("x: int = 1\nprint(x)", "a type behind a name"),
        ("async def f():\n    pass\nprint(1)", "async"),
        ("xs = [1, 2]\nxs[0], xs[1] = 2, 1\nprint(xs)", "only a variable can be written here"),
    ],
)
def test_what_is_not_of_the_subset_is_refused(typed, says):
    """Would catch a crash, a program run in another way than Python runs it, or a message that names no line."""
    with pytest.raises(InputError) as caught:
        TASK.parse(typed)
    message = str(caught.value)
    assert any(one in message for one in says.split("|")), message
    assert message.isprintable() and message.endswith((".", ")")) and len(message) <= 220 and "\n" not in message


@given(st.text(max_size=300) | st.lists(st.sampled_from(CANONICAL.split("\n")), max_size=9).map("\n".join))
@settings(max_examples=examples(200, 1000), deadline=None)
def test_any_text_is_a_problem_or_an_input_error(text):
    """Would catch any exception but InputError on what users can paste."""
    try:
        TASK.parse(text)
    except InputError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("piece", ["(", "[", "x=1\n", "if x:\n ", "not ", "-", "a.", "'", '"""', "\t", "é", "1+", "{"])
def test_whatever_is_pasted_takes_no_time(piece):
    """Would catch a check that runs behind the parser, or one whose time grows with the square of the input."""
    for length in (MAX_CHARACTERS, 1_000_000):
        text = (piece * length)[:length]

        def refused(text: str = text) -> None:
            with pytest.raises(InputError):
                TASK.parse(text)

        assert least_s(refused) < MOST_S


def test_every_length_fits_names_and_context():
    """Would catch limits under which a step has no name left, or more reads than a header takes."""
    assert MAX_LINES + MAX_STEPS <= NUM_ANCHORS
    shares = [share for share, _, _ in TASK.generator.training_sizes]
    assert sum(shares) == pytest.approx(1)
    sizes = [TASK.generator.training_size(random.Random(seed)) for seed in range(400)]
    assert min(sizes) >= TASK.generator.least and max(sizes) <= MAX_STEPS and max(sizes) > 150


def test_too_long_to_run_is_an_error():
    """Would catch a program within every other limit whose steps overrun the model's context."""
    long = "xs = [11111, 22222, 33333, 44444, 55555, 66666]\nfor i in range(90):\n    xs[0] = i\nprint(xs)"
    with pytest.raises(InputError, match=r"tokens; the limit is 4,096"):
        TASK.parse(long)
    problem = random_problem(random.Random(1), 20)
    with pytest.raises(InputError, match="prints nothing"):
        problem_of(problem.program, (), ())


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("\n x=3\n3+4= print:7\n", "7"),
        (" print:7,'ab',[1,'a'], True", "7 ab [1, 'a'] True"),
        (" print:1\n x=' print:2'\n print:' print:3'", "1;  print:3"),
        (" print:", ""),
        ("", None),
        (" x=3", None),
        ("print:3", None),
        ("'" * 3001 + " print:3", None),
    ],
)
def test_answer_is_what_is_printed(output, answer):
    """Would catch a string's content taken for a step that prints, or an output that takes for ever to read."""
    assert TASK.answer(output) == answer


@given(
    st.lists(
        st.integers(-99, 99)
        | st.booleans()
        | st.text("ab ,[]=", max_size=6)
        | st.lists(st.integers(-9, 9) | st.booleans() | st.text("ab ,[]", max_size=3), max_size=4).map(tuple),
        min_size=1,
        max_size=4,
    )
)
def test_values_are_printed_as_python_prints_them(values):
    """Would catch an answer that is right in the steps and wrong in the words."""
    assert as_printed(",".join(map(value_text, values))) == printed(values)


def test_same_text_with_and_without_markers():
    """Would catch the two adapters being trained on different worked steps."""
    problem = TASK.parse("x = 3\nx = x + 4\nprint(x)")
    plain = TASK.render(problem, TOKENIZER, annotated=False, with_steps=True)
    annotated = TASK.render(problem, TOKENIZER, annotated=True, with_steps=True)
    text = TOKENIZER.decode(plain.ids)
    assert text == "Run:\n0 x=3\n0 x= x+4\n0 print( x)\n\n x=3\n3+4= x=7\n print:7"
    assert TOKENIZER.decode(annotated.ids) == text.replace("\n\n", "\n").replace("\n x=3\n3+4= x=7\n", "\n x=33+4= x=7")
    assert not set(plain.ids) & set(TOKENIZER.markers.ids)


def test_shipped_tokenizer():
    """Would catch words that are more ids than the bound of an example's length says, and merged characters."""
    from selfspan_core.models.tokenizer import SpanTokenizer

    tokenizer = SpanTokenizer.load(SHIPPED)
    words = (*names.LETTERS, *names.NUMBERS, *names.LISTS, *names.STRINGS, *names.FUNCTIONS, *names.FLAGS)
    assert not [word for word in words if len(tokenizer.encode(f" {word}")) != 1]
    assert not [word for word, most in names.KEYWORDS.items() if len(tokenizer.encode(f" {word}")) > most]
    for size in (5, 30, 150):
        problem = random_problem(random.Random(size), size)
        rendered = TASK.render(problem, tokenizer, annotated=True, with_steps=True)
        assert len(rendered.ids) <= problem.num_tokens <= 1.25 * len(rendered.ids) + 20
        lines = "".join(map(line_text, problem.program.lines))
        assert tokenizer.decode(rendered.ids[: rendered.prompt.num_tokens]) == f"Run:\n{lines}"
    assert len(TASK.example(TASK.parse("s = 'abc'\nprint(s)"), tokenizer).parts[0].ids) == len(
        ["0", "s", "=", "'", "a", "b", "c", "'", "n"]
    )


def test_examples_and_surprises():
    """Would catch an example on the page that is an input error, or a button that always says the same."""
    assert all(2 < TASK.parse(text).num_steps <= 60 for text in TASK.examples)
    assert [TASK.parse(text).expected for text in TASK.examples[:2]] == ["31", "21"]
    surprises = [TASK.surprise(seed) for seed in range(8)]
    assert len(set(surprises)) == 8 and surprises[3] == TASK.surprise(3)
    assert all(TASK.parse(text).text == text for text in surprises)
    similar = TASK.similar(TASK.parse(surprises[0]), 5)
    wanted = TASK.parse(surprises[0]).num_steps
    assert all(abs(next(similar).num_steps - wanted) <= wanted // 4 for _ in range(5))


def test_what_python_only_warns_of_is_refused(recwarn):
    """Would catch a text of a visitor that prints a warning into the server's log, and `1or 2` read as something."""
    with pytest.raises(InputError, match="Line 1: this is not Python: invalid decimal literal"):
        parse_program("x = 1or 2\nprint(x)")
    assert not recwarn.list
