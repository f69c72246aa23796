"""Batches whose steps keep rules by themselves: the same ids as where the host is asked, and nobody asks it."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.attention import backends
from selfspan_core.compare.session import Session
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import NUM_AHEAD, BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.drafters import Paced
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Finished, Token
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import SamplingParams
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize
from tests.support.asking import compare
from tests.support.engine_tools import tiny_hf
from tests.support.near_ties import assert_near_ties, ties_of
from tests.support.ruled_answers import answers, assert_allowed
from tests.support.ruled_walks import allowed, made_article, ruled
from tests.support.slow import examples
from tests.support.tiny_models import save_tiny

CAPACITY = 1024
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def tables():
    return RuleTables(SpanTokenizer.load("assets/base"))


@pytest.fixture(scope="module")
def weights(tables):
    return DecodeWeights(SpanModel(tiny_hf(vocab_size=tables.tokenizer.vocab_size)))


class Wrong:
    """A drafter of the host: what stands in the prompt, with wrong ids and markers."""

    def __init__(self, tables, seed):
        self._rng, self._markers = random.Random(seed), tables.markers

    def propose(self, state, most):
        start = self._rng.randrange(len(state.ids))
        drafts = list(state.ids[start : start + most])
        others = (self._markers.end, self._markers.ref, self._markers.eos, self._markers.go, -1)
        return [self._rng.choice(others) if self._rng.random() < 0.2 else token for token in drafts]


def made_requests(tables, seed, num, drafts_of):
    """So many articles in both lanes and lengths, and what asks for them with rules on the host or on the device."""
    rng, hints = random.Random(seed), Summarize().draft_hints(tables.tokenizer)
    host, device = [], []
    for number in range(num):
        annotated, length = rng.random() < 0.7, rng.choice(("short", "medium"))
        prompt, rules = ruled(tables, made_article(rng, rng.randint(1, 9)), length, annotated)
        drawn = SamplingParams(rng.choice((20, 90, 300)), rng.choice((0.0, 0.0, 0.9)), seed=seed)
        host.append(PromptRequest(prompt, annotated, drawn, rules))
        device.append(PromptRequest(prompt, annotated, drawn, rules.on_device(), drafts_of(hints, number)))
        if number % 4 == 3:  # a row without rules among the others
            host[-1], device[-1] = replace(host[-1], rules=None), replace(device[-1], rules=None)
    return host, device


@settings(max_examples=examples(3, 80), deadline=None)
@given(st.integers(0, 999), st.booleans(), st.sampled_from(["off", "auto", 1, 7, 15]))
def test_the_same_ids_as_with_rules_on_the_host(weights, tables, seed, is_dense, drafts):
    """Would catch an id that is drawn under the limits of another place, row or pass, a row that begins with the state
    of the one before it, a draft that rules forbid and a step keeps."""
    own = {"off": lambda hints, number: None}.get(
        drafts,
        lambda hints, number: Wrong(tables, seed) if number % 3 == 2 else DeviceDrafts(hints, None),
    )
    host, device = made_requests(tables, seed, 5, own)
    wanted = answers(weights, tables.markers, host, BatchShape(2, CAPACITY, is_dense, with_rules=True))
    shape = BatchShape(2, CAPACITY, is_dense, drafts=drafts, with_device_rules=True)
    assert answers(weights, tables.markers, device, shape) == wanted
    # Rows of both kinds side by side.
    host = made_requests(tables, seed, 5, own)[0]
    shape = replace(shape, with_rules=True)
    assert answers(weights, tables.markers, [device[0], host[1], device[2], *device[3:]], shape) == wanted


def assert_limits_behind_every_id(weights, tables, drafts, num, temperature=0.9):
    """Every id's logits are forbidden exactly where the host's rules forbid an id, be it drawn or drafted."""
    rng, hints, vocab_size = random.Random(3), Summarize().draft_hints(tables.tokenizer), tables.tokenizer.vocab_size
    requests, held = [], []
    for number in range(num):
        annotated = number % 3 > 0
        prompt, rules = ruled(tables, made_article(rng, 6), "medium", annotated)
        drafter = None if drafts == "off" else DeviceDrafts(hints)
        drawn = SamplingParams(250, temperature, seed=number)
        requests.append(PromptRequest(prompt, annotated, drawn, rules.on_device(), drafter, with_logits=True))
        held.append(rules)
    shape = BatchShape(3, CAPACITY, False, drafts=drafts, with_device_rules=True)
    num_ids = 0
    for number, event in BatchEngine(weights, tables.markers, shape).generate(requests):
        assert not isinstance(event, Failed), event
        if isinstance(event, Token):
            forbidden = event.logits.isneginf().cpu()[:vocab_size].numpy()
            assert (forbidden == ~allowed(held[number].limits(), vocab_size)).all(), (number, num_ids)
            held[number].push(event.id)
            num_ids += 1
    assert num_ids > 100 * num


@pytest.mark.parametrize("drafts", ["off", 7])
def test_limits_behind_every_id(weights, tables, drafts):
    """Would catch limits of a draft that was not kept, or of the id before, where the same id is drawn by luck."""
    assert_limits_behind_every_id(weights, tables, drafts, 4)


def test_nobody_asks_the_host(weights, tables, monkeypatch):
    """Would catch a step that waits for the host's word on what may come, or a row for which steps do not run ahead."""
    asked = {"push": 0, "limits": 0}

    def counted(name):
        original = getattr(SummaryRules, name)

        def call(self, *arguments):
            asked[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(SummaryRules, name, call)

    counted("push")
    counted("limits")
    host, device = made_requests(tables, 5, 3, lambda hints, number: DeviceDrafts(hints))
    for requests, shape in (
        (device, BatchShape(3, CAPACITY, False, drafts=7, with_device_rules=True)),
        (host, BatchShape(3, CAPACITY, False, with_rules=True)),
    ):
        step = BatchStep(weights, tables.markers, shape)
        is_host, num_ahead = requests is host, set()
        loop = DecodeLoop(step)
        for _, event in loop.generate(requests):
            assert not isinstance(event, Failed)
            num_ahead.add(step.num_ahead)
        assert num_ahead == ({1, NUM_AHEAD} if is_host else {NUM_AHEAD})
        assert (asked["push"] > 0, asked["limits"] > 0) == (is_host, is_host)


def test_forced_ids_are_held_to_nothing(weights, tables):
    """Would catch a replay that rules bend."""
    prompt, rules = ruled(tables, ["It rained.", "Nobody came."], "short", True)
    forced = [tables.markers.go, 900, tables.markers.eos]
    shape = BatchShape(1, CAPACITY, False, with_device_rules=True)
    request = PromptRequest(prompt, rules=rules.on_device(), forced_tokens=forced)
    step = BatchStep(weights, tables.markers, shape)
    events = [event for _, event in DecodeLoop(step).generate([request])]
    assert [event.id for event in events if isinstance(event, Token)] == forced
    assert isinstance(events[-1], Finished)


def test_rules_in_a_form_that_a_step_does_not_keep_are_refused(weights, tables):
    """Would catch a request whose rules are forgotten in silence, and drafts of the device past the host's rules."""
    prompt, rules = ruled(tables, ["It rained.", "Nobody came."], "short", True)
    engine, form = Engine(weights.model, tables.markers), rules.on_device()
    hints = Summarize().draft_hints(tables.tokenizer)
    on_device, on_host = PromptRequest(prompt, rules=form), PromptRequest(prompt, rules=rules)
    with pytest.raises(ValueError, match="asked id by id"):
        list(engine.generate(on_device, "dense", "gather"))
    for request, shape in (
        (on_device, BatchShape(1, CAPACITY, True, with_rules=True)),
        (on_host, BatchShape(1, CAPACITY, True, with_device_rules=True)),
        (replace(on_device, drafter=DeviceDrafts(hints)), BatchShape(1, CAPACITY, True, with_device_rules=True)),
    ):
        (event,) = (event for _, event in BatchEngine(weights, tables.markers, shape).generate([request]))
        assert isinstance(event, Failed) and "made without" in str(event.error)
    assert engine.rules(rules, "captured").rules.prompt == form.prompt
    assert engine.rules(rules, "gather").rules is rules and engine.rules(None, "captured").rules is None
    own = ruled(tables, ["It rained.", "Nobody came."], "short", True, words="own")[1]
    assert engine.rules(own, "captured").rules is own and engine.rules(own, "captured").on_host_because
    assert engine.drafter(on_device, hints, 7, "dense", "captured") == DeviceDrafts(hints, 7)
    assert isinstance(engine.drafter(on_host, hints, 7, "dense", "captured"), Paced)


SOURCE = (
    "The council closed the old bridge on Monday after a long winter. A farmer painted a wooden boat in {place}. "
    "Police opened the market hall for the second time. The bakery sold two fire engines without any help. "
) * 2


@pytest.mark.parametrize(("place", "where"), [("town", "device"), ("Σάμος", "host")])
def test_a_session_says_where_rules_are_kept(tmp_path, monkeypatch, place, where):
    """Would catch an article that falls back to the host, and nobody is told; or another text than the host's."""
    base, adapters = save_tiny(tmp_path, max_context=2048, task="summarize")
    runs = {}
    for impl in ("gather", "captured"):
        with monkeypatch.context() as patch:
            patch.setattr(backends, "why_no_kernels", lambda impl, device: None)
            session = Session(ModelStore(base, adapters, device="cpu", impl=impl))
            text = SOURCE.format(place=place)
            runs[impl] = list(compare(session, "summarize", text, drafts=3, max_new_tokens=120))
    told = [[lane.get("rules_on") for lane in runs[impl][0]["lanes"]] for impl in runs]
    assert told == [[None, None], [where, where]]
    because = [lane.get("rules_on_host_because", "") for lane in runs["captured"][0]["lanes"]]
    # Only the lane with names compares words; the other would do without.
    assert all(("sigma" in reason) == (where == "host") for reason in because[1:])
    for lane in ("dense", "sparse"):
        outputs = [runs[impl][-1]["lanes"][lane]["output"] for impl in runs]
        assert outputs[0] == outputs[1] and outputs[0]


def num_parted(weights, tables, drafts, num):
    """Of so many answers, how many come out otherwise than with rules on the host; each allowed, and parting where two
    ids are as likely but for rounding."""
    own = (lambda hints, number: None) if drafts == "off" else (lambda hints, number: DeviceDrafts(hints))
    host, device = made_requests(tables, 11, num, own)
    again = [request.rules for request in made_requests(tables, 11, num, own)[0]]
    host, device = ([replace(one, sampling=SamplingParams(40)) for one in requests] for requests in (host, device))
    wanted = answers(weights, tables.markers, host, BatchShape(8, CAPACITY, False, with_rules=True))
    shape = BatchShape(8, CAPACITY, False, drafts=drafts, with_device_rules=True)
    found = answers(weights, tables.markers, device, shape)
    for number, rules in enumerate(again):
        assert_allowed(found[number], rules)
    ties = ties_of(weights, tables.markers, host, (wanted, found), False)
    assert_near_ties(ties, weights.model.dtype)
    return len(ties)


@pytest.mark.parametrize("drafts", ["off", 7])
def test_the_same_ids_but_for_ties(weights, tables, drafts):
    """Would catch a check for GPUs that no longer runs, where nobody has one."""
    assert num_parted(weights, tables, drafts, 8) == 0  # in 32 bits nothing is as near as rounding moves it


# ---- on a GPU


def on_cuda(tables):
    hf = tiny_hf(vocab_size=tables.tokenizer.vocab_size, head_dim=64).to(torch.bfloat16)
    return DecodeWeights(SpanModel(hf.cuda()))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("drafts", ["off", 7, "auto"])
def test_gpu_limits_behind_every_id(tables, drafts):
    """Would catch a captured step that draws under other limits than the host's rules say, whatever is drawn."""
    assert_limits_behind_every_id(on_cuda(tables), tables, drafts, 12)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("drafts", ["off", 7])
def test_gpu_the_same_ids_but_for_ties(tables, drafts):
    """Would catch steps that run ahead of each other under the limits of one before."""
    # In 16 bits a step of another size rounds otherwise, and the likeliest two ids are often as likely.
    assert num_parted(on_cuda(tables), tables, drafts, 40) <= 16
