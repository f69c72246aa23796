"""The summarizing task: an article in, a summary out, whose every sentence first names the sentences it is drawn from.

    prompt   <bos> Summarize: <|a5|> First sentence. <|a6|> Second one. ... \n Summary:
    step     <|ref|> <|a6|> <|a9|> <|go|>  Second one shortened. <|end|>
              header: one or two sentences, new name     body: sees only these, and itself

Two forms of one task: *shorten*, whose bodies are the cited sentences with words left out, and *rewrite*, whose bodies
say the same in other words. They differ in their training data (`training.summary_data`), and in the instruction where
an adapter learned both (`form.INSTRUCTIONS`). The parts are split up: `cleaning` (from a pasted text to an article's),
`text` (accepted input, sentences), `rules` (decoding rules), `written` (reading a model's output).
"""

import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfspan_core.engine.hints import DraftHints
from selfspan_core.errors import InputError, TooLongError
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Example, Part, Rendered, Step, render, render_plain
from selfspan_core.tasks.base import (
    Caution,
    Cleaned,
    EvaluationKind,
    Generator,
    Learned,
    Option,
    PageText,
    Problem,
    Tokenizer,
    Tool,
    View,
)
from selfspan_core.tasks.summarize.cleaning.pipeline import MAX_TYPED_CHARACTERS, cleaned
from selfspan_core.tasks.summarize.examples import EXAMPLES, STORIES
from selfspan_core.tasks.summarize.form import (
    CUE,
    INSTRUCTIONS,
    MAX_CONTEXT,
    MAX_LEARNED_TOKENS,
    MAX_READS,
    MAX_SEGMENTS,
    MAX_SUMMARY_TOKENS,
    STEP_SEPARATOR,
    Form,
    Length,
)
from selfspan_core.tasks.summarize.remark import remark_on
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules, Words

LENGTH = Option(
    "length",
    {"short": "Short: two sentences", "medium": "Medium: three to five"},
    "medium",
    "Length of the summary",
    "of a summary: short (two sentences) or medium (default: three to five)",
)
FORM = Option(
    "form",
    {"shorten": "The article's", "rewrite": "The model's own"},
    "shorten",
    "Words of the summary",
    "of a summary: shorten (default: sentences of the article with words left out) or rewrite (in the model's own "
    "words; of models that learned it)",
    is_learned=True,
)
RULES_TEXT = (
    "Both lanes are held to whole sentences, no sentence or run of eight tokens twice, and the length asked for; "
    "a lane that names its sources names none twice, and none that says four words of its summary again, even if "
    "the summary stays shorter. "
)
OWN_WORDS_TEXT = (
    "A summary in the model's own words has no name and no number that the article does not have, and no four words "
    "in a row twice. "
)
CHOICE_TEXT = "Which sentences to read and what to write of them is the model's choice."

WORDS_PER_TOKEN = 5 / 8
"""Of a prompt, about: names, marks and parts of words take the others."""


@dataclass(frozen=True)
class SummaryStep:
    """One sentence of a summary: the segments it is drawn from, in order, and its text."""

    reads: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class SummarizeProblem(Problem):
    """An article in segments.

    Attributes:
        segments: the named parts: sentences, or several in a row if there are more sentences than names.
        sentences: the article's sentences.
        length: how long the summary is to be.
        steps: a worked summary, where there is one.
    """

    segments: tuple[str, ...]
    sentences: tuple[str, ...]
    length: Length = "medium"
    steps: tuple[SummaryStep, ...] = ()


def problem_of(
    sentences: Sequence[str], length: Length = "medium", steps: Sequence[SummaryStep] = ()
) -> SummarizeProblem:
    """The problem that an article poses; the reads of `steps` are places in `sentences`, as many as there are names."""
    segments = segments_of(sentences)
    display = (*((f" {segment}", index) for index, segment in enumerate(segments)), (CUE, None))
    return SummarizeProblem(
        text=" ".join(sentences),
        expected=" ".join(step.text for step in steps),
        display=display,
        segments=segments,
        sentences=tuple(sentences),
        length=length,
        steps=tuple(steps),
    )


