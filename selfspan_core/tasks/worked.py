"""What tasks have in common whose problems are worked out step by step and have one right answer. No torch here."""

import copy
from dataclasses import replace
from typing import ClassVar, Generic, Self

from selfspan_core.spans.render import Example, Rendered, render, render_plain
from selfspan_core.tasks.base import Cleaned, EvaluationKind, Learned, Option, Problem, ProblemT, Tokenizer

STEP_SEPARATOR = "\n"
"""Between worked steps without markers."""


class WorkedTask(Generic[ProblemT]):
    """The parts of `tasks.base.Task` that do not depend on what is worked out: no options, rules or cautions."""

    options: ClassVar[tuple[Option, ...]] = ()
    evaluation: ClassVar[EvaluationKind] = "problems"
    has_right_answer = True
    rules_text = ""
    head_tokens: int | None = None

    def for_model(self, max_context: int, learned: Learned) -> Self:
        """The same task with headers as its adapters learned them; problems are bounded by how long their worked steps
        were in training."""
        return self.with_headers(learned.head_tokens)

    def with_headers(self, head_tokens: int | None) -> Self:
        """The same task, whose headers see so many tokens of each segment; None: everything."""
        if head_tokens == self.head_tokens:
            return self
        other = copy.copy(self)
        other.head_tokens = head_tokens
        return other

    def clean(self, text: str) -> Cleaned:
        """The text itself."""
        return Cleaned(text)

    def example(self, problem: ProblemT, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`."""
        raise NotImplementedError

    def render(
        self, problem: ProblemT, tokenizer: Tokenizer, annotated: bool, offset: int = 0, with_steps: bool = False
    ) -> Rendered:
        """The example laid out with markers (`annotated`) or as the same text without a single one."""
        example = replace(self.example(problem, tokenizer, offset, with_steps), head_tokens=self.head_tokens)
        if annotated:
            return render(example, tokenizer.markers)
        return render_plain(example, tokenizer.markers, tuple(tokenizer.encode(STEP_SEPARATOR)))

    def rules(self, prompt: Rendered, tokenizer: Tokenizer, annotated: bool) -> None:
        """None: there are no decoding rules."""

    def caution(self, problem: Problem, num_prompt_tokens: int, tokenizer: Tokenizer) -> None:
        """None: problems longer than those in training are refused."""
        return None

    def check(self, problem: Problem, answer: str | None) -> bool:
        """Whether an answer is exactly the expected one."""
        return answer == problem.expected

    def remark(self, problem: Problem, answer: str) -> str:
        """None: an answer is right or wrong."""
        return ""
