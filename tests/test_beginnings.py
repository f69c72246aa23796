"""A plain lane is kept from sentences that it has written, and forced into no sentence that the article has not."""

import pytest

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.beginnings import START, Beginnings
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize, problem_of

ALIKE = (
    "Ann Bell went home by the last train on Monday.",
    "She slept.",
    "She sang all the way to the old station.",
    "She sang all the songs of her mother again.",
)


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


def article_of(tables, sentences):
    """Ids of each sentence, and the rules of a plain lane that has written some of them, as it opens a step."""
    problem = problem_of(list(sentences), "medium")
    rendered = Summarize("medium").render(problem, tables.tokenizer, annotated=False)
    ids = [tables.tokenizer.encode(f" {sentence}") for sentence in problem.segments]

    def having_written(*numbers, words="free"):
        rules = SummaryRules(tables, rendered.ids, rendered.prompt, "medium", False, words, ids)
        for number in numbers:
            for token in (tables.separator, *ids[number]):
                rules.push(token)
        rules.push(tables.separator)
        return rules

    return ids, having_written


def fork_of(one, other):
    """The first place at which two sentences differ."""
    return next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)


def test_what_no_other_sentence_begins_with_is_withheld_at_once(tables):
    """Would catch a plain lane that may begin a sentence again, and is then kept from its eighth id, in a word."""
    ids, having_written = article_of(tables, ALIKE)
    assert not having_written(0).limits().allow(ids[0][0])
    assert having_written(2).limits().allow(ids[2][0])


@pytest.mark.parametrize("words", ["free", "copied", "own"])
def test_a_shared_beginning_goes_on_as_another_sentence_does(tables, words):
    """Would catch an id that is withheld in the middle of a sentence and leaves the model all others: it writes what
    begins like two sentences of the article and is neither."""
    ids, having_written = article_of(tables, ALIKE)
    rules, fork = having_written(2, words=words), fork_of(ids[2], ids[3])
    assert 1 < fork < START
    for token in ids[3][:fork]:
        rules.push(token)
    limits = rules.limits()
    assert limits.allow(ids[3][fork])
    others = set(range(tables.tokenizer.vocab_size)) - {ids[3][fork]}
    assert not any(map(limits.allow, others))


def test_sentences_that_are_all_written_lead_nowhere(tables):
    """Would catch a beginning that stays open since two sentences share it, both of which were written: each keeps the
    other open, and behind it nothing of the article is left."""
    ids, having_written = article_of(tables, (*ALIKE[:1], *ALIKE[2:], "Nobody heard her at all on that long way."))
    limits = having_written(1, 2).limits()
    assert not limits.allow(ids[1][0]) and limits.allow(ids[3][0])


def test_nothing_is_withheld_where_there_is_no_other_way():
    """Would catch a rule that forces a worse thing than it forbids: words that are broken off where only the sentence
    that was begun could be gone on with."""
    mark, unfit, sentence = 9, 8, [1, 2, 3, 4, 5, 6, 7, 1, 2]
    article = [*sentence, mark, 3, 4, unfit, 5]
    beginnings = Beginnings(article, {mark, unfit}, {unfit})
    assert beginnings.onward([], [sentence]) == ((1,), ())
    for place in range(1, START):
        assert beginnings.onward(sentence[:place], [sentence]) == ((), ()), place
    # Of two ways one is no text.
    said = [3, 4, 7, 7, 7, 7, 7, 7]
    assert beginnings.onward([3, 4], [said]) == ((), ())


def test_only_what_a_sentence_begins_with_is_a_way():
    """Would catch places in the middle of a sentence that are taken for beginnings."""
    beginnings = Beginnings([1, 2, 3, 1, 6, 4, 9, 1, 5, 9], {9}, ())
    assert beginnings.onward([1], [[1, 7, 7, 7, 7, 7, 7, 7]]) == ((), (2, 5))
