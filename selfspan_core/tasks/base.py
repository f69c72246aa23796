"""The interface of a task: parsing the input, rendering prompt and worked steps, checking an answer. No torch here."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar

from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.rules import Rules
from selfspan_core.errors import InputError
from selfspan_core.params import MAX_NEW_TOKENS
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Rendered


class Tokenizer(Protocol):
    """The part of a tokenizer that tasks use (`selfspan_core.models.tokenizer.SpanTokenizer` is one)."""

    @property
    def markers(self) -> Markers:
        """Ids of the protocol's markers."""
        ...

    @property
    def pad_id(self) -> int:
        """Id for padding rows."""
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
        """The text of a single id, or the name of a marker or special token."""
        ...

    def id_bytes(self) -> tuple[tuple[bytes, ...], frozenset[int]] | None:
        """The bytes of every id, where a text is these one behind the other, as UTF-8; None where it is not.

        And the ids that stand for one byte, and are text only where a whole run of them is UTF-8.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """One parsed input.

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
    """A setting of a task besides its input.

    Attributes:
        name: in the API, on the command line (`--name`), and as an argument of the task's class.
        choices: value -> its label on a page.
        default: the value if none is given.
        label: the option's label on a page.
        help: for the command line.
        is_learned: whether a value can be asked only of adapters that were trained on it; the default stands for what
            those learned whose record says nothing of it.
    """

    name: str
    choices: Mapping[str, str]
    default: str
    label: str
    help: str
    is_learned: bool = False

    def values(self, learned: "Learned") -> tuple[str, ...]:
        """What can be asked of adapters, the usual value first."""
        if not self.is_learned:
            return tuple(self.choices)
        known = learned.options.get(self.name) or (self.default,)
        return tuple(
            sorted((value for value in self.choices if value in known), key=lambda value: value != self.default)
        )


class Learned(Protocol):
    """What the adapters that answer a request learned (`selfspan_core.models.learned.Learned` is one)."""

    @property
    def options(self) -> Mapping[str, tuple[str, ...]]:
        """Option -> the values that they were trained on, for options whose values have to be learned."""
        ...

    @property
    def document_tokens(self) -> int | None:
        """Most tokens of a document in training; None where it is not recorded."""
        ...

    @property
    def head_tokens(self) -> int | None:
        """What headers saw of each segment in training (`spans.protocol.PromptLayout`)."""
        ...


@dataclass(frozen=True)
class Tool:
    """How programs ask for a task's answers: a function of the API and of MCP (`serve.tools`).

    Attributes:
        name: of the function.
        about, how: sentences about what it does, and how.
        argument, about_argument: the input's name, and what it may be.
    """

    name: str
    about: str
    argument: str
    about_argument: str
    how: str = "Its attention reads what each step names, and the result says what that was."


@dataclass(frozen=True)
class PageText:
    """A task's texts for the page and the command line; `tasks.page` builds the controls.

    Attributes:
        tab: name of its tab.
        pitch: a phrase for its work, as in "Watch one model do it both ways: <pitch>."
        pitch_alone: the same if it is the only task.
        label, placeholder, info: texts of the input box.
        box: element id of the input box.
        example: the word for an example.
        prompt: the prompt for a user who types an input in a terminal.
        suffix: suffix of the element ids of its buttons.
        run: label of the button that begins a run.
        lines, max_lines: height of the input box.
        can_surprise: whether there is a button that makes up an input.
        cleans: whether its inputs are cleaned, so that there is a control to use one as it was pasted.
        max_new_tokens: most tokens of an answer; MAX_NEW_TOKENS: the page has a slider for it.
        tool: how programs ask for answers; None: by the API's stream alone.
        stories: inputs to offer on the page, by short names of what they are about; empty: the task's examples.
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
    cleans: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    tool: Tool | None = None
    stories: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The display of a task's runs.

    Attributes:
        pane: "line": the prompt is a line with names; "document": sentences; "code": lines of a program, beside a table
            of the variables that steps write as ` name=value`.
        answer, step: the words for an answer and a step.
        typeset: whether arithmetic signs are set in type.
        source, segment: the words for what both lanes read, as a heading, and for a part of it that has a name.
    """

    pane: Literal["line", "document", "code"] = "line"
    answer: str = "answer"
    step: str = "step"
    typeset: bool = False
    source: str = "The expression"
    segment: str = "number"


EvaluationKind = Literal["problems", "summaries"]
"""How answers are measured. "problems": fresh ones of the task's generator, each answered right or wrong. "summaries":
of prepared articles, by ROUGE against references and by what their words are drawn from."""


