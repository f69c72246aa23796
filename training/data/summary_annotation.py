"""Which sentences of an article does a summary sentence draw on? Oracle alignment by overlap.

For each reference sentence the article sentence that overlaps with it most (ROUGE-1 plus ROUGE-2 F1 on stems), and a
second one if it adds a good share of the reference that the first lacks; for bodies that are the references themselves,
already if it adds two of its words, a name or a number. A reference of which its sentences hold too little is
unsupported: a model would learn from it to make things up.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from training.data.summary_words import content, details, stems

MIN_COVERAGE = 0.4
SECOND_GAIN = 0.2
MIN_SHARED = 2
NUM_CANDIDATES = 16
TEMPERATURE = 0.03
"""In ROUGE-1 plus ROUGE-2: a choice that scores lower by this much is drawn about a third as often."""


@dataclass(frozen=True)
class Aligned:
    """A reference sentence and where it comes from.

    Attributes:
        reference: its text.
        reads: places of the article sentences that it draws on, in the article's order, one or two.
        coverage: share of its content words that they hold.
    """

    reference: str
    reads: tuple[int, ...]
    coverage: float


class Article:
    """An article's sentences, counted once for any number of alignments."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = tuple(sentences)
        words = [stems(sentence) for sentence in sentences]
        self._unigrams = [Counter(row) for row in words]
        self._bigrams = [Counter(itertools.pairwise(row)) for row in words]
        self.contents = [content(sentence) for sentence in sentences]

    def overlap(self, place: int, unigrams: Counter, bigrams: Counter) -> float:
        """ROUGE-1 plus ROUGE-2 F1 of a sentence against counted reference words."""
        return f1(self._unigrams[place], unigrams) + f1(self._bigrams[place], bigrams)

    def together(self, places: Sequence[int], unigrams: Counter, bigrams: Counter) -> float:
        """The same of several sentences, as one text."""
        own = [sum((counts[place] for place in places), Counter()) for counts in (self._unigrams, self._bigrams)]
        return f1(own[0], unigrams) + f1(own[1], bigrams)

    def best_of(self, step: "Aligned") -> int:
        """Of the sentences that a reference sentence is aligned with the one that holds most of it."""
        wanted = content(step.reference)
        return max(step.reads, key=lambda place: (len(wanted & self.contents[place]), -place))


def f1(candidate: Counter, reference: Counter) -> float:
    """F1 of the common part of two multisets."""
    total = candidate.total() + reference.total()
    return 2 * (candidate & reference).total() / total if total else 0.0


def align(
    article: Article,
    reference: str,
    allowed: Sequence[bool] | None = None,
    min_coverage: float = MIN_COVERAGE,
    is_body: bool = False,
) -> Aligned | None:
    """Where a reference sentence comes from, or None if no one or two sentences support it.

    Args:
        allowed: which sentences may be named (all, if None).
        is_body: the reference itself is what is written, so that whatever it says has to be read: see `_second`.
    """
    words = stems(reference)
    unigrams, bigrams = Counter(words), Counter(itertools.pairwise(words))
    wanted = content(reference)
    places = [i for i in range(len(article.sentences)) if allowed is None or allowed[i]]
    if len(wanted) < MIN_SHARED or not places:
        return None
    # Of sentences with equal overlap, the first: news puts important facts early.
    first = max(places, key=lambda place: (article.overlap(place, unigrams, bigrams), -place))
    held = wanted & article.contents[first]
    reads = [first]
    second = _second(article, first, places, wanted - held, len(wanted), details(reference) if is_body else None)
    if second is not None:
        # Two reads of which the first says nothing that the second does not say are one.
        is_used = not is_body or held - article.contents[second]
        reads = [first, second] if is_used else [second]
        held |= wanted & article.contents[second]
    coverage = len(held) / len(wanted)
    if coverage < min_coverage or len(held) < MIN_SHARED:
        return None
    return Aligned(reference, tuple(sorted(reads)), coverage)


def _second(
    article: Article, first: int, places: Sequence[int], lacking: set[str], num_wanted: int, named: set[str] | None
) -> int | None:
    """The sentence that adds most to the first, the nearest of equals; None if it adds too little.

    Args:
        lacking: content words of the reference that the first sentence does not hold; `num_wanted`: of all of them.
        named: names and numbers of a reference that is the body itself: a second sentence is then worth reading for
            one of them, or for any two words. None: it has to add a good share.
    """
    rest = [place for place in places if place != first]
    if not rest:
        return None
    added = {place: lacking & article.contents[place] for place in rest}
    gains = {place: len(words) + len(words & (named or set())) for place, words in added.items()}
    second = max(rest, key=lambda place: (gains[place], -abs(place - first)))
    least = MIN_SHARED if named is not None else max(MIN_SHARED, SECOND_GAIN * num_wanted)
    return second if gains[second] >= least else None


@dataclass(frozen=True)
class Annotation:
    """A whole summary aligned.

    Attributes:
        steps: one per supported reference sentence.
        num_unsupported: reference sentences that were left out.
    """

    steps: tuple[Aligned, ...]
    num_unsupported: int


def annotate(
    article: Article,
    references: Sequence[str],
    allowed: Sequence[bool] | None = None,
    min_coverage: float = MIN_COVERAGE,
    is_body: bool = False,
) -> Annotation:
    """Align each sentence of a summary; arguments as for `align`."""
    found = [align(article, reference, allowed, min_coverage, is_body) for reference in references]
    return Annotation(tuple(step for step in found if step is not None), sum(step is None for step in found))


def draw_choices(
    article: Article,
    references: Sequence[str],
    size: int,
    count: int,
    rng: random.Random,
    allowed: Sequence[bool] | None = None,
) -> list[tuple[int, ...]]:
    """So many choices of `size` sentences that together say much of a whole summary, each in the article's order.

    A choice is drawn with a probability proportional to exp(score / TEMPERATURE), where the score is ROUGE-1 plus
    ROUGE-2 F1 on stems, because the single best choice is decided by chance. (This alone did not teach a small model
    to choose: docs/log/2026-11-26-summaries-choosing.md.)

    Args:
        references: the summary's sentences.
        allowed: which sentences may be named (all, if None).

    Returns:
        None of them where there are not enough sentences that share words with the summary.
    """
    words = [stems(reference) for reference in references]
    unigrams = Counter(itertools.chain.from_iterable(words))
    bigrams = Counter(itertools.chain.from_iterable(itertools.pairwise(row) for row in words))
    wanted = set().union(*(content(reference) for reference in references)) if references else set()
    places = [
        place
        for place in range(len(article.sentences))
        if (allowed is None or allowed[place]) and len(wanted & article.contents[place]) >= MIN_SHARED
    ]
    alone = {place: article.overlap(place, unigrams, bigrams) for place in places}
    candidates = sorted(sorted(places, key=lambda place: (-alone[place], place))[:NUM_CANDIDATES])
    choices = list(itertools.combinations(candidates, size))
    if not choices:
        return []
    scores = [article.together(choice, unigrams, bigrams) for choice in choices]
    best = max(scores)
    return rng.choices(choices, [math.exp((score - best) / TEMPERATURE) for score in scores], k=count)
