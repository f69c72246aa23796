"""The tracing task: a program in a small subset of Python, run one line a step.

The parts are split up: `parse` and `expressions` (accepted input), `program` (lines, limits), `machine`, `working` and
`values` (the exact run and its steps), `encoding` (text for a model), `random_programs` and `random_lines`, `examples`.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import InputError
from selfspan_core.spans.render import Example, Part, Step
from selfspan_core.tasks.base import (
    Generator,
    PageText,
    Problem,
    Tokenizer,
    Tool,
    View,
)
from selfspan_core.tasks.trace.encoding import INSTRUCTION, Encoder, line_text, most_ids
from selfspan_core.tasks.trace.examples import EXAMPLES, STORIES
from selfspan_core.tasks.trace.machine import RawStep, run
from selfspan_core.tasks.trace.parse import parse_program
from selfspan_core.tasks.trace.program import MAX_LINES, MAX_STEPS, MAX_VARIABLES, Program
from selfspan_core.tasks.trace.random_programs import random_program
from selfspan_core.tasks.trace.values import as_printed
from selfspan_core.tasks.worked import WorkedTask

MAX_TOKENS = 4096
PRINTED_TOGETHER = "; "
_PRINT = re.compile(r"(?:[^']|'[^']*')*? print:(.*)")


@dataclass(frozen=True)
class TracedStep:
    """One step: `reads` and `name` are indices of names, `work` and `result` compact text (`encoding`)."""

    reads: tuple[int, ...]
    name: int
    work: str
    result: str


@dataclass(frozen=True)
class TraceProblem(Problem):
    """A program with its worked steps; `expected` is what it prints."""

    program: Program
    reductions: tuple[TracedStep, ...]

    @property
    def num_steps(self) -> int:
        """Worked steps: lines executed."""
        return len(self.reductions)

    @property
    def num_tokens(self) -> int:
        """Upper bound of the annotated example's length, worked steps and `<eos>` included."""
        lines = sum(1 + most_ids(line_text(line)) for line in self.program.lines)
        steps = sum(most_ids(step.work + step.result) + len(step.reads) + 5 for step in self.reductions)
        return 1 + len(INSTRUCTION) + lines + steps + 1


def problem_of(program: Program, steps: tuple[RawStep, ...], printed: tuple[str, ...]) -> TraceProblem:
    """The problem that a program poses which was run. Raises InputError where a model has no room for it."""
    if not printed:
        raise InputError("The program prints nothing: end it with print(...), so that it has an answer.")
    num_lines = len(program.lines)
    traced = tuple(
        TracedStep(
            tuple(read if read >= 0 else num_lines - 1 - read for read in step.reads),
            num_lines + number,
            step.work,
            step.result,
        )
        for number, step in enumerate(steps)
    )
    display = tuple((f"{'    ' * line.level}{line.text}\n", name) for name, line in enumerate(program.lines))
    problem = TraceProblem(program.text, PRINTED_TOGETHER.join(printed), display, program, traced)
    if problem.num_tokens > MAX_TOKENS:
        raise InputError(
            f"Run step by step, this program would take about {problem.num_tokens:,} tokens; "
            f"the limit is {MAX_TOKENS:,}. Let it run for fewer steps, or with shorter lists and names."
        )
    return problem


def random_problem(rng: random.Random, num_steps: int, held_out: bool | None = None) -> TraceProblem:
    """A random program that runs for `num_steps` steps; `held_out`: of one side of the split only."""
    while True:
        ran = random_program(rng, num_steps, held_out)
        try:
            return problem_of(ran.program, ran.steps, ran.printed)
        except InputError:  # its steps are too long for the context
            continue


class ProgramGenerator:
    """Random programs; see `tasks.base.Generator`."""

    problems_name = "programs"
    size_name = "steps"
    sizes: tuple[int, ...] = (10, 40, 100, 200)
    least, most = 3, MAX_STEPS
    variants: tuple[str, ...] = ()
    training_sizes: tuple[tuple[float, int, int], ...] = ((0.3, 3, 12), (0.35, 8, 50), (0.2, 40, 110), (0.15, 100, 200))
    """Share of the programs, and the fewest and most steps of those."""

    def problem(self, rng: random.Random, size: int, held_out: bool | None, variant: str = "") -> TraceProblem:
        """A random program that runs for `size` steps."""
        return random_problem(rng, size, held_out)

    def training_size(self, rng: random.Random) -> int:
        """A number of steps: half of the tokens are of programs of more than 90."""
        shares, fewest, most = zip(*self.training_sizes, strict=True)
        kind = rng.choices(range(len(shares)), shares)[0]
        return rng.randint(fewest[kind], most[kind])


