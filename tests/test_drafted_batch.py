"""Batch steps that verify drafts: the same texts as without, whatever is drafted, by whom and for whom."""

import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import SIZES, BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.cuda_parts import CudaParts
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.drafters import Paced, SpanSource
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Finished, Token
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.pass_sizes import EVERY, PassSizes
from selfspan_core.engine.torch_parts import TorchParts
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import MAX_DRAFTS
from tests.support.asking import asked
from tests.support.batch_tools import CAPACITY, Alternating, example, on_cuda
from tests.support.engine_tools import tiny_hf
from tests.support.near_ties import assert_near_ties, ties_of
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, VOCAB

HINTS = DraftHints(2, frozenset({FIRST_TEXT}), (MARKERS.res,))
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def weights():
    return DecodeWeights(SpanModel(tiny_hf()))


class Adversary:
    """A drafter of the host: right ids, wrong ones, markers, ids of no vocabulary, more than there is room for."""

    def __init__(self, ids, seed):
        self._ids, self._rng = ids, random.Random(seed)

    def propose(self, state, most):
        written = len(state.ids) - state.num_prompt
        drafts = list(self._ids[written : written + self._rng.randint(0, 20)])
        for place in range(len(drafts)):
            if self._rng.random() < 0.1:
                drafts[place] = self._rng.choice([*MARKERS.ids, MARKERS.eos, FIRST_TEXT, VOCAB + 3, -1])
        return drafts


def texts(weights, requests, shape):
    """Ids and events by request."""
    found = {number: [] for number in range(len(requests))}
    for number, event in BatchEngine(weights, MARKERS, shape).generate(requests):
        assert not isinstance(event, Failed), event
        found[number].append(event)
    return {number: [e.id for e in events if isinstance(e, Token)] for number, events in found.items()}, found


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("drafts", ["auto", 1, 7, MAX_DRAFTS])
def test_drafts_change_nothing_but_the_passes(weights, is_dense, drafts):
    """Would catch a draft that is kept though another id was drawn, a cache or tracker that keeps what was undone, a
    row's end that drafts overrun, figures that do not add up."""
    own = DeviceDrafts(HINTS, None if drafts == "auto" else drafts)
    pairs = [example(seed, num_steps=2 + seed % 4) for seed in range(7)]

    def requests(drafter):
        for number, (prompt, forced) in enumerate(pairs):
            length = {"forced_tokens": forced} if number % 2 else {"max_new_tokens": 50}
            yield asked(prompt, annotated=number % 3 > 0, drafter=drafter, **length)

    wanted, undrafted = texts(weights, list(requests(None)), BatchShape(3, CAPACITY, is_dense))
    found, events = texts(weights, list(requests(own)), BatchShape(3, CAPACITY, is_dense, drafts=drafts))
    assert found == wanted
    accepted = 0
    for number, mine in events.items():
        last = [event for event in mine if isinstance(event, Token)][-1]
        assert last.num_accepted <= last.num_drafted
        assert last.num_passes + last.num_accepted >= len(found[number]) - 1
        accepted += last.num_accepted
        visible = [event.visible for event in undrafted[number] if isinstance(event, Token)]
        assert [event.visible for event in mine if isinstance(event, Token)] == visible
        assert isinstance(mine[-1], Finished)
    assert accepted > (0 if drafts == "auto" else 20)  # "auto" goes by the clock


@settings(max_examples=examples(25, 300), deadline=None)
@given(st.integers(0, 999), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.8]), st.booleans())
def test_drafts_from_the_host(weights, seed, is_dense, with_rules, temperature, is_forced):
    """Would catch drafts from the host that go to another row, that rules forbid and a step keeps, that are verified
    against another draw than the undrafted one."""
    rng = random.Random(seed)
    prompt, forced = example(seed % 30, num_steps=2 + seed % 3)
    common = {"temperature": temperature, "seed": seed}
    common |= {"forced_tokens": forced} if is_forced else {"max_new_tokens": rng.randint(1, 60)}
    if with_rules and not is_forced:
        common["rules"] = Alternating()
    shape = BatchShape(2, CAPACITY, is_dense, with_rules)
    (ids,) = texts(weights, [asked(prompt, **common)], shape)[0].values()
    if with_rules and not is_forced:
        common["rules"] = Alternating()
    other = asked(example(3)[0], max_new_tokens=30, drafter=DeviceDrafts(HINTS))
    drafter = rng.choice([Adversary(ids, seed), Paced(SpanSource(MARKERS, HINTS))])
    drafts = rng.choice(["auto", rng.randint(1, MAX_DRAFTS)])
    drafted_shape = BatchShape(2, CAPACITY, is_dense, with_rules, drafts)
    found, _ = texts(weights, [other, asked(prompt, **common, drafter=drafter)], drafted_shape)
    assert found[1] == ids
    assert found[0] == texts(weights, [asked(example(3)[0], max_new_tokens=30)], shape)[0][0]


