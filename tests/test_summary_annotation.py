"""Which sentences a summary draws on, and how they are shortened: cases checked by hand."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenize import tokenize

from training.data.summary_annotation import Article, align, annotate, draw_choices, f1
from training.data.summary_shorten import shorten, text_of, tokens_of
from training.data.summary_words import stems

ARTICLE = (
    "ELLMOOR (Herald) - The town council voted on Tuesday to close the old heating plant, which burns coal, in March.",
    "Residents had complained for years about soot on their windows.",
    "The work will cost 14 million euros, and the state pays half of it, officials said.",
    'Councillor Ida Brandt, 54, voted against the plan, saying: "Prices may rise if the mill ever shuts down."',
    "A network in the neighbouring town of Haven has cut heating bills by a fifth since 2021.",
    "Engineers will begin digging in the market square in April.",
)


@pytest.mark.parametrize(
    ("reference", "reads"),
    [
        ("Ellmoor's council votes to close its coal heating plant.", (0,)),
        ("People complained about soot on windows.", (1,)),
        ("Haven's network cut heating bills by a fifth.", (4,)),
        # Half of it from one sentence, half from another.
        ("Digging begins in the market square in April, and the state pays half of the 14 million euros.", (2, 5)),
        ("A film festival opens in Venice with a comedy.", None),
        ("It was so.", None),
    ],
)
def test_alignment_of_hand_checked_sentences(reference, reads):
    """Would catch a summary sentence taught from the wrong sentences, or one that no sentence supports."""
    aligned = align(Article(ARTICLE), reference)
    assert (aligned and aligned.reads) == reads


@pytest.mark.parametrize(
    ("reference", "reads", "reads_of_body"),
    [
        # A name that only another sentence holds, and a word that is none.
        ("The work will cost 14 million euros, half of it from the state, officials said in Haven.", (2,), (2, 4)),
        ("The work will cost 14 million euros, half of it from the state, residents said.", (2,), (2,)),
        ("Ellmoor's town council voted to close the old heating plant in March.", (0,), (0,)),
    ],
)
def test_a_body_reads_all_that_it_says(reference, reads, reads_of_body):
    """Would catch a name or number taught out of nothing, and a second read that adds nothing."""
    article = Article(ARTICLE)
    assert align(article, reference).reads == reads
    assert align(article, reference, is_body=True).reads == reads_of_body


def test_of_two_reads_both_are_used():
    """Would catch a sentence read that says nothing beyond the other one."""
    longer = "Fire destroyed old mills of Ann Reed near Holm, 71."
    article = Article(["Fire destroyed old mills.", "It rained.", longer])
    reference = "Fire destroyed old mills of Reed."
    assert align(article, reference).reads == (0,)
    assert align(article, reference, is_body=True).reads == (2,)


def test_unsupported_sentences_are_counted_and_left_out():
    """Would catch pairs that teach a model to make things up."""
    found = annotate(Article(ARTICLE), ["The council votes to close the heating plant.", "Aliens land in Rome today."])
    assert [step.reads for step in found.steps] == [(0,)]
    assert found.num_unsupported == 1
    assert 0.5 < found.steps[0].coverage <= 1


def test_only_allowed_sentences_are_named():
    """Would catch headlines and captions cited although a step could not end like them."""
    allowed = [place != 4 for place in range(len(ARTICLE))]
    assert align(Article(ARTICLE), "Haven's network cut heating bills by a fifth.", allowed) is None


@pytest.mark.parametrize(
    ("references", "pair"),
    [
        (
            ["The council votes to close the heating plant, which burns coal.", "Soot on windows angers residents."],
            (0, 1),
        ),
        (
            ["Haven's network has cut heating bills by a fifth.", "Digging in the market square begins in April."],
            (4, 5),
        ),
        # Both say the same: the second adds nothing that the third does not add better.
        (["The state pays half of 14 million euros for the work.", "Heating bills fall by a fifth in Haven."], (2, 4)),
        (["A film festival opens in Venice with a comedy."], None),
        ([], None),
    ],
)
def test_choices_are_drawn_by_what_they_say_together(references, pair):
    """Would catch a short summary whose two sentences are each good and say the same; draws that are all alike."""
    article = Article(ARTICLE)
    drawn = Counter(draw_choices(article, references, 2, 300, random.Random(0)))
    if pair is None:
        assert not drawn
        return
    assert drawn.most_common(1)[0][0] == pair and drawn.total() == 300
    assert all(first < second for first, second in drawn)
    without = draw_choices(article, references, 2, 50, random.Random(0), [place != pair[0] for place in range(9)])
    assert not any(pair[0] in choice for choice in without)


def test_what_is_worth_as_much_is_drawn_as_often():
    """Would catch one of two choices that are as good being taught as the only one."""
    article = Article(["The river rose fast.", "The harbour bridge shut.", "Nobody slept.", "The harbour bridge shut."])
    drawn = Counter(draw_choices(article, ["The river rose.", "The harbour bridge shut."], 2, 400, random.Random(1)))
    assert drawn[0, 1] > 150 and drawn[0, 3] > 150


def test_stems_and_overlap_are_those_of_rouge_score():
    """Would catch an oracle that maximizes something other than what is reported."""
    scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)

    from nltk.stem.porter import PorterStemmer

    for one, other in itertools.pairwise(ARTICLE):
        assert stems(one) == tokenize(one, PorterStemmer())
        expected = scorer.score(one, other)["rouge1"].fmeasure
        assert f1(Counter(stems(other)), Counter(stems(one))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sentence", "reference", "expected"),
    [
        (ARTICLE[0], "Council closes heating plant in March.",
         "The town council voted to close the old heating plant, which burns coal, in March."),
        (ARTICLE[2], "The work costs 14 million euros.", "The work will cost 14 million euros."),
        (ARTICLE[2], "The state pays half of the 14 million euros.",
         "The work will cost 14 million euros, and the state pays half of it."),
        ("But the plan failed, police said on Monday.", "The plan failed.", "The plan failed, police said."),
        ("But the whole plan failed badly, police said on Monday.", "Plan failed.", "The whole plan failed badly."),
        # Who said it stays where the reference says so, too.
        ("The plan failed badly, police said.", "Plan failed, police say.", "The plan failed badly, police said."),
        ("The suspect, Richard White, 63, died after a short fight.", "The suspect, Richard White, died in a fight.",
         "The suspect, Richard White, died after a short fight."),
        ("Roger Stone, a friend of the president, was found guilty of lying to Congress.", "Stone guilty of lying.",
         "Roger Stone was found guilty of lying to Congress."),
        ("Running allowed her to promote veganism, though Oakes, who eats no meat, is keen not to preach.",
         "She promotes veganism.", "Running allowed her to promote veganism."),
        ("A deal by Monday, the minister added, would be too late for us.", "A deal is too late.",
         "A deal by Monday would be too late for us."),
        ("In Rome the police, he said, were in time, and nobody was hurt.", "In Rome nobody was hurt, he said.",
         "In Rome the police, he said, were in time, and nobody was hurt."),
        # Nothing is cut in doubt: a list, a quotation, a clause that leans on what would go.
        ("He visited London, Paris and Rome.", "Visit to London.", "He visited London, Paris and Rome."),
        ('"I want to stay for ever," she said.', "She wants to stay.", '"I want to stay for ever," she said.'),
        ("Acme said its board had rejected the new offer.", "The board rejected the offer.",
         "Acme said its board had rejected the new offer."),
    ],
)  # fmt: skip
def test_shortening_of_hand_checked_sentences(sentence, reference, expected):
    """Would catch cuts that lose what the reference says, or leave what is no sentence."""
    assert shorten(sentence, reference) == expected


def test_without_a_reference_only_a_dateline_goes():
    """Would catch gap sentences that teach to cut at random."""
    assert shorten(ARTICLE[0], None) == (
        "The town council voted on Tuesday to close the old heating plant, which burns coal, in March."
    )
    assert shorten(ARTICLE[2], None) == ARTICLE[2]
    assert (
        shorten("(CNN)Good artists borrow, great artists steal.", None) == "Good artists borrow, great artists steal."
    )


ODD_WORDS = (
    "The Smith , police said that which was who had a fire on Monday - -- ( ) \" after Rome and but 14 U.S. it 's"
)
SENTENCES = st.lists(st.sampled_from(ODD_WORDS.split()), min_size=1, max_size=30).map(
    lambda words: " ".join(words) + "."
)


@given(SENTENCES, SENTENCES)
def test_shortened_is_in_order_and_nothing_is_added(sentence, reference):
    """Would catch a word that the source does not hold, or one out of order: the promise of the whole task."""
    short = [token.text.lower() for token in tokens_of(shorten(sentence, reference))]
    rest = iter([token.text.lower() for token in tokens_of(sentence)])
    assert all(token in rest for token in short)


@pytest.mark.parametrize("text", [*ARTICLE, "U.S. troops left.", 'He said: "No." Then (late) it ended …'])
def test_tokens_come_back_as_text(text):
    """Would catch marks that move or spaces that appear."""
    assert text_of(tokens_of(text)) == text
