"""Texts that the shipped models wrote, to be replayed through other shapes: worked expressions, and summaries."""

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import SamplingParams
from selfspan_core.paths import BASE
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.form import MAX_SEGMENTS, MAX_SUMMARY_TOKENS
from selfspan_core.tasks.summarize.task import Summarize, SummarizeProblem, problem_of
from training.bench.replay import Recording, record_requests
from training.data.generated import evaluation_set

LONGEST_SUMMARIZED = 1900
"""Tokens of the longest article that the model itself is given; of a longer one it summarizes the beginning."""


@dataclass(frozen=True)
class Text:
    """Recordings of one kind of input; the first is the most typical one, since it stands alone at batch 1.

    Attributes:
        name: like "64 operands".
        span, plain: what the span adapter wrote, self-selected, and what the plain adapter wrote.
        hints: of the task, for drafts.
    """

    name: str
    span: list[Recording]
    plain: list[Recording]
    hints: DraftHints


def name_of_expressions(operands: int) -> str:
    """Of a text."""
    return f"{operands} operands"


def name_of_articles(num_tokens: int) -> str:
    """Of a text."""
    return f"{num_tokens}-token articles"


def typical_first(span: list[Recording], plain: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """The same recordings, with the pair in front whose lengths are nearest their means."""
    means = [statistics.fmean(len(one.ids) for one in side) for side in (span, plain)]

    def distance(number: int) -> float:
        return sum(abs(len(side[number].ids) / mean - 1) for side, mean in zip((span, plain), means, strict=True))

    order = sorted(range(len(span)), key=lambda number: (number != min(range(len(span)), key=distance), number))
    return [span[number] for number in order], [plain[number] for number in order]


def weights_of(adapter: str, device: torch.device, model: str = DEFAULT_MODEL) -> DecodeWeights:
    """A model's base with its shipped adapter, like "arithmetic-span"; in 16 bits on CUDA, else in 32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    task, _, kind = adapter.rpartition("-")
    base = BASE if model == DEFAULT_MODEL else model
    return DecodeWeights(SpanModel.load(base, MODELS[model].adapter_folder(task, kind), str(device), dtype))


def expressions(operands: int, num: int, seed: int, device: torch.device) -> Text:
    """Fresh expressions, answered."""
    task, made = get_task("arithmetic"), {}
    problems = evaluation_set(task, operands, num, seed)
    for adapter in ("span", "plain"):
        weights = weights_of(f"arithmetic-{adapter}", device)
        tokenizer, annotated = weights.model.tokenizer, adapter == "span"
        prompts = [task.render(problem, tokenizer, annotated) for problem in problems]
        requests = [PromptRequest(prompt, annotated) for prompt in prompts]
        shape = BatchShape(min(num, 64), weights.model.max_context, not annotated)
        made[adapter] = record_requests(BatchEngine(weights, tokenizer.markers, shape), requests).recordings
    return Text(name_of_expressions(operands), *typical_first(made["span"], made["plain"]), task.draft_hints(tokenizer))


def articles(num_tokens: int, num: int, seed: int, tokenizer) -> list[SummarizeProblem]:
    """Articles of about so many tokens: sentences of the project's own examples, article after article, in an order
    that is theirs alone."""
    task = get_task("summarize")
    pools = [list(task.parse(text).sentences) for text in task.examples]
    found = []
    for number in range(num):
        rng = random.Random(f"article {seed} {number}")
        sentences: list[str] = []
        length = 0
        for sentence in itertools.chain.from_iterable(_shuffled(pools, rng) for _ in range(MAX_SEGMENTS)):
            length += len(tokenizer.encode(f" {sentence}")) + 1
            if length > num_tokens or len(sentences) == MAX_SEGMENTS:
                break
            sentences.append(sentence)
        found.append(problem_of(sentences))
    return found


def _shuffled(pools: Sequence[list[str]], rng: random.Random) -> list[str]:
    """All sentences, article after article."""
    order = list(pools)
    rng.shuffle(order)
    return [sentence for pool in order for sentence in rng.sample(pool, len(pool))]


def summaries(num_tokens: int, num: int, seed: int, device: torch.device) -> Text:
    """Medium summaries of articles; an article beyond LONGEST_SUMMARIZED is one of that length with more behind it."""
    task, made = get_task("summarize", length="medium"), {}
    for adapter in ("span", "plain"):
        weights = weights_of(f"summarize-{adapter}", device)
        tokenizer, annotated = weights.model.tokenizer, adapter == "span"
        problems = articles(min(num_tokens, LONGEST_SUMMARIZED), num, seed, tokenizer)
        prompts = [task.render(problem, tokenizer, annotated) for problem in problems]
        sampling = SamplingParams(MAX_SUMMARY_TOKENS)
        requests = [PromptRequest(p, annotated, sampling, task.rules(p, tokenizer, annotated)) for p in prompts]
        longest = max(prompt.prompt.num_tokens for prompt in prompts) + MAX_SUMMARY_TOKENS
        shape = BatchShape(min(num, 8), longest, not annotated, with_rules=True)
        recordings = record_requests(BatchEngine(weights, tokenizer.markers, shape), requests).recordings
        if num_tokens > LONGEST_SUMMARIZED:
            longer = articles(num_tokens, num, seed, tokenizer)
            whole = Summarize("medium", max_context=4 * num_tokens)
            rendered = [whole.render(problem, tokenizer, annotated) for problem in longer]
            pairs = zip(recordings, rendered, strict=True)
            recordings = [behind_more(one, more, tokenizer.markers) for one, more in pairs]
        made[adapter] = recordings
    return Text(name_of_articles(num_tokens), *typical_first(made["span"], made["plain"]), task.draft_hints(tokenizer))


def behind_more(recording: Recording, longer: Rendered, markers: Markers) -> Recording:
    """The same summary behind a longer article that begins with the same sentences.

    Names of the article stay; those that steps took move on by as many as the article has more.
    """
    taken, index = recording.layout.segments, markers.anchor_index
    shift = len(longer.prompt.segments) - len(taken)

    def moved(token: int) -> int:
        if token not in index or token in taken:
            return token
        return markers.anchors[(index[token] + shift) % len(markers.anchors)]

    prompt = tuple(longer.ids[: longer.prompt.num_tokens])
    return replace(recording, layout=longer.prompt, ids=tuple(map(moved, recording.ids)), prompt=prompt)
