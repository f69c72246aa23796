"""Tasks: what a user may type, how it becomes a prompt and worked steps, how an answer is checked. No torch here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from selfspan_core.engine.rules import Rules
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Rendered


class Tokenizer(Protocol):
    """What a task needs of a tokenizer (`selfspan_core.models.tokenizer.SpanTokenizer` is one)."""

    @property
    def markers(self) -> Markers:
        """Ids of the protocol's markers."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: never a marker, `<bos>` or `<eos>`."""
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


class Caution(NamedTuple):
    """An input whose answer may be poor: why, and the part of it from its beginning that is answered better."""

    text: str
    beginning: str


class Task(Protocol):
    """A kind of problem.

    Attributes:
        name: what the command line, the API and the configs call it.
        answers: what it gives, in words and in the plural.
        options: what it can be asked for besides an input; arguments of its class.
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
    examples: tuple[str, ...]
    max_reads_intervals: int
    max_tokens: int
    has_right_answer: bool
    is_line: bool
    rules_text: str

    def parse(self, text: str) -> Problem:
        """Understand what a user typed. Raises InputError."""
        ...

    def example(self, problem: Problem, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        ...

    def render(
        self, problem: Problem, tokenizer: Tokenizer, annotated: bool, offset: int = 0, with_steps: bool = False
    ) -> Rendered:
        """The example laid out with markers (`annotated`) or as the same text without a single one."""
        ...

    def rules(self, prompt: Rendered, tokenizer: Tokenizer, annotated: bool) -> Rules | None:
        """What decoding is held to in one run of a prompt; None where it is not."""
        ...

    def caution(self, problem: Problem, num_prompt_tokens: int, tokenizer: Tokenizer) -> Caution | None:
        """What a user should know of answers to a prompt of that length; None if there is nothing to say."""
        ...

    def answer(self, output_text: str) -> str | None:
        """The answer in a model's output, markers dropped and each step on its own line; None if there is none."""
        ...

    def check(self, problem: Problem, answer: str | None) -> bool:
        """Whether an answer is right."""
        ...

    def surprise(self, seed: int) -> str:
        """An input made up from `seed`."""
        ...

    def similar(self, problem: Problem, seed: int) -> Iterator[Problem]:
        """Other problems of about the same size, without end; the same ones for the same seed."""
        ...
