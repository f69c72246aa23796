"""Figures of summaries: ROUGE against references, and what can be checked without one.

ROUGE is that of the package rouge-score, with stemming. Intervals are bootstraps over articles.
"""

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from rouge_score import rouge_scorer

from selfspan_core.tasks.summarize.own_words import word_runs, words_of
from selfspan_core.tasks.summarize.written import WrittenStep
from training.data.summary_annotation import Article, annotate
from training.data.summary_shorten import shorten

METRICS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeL"}
NUM_RESAMPLES = 1000
LENGTHS = (0, 300, 500, 800, 10_000)
LONG_LENGTHS = (0, 600, 900, 1400, 10_000)
"""Bounds of an article's words, where its beginning is compared with the rest."""
RANDOM_DRAWS = 5


@dataclass(frozen=True)
class Item:
    """An article of an evaluation set.

    Attributes:
        name: SET/ID.
        sentences: of the article.
        references: one or several.
    """

    name: str
    sentences: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def num_words(self) -> int:
        """Words of the article."""
        return sum(len(sentence.split()) for sentence in self.sentences)


@dataclass(frozen=True)
class Written:
    """What one lane wrote of an article; attended and dense tokens are keys read by its decode queries."""

    steps: tuple[WrittenStep, ...]
    num_tokens: int
    attended: int
    dense: int
    is_finished: bool

    @property
    def text(self) -> str:
        """The summary."""
        return " ".join(step.text for step in self.steps if step.text)


@cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(METRICS), use_stemmer=True)


def rouge(references: Sequence[str], summary: str) -> dict[str, list[float]]:
    """F1 in percent per metric, one per reference."""
    scores = [_scorer().score(reference, summary) for reference in references]
    return {metric: [100 * score[metric].fmeasure for score in scores] for metric in METRICS}


def interval(values: Sequence[float], seed: int = 0) -> list[float]:
    """Bounds of the mean that 95 % of bootstrap samples lie within."""
    array = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(len(array), size=(NUM_RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), [2.5, 97.5])
    return [round(float(low), 2), round(float(high), 2)]


def rouge_figures(items: Sequence[Item], summaries: Sequence[str]) -> dict:
    """Mean ROUGE with intervals: of the best reference, and, where there are several, of all of them."""
    scores = [rouge(item.references, summary) for item, summary in zip(items, summaries, strict=True)]
    kinds: dict[str, Callable] = {"best": max} if all(len(item.references) == 1 for item in items) else {}
    kinds = kinds or {"best": max, "mean": statistics.fmean}
    figures = {}
    for metric in METRICS:
        for kind, pick in kinds.items():
            values = [pick(score[metric]) for score in scores]
            key = metric if kind == "best" else f"{metric}_mean"
            figures[key] = round(statistics.fmean(values), 2)
            figures[f"{key}_interval"] = interval(values)
    figures["mean_words"] = round(statistics.fmean(len(summary.split()) for summary in summaries), 1)
    return figures


def is_subsequence(words: Sequence[str], source: Sequence[str]) -> bool:
    """Whether all words stand in the source, in this order."""
    rest = iter(source)
    return all(word in rest for word in words)


def has_repetition(text: str) -> bool:
    """Whether a run of REPEATED_WORDS words comes twice."""
    runs = word_runs(text)
    return len(set(runs)) < len(runs)


@dataclass(frozen=True)
class Checked:
    """A step against its sources: the sentences that it names, or, of a plain lane, the sentence it fits best.

    Attributes:
        num_words, num_found: words of its sentence, and how many of them its sources hold.
        num_source_words: words of its sources.
        is_copied: its words are its sources' words, in order: copied or shortened.
        is_whole: all of them.
    """

    num_words: int
    num_found: int
    num_source_words: int
    is_copied: bool
    is_whole: bool


def check_step(step: WrittenStep, sentences: Sequence[str]) -> Checked:
    """See `Checked`."""
    words = words_of(step.text)
    if step.reads:
        candidates = [[word for read in sorted(step.reads) for word in words_of(sentences[read])]]
    else:
        candidates = [words_of(sentence) for sentence in sentences]
    held = lambda source: sum(word in source for word in words)  # noqa: E731
    source = max(candidates, key=lambda source: (is_subsequence(words, source), held(set(source))))
    return Checked(
        len(words), held(set(source)), len(source), bool(words) and is_subsequence(words, source), words == source
    )


def check_figures(items: Sequence[Item], written: Sequence[Written]) -> dict:
    """What can be checked without a reference; shares in percent."""
    pairs = [(item, one, step) for item, one in zip(items, written, strict=True) for step in one.steps]
    steps = [(step, check_step(step, item.sentences)) for item, _, step in pairs]
    num_words = sum(checked.num_words for _, checked in steps)
    share = lambda flags: round(100 * statistics.fmean(flags), 2) if (flags := list(flags)) else None  # noqa: E731
    dense = sum(one.dense for one in written)
    return {
        "steps": len(steps),
        "mean_steps": round(len(steps) / len(items), 2),
        "mean_tokens": round(statistics.fmean(one.num_tokens for one in written), 1),
        "grounded_words_percent": round(100 * sum(c.num_found for _, c in steps) / max(1, num_words), 2),
        "steps_with_ungrounded_word_percent": share(c.num_found < c.num_words for _, c in steps),
        "copied_or_shortened_percent": share(c.is_copied for _, c in steps),
        "copied_whole_percent": share(c.is_whole for _, c in steps),
        "words_of_source_words_percent": round(
            100 * num_words / max(1, sum(checked.num_source_words for _, checked in steps)), 2
        ),
        "malformed_steps_percent": share(step.malformed for step, _ in steps),
        "cut_sentences_percent": share(step.is_cut for step, _ in steps),
        "steps_reading_two_percent": share(len(step.reads) == 2 for step, _ in steps),
        "sentences_read_twice_percent": share(_reads_twice(one) for one in written),
        "summaries_repeating_4_words_percent": share(has_repetition(one.text) for one in written),
        "empty_summaries_percent": share(not one.text for one in written),
        "unfinished_percent": share(not one.is_finished for one in written),
        "attended_percent_of_dense": round(100 * sum(one.attended for one in written) / max(1, dense), 2),
        "attended_by_article_words": _attended_by_length(items, written),
        "first_sentences_read": _places(written),
        "first_read_beyond_a_tenth": _first_reads(items, written),
    }


