"""Rules as tables: what a task tells the device says the same as its own rules, id by id."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_kernels import rules as kernel_rules
from selfspan_core.engine import device_rules
from selfspan_core.engine.device_rules import CODE_BITS, NUM_CHARACTERS, Bounds, DeviceRules, HostOnly, Tabled
from selfspan_core.engine.tabled_rules import TabledRules, runs_of, words_of
from selfspan_core.models.token_bytes import id_bytes
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize import own_words
from selfspan_core.tasks.summarize.rules import RuleTables
from selfspan_core.tasks.summarize.tabled import SIGMAS, characters, words_by_name
from tests.support.byte_level import byte_level
from tests.support.ruled_walks import allowed, made_article, ruled, walk
from tests.support.slow import examples


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


@pytest.fixture(scope="module", params=["falls back to bytes", "byte level"])
def any_tables(request, tables):
    return tables if request.param == "falls back to bytes" else RuleTables(byte_level())


def tabled(rules, tables):
    form = rules.on_device()
    assert isinstance(rules, Tabled) and isinstance(form, DeviceRules), form
    return TabledRules(form, tables.markers)


@settings(max_examples=examples(60, 1500), deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["short", "medium"]), st.integers(1, 14))
def test_tables_say_what_the_rules_say(any_tables, seed, annotated, length, num_sentences):
    """Would catch any id that one of the two lets through and the other does not, whatever was written before."""
    rng = random.Random(seed)
    sentences = made_article(rng, num_sentences)
    _, rules = ruled(any_tables, sentences, length, annotated, rng.randrange(256))
    ours, vocab_size = tabled(rules, any_tables), any_tables.tokenizer.vocab_size
    for place, token in enumerate(walk(rng, any_tables, rules.fork(), sentences)):
        wanted, found = (allowed(one.limits(), vocab_size) for one in (rules, ours))
        assert (wanted == found).all(), (place, np.flatnonzero(wanted != found)[:5])
        if rng.random() < 0.1:
            ours.fork().push(int(rng.choice(np.flatnonzero(wanted))))
        rules.push(token)
        ours.push(token)


LETTERS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("aA  .-'’ÄäßẞİıiİŉǅǆKkÅåﬁéÉ12²½_、中文")), max_size=24
)


@settings(max_examples=examples(300, 5000), deadline=None)
@given(LETTERS, LETTERS)
def test_words_are_equal_where_the_rules_call_them_equal(left, right):
    """Would catch two words that the device takes for one, or one for two: letters that have no capital, or two."""
    if not SIGMAS.isdisjoint(left):
        assert words_by_name({0: left}) is None
        return
    (codes,) = words_by_name({0: left}).values()
    table = characters()
    # The right text is a body's: it may hold anything.
    others = [tuple(int(table[ord(c)]) & CODE_BITS for c in word) for word in own_words.found_words(right)]
    for one, own in zip(own_words.words_of(left), codes, strict=True):
        for two, other in zip(own_words.words_of(right), others, strict=True):
            assert (one == two) == (own == other), (one, two)


@settings(max_examples=examples(150, 3000), deadline=None)
@given(st.integers(0, 2**32), LETTERS)
def test_words_of_ids_are_those_of_their_text(any_tables, seed, text):
    """Would catch bytes that are read as another character than the tokenizer reads them, or none where it does."""
    rng, tokenizer = random.Random(seed), any_tables.tokenizer
    unfit, by_bytes = set(any_tables.body_banned), tokenizer.id_bytes()
    short = [token for token, piece in enumerate(by_bytes[0]) if len(piece) == 1 and token not in unfit]
    ids = tokenizer.encode(text + text.upper())
    for _ in range(rng.randint(0, 12)):
        place = rng.randint(0, len(ids))
        ids[place:place] = rng.choices(rng.choice((short, range(tokenizer.vocab_size))), k=rng.randint(1, 4))
    ids = [token for token in ids if token not in unfit]
    table = characters()
    wanted = [
        tuple(int(table[ord(c)]) & CODE_BITS for c in word) for word in own_words.found_words(tokenizer.decode(ids))
    ]
    assert words_of(any_tables.ids, ids) == wanted
    assert runs_of(wanted) == {tuple(wanted[i : i + 4]) for i in range(len(wanted) - 3)}


def test_the_table_of_characters_is_complete():
    """Would catch a letter behind the end of the table, a Python whose capital letters have other small ones, and
    numbers that the kernels, the engine and the task do not share."""
    assert not any(chr(code).isalnum() for code in range(NUM_CHARACTERS, 0x110000))
    two = [chr(code) for code in range(0x110000) if len(chr(code).lower()) != 1]
    assert two == ["İ"] and not chr(0x307).isalnum()
    assert sum(chr(code).lower() == chr(0x307) for code in range(0x110000)) == 1  # itself
    assert own_words.REPEATED_WORDS == device_rules.RUN_WORDS
    shared = ("MAX_STEPS", "MAX_BODY", "RUN_WORDS", "NUM_CHARACTERS", "MOST_WAYS", "BYTES_PER_ID", "CODES_PER_TOKEN")
    for name in shared:
        assert getattr(kernel_rules, name) == getattr(device_rules, name), name
    assert (kernel_rules.ENDS, kernel_rules.CLOSES) == (device_rules.ENDS, device_rules.CLOSES)


@pytest.mark.parametrize(
    ("sentences", "words", "reason"),
    [
        (["It rained in Σάμος.", "Nobody came."], "free", "sigma"),
        (["It rained.", "Nobody came."], "own", "decided on their text"),
        (["It rained.", "Nobody came."], "copied", "decided on their text"),
    ],
)
def test_what_stays_with_the_host_says_why(tables, sentences, words, reason):
    """Would catch rules on the device that are not the task's, or a reason that nobody is told."""
    _, rules = ruled(tables, sentences, "short", True, words=words)
    assert isinstance(rules.on_device(), HostOnly) and reason in rules.on_device().reason


