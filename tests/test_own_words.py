"""Summaries in a model's own words: what their rules let through, and what they do not."""

import random

import pytest

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.own_words import _OPENERS, _UNIT, is_checked, word_runs
from selfspan_core.tasks.summarize.rules import MAX_BODY, MIN_BODY, RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize, problem_of
from selfspan_core.tasks.summarize.written import read_lines, read_steps
from tests.support.slow import examples

ARTICLE = problem_of(
    [
        "The town council of Ellmoor voted 9 to 4 on Tuesday to close the old plant by 2027.",
        "Councillor Ida Brandt said that the work will cost 1,400 or 2.5 million euros in the U.S. market.",
        "residents complained about McArthur's soot, and iPhone pictures of it from O'Brien went around.",
        "Nobody knows what the mayor of Ellmoor thinks of it.",
    ],
    "short",
)


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


def rules_of(tables, annotated=True, length="short", words="own"):
    rendered = Summarize(length).render(ARTICLE, tables.tokenizer, annotated)
    ids = rendered.ids[: rendered.prompt.num_tokens]
    return rendered, SummaryRules(tables, ids, rendered.prompt, length, annotated, words)


def begun(tables, annotated=True, words="own"):
    """Rules within a first body, and the id that ends it."""
    rendered, rules = rules_of(tables, annotated, words=words)
    markers = tables.markers
    opening = [tables.separator]
    if annotated:
        opening = [markers.ref, next(iter(rendered.prompt.segments)), rules._fresh[0], markers.go]
    for token in opening:
        rules.push(token)
    return rules, markers.end if annotated else tables.separator


def refused(tables, rules, text):
    """How much of a text its rules let through, up to a piece that they forbid; None if all of it."""
    passed = ""
    for token in tables.tokenizer.encode(text):
        if token in rules.limits().banned:
            return passed
        passed += tables.tokenizer.piece(token)
        rules.push(token)
    return None


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        " Ellmoor's council will close its plant, Ida Brandt said.",
        " Residents of Ellmoor have complained.",
        " It costs 1,400 or even 2.5 million euros in the U.S. market.",
        " In 2027. But the council voted 9 to 4.",
        " 9 voted for it: Tuesday was quiet.",
        ' "Nobody knows," said Brandt of McArthur.',
        " It was on an iPhone, O'Brien said.",
        " It will cost 2.5. They will not be closed.",
    ],
)
def test_the_articles_names_and_numbers_may_be_written(tables, annotated, text):
    """Would catch rules under which a summary cannot say who did what, in whatever pieces the names come."""
    rules, ending = begun(tables, annotated)
    assert refused(tables, rules, text) is None
    assert ending not in rules.limits().banned


@pytest.mark.parametrize(
    ("text", "unfit"),
    [
        (" The council of Harold", "Harold"),
        (" Sarah", "Sarah"),
        (" The plant cost 15", "15"),
        (" It cost 14 million", "14 "),
        (" It cost 1,500", "1,5"),
        (" It cost 2.4", "2.4"),
        (" It cost 2 million", "2 "),
        (" It closed in 2028", "2028"),
        (" It closed in 202 days", "202 "),
        (" Brandts were there", "Brandts"),
        (" The council met McArth there", "McArth "),
        (" The work, Old", "Old"),
        (" A coUNcil", "coUN"),
    ],
)
def test_no_other_names_and_numbers(tables, text, unfit):
    """Would catch an invented name or number, one that begins like one of the article's or ends before it does."""
    rules, _ = begun(tables)
    stopped = refused(tables, rules, text)
    assert stopped is not None and len(stopped) < text.index(unfit) + len(unfit)
    free, _ = begun(tables, words="free")
    assert refused(tables, free, text) is None


def test_a_body_ends_behind_a_whole_number_only(tables):
    """Would catch "It cost 2." where the article has 2.5: the full stop could have been the number's."""
    rules, ending = begun(tables)
    assert refused(tables, rules, " The new plant may well cost 2.") is None
    assert ending in rules.limits().banned
    assert refused(tables, rules, "5.") is None
    assert ending not in rules.limits().banned


