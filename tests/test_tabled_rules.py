"""Rules as tables: what a task tells the device says the same as its own rules, id by id."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine import device_rules
from selfspan_core.engine.device_rules import CODE_BITS, DeviceRules, HostOnly, Tabled
from selfspan_core.engine.tabled_rules import TabledRules, words_of
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize import own_words
from selfspan_core.tasks.summarize.rules import RuleTables
from selfspan_core.tasks.summarize.tabled import characters
from tests.support.ruled_walks import allowed, made_article, ruled, walk
from tests.support.slow import examples


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


def tabled(rules, tables):
    form = rules.on_device()
    assert isinstance(rules, Tabled) and isinstance(form, DeviceRules), form
    return TabledRules(form, tables.markers)


@settings(max_examples=examples(60, 1500), deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["short", "medium"]), st.integers(1, 14))
def test_tables_say_what_the_rules_say(tables, seed, annotated, length, num_sentences):
    """Would catch any id that one of the two lets through and the other does not, whatever was written before."""
    rng = random.Random(seed)
    sentences = made_article(rng, num_sentences)
    _, rules = ruled(tables, sentences, length, annotated, rng.randrange(256))
    ours, vocab_size = tabled(rules, tables), tables.tokenizer.vocab_size
    ids = walk(rng, tables, rules.fork(), sentences)
    for place, token in enumerate(ids):
        wanted, found = (allowed(one.limits(), vocab_size) for one in (rules, ours))
        assert (wanted == found).all(), (place, np.flatnonzero(wanted != found)[:5])
        if rng.random() < 0.1:
            fork = ours.fork()
            fork.push(int(rng.choice(np.flatnonzero(wanted))))
        rules.push(token)
        ours.push(token)