def test_logits_belong_to_their_ids(weights):
    """Would catch logits of another query or row, where a pass brings several ids."""
    prompt, forced = example(5)
    request = asked(prompt, forced_tokens=forced, with_logits=True)
    (plain,) = texts(weights, [request], BatchShape(1, CAPACITY, False))[1].values()
    drafted = asked(prompt, forced_tokens=forced, with_logits=True, drafter=DeviceDrafts(HINTS))
    other = asked(example(6)[0], drafter=DeviceDrafts(HINTS), max_new_tokens=40)
    found = texts(weights, [other, drafted], BatchShape(2, CAPACITY, False, drafts=7))[1][1]
    pairs = list(zip(*([e for e in run if isinstance(e, Token)] for run in (plain, found)), strict=True))
    assert any(token.is_draft for _, token in pairs)
    for a, b in pairs:
        torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-4)


def test_the_engine_drafts_on_either_side():
    """Would catch a captured run that forgets its drafts, or an engine kept for other drafts than were asked for."""
    engine = Engine(SpanModel(tiny_hf()), MARKERS)
    prompt = example(2)[0]
    plain, ruled = asked(prompt), asked(prompt, rules=Alternating())
    assert engine.drafter(plain, HINTS, "off", "sparse", "captured") is None
    assert engine.drafter(plain, HINTS, 7, "sparse", "captured") == DeviceDrafts(HINTS, 7)
    assert engine.drafter(plain, HINTS, "auto", "dense", "captured") == DeviceDrafts(HINTS)
    assert isinstance(engine.drafter(ruled, HINTS, "auto", "dense", "captured"), Paced)
    assert isinstance(engine.drafter(plain, HINTS, "auto", "dense", "gather"), Paced)
    with pytest.raises(ValueError, match="most is 1 to 15"):
        DeviceDrafts(HINTS, 16)


def test_what_cannot_be_is_refused(weights):
    """Would catch rules that drafts of the device pass by, and a number of drafts that is blamed on the device."""
    with pytest.raises(ValueError, match="where the host keeps a request"):
        asked(example(1)[0], rules=Alternating(), drafter=DeviceDrafts(HINTS))
    for drafts in (0, -1, 16, True, "x", None, 2.5):
        with pytest.raises(ValueError, match="drafts is off, auto or 1 to 15"):
            BatchShape(1, 9, True, drafts=drafts)


def test_a_step_on_the_host_does_not_draft_for_the_device(weights):
    """Would catch a request whose drafts are forgotten in silence."""
    engine = Engine(weights.model, MARKERS)
    with pytest.raises(ValueError, match="takes one that proposes in Python"):
        list(engine.generate(asked(example(1)[0], drafter=DeviceDrafts(HINTS)), "dense", "gather"))


class Slow:
    """A drafter of the host that takes its time and has nothing to say."""

    SECONDS = 0.03

    def propose(self, state, most):
        time.sleep(self.SECONDS)
        return []


class SlowRules(Alternating):
    """Rules that take their time."""

    def push(self, token):
        time.sleep(Slow.SECONDS)
        super().push(token)


@pytest.mark.parametrize("given", [{"drafter": Slow()}, {"rules": SlowRules()}], ids=["drafter", "rules"])
def test_the_clock_counts_what_a_step_waits_for(weights, given):
    """Would catch figures without the host's part of a step, which for rows with rules is much of it."""
    shape = BatchShape(1, CAPACITY, True, True, 3 if "drafter" in given else "off")
    _, events = texts(weights, [asked(example(1)[0], max_new_tokens=6, **given)], shape)
    seconds = [event.step_ms / 1000 for event in events[0] if isinstance(event, Token)][1:]
    # The last id leaves no room for a draft.
    assert len(seconds) > 1 and min(seconds[:-1]) >= Slow.SECONDS


# ---- sizes


def run_sizes(costs, brings, num=1000, is_primed=True):
    """How often each size was chosen, if a pass costs and brings so much."""
    sizes = PassSizes(tuple(costs))
    for size, cost in costs.items() if is_primed else ():
        sizes.prime(size, cost / 2)
    chosen = dict.fromkeys(costs, 0)
    for _ in range(num):
        size = sizes.choose()
        chosen[size] += 1
        sizes.record(size, costs[size], [min(size, brings)] * 3)
    return chosen


def test_the_size_that_brings_most_a_second_is_taken():
    """Would catch drafts where they do not pay, none where they do, or trials that cost more than a percent or two."""
    flat = run_sizes({1: 1.0, 4: 1.02, 8: 1.05, 16: 1.1}, 9)
    assert flat[16] > 960
    for is_primed in (True, False):
        steep = run_sizes({1: 1.0, 4: 3.0, 8: 6.0, 16: 12.0}, 2, is_primed=is_primed)
        assert steep[1] > 960 and steep[16] < 10
        middle = run_sizes({1: 1.0, 4: 1.2, 8: 2.0, 16: 4.0}, 4, is_primed=is_primed)
        assert middle[4] > 960