def _reads_twice(written: Written) -> bool:
    reads = [read for step in written.steps for read in step.reads]
    return len(set(reads)) < len(reads)


def _attended_by_length(items: Sequence[Item], written: Sequence[Written]) -> dict[str, dict]:
    """Share of dense attention's reads, by the article's number of words."""
    found = {}
    for low, high in itertools.pairwise(LENGTHS):
        chosen = [one for item, one in zip(items, written, strict=True) if low <= item.num_words < high]
        dense = sum(one.dense for one in chosen)
        if dense:
            name = f"{low} to {high - 1}" if high < LENGTHS[-1] else f"{low} and more"
            attended = round(100 * sum(one.attended for one in chosen) / dense, 2)
            found[name] = {"articles": len(chosen), "attended_percent_of_dense": attended}
    return found


def _first_reads(items: Sequence[Item], written: Sequence[Written]) -> dict[str, dict]:
    """How often (percent) a summary's first read lies beyond an article's first tenth, by the article's words.

    Of an article of up to ten sentences that tenth is its first sentence.
    """
    found = {}
    for low, high in itertools.pairwise(LONG_LENGTHS):
        firsts = [
            (one.steps[0].reads[0], len(item.sentences))
            for item, one in zip(items, written, strict=True)
            if low <= item.num_words < high and one.steps and one.steps[0].reads
        ]
        if firsts:
            name = f"{low} to {high - 1}" if high < LONG_LENGTHS[-1] else f"{low} and more"
            beyond = round(100 * statistics.fmean(place >= max(1, number / 10) for place, number in firsts), 1)
            found[name] = {"articles": len(firsts), "percent": beyond}
    return found


def _places(written: Sequence[Written]) -> dict[str, float]:
    """How often (percent of the summaries) each of the first sentences is read, and any later one."""
    reads = [{read for step in one.steps for read in step.reads} for one in written]
    if not any(reads):
        return {}
    shares = {str(place + 1): round(100 * statistics.fmean(place in row for row in reads), 1) for place in range(4)}
    return shares | {"later": round(100 * statistics.fmean(any(place > 3 for place in row) for row in reads), 1)}


# ------------------------------------------------------------------------------------------------------------ baselines


def baselines(items: Sequence[Item]) -> dict[str, dict]:
    """What summaries without a model are worth: first sentences, random ones, and what an oracle picks."""
    figures = {
        f"lead-{num}": rouge_figures(items, [" ".join(item.sentences[:num]) for item in items]) for num in (1, 2, 3)
    }
    draws = [rouge_figures(items, [_random_two(item, draw) for item in items]) for draw in range(RANDOM_DRAWS)]
    figures["random-2"] = {
        key: round(statistics.fmean(draw[key] for draw in draws), 2) for key in draws[0] if "interval" not in key
    } | {"draws": RANDOM_DRAWS}
    picked = [oracle(item) for item in items]
    figures["oracle"] = rouge_figures(items, [whole for whole, _ in picked])
    figures["oracle shortened"] = rouge_figures(items, [short for _, short in picked])
    return figures


@cache
def _lead_rouge_l(item: Item, num: int) -> float:
    return max(rouge(item.references, " ".join(item.sentences[:num]))["rougeL"])


def over_leads(items: Sequence[Item], summaries: Sequence[str]) -> dict[str, dict]:
    """By how much ROUGE-L F1 (percent, best reference) is above the first 1 to 3 sentences', article by article.

    Returns:
        `lead-1` to `lead-3`: the mean `difference` and its 95 % bootstrap `interval` over articles.
    """
    scores = [max(rouge(item.references, summary)["rougeL"]) for item, summary in zip(items, summaries, strict=True)]
    figures = {}
    for num in (1, 2, 3):
        gains = [score - _lead_rouge_l(item, num) for item, score in zip(items, scores, strict=True)]
        figures[f"lead-{num}"] = {"difference": round(statistics.fmean(gains), 2), "interval": interval(gains)}
    return figures


def _random_two(item: Item, draw: int) -> str:
    places = random.Random(f"{item.name} {draw}").sample(range(len(item.sentences)), min(2, len(item.sentences)))
    return " ".join(item.sentences[place] for place in sorted(places))


def oracle(item: Item) -> tuple[str, str]:
    """The sentences that a reference's are aligned with, one each: whole, and shortened towards it.

    Of several references the one that makes the best summary (ROUGE-L, best reference) is looked at.
    """
    found = [_oracle_of(item, reference) for reference in item.references]
    return max(found, key=lambda pair: max(rouge(item.references, pair[1])["rougeL"]) if len(found) > 1 else 0)


def _oracle_of(item: Item, reference: str) -> tuple[str, str]:
    from selfspan_core.tasks.summarize.text import clean, sentences_of

    article = Article(item.sentences)
    wanted: dict[int, list[str]] = {}
    for step in annotate(article, sentences_of(clean(reference))).steps:
        wanted.setdefault(article.best_of(step), []).append(step.reference)
    whole = " ".join(item.sentences[place] for place in wanted)
    return whole, " ".join(shorten(item.sentences[place], " ".join(refs)) for place, refs in wanted.items())
