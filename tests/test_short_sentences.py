"""Sentences shorter than the shortest body: recipes and dialogue are copied as they are."""

import pytest

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.rules import MIN_BODY, RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize, problem_of

RECIPE = problem_of(["Wash the rice.", "Drain it.", "Then boil it again for a while.", "Go."], "short")


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


def rules_of(tables, annotated, words="free"):
    rendered = Summarize("short").render(RECIPE, tables.tokenizer, annotated, offset=250)
    segments = [tables.tokenizer.encode(f" {sentence}") for sentence in RECIPE.segments]
    return rendered, SummaryRules(tables, rendered.ids, rendered.prompt, "short", annotated, words, segments)


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("words", ["copied", "free", "own"])
def test_a_short_sentence_is_copied_as_it_is(tables, annotated, words):
    """Would catch a body that has to go on behind "Drain it.", and one that may end in the middle of a short one."""
    markers, encode = tables.markers, tables.tokenizer.encode
    rendered, rules = rules_of(tables, annotated, words)
    ending = markers.end if annotated else tables.separator
    opening = [tables.separator]
    if annotated:
        opening = [markers.ref, list(rendered.prompt.segments)[1], rules._fresh[0], markers.go]
    for token in opening:
        rules.push(token)

    def may_end():
        only, banned = rules.limits()
        return ending not in banned and (only is None or ending in only)

    for token in encode(" Drain it."):
        assert not may_end()
        rules.push(token)
    assert may_end()
    _, other = rules_of(tables, annotated)
    for token in [*opening, *encode(" it.")]:
        other.push(token)
    only, banned = other.limits()
    assert ending in banned or (only is not None and ending not in only)


def test_two_short_sentences_are_a_whole_source_together(tables):
    """Would catch a body of two short sentences that has to go on because it is neither of them."""
    markers, encode = tables.markers, tables.tokenizer.encode
    rendered, rules = rules_of(tables, annotated=True)
    _, second, _, fourth = rendered.prompt.segments
    said = encode(" Drain it. Go.")
    assert sum(token not in tables.ends for token in said) < MIN_BODY
    for token in (markers.ref, second, fourth, rules._fresh[0], markers.go, *said):
        rules.push(token)
    assert markers.end not in rules.limits().banned
