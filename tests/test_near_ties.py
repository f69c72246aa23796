"""The check of answers in 16 bits: near ties pass, anything else fails."""

import pytest
import torch

from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from tests.support.asking import asked
from tests.support.batch_tools import CAPACITY, Alternating, example
from tests.support.engine_tools import tiny_hf
from tests.support.near_ties import assert_near_ties, logits_behind, ties_of
from tests.support.ruled_answers import answers
from tests.support.span_examples import FIRST_TEXT, MARKERS, VOCAB

TWINS = FIRST_TEXT + 3, VOCAB - 1
"""Two ids that are as likely everywhere."""


@pytest.fixture(scope="module")
def weights():
    hf = tiny_hf()
    with torch.no_grad():
        hf.lm_head.weight[TWINS[0]] *= 3  # so that it is written
        hf.lm_head.weight[TWINS[1]] = hf.lm_head.weight[TWINS[0]]
    return DecodeWeights(SpanModel(hf.to(torch.bfloat16)))


@pytest.fixture(scope="module")
def requests():
    return [asked(example(seed)[0], max_new_tokens=40) for seed in range(3)]


@pytest.fixture(scope="module")
def wanted(weights, requests):
    found = answers(weights, MARKERS, requests, BatchShape(3, CAPACITY, False))
    assert set(TWINS) & set(found[1])
    return found


def other_at(wanted, number, place, token):
    """The same answers, of which one has another id at a place, and goes on otherwise."""
    ids = [*wanted[number][:place], token, *(FIRST_TEXT for _ in wanted[number][place + 1 :])]
    return wanted | {number: ids}


def test_equal_answers_have_no_ties(weights, requests, wanted):
    """Would catch ties that are looked for where nothing parts."""
    assert ties_of(weights, MARKERS, requests, (wanted, dict(wanted)), False) == []


def test_a_tie_passes(weights, requests, wanted):
    """Would catch logits of another place or id, by which rounding is taken for a defect."""
    place = next(n for n, token in enumerate(wanted[1]) if token in TWINS)
    twin = TWINS[wanted[1][place] == TWINS[0]]
    (tie,) = ties_of(weights, MARKERS, requests, (wanted, other_at(wanted, 1, place, twin)), False)
    assert (tie.number, tie.place, tie.ids) == (1, place, (wanted[1][place], twin))
    assert tie.num_steps(torch.bfloat16) <= 1
    assert_near_ties([tie], torch.bfloat16)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_another_id_fails(weights, requests, wanted, number, share):
    """Would catch a wrong id that passes because most answers of the batch are the same."""
    place = round(share * (len(wanted[number]) - 1))
    logits = logits_behind(weights, MARKERS, requests[number], wanted[number][: place + 1], False)
    assert int(logits.argmax()) in {wanted[number][place], *TWINS}
    ties = ties_of(weights, MARKERS, requests, (wanted, other_at(wanted, number, place, int(logits.argmin()))), False)
    with pytest.raises(AssertionError, match="no rounding explains"):
        assert_near_ties(ties, torch.bfloat16)


def test_an_answer_that_ends_sooner_fails(weights, requests, wanted):
    """Would catch an end that is missed, which is no tie of two ids."""
    for pair in ((wanted, wanted | {2: wanted[2][:-1]}), (wanted | {2: wanted[2][:-1]}, wanted)):
        with pytest.raises(AssertionError, match="is the same up to there"):
            ties_of(weights, MARKERS, requests, pair, False)


def test_logits_are_those_of_the_lane_without_rules(weights, requests):
    """Would catch a forced row that rules hold back, or one that reads everything where the answer did not."""
    ids = example(1)[1][:30]
    free = [logits_behind(weights, MARKERS, requests[1], ids, is_dense) for is_dense in (True, False)]
    ruled = asked(example(1)[0], max_new_tokens=40, rules=Alternating())
    assert torch.equal(logits_behind(weights, MARKERS, ruled, ids, False), free[1])
    assert not torch.equal(free[0], free[1])