def segments_of(sentences: Sequence[str]) -> tuple[str, ...]:
    """Sentences; if there are more than names, runs of sentences of nearly equal number."""
    num_segments = min(len(sentences), MAX_SEGMENTS)
    bounds = [len(sentences) * i // num_segments for i in range(num_segments + 1)]
    return tuple(" ".join(sentences[start:end]) for start, end in itertools.pairwise(bounds))


class Summarize:
    """Articles of English prose. See `tasks.base.Task`.

    Args:
        length: how long summaries are to be: "short" is two sentences, "medium" three to five.
        max_context: positions of the model; a base with a longer context takes longer articles.
        form: "shorten": sentences of the article with words left out; "rewrite": other words. None: as the model's
            adapters learned it, shorten where they learned both.

    Attributes:
        form: of the summaries.
    """

    name: ClassVar[str] = "summarize"
    answers: ClassVar[str] = "summaries"
    options: ClassVar[tuple[Option, ...]] = (LENGTH, FORM)
    view: ClassVar[View] = View("document", "summary", "sentence", source="The article", segment="sentence")
    page: ClassVar[PageText] = PageText(
        tab="Articles",
        pitch="summarize an article",
        pitch_alone="summarize the same article both ways, in sentences that name their sources",
        label="Article",
        placeholder="Paste an English article.",
        info="Plain English text, from 30 words up to what the model can hold (some 2,000 to 5,000 words).",
        box="article",
        example=lambda text: f"{len(text.split())} words",
        prompt="Paste an article, then Ctrl-D.",
        suffix="-article",
        run="Summarize",
        lines=4,
        max_lines=4,
        cleans=True,
        max_new_tokens=MAX_SUMMARY_TOKENS,
        tool=Tool(
            "summarize",
            "Summarize an English article in a few of its own sentences, each with the sentences it is drawn from.",
            "article",
            "plain English text of 30 words or more, up to some thousands; it may be pasted as it is.",
        ),
        stories=STORIES,
    )
    generator: ClassVar[Generator | None] = None
    evaluation: ClassVar[EvaluationKind] = "summaries"
    max_reads_intervals = 2 + MAX_READS
    examples: tuple[str, ...] = EXAMPLES
    has_right_answer = False
    is_line = False

    def __init__(self, length: Length = "medium", max_context: int = MAX_CONTEXT, form: Form | None = None) -> None:
        if form is not None and form not in INSTRUCTIONS:
            raise InputError(f"The form is one of {', '.join(INSTRUCTIONS)}, not {str(form)[:40]}.")
        if length not in INSTRUCTIONS["shorten"]:
            raise InputError(f"The length is one of {', '.join(INSTRUCTIONS['shorten'])}, not {str(length)[:40]}.")
        self.length, self._asked_form = length, form
        self.form: Form = form or "shorten"
        self._prompted: Form = self.form
        self._learned_tokens = MAX_LEARNED_TOKENS
        self.max_tokens = max_context
        self._tables: RuleTables | None = None

    @property
    def rules_text(self) -> str:
        """The decoding rules of the form, in sentences for the user."""
        return RULES_TEXT + (OWN_WORDS_TEXT if self.form == "rewrite" else "") + CHOICE_TEXT

    def for_model(self, max_context: int, learned: Learned) -> "Summarize":
        """The same task with a model's context, in a form that its adapters learned.

        A form that was asked for is kept, whether it was learned or not; sessions ask that before.
        """
        forms = FORM.values(learned)
        other = copy.copy(self)
        other.max_tokens = max_context
        other._learned_tokens = learned.document_tokens or MAX_LEARNED_TOKENS
        other.form = self._asked_form or forms[0]  # type: ignore[assignment]
        # An adapter of one form alone was never told which.
        other._prompted = other.form if len(forms) > 1 else "shorten"
        return other

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of a prompt: the context minus room for the summary."""
        return self.max_tokens - min(MAX_SUMMARY_TOKENS, self.max_tokens // 4)

    def clean(self, text: str) -> Cleaned:
        """The text of an article, out of a text as people paste it; see `cleaning`."""
        return cleaned(text)

    def parse(self, text: str) -> SummarizeProblem:
        """Parse a user's text.

        Raises:
            TooLongError: it is longer than any model's context.
            InputError: it cannot be summarized for another reason; the message says which and what to do.
        """
        # Imported here: training reads articles as ids and needs no sentence splitter.
        from selfspan_core.tasks.summarize import text as summarize_text

        if len(text) > MAX_TYPED_CHARACTERS:
            raise _too_long(len(text), summarize_text.clean(text[: summarize_text.MAX_CHARACTERS]))
        text = summarize_text.clean(text)
        if len(text) > summarize_text.MAX_CHARACTERS:
            raise _too_long(len(text), text)
        summarize_text.check(text)
        return problem_of(summarize_text.checked_sentences(text), self.length)

    def _beginning(self, sentences: Sequence[str], tokenizer: Tokenizer, max_prompt_tokens: int) -> str:
        scaffold = scaffold_of(tokenizer, self.length, self._prompted)
        room = max_prompt_tokens - len(tokenizer.encode(CUE)) - 1 - len(scaffold)
        kept = []
        for sentence in sentences:
            room -= len(tokenizer.encode(f" {sentence}")) + 1
            if room < 0:
                break
            kept.append(sentence)
        return " ".join(kept)

    def example(
        self, problem: SummarizeProblem, tokenizer: Tokenizer, offset: int = 0, with_steps: bool = False
    ) -> Example:
        """The prompt, and the worked steps where asked for, as ids; names start at anchor `offset`.

        Raises:
            TooLongError: the model's context does not hold the article and a summary.
        """
        markers = tokenizer.markers
        segments = [tuple(tokenizer.encode(text)) for text, _ in problem.display]
        steps = [tuple(tokenizer.encode(f" {step.text}")) for step in problem.steps] if with_steps else []
        scaffold = scaffold_of(tokenizer, problem.length, self._prompted)
        num_tokens = len(scaffold) + sum(len(ids) + 1 for ids in segments)
        if num_tokens > self.max_prompt_tokens:
            beginning = self._beginning(problem.sentences, tokenizer, self.max_prompt_tokens)
            num_words, num_held = len(problem.text.split()), len(beginning.split())
            raise TooLongError(
                f"The article has {num_words:,} words ({num_tokens:,} tokens); the model's context holds "
                f"{self.max_prompt_tokens:,} tokens beside a summary. Shorten it, or summarize its beginning: the "
                f"first {num_held:,} words fit.",
                beginning,
            )
        return example_of(
            scaffold,
            segments[:-1],
            segments[-1],
            [(step.reads, ids) for step, ids in zip(problem.steps, steps, strict=False)],
            markers,
            offset,
        )

    def render(
        self,
        problem: SummarizeProblem,
        tokenizer: Tokenizer,
        annotated: bool,
        offset: int = 0,
        with_steps: bool = False,
    ) -> Rendered:
        """The example laid out with markers (`annotated`) or as the same text without a single one.

        Raises:
            TooLongError: see `example`.
        """
        example = self.example(problem, tokenizer, offset, with_steps)
        return render_example(example, tokenizer, annotated)

    def draft_hints(self, tokenizer: Tokenizer) -> DraftHints:
        """A step reads a sentence, mostly, and ends behind it."""
        return DraftHints(1, behind=(tokenizer.markers.end,))

    def rules(self, prompt: Rendered, tokenizer: Tokenizer, annotated: bool) -> SummaryRules:
        """The decoding rules of one run of a prompt; see `rules`."""
        ids = prompt.ids[: prompt.prompt.num_tokens]
        # All lanes, and the warm-up, share the tables, which depend on the tokenizer only.
        if self._tables is None or self._tables.tokenizer is not tokenizer:
            self._tables = RuleTables(tokenizer)
        words: Words = "own" if self.form == "rewrite" else "free"
        return SummaryRules(self._tables, ids, prompt.prompt, self.length, annotated, words)

    def caution(self, problem: SummarizeProblem, num_prompt_tokens: int, tokenizer: Tokenizer) -> Caution | None:
        """A warning about an article longer than those in training, in whose middle a small model finds little."""
        # Names and instructions add about an eighth at most; up to that length there is no warning.
        if num_prompt_tokens <= self._learned_tokens * 9 // 8:
            return None
        beginning = self._beginning(problem.sentences, tokenizer, self._learned_tokens)
        num_words = round(self._learned_tokens * WORDS_PER_TOKEN, -2)
        return Caution(
            f"This article is longer than those that the adapters learned from, of up to about {num_words:,.0f} words: "
            "their summaries of such a one often draw on its middle and miss the point. Its first "
            f"{len(beginning.split()):,} words alone are summarized better.",
            beginning,
        )

    def answer(self, output_text: str) -> str | None:
        """The summary: one sentence a line in what a model wrote; None if there is none."""
        lines = [" ".join(line.split()) for line in output_text.split("\n")]
        return " ".join(line for line in lines if line) or None

    def check(self, problem: Problem, answer: str | None) -> bool:
        """Whether there is an answer: no summary is the only right one."""
        return answer is not None

    def remark(self, problem: SummarizeProblem, answer: str) -> str:
        """Words of a summary that its article does not have; see `remark`."""
        return remark_on(answer, problem.text, self.form)

    def surprise(self, seed: int) -> str:
        """One of the examples."""
        return random.Random(f"surprise {seed}").choice(self.examples)

    def similar(self, problem: SummarizeProblem, seed: int) -> Iterator[SummarizeProblem]:
        """The same article with its sentences in another order, without end: as long, and never the same twice."""
        rng = random.Random(f"similar {seed}")
        while True:
            sentences = list(problem.sentences)
            rng.shuffle(sentences)
            yield problem_of(sentences, problem.length)


def _too_long(num_characters: int, text: str) -> TooLongError:
    """The error for a text that is too long to be split; `text` is its beginning, cleaned."""
    from selfspan_core.tasks.summarize import text as summarize_text

    # The offered beginning is about as long as the articles in training.
    beginning = summarize_text.first_sentences(text, 7 * MAX_LEARNED_TOKENS // 2)
    offer = f": the first {len(beginning.split()):,} words, for example." if beginning else "."
    return TooLongError(
        f"The article is {num_characters:,} characters long; the limit is {summarize_text.MAX_CHARACTERS:,} "
        f"characters. Shorten it, or summarize its beginning{offer}",
        beginning,
    )


def scaffold_of(tokenizer: Tokenizer, length: Length, form: Form = "shorten") -> tuple[int, ...]:
    """`<bos>` and the instruction."""
    bos = tokenizer.markers.bos
    return (*(() if bos is None else (bos,)), *tokenizer.encode(INSTRUCTIONS[form][length]))


def example_of(
    scaffold: Sequence[int],
    segments: Sequence[Sequence[int]],
    cue: Sequence[int],
    steps: Sequence[tuple[Sequence[int], Sequence[int]]],
    markers: Markers,
    offset: int,
) -> Example:
    """An example out of ids: segments by name, then the cue, then steps as (places of the segments read, body)."""
    names = [markers.name(offset, index) for index in range(len(segments) + len(steps))]
    parts = [Part(tuple(ids), name) for ids, name in zip(segments, names, strict=False)]
    worked = [
        Step(tuple(names[read] for read in reads), names[len(segments) + number], (), tuple(body))
        for number, (reads, body) in enumerate(steps)
    ]
    return Example(tuple(scaffold), (*parts, Part(tuple(cue))), tuple(worked))


def render_example(example: Example, tokenizer: Tokenizer, annotated: bool) -> Rendered:
    """An example laid out with markers, or without any: then a line break opens each step."""
    if annotated:
        return render(example, tokenizer.markers)
    return render_plain(example, tokenizer.markers, tuple(tokenizer.encode(STEP_SEPARATOR)))
