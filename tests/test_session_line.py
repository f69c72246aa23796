"""The line under a race: honest, and in words that fit."""

import pytest

from selfspan_core.compare.verdict import Compared, compare_line, percent, speed_phrase
from selfspan_core.tasks.base import View
from tests.support.asking import compare
from tests.support.session_tools import TEXT, scripted_session


def result(correct=True, answer="2907", malformed=0, attention="dense"):
    return {
        "correct": correct,
        "answer": answer,
        "expected": "2907",
        "malformed_steps": malformed,
        "attention": attention,
        "tokens": 100,
        "seconds": 1.0,
        "tokens_per_second": 100.0,
    }


@pytest.mark.parametrize(
    ("dense", "sparse", "per_token", "to_answer", "head", "tail"),
    [
        (
            *(result(), result(), 1.423, 1.3),
            "Self-selected attention was 1.42 times as fast per token and 1.30 times as fast to the answer; it read "
            "31 %",
            "both answers are right.",
        ),
        (
            *(result(), result(False, "2906"), 0.85, 0.8),
            "Self-selected attention was slower (0.85 times the speed) per token and slower (0.80 times the speed) to "
            "the answer; it read 31 %",
            "the dense answer is right, the self-selected answer is wrong (2906, expected 2907).",
        ),
        (
            *(result(False, None), result(malformed=2), 1.2, None),
            "Self-selected attention was 1.20 times as fast per token; it read 31 %",
            "the dense answer is missing (expected 2907), the self-selected answer is right; 2 malformed steps "
            "in the self-selected lane.",
        ),
        (
            *(result(False, "1"), result(False, "1"), 1.2, 0.9),
            "Self-selected attention was 1.20 times as fast per token but slower (0.90 times the speed) to the answer; "
            "it read 31 %",
            "both answers are wrong (1, expected 2907).",
        ),
    ],
)
def test_line_is_honest(dense, sparse, per_token, to_answer, head, tail):
    """Would catch a slower run or a wrong answer being dressed up."""
    line = compare_line(Compared({"dense": dense, "sparse": sparse}, per_token, to_answer, 0.31, False), View())
    assert line == f"{head} of what dense attention reads for the same tokens; {tail}"


@pytest.mark.parametrize(
    ("per_token", "to_answer", "words"),
    [
        (0.995, 1.005, "equally fast per token and equally fast to the answer"),
        (0.99, 0.53, "equally fast per token but slower (0.53 times the speed) to the answer"),
        (1.01, 0.53, "equally fast per token but slower (0.53 times the speed) to the answer"),
        (1.30, 1.25, "1.30 times as fast per token and 1.25 times as fast to the answer"),
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