def test_a_text_that_becomes_predictable_is_drafted_again():
    """Would catch a size that is never tried again once it did not pay."""
    sizes = PassSizes((1, 4, 8))
    costs = {1: 1.0, 4: 1.3, 8: 1.6}
    for number in range(3000):
        size = sizes.choose()
        sizes.record(size, costs[size], [min(size, 1 if number < 1000 else 8)])
        if number == 999:
            assert size == 1 or number % EVERY == EVERY - 1
    assert 8 in (sizes.choose(), sizes.choose())


@pytest.mark.parametrize("unpredictable", [10, 45, 60, 500])
@pytest.mark.parametrize("costs", [(0.166, 0.170, 0.175, 0.193), (4.81, 4.9, 5.0, 5.24)])
def test_an_easy_text_behind_a_hard_one(costs, unpredictable):
    """Would catch answers of many requests that are drafted too short, because of one that nothing predicted."""
    cost_of = dict(zip((1, 4, 8, 16), costs, strict=True))

    def passes(sizes: PassSizes, num_ids: int, most: int) -> int:
        sizes.expect_new_text()
        num = 0
        while num_ids > 0:
            size = sizes.choose()
            brought = min(size, most, num_ids)
            sizes.record(size, cost_of[size], [brought])
            num, num_ids = num + 1, num_ids - brought
        return num

    sizes = PassSizes(tuple(cost_of))
    for size, cost in cost_of.items():
        sizes.prime(size, cost)
    fresh = passes(sizes, 95, 13)
    assert fresh == 8
    passes(sizes, unpredictable, 1)
    assert all(passes(sizes, 95, 13) <= fresh + 2 for _ in range(20))


def test_sizes_of_a_batch():
    """Would catch a large batch whose steps are made of drafts, or a number of drafts that is not taken literally."""
    assert BatchShape(1, 9, True).sizes == (1,)
    assert BatchShape(1, 9, True, drafts="auto").sizes == SIZES == BatchShape(32, 9, True, drafts="auto").sizes
    assert BatchShape(64, 9, True, drafts="auto").sizes == (1, 4, 8)
    assert BatchShape(128, 9, True, drafts="auto").sizes == (1, 4)
    assert BatchShape(128, 9, True, drafts=5).sizes == (6,)


def num_parted(weights, num, drafts):
    """Of so many answers, how many come out otherwise with drafts, each at a near tie of two ids."""
    own = DeviceDrafts(HINTS, None if drafts == "auto" else drafts)
    plain, drafted = ([asked(example(n)[0], max_new_tokens=60, drafter=d) for n in range(num)] for d in (None, own))
    wanted = texts(weights, plain, BatchShape(8, CAPACITY, False))[0]
    found = texts(weights, drafted, BatchShape(8, CAPACITY, False, drafts=drafts))[0]
    ties = ties_of(weights, MARKERS, plain, (wanted, found), False)
    assert_near_ties(ties, weights.model.dtype)
    return len(ties)


@pytest.mark.parametrize("drafts", ["auto", 7])
def test_drafts_change_nothing_but_ties(weights, drafts):
    """Would catch a check for GPUs that no longer runs, where nobody has one."""
    assert num_parted(weights, 10, drafts) == 0  # in 32 bits nothing is as near as rounding moves it


# ---- on a GPU


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("num_kv_heads", [6, 2])
@pytest.mark.parametrize("drafts", [3, 15])
def test_gpu_same_rounds_as_pytorchs_operations(is_dense, num_kv_heads, drafts):
    """Would catch a kernel that sees other tokens for a draft, a draft lost or kept, a table of another step."""
    weights = on_cuda(num_key_value_heads=num_kv_heads)
    shape = BatchShape(5, CAPACITY, is_dense, drafts=drafts)
    steps = [BatchStep(weights, MARKERS, shape, parts=parts) for parts in (CudaParts, TorchParts)]
    for row in range(5):
        prompt, forced = example(row)
        for step in steps:
            drafter = None if row == 4 else DeviceDrafts(HINTS)
            step.begin(row, asked(prompt, annotated=row != 3, forced_tokens=forced, drafter=drafter), len(forced))
            step.collect()
    largest = 0.0
    for _ in range(25):
        outcomes = []
        for step in steps:
            step.launch()
            outcomes.append(step.collect())
        assert outcomes[0].tokens == outcomes[1].tokens and outcomes[0].num_drafted == outcomes[1].num_drafted
        logits = [step._logits[drafts + 1].view(5, drafts + 1, -1).float() for step in steps]
        for row in range(5):
            if outcomes[0].tokens[row]:
                ours, wanted = (one[row, : outcomes[0].num_drafted[row] + 1] for one in logits)
                largest = max(largest, wanted.abs().max().item())
                assert (ours - wanted).abs().max() < 0.05 * largest


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("drafts", ["auto", 7])
def test_gpu_drafts_change_nothing_but_ties(drafts):
    """Would catch a captured step that keeps other ids than were drawn, or that needs the host between its rounds."""
    # Ties are rare besides: many of them would be a sum that is less exact than it was.
    assert num_parted(on_cuda(num_key_value_heads=2), 40, drafts) <= 4