class Trace(WorkedTask[TraceProblem]):
    """Programs of up to 40 lines that run for up to 200 steps. See `tasks.base.Task`."""

    name: ClassVar[str] = "trace"
    answers: ClassVar[str] = "outputs"
    view: ClassVar[View] = View(pane="code", answer="output", source="The program", segment="line")
    page: ClassVar[PageText] = PageText(
        tab="Programs",
        pitch="run a program",
        pitch_alone="run the same program both ways",
        label="Program, in a small part of Python",
        placeholder="total = 2 + 3\nprint(total)",
        info=(
            f"Up to {MAX_LINES} lines that run for up to {MAX_STEPS} steps: whole numbers, strings, lists, if, while, "
            "for, functions without recursion, print."
        ),
        box="program",
        example=lambda text: f"{len([line for line in text.splitlines() if line.strip()])} lines",
        prompt="Type a program, then Ctrl-D.",
        suffix="-trace",
        lines=10,
        max_lines=MAX_LINES,
        can_surprise=True,
        tool=Tool(
            "trace",
            "Run a short program step by step with a small language model, which may be wrong.",
            "program",
            f"Up to {MAX_LINES} lines of Python with whole numbers, strings, lists, if, while, for, functions without "
            "recursion, and print.",
        ),
        stories=STORIES,
    )
    generator: ClassVar[Generator | None] = ProgramGenerator()
    max_reads_intervals = MAX_VARIABLES + 4
    """Scaffold, line, that of a function or a loop's last step, variables, and the step itself."""
    max_tokens = MAX_TOKENS
    is_line = False
    examples: tuple[str, ...] = EXAMPLES

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

    def parse(self, text: str) -> TraceProblem:
        """Parse a user's program and run it, in a machine of its own, within limits.

        Raises:
            InputError: it is not of the subset, goes wrong, prints nothing, or is too long; the message names the line.
        """
        program = parse_program(text)
        machine = run(program)
        return problem_of(program, tuple(machine.steps), tuple(machine.printed))

    def example(
        self, problem: TraceProblem, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False
    ) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        if self._encoder is None or self._encoder.tokenizer is not tokenizer:
            self._encoder = Encoder(tokenizer)
        encode, anchors = self._encoder.encode, tokenizer.markers.anchors
        start = offset % len(anchors)
        names = anchors[start:] + anchors[:start]
        parts = tuple(Part(encode(line_text(line)), names[i]) for i, line in enumerate(problem.program.lines))
        steps: tuple[Step, ...] = ()
        if with_steps:
            steps = tuple(
                Step(
                    tuple(names[read] for read in step.reads), names[step.name], encode(step.work), encode(step.result)
                )
                for step in problem.reductions
            )
        return Example(self._encoder.scaffold, parts, steps)

    def draft_hints(self, tokenizer: Tokenizer) -> DraftHints:
        """A step reads its line and a value more often than anything else; results open with a name of the line."""
        return DraftHints(2, recurs=True)

    def answer(self, output_text: str) -> str | None:
        """What the steps print, as Python prints it; several lines of it one behind the other."""
        found = (_PRINT.fullmatch(line) for line in output_text.split("\n"))
        shown = [as_printed(match[1]) for match in found if match]
        return PRINTED_TOGETHER.join(shown) if shown else None

    def surprise(self, seed: int) -> str:
        """A random program of 10 to 60 steps that training never saw."""
        rng = random.Random(f"surprise {seed}")
        return random_problem(rng, rng.randint(10, 60), held_out=True).text

    def similar(self, problem: TraceProblem, seed: int) -> Iterator[TraceProblem]:
        """Random programs, without end, of as many steps as `problem` has, give or take a quarter of them."""
        rng = random.Random(f"similar {seed}")
        spread = problem.num_steps // 4
        fewest, most = max(3, problem.num_steps - spread), min(MAX_STEPS, problem.num_steps + spread)
        while True:
            yield random_problem(rng, rng.randint(fewest, most))
