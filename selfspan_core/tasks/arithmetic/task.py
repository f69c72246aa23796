"""The arithmetic task: expressions of small whole numbers, reduced one operation at a time.

The parts are split up: `parse` (accepted input), `tree` (canonical text, exact value), `steps` (worked steps: order and
format), `random_trees` (random expressions), `examples` (what the page offers).
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import InputError
from selfspan_core.spans.render import Example, Part, Step
from selfspan_core.tasks.arithmetic.examples import EXAMPLES, STORIES
from selfspan_core.tasks.arithmetic.parse import parse_expression
from selfspan_core.tasks.arithmetic.random_trees import DEFAULT_MIX, DIFFERENCES_MIX, Mix, random_tree
from selfspan_core.tasks.arithmetic.steps import Reduction, reductions
from selfspan_core.tasks.arithmetic.tree import MAX_OPERANDS, Node, canonical, evaluate, pieces
from selfspan_core.tasks.base import (
    Generator,
    PageText,
    Problem,
    Tokenizer,
    Tool,
    View,
)
from selfspan_core.tasks.worked import WorkedTask

INSTRUCTION = "Calculate: "
MAX_TOKENS = 4096
HELD_OUT_SHARE = 64
_CHARACTERS = "0123456789+-*/()=;:\n"
_NUMBER = re.compile(r"-?\d+")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class ArithmeticProblem(Problem):
    """A valid expression with its tree and its worked steps."""

    tree: Node
    reductions: tuple[Reduction, ...]

    @property
    def num_operands(self) -> int:
        """How many numbers the expression has."""
        return sum(name is not None for _, name in self.display)

    @property
    def num_steps(self) -> int:
        """Worked steps."""
        return len(self.reductions)

    @property
    def num_tokens(self) -> int:
        """Upper bound of the annotated example's length, worked steps and `<eos>` included, one token a character."""
        prompt = 1 + len(INSTRUCTION) + sum(len(text) + (name is not None) for text, name in self.display)
        return prompt + 1 + sum(len(step.work) + len(step.result) + len(step.reads) + 5 for step in self.reductions)


def problem_of(tree: Node) -> ArithmeticProblem:
    """The problem that a tree poses. Raises InputError where it cannot be worked out within the limits."""
    value = evaluate(tree)
    display: list[tuple[str, int | None]] = []
    num_literals = 0
    for text, is_literal in pieces(tree):
        display.append((text, num_literals if is_literal else None))
        num_literals += is_literal
    text = "".join(piece for piece, _ in display)
    if display[-1][1] is None:
        display[-1] = (display[-1][0] + "=", None)
    else:
        display.append(("=", None))
    steps = reductions(tree, num_literals)
    problem = ArithmeticProblem(text, str(value), tuple(display), tree, steps)
    if problem.num_tokens > MAX_TOKENS:
        raise InputError(
            f"Worked out step by step, this expression would take about {problem.num_tokens:,} tokens; "
            f"the limit is {MAX_TOKENS:,}. Make it shorter or its values smaller."
        )
    return problem


