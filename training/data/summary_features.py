"""What tells how much of an article's summary a sentence holds: place, length, words, marks, likeness to the others.

All of it is counted on the article alone, so that it can be had of any article. The words' own weights come from news
with titles: a word is worth the share of articles with it whose title has it, too.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.data.summary_words import SAYING, STOP_WORDS, stems

MAX_REPEATS = 4
"""Occurrences in an article beyond which a word counts as often as this."""
PRIOR_ARTICLES = 20
"""Articles' worth of doubt about the share of titles that a word is in."""
MIN_ARTICLES = 3
NUM_TOP_WORDS = 12
DAMPING, NUM_WALKS = 0.85, 20
"""Of LexRank (Erkan and Radev 2004, section 3.2): share of the steps that follow likeness, and steps."""
MAX_TITLE_ARTICLE = 6_000
"""Characters from the start of an article in which words are counted."""

_CAPITAL = re.compile(r"\b[A-Z][a-z]+")
_LINK = re.compile(r"(But|And|So|However|Meanwhile|Also|Then)\b")
_POINTER = re.compile(r"(He|She|It|They|His|Her|This|That|These|Their)\b")


@dataclass
class WordCounts:
    """Counts of words in articles with titles, to be added up.

    Attributes:
        num_articles: that were counted.
        held: word -> articles that have it.
        seen: (word, times in the article, at most MAX_REPEATS) -> such articles.
        titled: the same -> such articles whose title has the word, too.
    """

    num_articles: int = 0
    held: Counter = field(default_factory=Counter)
    seen: Counter = field(default_factory=Counter)
    titled: Counter = field(default_factory=Counter)

    def count(self, title: str, text: str) -> None:
        """One more article."""
        self.num_articles += 1
        wanted = set(stems(title))
        for word, times in content_counts(stems(text[:MAX_TITLE_ARTICLE])).items():
            key = (word, min(times, MAX_REPEATS))
            self.held[word] += 1
            self.seen[key] += 1
            if word in wanted:
                self.titled[key] += 1

    def add(self, other: "WordCounts") -> None:
        """The counts of other articles."""
        self.num_articles += other.num_articles
        self.held.update(other.held)
        self.seen.update(other.seen)
        self.titled.update(other.titled)

    def title_words(self) -> "TitleWords":
        """What the words are worth. Words in fewer than MIN_ARTICLES articles are not kept."""
        usual = {}
        for times in range(1, MAX_REPEATS + 1):
            num_titled = sum(count for key, count in self.titled.items() if key[1] == times)
            num_seen = sum(count for key, count in self.seen.items() if key[1] == times)
            usual[times] = (1 + num_titled) / (1 + num_seen)
        kept = {word: count for word, count in self.held.items() if count >= MIN_ARTICLES}
        worth = {
            key: (self.titled[key] + PRIOR_ARTICLES * usual[key[1]]) / (count + PRIOR_ARTICLES)
            for key, count in self.seen.items()
            if key[0] in kept
        }
        return TitleWords(self.num_articles, kept, worth, usual)


@dataclass(frozen=True)
class TitleWords:
    """What words are worth.

    Attributes:
        num_articles: that were counted.
        articles_with: word -> articles that have it.
        worth: (word, times in the article, at most MAX_REPEATS) -> share of such articles whose title has it.
        usual: times in the article -> that share over all words.
    """

    num_articles: int
    articles_with: dict[str, int]
    worth: dict[tuple[str, int], float]
    usual: dict[int, float]

    def rarity(self, word: str) -> float:
        """Logarithm of the inverse share of articles that have a word."""
        return math.log((self.num_articles + 2) / (self.articles_with.get(word, 0) + 2))

    def worth_of(self, word: str, times: int) -> tuple[float, float]:
        """Share of titles with a word that stands so often in the article, and that share over the usual one."""
        times = min(max(times, 1), MAX_REPEATS)
        share = self.worth.get((word, times), self.usual[times])
        return share, share / self.usual[times]


def content_counts(words: Iterable[str]) -> Counter:
    """Words that are no stop words, counted."""
    return Counter(word for word in words if word not in STOP_WORDS)


def features_of(
    sentences: Sequence[str], places: Sequence[int], shortened: Sequence[str], words: TitleWords
) -> np.ndarray:
    """Features of an article's sentences, float64 [places, features].

    Args:
        sentences: of the article.
        places: of the sentences that a summary may be made of.
        shortened: those, without what they can do without.
        words: counts of other articles.
    """
    whole = [stems(sentence) for sentence in sentences]
    own = [stems(text) for text in shortened]
    counts = [content_counts(row) for row in own]
    columns = [
        _places(whole, own, places),
        _lengths(own, counts),
        _repeats(whole, own, counts),
        _marks([sentences[place] for place in places], sentences),
        _worths(whole, counts, words),
        _likeness(counts, words),
    ]
    return np.concatenate(columns, axis=1)


def _places(whole: Sequence[list], own: Sequence[list], places: Sequence[int]) -> np.ndarray:
    """Where a sentence stands, and how long the article is."""
    total = sum(map(len, whole))
    before = np.cumsum([0, *map(len, own)])
    return np.array(
        [
            (k, k / len(own), min(k, 3), place - k, before[k], len(whole), len(own), total)
            for k, place in enumerate(places)
        ],
        float,
    )


