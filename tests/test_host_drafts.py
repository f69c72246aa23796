"""Drafts that a step on the host verifies: the reference's word on them, and rules that forbid some."""

import pytest
import torch

from selfspan_core.engine.events import Token
from selfspan_core.models.model import SpanModel
from tests.support.asking import asked
from tests.support.batch_tools import Alternating, Proposes, answer, example, host
from tests.support.engine_tools import TOLERANCE, tiny_hf
from tests.support.span_examples import FIRST_TEXT


@pytest.fixture(scope="module")
def model():
    return SpanModel(tiny_hf())


def last_token(events):
    return [event for event in events if isinstance(event, Token)][-1]


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_the_reference_verifies_the_same_drafts(model, attention):
    """Would catch a fast pass over several queries that keeps another draft than the masked one over everything."""
    for seed in range(3):
        prompt, _ = example(seed, num_steps=3)
        start = prompt.prompt.num_tokens
        request = asked(prompt, max_new_tokens=24, with_logits=True)
        expected, logits, _ = answer(host(model, 1, attention, "reference"), request)
        spoiled = [token + (place % 5 == 4) for place, token in enumerate(expected)]

        def propose(ids, most, script=spoiled, start=start):
            return script[len(ids) - start :][: 1 + len(ids) % 6]

        for impl in ("reference", "gather"):
            request = asked(prompt, max_new_tokens=24, with_logits=True, drafter=Proposes(propose))
            found, own, events = answer(host(model, 1, attention, impl), request)
            assert found == expected
            torch.testing.assert_close(torch.stack(own), torch.stack(logits), atol=TOLERANCE, rtol=0)
            last = last_token(events)
            assert last.num_drafted > last.num_accepted > 0


def test_drafts_that_rules_forbid_are_cut_and_never_fed(model):
    """Would catch a forbidden draft that takes a place in a pass and counts as a wrong one, and rules that stay pushed
    on."""
    prompt, _ = example(3)
    start, plain = prompt.prompt.num_tokens, Alternating()
    expected, _, _ = answer(host(model, 1, "sparse"), asked(prompt, max_new_tokens=30, rules=plain))
    rules = Alternating()
    drafter = Proposes(lambda ids, most: [*expected[len(ids) - start :][:2], FIRST_TEXT, FIRST_TEXT])
    found, _, events = answer(host(model, 1, "sparse"), asked(prompt, max_new_tokens=30, rules=rules, drafter=drafter))
    assert found == expected
    assert rules.written == plain.written
    last = last_token(events)
    assert 0 <= last.num_drafted - last.num_accepted <= 1  # the last draft of all may be the answer's end
