"""The ranker of sentences: what it counts, what it learns, what it chooses; and the summaries that are made of it."""

import collections
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.paths import SHIPPED
from tests.support.summary_tools import article, write_texts
from training.data import summary_ranker
from training.data.summary_documents import allowed_places
from training.data.summary_features import WordCounts, features_of
from training.data.summary_files import passages_of, source_files
from training.data.summary_ranking import (
    Candidates,
    Highlighted,
    Ranker,
    common_length,
    cross_validated,
    expected_rouge_l,
)
from training.data.summary_shorten import shorten_fully
from training.data.summary_words import stems
from training.data.summary_workers import documents_of

MARKED = "The verdict shook the whole town on Friday."


def counted(num: int = 30):
    rng = random.Random(5)
    counts = WordCounts()
    for _ in range(num):
        sentences = article(rng, 6)
        counts.count(sentences[0], " ".join(sentences))
    return counts.title_words()


def highlighted(num: int, words, seed: int = 0) -> list[Highlighted]:
    """Articles of which the highlight is one sentence, each time another place's, that names a verdict."""
    rng, made = random.Random(seed), []
    for _ in range(num):
        sentences = article(rng, 10)
        sentences.insert(rng.randrange(11), MARKED)
        candidates = Candidates.of(sentences, allowed_places(sentences), words)
        made.append(Highlighted.of(candidates, MARKED))
    return made


def test_an_editors_choice_that_can_be_foreseen_is_learned():
    """Would catch features that belong to other sentences than the hits they are learned with, or a reversed order."""
    words = counted()
    articles = highlighted(60, words)
    ranker = Ranker(articles[:40], words)
    for one in articles[40:]:
        (chosen,) = ranker.choose(one.candidates, 1)
        assert one.candidates.texts[chosen] == shorten_fully(MARKED)
    scores = cross_validated(articles, words, 2)
    assert scores["chosen"] > scores["first"] + 10


def test_chosen_sentences_stand_in_the_articles_order_and_are_not_repeated():
    """Would catch sets in the order of their hits, which a summary would then be written in."""
    words = counted()
    articles = highlighted(30, words)
    ranker = Ranker(articles, words)
    for one in articles:
        for size in (2, 4):
            chosen = ranker.choose(one.candidates, size)
            assert len(chosen) == size
            assert list(chosen) == sorted(set(chosen))


def test_ranking_ignores_how_many_processes_or_articles_came_before():
    """Would catch a choice that depends on the process: labels of a folder must be the same on any machine."""
    words = counted()
    articles = highlighted(30, words)
    one, other = (Ranker(articles, words).hits(articles[3].candidates) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "sentences",
    [
        ["It is.", "It is."],
        ["A b c d was e.", '"Who", she said, is "it"?', "..."],
        ["Ünïcödé wörds were hêre.", "漢字 was 漢字 today.", "The the the was the the."],
        ["One dog was big.", "One dog was big.", "One dog was big."],
    ],
)
def test_features_of_odd_sentences_are_finite(sentences):
    """Would catch a division by a sentence without content words, or likeness to oneself in a text that repeats."""
    places = tuple(range(len(sentences)))
    table = features_of(sentences, places, sentences, counted())
    assert table.shape == (
        len(sentences),
        len(features_of(["A dog was here."], (0,), ["A dog was here."], counted())[0]),
    )
    assert np.isfinite(table).all()


def test_words_of_titles_are_worth_more():
    """Would catch shares that are counted over the wrong articles, and parts that do not add up to the whole."""
    counts, more = WordCounts(), WordCounts()
    for number in range(40):
        (counts if number % 2 else more).count("Budget passed", "The budget was long. The weather was long. Passed.")
    counts.add(more)
    words = counts.title_words()
    assert words.num_articles == 40
    assert words.worth_of("budget", 1)[0] > 2 * words.worth_of("weather", 1)[0]
    assert words.rarity("budget") < words.rarity("never-seen")
    assert words.worth_of("budget", 9) == words.worth_of("budget", 4)


def test_common_length_is_that_of_rouge():
    """Would catch labels that learn another measure than the one that summaries are judged by."""
    rng = random.Random(3)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for _ in range(50):
        first, second = (
            " ".join(rng.choices(["dog", "cat", "running", "runs", "house"], k=rng.randint(1, 12))) for _ in "ab"
        )
        length = common_length(stems(first), stems(second))
        expected = 2 * length / (len(first.split()) + len(second.split()))
        assert scorer.score(second, first)["rougeL"].fmeasure == pytest.approx(expected)


def test_further_sentences_count_for_less():
    """Would catch an expectation that grows with every sentence, and so always chooses the longest set."""
    assert expected_rouge_l((0, 1), [6.0, 6.0], [12, 12]) < 2 * expected_rouge_l((0,), [6.0], [12])
    assert expected_rouge_l((0, 1), [6.0, 0.5], [12, 30]) < expected_rouge_l((0,), [6.0], [12])


def test_full_shortening_keeps_who_said_it():
    """Would catch claims of a party that summaries would state as facts."""
    text = shorten_fully("On Tuesday, the man, who is 41, stole the car, police said.")
    assert "police said" in text
    assert "who is 41" not in text


def test_a_comma_may_close_a_sentence():
    """Would catch the end of a broken text ('..., which was,') that shortening looked behind."""
    assert shorten_fully("The bridge was closed on Monday, which was late,")


def test_folders_with_too_few_articles_have_no_ranker(tmp_path):
    """Would catch trees that are learned from a handful of articles, and folders that cannot be packed for want of
    highlights."""
    codec = SpanTokenizer.load(SHIPPED).codec
    files, kept_out = source_files(*write_texts(tmp_path), "shorten")
    ranker, report = summary_ranker.ranker_of(files[-1:], passages_of(kept_out), codec, 1)
    assert ranker is None
    assert report.num_titled == 0


def test_ranked_summaries_are_made_of_the_sentences_they_read(tmp_path, monkeypatch):
    """Would catch bodies that say something else than the sentences they name, and labels that were made with the
    articles that summaries are judged on."""
    codec = SpanTokenizer.load(SHIPPED).codec
    files, kept_out = source_files(*write_texts(tmp_path), "shorten")
    passages = passages_of(kept_out)
    monkeypatch.setattr(summary_ranker, "MIN_HIGHLIGHTED", 20)
    monkeypatch.setattr(summary_ranker, "MIN_TITLED", 20)
    ranker, report = summary_ranker.ranker_of(files, passages, codec, 1)
    # One of 41 repeats a dev article, and some are held out.
    assert 30 <= report.num_highlighted <= 40
    assert report.num_titled == 60
    assert set(report.rouge_l) == {"chosen", "first"}
    sizes = collections.Counter()
    for _, batch in documents_of(files, passages, codec, "shorten", 1, ranker):
        for documents, _ in batch:
            for _, document in documents:
                for target in document.targets:
                    if target.kind != "ranked":
                        continue
                    sizes[len(target.steps)] += 1
                    for reads, text in target.steps:
                        assert text == shorten_fully(document.sentences[reads[0]])
    assert sizes[2] > 50
    assert sizes[4] > 50
