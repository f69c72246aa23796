"""A toy task: a list of words reversed, one word a step, each step naming the word that it reads.

It exists to show what a task costs: this file, and a line in the registry.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import InputError
from selfspan_core.spans.render import Example, Part, Rendered, Step, render, render_plain
from selfspan_core.tasks.base import Cleaned, PageText, Problem, Tokenizer, View

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark", "mole", "newt")


@dataclass(frozen=True)
class Reversal:
    """One step: the word read, the name of the step, and what is written."""

    reads: tuple[int, ...]
    name: int
    work: str
    result: str


@dataclass(frozen=True)
class ReverseProblem(Problem):
    """A list of words."""

    words: tuple[str, ...]

    @property
    def reductions(self) -> tuple[Reversal, ...]:
        """The worked steps."""
        count = len(self.words)
        return tuple(
            Reversal((count - 1 - number,), count + number, "", f" {word}")
            for number, word in enumerate(reversed(self.words))
        )

    @property
    def num_steps(self) -> int:
        """Worked steps."""
        return len(self.words)

    @property
    def num_tokens(self) -> int:
        """Most tokens of the worked example."""
        return 16 + 16 * len(self.words)


def problem_of(words) -> ReverseProblem:
    """The problem that words pose."""
    display = (*((f" {word}", number) for number, word in enumerate(words)), (" =", None))
    return ReverseProblem(" ".join(words), " ".join(reversed(words)), display, tuple(words))


class ReverseGenerator:
    """See `tasks.base.Generator`. Held out are lists whose first word comes before their last in the alphabet."""

    problems_name = "lists"
    size_name = "words"
    sizes = (2, 3)
    least, most = 2, 8
    variants = ()

    def problem(self, rng: random.Random, size: int, held_out: bool | None, variant: str = "") -> ReverseProblem:
        """Different words."""
        words = rng.sample(WORDS, size)
        if held_out is not None and (words[0] < words[-1]) != held_out:
            words.reverse()
        return problem_of(words)

    def training_size(self, rng: random.Random) -> int:
        """Any."""
        return rng.randint(2, 4)


class Reverse:
    """Words in reverse order. See `tasks.base.Task`."""

    name = "reverse"
    answers = "reversals"
    options = ()
    view = View(answer="reversal")
    page = PageText(
        tab="Reverse",
        pitch="reverse a list",
        pitch_alone="reverse the same list both ways",
        label="Words",
        placeholder="ant bee cat",
        info="2 to 8 words.",
        box="words",
        example=lambda text: f"{len(text.split())} words",
        prompt="Type words, then Ctrl-D.",
        suffix="-reverse",
    )
    generator = ReverseGenerator()
    evaluation = "problems"
    examples = ("ant bee", "ant bee cat dog")
    max_reads_intervals = 3
    max_tokens = 256
    has_right_answer = True
    is_line = True
    rules_text = ""

    def for_model(self, max_context: int, learned) -> "Reverse":
        """The task itself."""
        return self

    def clean(self, text: str) -> Cleaned:
        """The text itself."""
        return Cleaned(text)

    def parse(self, text: str) -> ReverseProblem:
        """Words of letters."""
        words = text.split()
        if not 2 <= len(words) <= 8 or not all(map(str.isalpha, words)):
            raise InputError("Type 2 to 8 words.")
        return problem_of(words)

    def example(self, problem, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False) -> Example:
        """See Task."""
        markers = tokenizer.markers
        encode = lambda text: tuple(tokenizer.encode(text))  # noqa: E731
        name = lambda index: None if index is None else markers.name(offset, index)  # noqa: E731
        parts = tuple(Part(encode(text), name(index)) for text, index in problem.display)
        steps = tuple(
            Step(tuple(map(name, step.reads)), name(step.name), (), encode(step.result)) for step in problem.reductions
        )
        start = () if markers.bos is None else (markers.bos,)
        return Example((*start, *encode("Reverse:")), parts, steps if with_steps else ())

    def render(
        self, problem, tokenizer: Tokenizer, annotated: bool, offset: int = 0, with_steps: bool = False
    ) -> Rendered:
        """See Task."""
        example = self.example(problem, tokenizer, offset, with_steps)
        if annotated:
            return render(example, tokenizer.markers)
        return render_plain(example, tokenizer.markers, tuple(tokenizer.encode("\n")))

    def draft_hints(self, tokenizer) -> DraftHints:
        """A step copies the word that it reads."""
        return DraftHints(1, behind=(tokenizer.markers.end,))

    def rules(self, prompt, tokenizer, annotated) -> None:
        """None."""

    def caution(self, problem, num_prompt_tokens, tokenizer) -> None:
        """Nothing to say."""

    def answer(self, output_text: str) -> str | None:
        """All words."""
        return " ".join(output_text.split()) or None

    def check(self, problem: Problem, answer: str | None) -> bool:
        """Whether it is the list reversed."""
        return answer == problem.expected

    def remark(self, problem: Problem, answer: str) -> str:
        """Nothing."""
        return ""

    def surprise(self, seed: int) -> str:
        """Random words."""
        return self.generator.problem(random.Random(seed), 4, None).text

    def similar(self, problem, seed: int) -> Iterator[ReverseProblem]:
        """Other lists of the same length."""
        rng = random.Random(seed)
        while True:
            yield self.generator.problem(rng, len(problem.words), None)