def test_what_is_beyond_the_devices_room_stays_with_the_host(tables, monkeypatch):
    """Would catch tables that are written over those of the next row."""
    _, rules = ruled(tables, ["a b c d e f g h i j k l m n o p."], "short", True)
    form = rules.on_device()
    assert isinstance(form, DeviceRules)
    common = {name: getattr(form, name) for name in form.__dataclass_fields__}
    (name,) = form.words
    several = {
        "runs of words": {"words": {name: [(97,)] * (len(form.prompt) + 4)}},
        "letters": {"words": {name: [(97,) * 9 * len(form.prompt)]}},
        "steps": {"bounds": Bounds(2, 9, 2, 5, 160, 8, 8)},
        "bodies": {"bounds": Bounds(2, 5, 2, 5, 161, 8, 8)},
        "below 1": {"bounds": Bounds(2, 5, 0, 5, 160, 8, 8)},
        "names for": {"fresh": form.fresh[:1]},
        "opens a step": {"opening": form.prompt[-1]},
    }
    for reason, change in several.items():
        with pytest.raises(ValueError, match=reason):
            DeviceRules(**common | change)
    monkeypatch.setattr(device_rules, "CODES_PER_TOKEN", 0)
    assert "letters" in rules.on_device().reason


def test_tokenizers_whose_text_is_not_their_bytes():
    """Would catch a tokenizer that puts or takes spaces when it decodes, and whose rules run on the device anyway."""
    vocabulary = {"<0x41>": 0, "▁b": 1, "<0xZZ>": 2}
    replaced = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    fallback, fused = {"type": "ByteFallback"}, {"type": "Fuse"}
    as_bytes = {"type": "Sequence", "decoders": [replaced, fallback, fused]}
    assert id_bytes(as_bytes, vocabulary) == ((b"A", b" b", b"<0xZZ>"), {0})
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    for others in ([replaced, fused], [fallback, replaced, fused], [replaced, fallback, fused, strip], [fused]):
        assert id_bytes({"type": "Sequence", "decoders": others}, vocabulary) is None
    assert id_bytes(None, vocabulary) is None and id_bytes({"type": "WordPiece"}, vocabulary) is None
    by_pattern = replaced | {"pattern": {"Regex": "▁"}}
    assert id_bytes({"type": "Sequence", "decoders": [by_pattern, fallback, fused]}, vocabulary) is None