def _lengths(own: Sequence[list], counts: Sequence[Counter]) -> np.ndarray:
    """Words of a sentence, of its content, and of its neighbours."""
    lengths = [0, *map(len, own), 0]
    return np.array(
        [
            (
                lengths[k + 1],
                sum(counts[k].values()),
                lengths[k],
                lengths[k + 2],
                1 - sum(counts[k].values()) / max(1, lengths[k + 1]),
            )
            for k in range(len(own))
        ],
        float,
    )


def _repeats(whole: Sequence[list], own: Sequence[list], counts: Sequence[Counter]) -> np.ndarray:
    """How often the article says a sentence's words, its start and its most frequent words among them."""
    times = content_counts(word for row in whole for word in row)
    held_by = Counter(word for row in whole for word in set(row))
    opening = {word for row in whole[:2] for word in row}
    top = {word for word, _ in times.most_common(NUM_TOP_WORDS)}
    pairs = [set(itertools.pairwise(row)) for row in own]
    all_pairs = Counter(pair for row in pairs for pair in row)
    rows = []
    for row, count, own_pairs in zip(own, counts, pairs, strict=True):
        held, size = list(count), max(1, len(count))
        rows.append(
            (
                sum(math.log1p(times[word]) for word in held) / size,
                sum(held_by[word] > 1 for word in held) / size,
                sum(held_by[word] > 2 for word in held),
                sum(held_by[word] for word in held) / size / len(whole),
                sum(word in opening for word in held) / size,
                sum(word in opening for word in held),
                sum(word in top for word in held),
                sum(word in top for word in held) / size,
                sum(all_pairs[pair] - 1 for pair in own_pairs) / max(1, len(row)),
                sum(all_pairs[pair] > 1 for pair in own_pairs) / max(1, len(row)),
            )
        )
    return np.array(rows, float)


def _marks(raw: Sequence[str], sentences: Sequence[str]) -> np.ndarray:
    """Numbers, quotations, names, and words that lean on the sentence before."""
    names = Counter(name for sentence in sentences for name in _CAPITAL.findall(sentence[1:]))
    rows = []
    for sentence in raw:
        own = _CAPITAL.findall(sentence[1:])
        words = re.findall(r"[a-z]+", sentence.lower())
        rows.append(
            (
                len(re.findall(r"\d+", sentence)),
                '"' in sentence or "“" in sentence,
                any(word in SAYING for word in words),
                len(own),
                sum(names[name] for name in set(own)),
                bool(_LINK.match(sentence)),
                bool(_POINTER.match(sentence)),
                sentence.endswith("?"),
                sentence.count(","),
            )
        )
    return np.array(rows, float)


def _worths(whole: Sequence[list], counts: Sequence[Counter], words: TitleWords) -> np.ndarray:
    """How likely a sentence's words are in a title."""
    times = Counter(word for row in whole for word in row)
    rows = []
    for count in counts:
        size = max(1, len(count))
        worths = [words.worth_of(word, times[word]) for word in count]
        shares = sorted((share for share, _ in worths), reverse=True) + [0.0] * 3
        ratios = [ratio for _, ratio in worths] or [0.0]
        rarities = [words.rarity(word) for word in count]
        weighted = sum(math.log1p(times[word]) * words.rarity(word) for word in count)
        rows.append(
            (
                sum(shares),
                *shares[:3],
                sum(shares) / size,
                sum(ratios) / size,
                max(ratios),
                sum(rarities) / size,
                sum(rarities),
                weighted,
            )
        )
    table = np.array(rows, float)
    return np.column_stack([table, _ranks(table[:, 0])])


def _likeness(counts: Sequence[Counter], words: TitleWords) -> np.ndarray:
    """Cosines of the sentences' weighted words: to all, to the first ones, the nearest; and LexRank."""
    vocabulary = {word: at for at, word in enumerate({word for count in counts for word in count})}
    table = np.zeros((len(counts), max(1, len(vocabulary))))
    for row, count in zip(table, counts, strict=True):
        for word, times in count.items():
            row[vocabulary[word]] = (1 + math.log(times)) * words.rarity(word)
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    table = np.divide(table, norms, out=np.zeros_like(table), where=norms > 0)
    centre = table.sum(axis=0)
    to_all = table @ centre / max(np.linalg.norm(centre), 1e-9)
    cosines = table @ table.T
    np.fill_diagonal(cosines, 0)
    moves = cosines + 1e-3
    moves /= moves.sum(axis=1, keepdims=True)
    rank = np.full(len(counts), 1 / len(counts))
    for _ in range(NUM_WALKS):
        rank = (1 - DAMPING) / len(counts) + DAMPING * rank @ moves
    second = cosines[:, 1] if len(counts) > 1 else np.zeros(1)
    return np.column_stack(
        [
            to_all,
            rank * len(counts),
            cosines.max(axis=1),
            cosines[:, 0],
            second,
            cosines[:, :3].sum(axis=1),
            _ranks(rank),
        ]
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """How many values are larger, each."""
    return (values[None, :] > values[:, None]).sum(axis=1)