def is_held_out(text: str) -> bool:
    """Whether a canonical expression is kept for evaluation: one in HELD_OUT_SHARE, by a hash of its text."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()[-1] % HELD_OUT_SHARE == 0


def random_problem(
    rng: random.Random, num_operands: int, held_out: bool | None = None, mix: Mix = DEFAULT_MIX
) -> ArithmeticProblem:
    """A random problem with `num_operands` numbers; `held_out` True or False draws from one side of the split only."""
    while True:
        tree = random_tree(rng, num_operands, mix)
        # Working a tree out costs far more than its text.
        if held_out is not None and is_held_out(canonical(tree)) != held_out:
            continue
        try:
            return problem_of(tree)
        except InputError:  # its worked steps are too long for the context
            continue


@dataclass(frozen=True)
class Lengths:
    """How many operands an expression has: `short_share` uniform in 2..short_most, the rest uniform in 2..most."""

    short_share: float = 0.3
    short_most: int = 16
    most: int = MAX_OPERANDS

    def __post_init__(self) -> None:
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"short_share is a share from 0 to 1, not {self.short_share}")
        if not (2 <= self.short_most <= MAX_OPERANDS and 2 <= self.most <= MAX_OPERANDS):
            raise ValueError(
                f"operands go from 2 to {MAX_OPERANDS}; got short_most={self.short_most}, most={self.most}"
            )

    def draw(self, rng: random.Random) -> int:
        """A number of operands."""
        return rng.randint(2, self.short_most if rng.random() < self.short_share else self.most)


class ExpressionGenerator:
    """Random expressions; see `tasks.base.Generator`. The variant "differences" has more that nearly cancel.

    Args:
        lengths: of those for training.
    """

    problems_name = "expressions"
    size_name = "operands"
    sizes: tuple[int, ...] = (8, 24, 48, 64)
    least, most = 2, MAX_OPERANDS
    variants: tuple[str, ...] = ("differences",)

    def __init__(self, lengths: Lengths | None = None) -> None:
        self._lengths = lengths or Lengths()

    def problem(self, rng: random.Random, size: int, held_out: bool | None, variant: str = "") -> ArithmeticProblem:
        """A random expression with `size` operands."""
        return random_problem(rng, size, held_out, {"": DEFAULT_MIX, "differences": DIFFERENCES_MIX}[variant])

    def training_size(self, rng: random.Random) -> int:
        """A number of operands, short ones more often."""
        return self._lengths.draw(rng)


class Arithmetic(WorkedTask[ArithmeticProblem]):
    """Expressions of 2 to 64 numbers with `+ - * /`, parentheses and unary minus. See `tasks.base.Task`."""

    name: ClassVar[str] = "arithmetic"
    answers: ClassVar[str] = "results"
    view: ClassVar[View] = View(typeset=True)
    page: ClassVar[PageText] = PageText(
        tab="Arithmetic",
        pitch="solve a sum",
        pitch_alone="solve the same sum both ways",
        label="Arithmetic expression",
        placeholder="79*36+63",
        info="2 to 64 numbers from 0 to 99, with + − × ÷ and parentheses. Enter runs it.",
        box="expression",
        example=lambda text: f"{len(_DIGITS.findall(text))} numbers",
        prompt="Type one expression per line, then Ctrl-D.",
        can_surprise=True,
        tool=Tool(
            "solve",
            "Solve an arithmetic expression step by step with a small language model, which may be wrong.",
            "expression",
            "2 to 64 whole numbers from 0 to 99 with + - * / and parentheses, for example 79*36+63.",
        ),
        stories=STORIES,
    )
    generator: ClassVar[Generator | None] = ExpressionGenerator()
    max_reads_intervals = 4
    max_tokens = MAX_TOKENS
    is_line = True
    examples: tuple[str, ...] = EXAMPLES

    def __init__(self) -> None:
        self._encoder: _Encoder | None = None

    def parse(self, text: str) -> ArithmeticProblem:
        """Parse a user's input.

        Raises:
            InputError: it is not an expression, or an expression outside the trained range; the message says why.
        """
        return problem_of(parse_expression(text))

    def example(
        self, problem: ArithmeticProblem, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False
    ) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        encoder = self._encoder_of(tokenizer)
        names = encoder.names(offset)
        parts = tuple(
            Part(encoder.encode(text), None if name is None else names[name]) for text, name in problem.display
        )
        steps: tuple[Step, ...] = ()
        if with_steps:
            steps = tuple(
                Step(
                    tuple(names[read] for read in step.reads),
                    names[step.name],
                    encoder.encode(step.work),
                    encoder.encode(step.result),
                )
                for step in problem.reductions
            )
        return Example(encoder.scaffold, parts, steps)

    def _encoder_of(self, tokenizer: Tokenizer) -> "_Encoder":
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = _Encoder(tokenizer)
        return self._encoder

    def draft_hints(self, tokenizer: Tokenizer) -> DraftHints:
        """A step reads two numbers, and writes them with the operator between them, then "=", then its result."""
        operators = [tokenizer.encode(sign)[-1] for sign in "+-*/"]
        return DraftHints(2, frozenset(operators), (tokenizer.encode("=")[-1], tokenizer.markers.res))

    def answer(self, output_text: str) -> str | None:
        """The result of the last step: the number behind the last `=` of the last line that is not blank."""
        lines = output_text.split()
        if not lines:
            return None
        _, equals, last = lines[-1].rpartition("=")
        return last if equals and _NUMBER.fullmatch(last) else None

    def surprise(self, seed: int) -> str:
        """A random expression of 4 to 48 numbers that training never saw."""
        rng = random.Random(f"surprise {seed}")
        return random_problem(rng, rng.randint(4, 48), held_out=True).text

    def similar(self, problem: ArithmeticProblem, seed: int) -> Iterator[ArithmeticProblem]:
        """Random expressions, without end, of as many numbers as `problem` has, give or take a quarter of them.

        Not exactly as many: requests that all end at once would leave nothing running beside the next ones' start.
        """
        rng = random.Random(f"similar {seed}")
        spread = problem.num_operands // 4
        fewest, most = max(2, problem.num_operands - spread), min(MAX_OPERANDS, problem.num_operands + spread)
        while True:
            yield random_problem(rng, rng.randint(fewest, most))


class _Encoder:
    """Text to ids for one tokenizer; character by character through a table if that gives the same ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._table: dict[str, int] | None = self._character_table()
        markers = tokenizer.markers
        start = () if markers.bos is None else (markers.bos,)
        self.scaffold = (*start, *tokenizer.encode(INSTRUCTION))

    def _character_table(self) -> dict[str, int] | None:
        encoded = {character: self.tokenizer.encode(character) for character in _CHARACTERS}
        if any(len(ids) != 1 for ids in encoded.values()):
            return None
        table = {character: ids[0] for character, ids in encoded.items()}
        # A tokenizer may merge characters: then whole texts have to be encoded.
        probes = (
            "2844/36=70:2844-2520=324;9:324-324=0=",
            "-79*(-36)=79*36=2370+474=",
            "100+99000=",
            "\n",
            ")*(-(",
            "(((",
            "))",
        )
        same = all(self.tokenizer.encode(probe) == [table[c] for c in probe] for probe in probes)
        return table if same else None

    def encode(self, text: str) -> tuple[int, ...]:
        if self._table is None:
            return tuple(self.tokenizer.encode(text))
        return tuple(map(self._table.__getitem__, text))

    def names(self, offset: int) -> tuple[int, ...]:
        anchors = self.tokenizer.markers.anchors
        start = offset % len(anchors)
        return anchors[start:] + anchors[:start]
