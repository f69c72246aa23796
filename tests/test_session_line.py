"""The line under a race: honest, and in words that fit."""

import pytest

from selfspan_core.compare.headline import headline
from selfspan_core.compare.verdict import Compared, compare_line, percent, speed_phrase
from selfspan_core.tasks.base import View
from tests.support.asking import compare
from tests.support.session_tools import TEXT, scripted_session


def result(correct=True, answer="2907", malformed=0, attention="dense", texts=""):
    return {
        "correct": correct,
        "answer": answer,
        "expected": "2907",
        "malformed_steps": malformed,
        "attention": attention,
        "tokens": 100,
        "seconds": 1.0,
        "tokens_per_second": 100.0,
        "attended_tokens": 10_000,
        "dense_tokens": 10_000,
        "steps": [{"text": text} for text in texts],
    }


def lanes(dense, sparse):
    """Both lanes' results; the sparse one read 31 % of what dense attention reads."""
    return {"dense": dense, "sparse": sparse | {"attended_tokens": 3_100}}


@pytest.mark.parametrize(
    ("dense", "sparse", "per_token", "to_answer", "speed", "tail"),
    [
        (
            *(result(), result(), 1.423, 1.3),
            "1.30 times as fast to the answer and 1.42 times as fast per token",
            "both answers are right.",
        ),
        (
            *(result(), result(False, "2906"), 0.85, 0.8),
            "slower (0.80 times the speed) to the answer and slower (0.85 times the speed) per token",
            "the dense answer is right, the self-selected answer is wrong (2906, expected 2907).",
        ),
        (
            *(result(False, None), result(malformed=2), 1.2, None),
            "1.20 times as fast per token",
            "the dense answer is missing (expected 2907), the self-selected answer is right; 2 malformed steps "
            "in the self-selected lane.",
        ),
        (
            *(result(False, "1"), result(False, "1"), 1.2, 0.9),
            "slower (0.90 times the speed) to the answer but 1.20 times as fast per token",
            "both answers are wrong (1, expected 2907).",
        ),
    ],
)
def test_line_is_honest(dense, sparse, per_token, to_answer, speed, tail):
    """Would catch a slower run or a wrong answer being dressed up, and a speed that is told before what was read."""
    line = compare_line(Compared(lanes(dense, sparse), per_token, to_answer, 0.31, False), View())
    assert line == f"Read 31 % of what dense read: 3,100 instead of 10,000 cached tokens; {speed}; {tail}"


@pytest.mark.parametrize(
    ("dense", "sparse", "words", "differs_at"),
    [
        (result(), result(), "Same answer, and it is right: 2907.", None),
        (result(False, "1"), result(False, "1"), "Same answer, and it is wrong: 1 instead of 2907.", None),
        (result(False, None), result(False, None), "Neither got to an answer.", None),
        (result(), result(False, None), "The self-selected lane got to no answer; the other's is right.", None),
        (result(), result(False, "1"), "Different answers: dense is right, self-selected is wrong.", None),
        (result(False, "2"), result(False, "1"), "Different answers, both wrong.", None),
        (
            result(texts="ab"),
            result(False, "1", texts="ac"),
            "Different answers: dense is right, self-selected is wrong.",
            1,
        ),
        (
            result(texts="ab"),
            result(False, "1", texts="abc"),
            "Different answers: dense is right, self-selected is wrong.",
            2,
        ),
        (result(texts="ab"), result(texts="ac"), "Same answer, and it is right: 2907.", None),
        (result(None, "One."), result(None, "One."), "Same answer.", None),
        (result(None, "One."), result(None, "Two."), "Different answers.", None),
    ],
)
def test_headline_says_how_the_answers_compare(dense, sparse, words, differs_at):
    """Would catch a headline that passes over a wrong answer, and a mark at the wrong step."""
    found = headline(Compared(lanes(dense, sparse), 1.1, 1.0, 0.31, False), View())
    assert found["text"].startswith("Read 31 % of what dense read: 3,100 instead of 10,000 cached tokens. " + words)
    assert found["differs_at"] == differs_at


@pytest.mark.parametrize(
    ("per_token", "to_answer", "share", "judged"),
    [
        (1.3, 1.015, 0.31, {"share": 1, "answer": 0, "token": 1}),
        (0.99, 0.9, 0.99, {"share": 0, "answer": -1, "token": 0}),
        (1.02, None, 1.2, {"share": -1, "answer": None, "token": 1}),
        (None, None, 1.0, {"share": 0, "answer": None, "token": None}),
    ],
)
def test_headline_judges_each_figure(per_token, to_answer, share, judged):
    """Would catch a slow-down, or a hair's breadth, in the colour of a success."""
    compared = Compared({"dense": result(), "sparse": result()}, per_token, to_answer, share, False)
    assert headline(compared, View())["judged"] == judged


@pytest.mark.parametrize(
    ("per_token", "to_answer", "words"),
    [
        (0.995, 1.005, "equally fast to the answer and equally fast per token"),
        (0.99, 0.53, "slower (0.53 times the speed) to the answer but equally fast per token"),
        (1.01, 0.53, "slower (0.53 times the speed) to the answer but equally fast per token"),
        (1.30, 1.25, "1.25 times as fast to the answer and 1.30 times as fast per token"),
    ],
)
def test_and_or_but(per_token, to_answer, words):
    """Would catch "equally fast but equally fast", where two speeds fall on different sides of 1 by a hair."""
    both = {"dense": result(), "sparse": result()}
    assert words in compare_line(Compared(both, per_token, to_answer, 0.5, False), View())


def test_phrases():
    """Would catch rounding that turns a little into nothing, or a hair's breadth into a victory."""
    assert speed_phrase(1.015) == "equally fast" == speed_phrase(0.985)
    assert (speed_phrase(1.03), speed_phrase(0.97)) == ("1.03 times as fast", "slower (0.97 times the speed)")
    assert (
        percent(0.004) == "0.4 %" and percent(0.996) == "99.6 %" and percent(1.2) == "120 %" and percent(0.0) == "0 %"
    )


def test_share_against_the_plain_adapter_pays_for_annotations():
    """Would catch comparing the sparse lane with its own longer text where the plain adapter writes a shorter one."""
    session, _ = scripted_session()
    end = list(compare(session, "arithmetic", TEXT, adapter="plain"))[-1]
    dense, sparse = end["lanes"]["dense"], end["lanes"]["sparse"]
    assert end["read_share"] == sparse["attended_tokens"] / dense["attended_tokens"]
    assert end["read_share"] > sparse["attended_tokens"] / sparse["dense_tokens"]
    assert "what the plain adapter's lane read" in end["line"]
