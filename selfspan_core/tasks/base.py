"""Tasks: what a user may type, how it becomes a prompt and worked steps, how an answer is checked. No torch here."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar

from selfspan_core.engine.rules import Rules
from selfspan_core.params import MAX_NEW_TOKENS
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Rendered


class Tokenizer(Protocol):
    """What a task needs of a tokenizer (`selfspan_core.models.tokenizer.SpanTokenizer` is one)."""

    @property
    def markers(self) -> Markers:
        """Ids of the protocol's markers."""
        ...

    @property
    def pad_id(self) -> int:
        """Id that rows are padded with."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: never a marker, `<bos>` or `<eos>`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; markers, `<bos>`, `<eos>` and padding are dropped."""
        ...

    def piece(self, token: int) -> str:
        """What one id looks like on its own."""
        ...


@dataclass(frozen=True)
class Problem:
    """One input, understood.

    Attributes:
        text: its canonical form.
        expected: the right answer as text.
        display: the prompt without its scaffold, as (text, name) pieces in order; `name` is the index of the
            segment's name (the anchor is `(offset + name) % 256`), or None for text that belongs to no segment.
    """

    text: str
    expected: str
    display: tuple[tuple[str, int | None], ...]


ProblemT = TypeVar("ProblemT", bound=Problem)
"""The kind of problem that a task understands."""


@dataclass(frozen=True)
class Option:
    """Something that a task can be asked for besides its input.

    Attributes:
        name: in the API, on the command line (`--name`), and as an argument of the task's class.
        choices: value -> what a page calls it.
        default: the value where none is given.
        label: what a page calls the option.
        help: for the command line.
    """

    name: str
    choices: Mapping[str, str]
    default: str
    label: str
    help: str


@dataclass(frozen=True)
class PageText:
    """What is a task's own on the page and the command line; `tasks.page` builds the controls.

    Attributes:
        tab: its name.
        pitch: what is done, as in "Watch one model do it both ways: <pitch>."
        pitch_alone: the same where it is the only task.
        label, placeholder, info: of the box.
        box: element id of the box.
        example: what an example is called.
        prompt: what a terminal says to who types an input.
        suffix: of the element ids of its buttons.
        run: the button that begins.
        lines, max_lines: of the box.
        can_surprise: whether there is a button that makes up an input.
        max_new_tokens: most tokens of an answer; MAX_NEW_TOKENS: the page has a slider for it.
    """

    tab: str
    pitch: str
    pitch_alone: str
    label: str
    placeholder: str
    info: str
    box: str
    example: Callable[[str], str]
    prompt: str
    suffix: str = ""
    run: str = "Run"
    lines: int = 1
    max_lines: int = 4
    can_surprise: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True)
class View:
    """How a task's runs are shown.

    Attributes:
        pane: "line": the prompt stands in each pane, as a line with names; "document": once, beside both panes.
        answer, step: what they are called.
        typeset: whether arithmetic signs are set in type.
    """

    pane: Literal["line", "document"] = "line"
    answer: str = "answer"
    step: str = "step"
    typeset: bool = False


EvaluationKind = Literal["problems", "summaries"]
"""How answers are measured. "problems": fresh ones of the task's generator, each answered right or wrong. "summaries":
of prepared articles, by ROUGE against references and by what their words are drawn from."""


class Generator(Protocol):
    """Problems without end, for training and for evaluation.

    Attributes:
        problems_name: what the problems are called, in the plural: "expressions".
        size_name: what the size of a problem counts, in the plural: "operands".
        sizes: those that an evaluation asks for by default.
        least, most: bounds of a size.
        variants: names of kinds of problems for training besides the usual one, "".
    """

    problems_name: str
    size_name: str
    sizes: tuple[int, ...]
    least: int
    most: int
    variants: tuple[str, ...]

    def problem(self, rng: random.Random, size: int, held_out: bool | None, variant: str = "") -> "WorkedProblem":
        """A random problem; `held_out` True or False draws from one side of a fixed split only."""
        ...

    def training_size(self, rng: random.Random) -> int:
        """A size as training wants them."""
        ...


class WorkedProblem(Protocol):
    """A problem whose worked steps are known."""

    @property
    def text(self) -> str:
        """See Problem."""
        ...

    @property
    def expected(self) -> str:
        """See Problem."""
        ...

    @property
    def num_tokens(self) -> int:
        """Most tokens of the worked example."""
        ...

    @property
    def num_steps(self) -> int:
        """Steps of the worked example."""
        ...


class Caution(NamedTuple):
    """An input whose answer may be poor: why, and the part of it from its beginning that is answered better."""

    text: str
    beginning: str


class Task(Protocol[ProblemT]):
    """A kind of problem.

    Attributes:
        name: what the command line, the API and the configs call it.
        answers: what it gives, in words and in the plural.
        options: what it can be asked for besides an input; arguments of its class.
        page, view: what the page and the command line say, and how runs are shown.
        generator: where problems for training and evaluation come from; None where they are prepared files.
        evaluation: how its answers are measured; it decides what evaluates the task and what its results file, called
            like the task, looks like in the report. "problems" needs a generator.
        examples: inputs to offer to a user.
        max_reads_intervals: the most intervals that any query of a worked step sees (scaffold, reads, own step).
        max_tokens: the most tokens that a worked example takes, prompt included.
        has_right_answer: whether an answer is right or wrong; of a summary, for example, none is the right one.
        is_line: whether an input is one line of text; else it is a whole text.
        rules_text: what decoding is held to, in a sentence for the user; empty where the model writes what it likes.
    """

    name: ClassVar[str]
    answers: ClassVar[str]
    options: ClassVar[tuple[Option, ...]]
    page: ClassVar[PageText]
    view: ClassVar[View]
    generator: ClassVar[Generator | None]
    evaluation: ClassVar[EvaluationKind]
    examples: tuple[str, ...]
    max_reads_intervals: int
    max_tokens: int
    has_right_answer: bool
    is_line: bool
    rules_text: str

    def parse(self, text: str) -> ProblemT:
        """Understand what a user typed. Raises InputError."""
        ...

    def example(self, problem: ProblemT, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        ...

    def render(
        self, problem: ProblemT, tokenizer: Tokenizer, annotated: bool, offset: int = 0, with_steps: bool = False
    ) -> Rendered:
        """The example laid out with markers (`annotated`) or as the same text without a single one."""
        ...

    def rules(self, prompt: Rendered, tokenizer: Tokenizer, annotated: bool) -> Rules | None:
        """What decoding is held to in one run of a prompt; None where it is not."""
        ...

    def caution(self, problem: ProblemT, num_prompt_tokens: int, tokenizer: Tokenizer) -> Caution | None:
        """What a user should know of answers to a prompt of that length; None if there is nothing to say."""
        ...

    def answer(self, output_text: str) -> str | None:
        """The answer in a model's output, markers dropped and each step on its own line; None if there is none."""
        ...

    def check(self, problem: ProblemT, answer: str | None) -> bool:
        """Whether an answer is right."""
        ...

    def surprise(self, seed: int) -> str:
        """An input made up from `seed`."""
        ...

    def similar(self, problem: ProblemT, seed: int) -> Iterator[ProblemT]:
        """Other problems of about the same size, without end; the same ones for the same seed."""
        ...
