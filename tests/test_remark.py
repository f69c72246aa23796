"""What is said of a summary whose words its article does not have."""

import pytest

from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import LaneSpec
from selfspan_core.serve.feed import outcome
from selfspan_core.tasks.registry import get_task
from tests.support.session_tools import TOKENIZER

ARTICLE = "The U.S. senator’s bill, worth $1.5 billion, passed on Tuesday. Nobody spoke against it. It is law in May."


@pytest.mark.parametrize(
    ("summary", "remark"),
    [
        ("The U.S. senator's bill passed on Tuesday.", ""),
        ("IT IS LAW in May.", ""),
        ("The bill passed on Wednesday.", "1 of 5 words (20 %) is not in the article: “wednesday”."),
        ("Blorp zing zing.", "3 of 3 words (100 %) are not in the article: “blorp”, “zing”."),
        ("One two three four five six bill.", "6 of 7 words (86 %) are not in the article."),
        ("<b>" + "x" * 40 + " law", f"2 of 3 words (67 %) are not in the article: “b”, “{'x' * 23}…”."),
        ("...", ""),
    ],
)
def test_what_is_remarked(summary, remark):
    """Would catch gibberish that passes, words that are called foreign for a mark or a capital, and a list of all."""
    task = get_task("summarize")
    assert task.remark(task.parse(ARTICLE * 3), summary) == remark


def test_own_words_are_no_fault_of_a_rewritten_summary():
    """Would catch a remark on every summary in other words, and none on one that has nothing to do with its article."""
    task = get_task("summarize", form="rewrite")
    problem = task.parse(ARTICLE * 3)
    assert task.remark(problem, "The new bill was passed on Tuesday without any opposition.") == ""
    assert task.remark(problem, "Blorp zing bill grault.").startswith("3 of 4 words (75 %)")


@pytest.mark.parametrize("lane", ["dense", "sparse"])
def test_a_lane_says_it_of_what_its_model_wrote(lane):
    """Would catch a remark that is lost between the task and the page, or made on an answer that never ended."""
    task = get_task("summarize")
    problem = task.parse(ARTICLE * 3)
    view = LaneView(LaneSpec(lane, lane, lane, "span"), TOKENIZER, 4)
    view.items, view.finish = [{"text": "Blorp.\nIt is law in May.", "kind": "text"}], "eos"
    said = "1 of 6 words (17 %) is not in the article: “blorp”."
    assert view.result(task, problem)["remark"] == outcome(view.result(task, problem))["remark"] == said
    view.finish = "length"
    assert "remark" not in view.result(task, problem)