def test_four_words_are_said_once(tables):
    """Would catch a second sentence that says the first again with another beginning, and a loop of four words."""
    rules, ending = begun(tables)
    assert refused(tables, rules, " The old plant will close.") is None
    other = rules.fork()
    # Whatever the case: what counts are words.
    assert refused(tables, other, " Then the old plant will") == " Then the old plant"
    rules.push(ending)
    rendered, _ = rules_of(tables)
    names = list(rendered.prompt.segments)
    for token in (tables.markers.ref, names[1], rules._fresh[1], tables.markers.go):
        rules.push(token)
    twin = rules.fork()
    assert refused(tables, rules, " But the old plant will") == " But the old plant"
    assert refused(tables, twin, " But the old plant was") is None


def test_a_name_that_would_repeat_four_words_can_be_finished(tables):
    """Would catch a name of which the beginning may be written and the end may not: nothing was left to write."""
    rules, _ = begun(tables)
    for token in tables.tokenizer.encode(" In the town of Ellmoor it rains, and then the town of"):
        rules.push(token)
    written = ""
    while written != " Ellmoor":
        limits = rules.limits()
        allowed = tables.words.all_ids - set(limits.banned) if limits.only is None else set(limits.only)
        fitting = [token for token in sorted(allowed) if " Ellmoor".startswith(written + tables.tokenizer.piece(token))]
        assert fitting, written
        token = min(fitting, key=lambda token: len(tables.tokenizer.piece(token)) or 99)
        rules.push(token)
        written += tables.tokenizer.piece(token)


def test_free_words_stay_free(tables):
    """Would catch the shipped form being held to rules that its adapters were not measured with."""
    rules, ending = begun(tables, words="free")
    assert refused(tables, rules, " Sarah Smith sold 99 trams. Sarah Smith sold 99 cars.") is None
    assert ending not in rules.limits().banned
    with_form, without = Summarize("short", form="rewrite"), Summarize("short")
    prompt, _ = rules_of(tables)
    for task, words in ((with_form, True), (without, False)):
        assert (task.rules(prompt, tables.tokenizer, True)._own_words is not None) == words
        assert ("own words" in task.rules_text) == words


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("length", ["short", "medium"])
def test_whatever_a_model_wants(tables, length, annotated):
    """Would catch a way past the rules in any order of pieces, and rules that leave nothing to write."""
    tokenizer, markers = tables.tokenizer, tables.markers
    whole = set(_UNIT.findall(ARTICLE.text))
    first = {unit.lower() for unit in whole} | set(_OPENERS.split())
    named = [i for t in ARTICLE.segments for i in tokenizer.encode(f" {t}")]
    for seed in range(examples(5, 40)):
        rng = random.Random(seed)
        rendered, rules = rules_of(tables, annotated, length)
        liked = [*named, *rng.sample(range(tokenizer.vocab_size), 40), *sorted(tables.ends)[:3], markers.end]
        written = []
        while not written or written[-1] != markers.eos:
            only, banned = rules.limits()
            banned = set(banned)
            pool = liked if rng.random() < 0.9 else range(tokenizer.vocab_size)
            chosen = [i for i in pool if (only is None or i in only) and i not in banned]
            chosen = chosen or [i for i in (only or range(tokenizer.vocab_size)) if i not in banned]
            written.append(rng.choice(chosen))
            rules.push(written[-1])
        steps = read_steps(written, rendered.prompt, tokenizer) if annotated else read_lines(written, tokenizer)
        assert not any(step.malformed for step in steps) or not annotated
        runs = [run for step in steps for run in word_runs(step.text)]
        assert len(runs) == len(set(runs))
        for step, body in zip(steps, rules._bodies, strict=True):
            # The longest are cut wherever they are; parts of characters are judged too late.
            if len(body) < MAX_BODY and "\N{REPLACEMENT CHARACTER}" not in step.text:
                found = filter(is_checked, _UNIT.findall(step.text))
                assert all(unit in whole or unit.lower() in first for unit in found), step.text
                assert rules._num_said(body) >= MIN_BODY or rules._is_short_source(body)


def test_forks_share_what_the_article_allows(tables):
    """Would catch tables that are made again for every draft."""
    rules, _ = begun(tables)
    rules.limits()
    assert rules.fork()._own_words is rules._own_words and rules._own_words._banned
