"""Chooses the sentences of a summary as the editors of a few articles would, for articles that have no summary.

Gradient-boosted trees learn, from articles with editors' highlights, how many words of the highlights a sentence holds
in their order (the longest common subsequence, which ROUGE-L counts). Of an article's best sentences the set is chosen
whose expected ROUGE-L is the highest: hits of a further sentence count for less, because sentences repeat one another.

A language model that learns sets which a few highlights support learns to copy the beginning: what an editor chose is
mostly not to be foreseen. What this model chooses is, and any number of articles can be labelled with it.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool

import numpy as np
from threadpoolctl import threadpool_limits

from training.data.summary_features import TitleWords, features_of
from training.data.summary_foretold import Foretold
from training.data.summary_shorten import shorten_fully
from training.data.summary_words import stems

MAX_PLACES = 60
"""Sentences from the start of an article that are chosen from."""
NUM_BEST = 8
REPEATED_HITS = 0.55
"""What a sentence's hits count for behind each better sentence of the set."""
REFERENCE_WORDS = 36
"""Of the highlights that expected ROUGE-L is reckoned for."""
NUM_FOLDS = 5
NUM_SEEDS = 2
TREES = {"max_iter": 250, "learning_rate": 0.04, "max_leaf_nodes": 12, "min_samples_leaf": 60, "l2_regularization": 5.0}


@dataclass(frozen=True)
class Candidates:
    """An article's sentences that a summary may be made of.

    Attributes:
        places: of the sentences in the article, ascending.
        texts: the sentences, without what they can do without.
        features: float64 [places, features]; the last one is foretold, where anything is.
    """

    places: tuple[int, ...]
    texts: tuple[str, ...]
    features: np.ndarray

    @classmethod
    def of(
        cls,
        sentences: Sequence[str],
        allowed: Sequence[bool],
        words: TitleWords,
        foretold: Foretold | None = None,
        key: str = "",
    ) -> "Candidates | None":
        """The candidates of an article; None if fewer than two of its sentences are allowed.

        Args:
            sentences: of the article.
            allowed: which of them a summary may be made of.
            words: with which features are counted.
            foretold: what a language model expects of sentences; None: there is no such feature.
            key: the article's id there.
        """
        places = tuple(place for place, is_allowed in enumerate(allowed) if is_allowed)[:MAX_PLACES]
        if len(places) < 2:
            return None
        texts = tuple(shorten_fully(sentences[place]) for place in places)
        features = features_of(sentences, places, texts, words)
        if foretold is not None:
            expected = foretold.of(key, len(sentences), places)
            features = np.concatenate([features, expected[:, None]], axis=1)
        return cls(places, texts, features)


@dataclass(frozen=True)
class Highlighted:
    """Candidates of an article, and the stems of its editors' highlights.

    Attributes:
        hits: words of the highlights that each candidate holds in their order.
    """

    candidates: Candidates
    reference: tuple[str, ...]
    hits: tuple[int, ...]

    @classmethod
    def of(cls, candidates: Candidates, highlights: str) -> "Highlighted":
        """The candidates of an article with these highlights."""
        reference = tuple(stems(highlights))
        return cls(candidates, reference, tuple(common_length(stems(text), reference) for text in candidates.texts))

    def rouge_l(self, chosen: Sequence[int]) -> float:
        """ROUGE-L F1 of candidates, in percent."""
        words = [word for at in chosen for word in stems(self.candidates.texts[at])]
        return 200 * common_length(words, self.reference) / max(1, len(words) + len(self.reference))


class Ranker:
    """Trees that foretell the hits of a sentence.

    Args:
        articles: with highlights, to learn from.
        words: with which their features were counted.
        seed: of the trees.
        foretold: what a language model expects of sentences, if features hold that.
    """

    def __init__(
        self, articles: Sequence[Highlighted], words: TitleWords, seed: int = 0, foretold: Foretold | None = None
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor  # a second to import, for whoever ranks

        self.words, self.foretold = words, foretold
        table = np.concatenate([article.candidates.features for article in articles])
        hits = np.array([hit for article in articles for hit in article.hits], float)
        # The trees are small: threads would mostly wait for one another.
        with threadpool_limits(1):
            self._trees = [
                HistGradientBoostingRegressor(random_state=seed + number, **TREES).fit(table, hits)
                for number in range(NUM_SEEDS)
            ]

    def hits(self, candidates: Candidates) -> np.ndarray:
        """Expected hits, float64 [places]."""
        return np.mean([trees.predict(candidates.features) for trees in self._trees], axis=0)

    def choose(self, candidates: Candidates, size: int) -> tuple[int, ...]:
        """So many candidates (fewer if there are no more), as indices in the article's order."""
        hits = self.hits(candidates)
        lengths = [len(stems(text)) for text in candidates.texts]
        best = sorted(range(len(hits)), key=lambda at: -2 * hits[at] / (lengths[at] + REFERENCE_WORDS))[:NUM_BEST]
        sets = itertools.combinations(best, min(size, len(best)))
        return tuple(sorted(max(sets, key=lambda chosen: expected_rouge_l(chosen, hits, lengths))))


def expected_rouge_l(chosen: Sequence[int], hits: Sequence[float], lengths: Sequence[int]) -> float:
    """ROUGE-L F1 between 0 and 1 of a set of sentences with these expected hits."""
    ordered = sorted((hits[at] for at in chosen), reverse=True)
    total = sum(hit * REPEATED_HITS**number for number, hit in enumerate(ordered))
    return 2 * total / (REFERENCE_WORDS + sum(lengths[at] for at in chosen))


def cross_validated(
    articles: Sequence[Highlighted], words: TitleWords, size: int, pool: Pool | None = None, seed: int = 0
) -> dict[str, float]:
    """ROUGE-L of what a ranker chooses that has not seen the article, beside that of the first sentences.

    Args:
        size: sentences of a summary.
        pool: processes that share the work.
        seed: of the folds and the trees.

    Returns:
        ROUGE-L in percent of `chosen` and of `first`.
    """
    jobs = [(articles, words, size, fold, seed) for fold in range(NUM_FOLDS)]
    folds = pool.starmap(_fold_scores, jobs, chunksize=1) if pool else itertools.starmap(_fold_scores, jobs)
    chosen, first = np.concatenate(list(folds)).mean(axis=0)
    return {"chosen": round(float(chosen), 2), "first": round(float(first), 2)}


def _fold_scores(
    articles: Sequence[Highlighted], words: TitleWords, size: int, fold: int, seed: int
) -> list[tuple[float, float]]:
    """ROUGE-L (chosen, first) of the articles of a fold."""
    order = list(range(len(articles)))
    random.Random(seed).shuffle(order)
    ranker = Ranker([articles[at] for number, at in enumerate(order) if number % NUM_FOLDS != fold], words, seed)
    unseen = [articles[at] for at in order[fold::NUM_FOLDS]]
    return [
        (article.rouge_l(ranker.choose(article.candidates, size)), article.rouge_l(range(size))) for article in unseen
    ]


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, 1):
            above = row[at]
            row[at] = before + 1 if word == other else max(above, row[at - 1])
            before = above
    return row[-1]