class Generator(Protocol):
    """Problems without end, for training and for evaluation.

    Attributes:
        problems_name: the word for problems, in the plural: "expressions".
        size_name: unit of a problem's size, in the plural: "operands".
        sizes: default sizes of an evaluation.
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
        """A random size from the distribution for training."""
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
    """A warning that an input's answer may be poor: the reason, and the input's beginning that is answered better."""

    text: str
    beginning: str


@dataclass(frozen=True)
class Cleaned:
    """A pasted text in the form that a task's parser reads best.

    Attributes:
        text: the text.
        done: what was done to it, in counts and words: "12 line breaks joined"; empty if nothing was.
    """

    text: str
    done: tuple[str, ...] = ()


class Task(Protocol[ProblemT]):
    """A kind of problem.

    Attributes:
        name: its name on the command line, in the API and in the configs.
        answers: the word for its answers, in the plural.
        options: its settings besides the input; arguments of its class.
        page, view: texts for the page and the command line, and the display of runs.
        generator: source of problems for training and evaluation; None if they are prepared files.
        evaluation: how its answers are measured: the task's evaluation, and the tables of its results file in the
            report. "problems" needs a generator.
        examples: inputs to offer to a user.
        max_reads_intervals: the most intervals that any query of a worked step sees (scaffold, reads, own step).
        max_tokens: the most tokens that a worked example takes, prompt included.
        has_right_answer: whether an answer is right or wrong; a summary, for example, is neither.
        is_line: whether an input is one line of text; otherwise it is a whole text.
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

    @property
    def rules_text(self) -> str:
        """The decoding rules, in a sentence for the user; empty if the model decodes freely."""
        ...

    def for_model(self, max_context: int, learned: Learned) -> "Task[ProblemT]":
        """The same task for a model: with its context, and as its adapters learned to be asked."""
        ...

    def clean(self, text: str) -> Cleaned:
        """The text as `parse` reads it best, whatever a user pasted; a text that is clean stays as it is."""
        ...

    def parse(self, text: str) -> ProblemT:
        """Parse a user's input. Raises InputError."""
        ...

    def example(self, problem: ProblemT, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        ...

    def render(
        self, problem: ProblemT, tokenizer: Tokenizer, annotated: bool, offset: int = 0, with_steps: bool = False
    ) -> Rendered:
        """The example laid out with markers (`annotated`) or as the same text without a single one."""
        ...

    def draft_hints(self, tokenizer: Tokenizer) -> DraftHints:
        """What helps to draft its steps; DraftHints() where nothing does."""
        ...

    def rules(self, prompt: Rendered, tokenizer: Tokenizer, annotated: bool) -> Rules | None:
        """The decoding rules for one run of a prompt; None if there are none."""
        ...

    def caution(self, problem: ProblemT, num_prompt_tokens: int, tokenizer: Tokenizer) -> Caution | None:
        """A warning about answers to a prompt of that length, or None."""
        ...

    def answer(self, output_text: str) -> str | None:
        """The answer in a model's output, markers dropped and each step on its own line; None if there is none."""
        ...

    def check(self, problem: ProblemT, answer: str | None) -> bool:
        """Whether an answer is right."""
        ...

    def remark(self, problem: ProblemT, answer: str) -> str:
        """What a reader should know of an answer that is neither right nor wrong; empty where there is nothing."""
        ...

    def surprise(self, seed: int) -> str:
        """An input made up from `seed`."""
        ...

    def similar(self, problem: ProblemT, seed: int) -> Iterator[ProblemT]:
        """Other problems of about the same size, without end; the same ones for the same seed."""
        ...


def not_learned(option: Option, value: str, learned: Learned, model: str, others: Sequence[str]) -> str:
    """The message about a value of an option that a model's adapters were not trained on.

    Args:
        model: its name.
        others: names of models whose adapters were.
    """
    known = " and ".join(option.values(learned))
    instead = f"Choose {' or '.join(others)} for that, or leave" if others else "Leave"
    return (
        f"The model {model} has not learned the {option.name} {value}, only {known}. {instead} the {option.name} out."
    )


def read_pasted(task: Task[ProblemT], text: str, clean: bool) -> tuple[ProblemT, Cleaned]:
    """What a user asks, and the text that was parsed: cleaned, or as it was pasted. Raises InputError."""
    cleaned = task.clean(text) if clean else Cleaned(text)
    try:
        return task.parse(cleaned.text), cleaned
    except InputError as error:
        if not cleaned.done or type(error) is not InputError:
            raise
        # Its author sees another text than the one that is meant.
        raise InputError(f"{error} The text was cleaned before that: {', '.join(cleaned.done)}.") from None
