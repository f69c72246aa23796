"""The decode loop over both kinds of steps: rows, rules, logits, drafts."""

import copy
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine import sampling
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Finished, Token
from selfspan_core.engine.host_step import MAX_DRAFTS
from selfspan_core.engine.rules import Limits
from selfspan_core.errors import EngineLost
from selfspan_core.models.model import SpanModel
from tests.support.asking import asked
from tests.support.batch_tools import CAPACITY, Alternating, Proposes, answer, by_request, example, host, shorn
from tests.support.engine_tools import TOLERANCE, tiny_hf
from tests.support.slow import examples
from tests.support.span_examples import FIRST_TEXT, MARKERS, VOCAB

ATTENTIONS = ("dense", "sparse")


@pytest.fixture(scope="module")
def model():
    return SpanModel(tiny_hf())


def device(model, batch, attention, with_rules=False):
    return BatchEngine(model.weights, MARKERS, BatchShape(batch, CAPACITY, attention == "dense", with_rules))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_rows_on_the_host_are_each_what_the_reference_computes(model, attention):
    """Would catch rows that mix in the decoder or in attention, a row's end that disturbs others, logits of another."""
    pairs = [example(seed, num_steps=2 + seed % 3) for seed in range(5)]
    requests = [asked(prompt, forced_tokens=forced, with_logits=True) for prompt, forced in pairs]
    found: dict[int, list] = {number: [] for number in range(5)}
    for number, event in host(model, 2, attention).generate(requests):
        found[number].append(event)
    for number, request in enumerate(requests):
        expected = list(Engine(model, MARKERS).generate(request, attention, "reference"))
        assert [shorn(event) for event in found[number]] == [shorn(event) for event in expected]
        own, other = ([e.logits for e in events if isinstance(e, Token)] for events in (found[number], expected))
        torch.testing.assert_close(torch.stack(own), torch.stack(other), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}])
def test_both_kinds_of_steps_write_the_same_under_rules(model, attention, drawn):
    """Would catch rules that reach the wrong row or come a token late, and a draw that differs by the kind of step."""
    prompts = [example(seed)[0] for seed in range(4)]
    with_rules = (True, False, True, True)

    def requests():
        rules = [Alternating() if has else None for has in with_rules]
        return rules, [
            asked(prompt, rules=rule, max_new_tokens=20 + n, **drawn)
            for n, (prompt, rule) in enumerate(zip(prompts, rules, strict=True))
        ]

    rules, wanted = requests()
    expected = by_request(host(model, 1, attention).generate(wanted))
    for rule in filter(None, rules):
        ids = rule.written
        assert all((a + b) % 2 for n, (a, b) in enumerate(itertools.pairwise(ids), 1) if n % 3)
        assert not {FIRST_TEXT, FIRST_TEXT + 1} & set(ids) and len(ids) > 1
    for loop in (host(model, 3, attention), device(model, 3, attention, with_rules=True)):
        for _ in range(2):  # nothing of the first time is left the second
            rules, wanted = requests()
            assert by_request(loop.generate(wanted)) == expected


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_logits_of_a_step_on_the_device(model, attention):
    """Would catch logits of the next step, of another row, or a row that is looked at for ever."""
    loop = device(model, 2, attention)
    requests = [asked(example(seed)[0], max_new_tokens=9, with_logits=seed == 1) for seed in range(3)]
    found: dict[int, list] = {number: [] for number in range(3)}
    for number, event in loop.generate(requests):
        if isinstance(event, Token):
            found[number].append(event)
    assert all(token.logits is None for number in (0, 2) for token in found[number])
    assert [int(token.logits.argmax()) for token in found[1]] == [token.id for token in found[1]]
    _, expected, _ = answer(host(model, 1, attention), requests[1])
    own = torch.stack([token.logits for token in found[1]])
    torch.testing.assert_close(own, torch.stack(expected), atol=TOLERANCE, rtol=0)
    assert loop._step.num_ahead > 1


class Nothing(Alternating):
    """Rules that leave nothing behind so many ids."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self._num = num

    def limits(self):
        return Limits((5,), (5,)) if len(self.written) == self._num else Limits(None, ())


class Raises:
    """A drafter with a defect."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def propose(self, state, most):
        raise self._error("of a drafter")


@pytest.mark.parametrize("num", [0, 3])
def test_rules_that_leave_nothing_end_their_request_alone(model, num):
    """Would catch a forbidden id written in silence, and one request's rules that end all others or the engine."""
    prompt = example(1)[0]
    for loop in (host(model, 2, "sparse"), device(model, 2, "sparse", with_rules=True)):
        for _ in range(2):
            requests = [asked(prompt, rules=Nothing(num)), asked(example(2)[0], max_new_tokens=12)]
            events = list(loop.generate([*requests, asked(prompt, rules=Alternating(), max_new_tokens=8)]))
            failed = {number: event.error for number, event in events if isinstance(event, Failed)}
            assert list(failed) == [0] and "the rules leave nothing to write" in str(failed[0])
            assert {number for number, event in events if isinstance(event, Finished)} == {1, 2}


class Breaks:
    """Rules that raise at the n-th question or id."""

    def __init__(self, method, number, error) -> None:
        self._method, self._left, self._error = method, number, error

    def _count(self, method):
        if method == self._method:
            self._left -= 1
            if self._left < 0:
                raise self._error("of the rules")

    def limits(self) -> Limits:
        self._count("limits")
        return Limits(None, ())

    def push(self, token: int) -> None:
        self._count("push")

    def fork(self) -> "Breaks":
        return copy.copy(self)


@pytest.mark.parametrize("error", [KeyError, IndexError, RuntimeError, ZeroDivisionError])
@pytest.mark.parametrize("method", ["limits", "push"])
@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize("drafts", ["off", 3])
def test_rules_that_raise_end_their_request_alone(model, error, method, number, drafts):
    """Would catch a task's defect that takes other requests with it, is blamed on the device, or leaves a row that
    goes on under the next request."""
    shape = BatchShape(2, CAPACITY, False, with_rules=True, drafts=drafts)
    loops = [BatchEngine(model.weights, MARKERS, shape)]
    if drafts == "off":
        loops.append(host(model, 2, "sparse"))
    prompts = [example(seed)[0] for seed in (1, 2, 3)]
    for loop in loops:
        (undisturbed,) = ([e for _, e in loop.generate([asked(prompts[1], max_new_tokens=12)])],)
        for _ in range(2):
            drafter = Proposes(two_tokens) if drafts != "off" else None
            requests = [
                asked(prompts[0], rules=Breaks(method, number, error), drafter=drafter, max_new_tokens=30),
                asked(prompts[1], max_new_tokens=12),
                asked(prompts[2], max_new_tokens=12),
            ]
            events = list(loop.generate(requests))
            failed = {request: event.error for request, event in events if isinstance(event, Failed)}
            assert list(failed) == [0] and "of the rules" in str(failed[0]), failed
            assert {request for request, event in events if isinstance(event, Finished)} == {1, 2}
            ids = [event.id for request, event in events if request == 1 and isinstance(event, Token)]
            assert ids == [event.id for event in undisturbed if isinstance(event, Token)]
        assert not loop.is_lost


def test_the_last_event_says_which_clock_the_seconds_are_of(model):
    """Would catch figures by the device's clock that pass for what a row waits for, or the other way round."""
    for loop, clock in ((host(model, 1, "sparse"), "host"), (device(model, 1, "sparse"), "device")):
        *_, (_, finished) = loop.generate([asked(example(1)[0], max_new_tokens=3)])
        assert isinstance(finished, Finished) and finished.clock == clock


@pytest.mark.parametrize("error", [KeyError, RuntimeError])
def test_a_defect_of_a_drafter_ends_its_request_alone(model, error):
    """Would catch a drafter whose error is taken for a device that is gone."""
    loop = host(model, 2, "sparse")
    requests = [asked(example(1)[0], drafter=Raises(error)), asked(example(2)[0], max_new_tokens=12)]
    events = list(loop.generate(requests))
    assert {number: type(event.error) for number, event in events if isinstance(event, Failed)} == {0: error}
    assert not loop.is_lost and sum(isinstance(event, Finished) for _, event in events) == 1


def test_a_device_that_fails_while_ids_are_drawn_ends_all(model, monkeypatch):
    """Would catch a lost device that is taken for one request's defect, so that the others go on with garbage."""

    def fail(*_):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    loop = host(model, 2, "sparse")
    requests = [asked(example(seed)[0], max_new_tokens=12, temperature=1.0) for seed in range(2)]
    events = loop.generate(requests)
    next(events)
    monkeypatch.setattr(sampling, "draw", fail)
    with pytest.raises(EngineLost):
        list(events)
    assert loop.is_lost


def test_logits_are_those_that_were_drawn_from(model):
    """Would catch logits of before the rules from one kind of step, and of behind them from the other."""
    for loop in (host(model, 1, "dense"), device(model, 1, "dense", with_rules=True)):
        request = asked(example(1)[0], rules=Alternating(), with_logits=True, max_new_tokens=6)
        _, logits, _ = answer(loop, request)
        assert all(bool(one[FIRST_TEXT].isneginf()) for one in logits)


def test_a_step_that_verifies_no_drafts_says_so(model):
    """Would catch a drafter that is taken and forgotten."""
    ((_, failed),) = device(model, 1, "dense").generate([asked(example(1)[0], drafter=Proposes(two_tokens))])
    assert isinstance(failed, Failed) and "made without drafts" in str(failed.error)


# ---- drafts


def two_tokens(ids, most):
    """A stub: always the same two tokens."""
    return [FIRST_TEXT, FIRST_TEXT + 1][:most]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "seed": 3}])
def test_right_drafts_save_steps_and_change_nothing(model, attention, drawn):
    """Would catch drafts that are not verified together, a token lost or doubled at their end, other logits."""
    prompt, _ = example(2)
    plain = asked(prompt, max_new_tokens=40, with_logits=True, **drawn)
    ids, logits, events = answer(host(model, 1, attention), plain)
    start = prompt.prompt.num_tokens
    for size in (1, 3, MAX_DRAFTS, 99):
        drafter = Proposes(lambda so_far, most, n=size: ids[len(so_far) - start :][:n])
        drafted = asked(prompt, max_new_tokens=40, with_logits=True, drafter=drafter, **drawn)
        own_ids, own_logits, own_events = answer(host(model, 1, attention), drafted)
        assert own_ids == ids and [shorn(e) for e in own_events] == [shorn(e) for e in events]
        torch.testing.assert_close(torch.stack(own_logits), torch.stack(logits), atol=TOLERANCE, rtol=0)
        last = [event for event in own_events if isinstance(event, Token)][-1]
        # All drafts are right, those that the end of the text cuts off apart.
        assert last.num_accepted >= last.num_drafted - MAX_DRAFTS
        assert last.num_passes + last.num_accepted >= len(ids) - 1
        if attention == "dense":
            assert drafter.num_asked <= 1 + len(ids) // (1 + min(size, MAX_DRAFTS))


def test_a_stub_that_proposes_two_tokens(model):
    """Would catch a drafter that needs more than to be given to a request."""
    prompt, _ = example(4)
    expected, _, _ = answer(host(model, 1, "sparse"), asked(prompt, max_new_tokens=30))
    drafted = asked(prompt, max_new_tokens=30, drafter=Proposes(two_tokens))
    assert answer(host(model, 1, "sparse"), drafted)[0] == expected


def test_a_rejected_header_leaves_nothing_in_a_workspace(model):
    """Would catch a body that reads the header of a draft that was rejected: one with another name, which reads the
    same segments from the same place."""
    for seed in range(3):
        prompt, forced = example(seed, num_steps=4)
        start = prompt.prompt.num_tokens

        def wrong_name(ids, most, forced=forced, start=start):
            following = forced[len(ids) - start :][:14]
            if not following or following[0] != MARKERS.ref or MARKERS.go not in following:
                return []
            at = following.index(MARKERS.go)
            return [*following[: at - 1], MARKERS.anchors[-1], *following[at : at + 3]]

        runs = [
            answer(
                host(model, 1, "sparse", impl), asked(prompt, forced_tokens=forced, with_logits=True, drafter=drafter)
            )
            for impl, drafter in (("reference", None), ("gather", Proposes(wrong_name)))
        ]
        torch.testing.assert_close(torch.stack(runs[0][1]), torch.stack(runs[1][1]), atol=TOLERANCE, rtol=0)


WEIRD = st.lists(
    st.sampled_from([*MARKERS.ids[:14], MARKERS.eos, FIRST_TEXT, VOCAB - 1, VOCAB, -1, 10**12]), max_size=2 * MAX_DRAFTS
)


@settings(max_examples=examples(25, 150), deadline=None)
@given(st.integers(0, 50), st.sampled_from(ATTENTIONS), st.booleans(), st.lists(WEIRD, min_size=1), st.integers(0, 99))
def test_any_drafts_change_nothing(seed, attention, annotated, drafts, share):
    """Any drafts, right ones among them: markers, `<eos>`, more than there is room for, across the ends of steps.

    Would catch a draft that is kept though it would not have been drawn, or that leaves something behind in tracker,
    cache, workspace or rules.
    """
    model = SpanModel(tiny_hf(seed))
    prompt, forced = example(seed)
    rng = random.Random(seed)

    def propose(ids, most):
        written = ids[prompt.prompt.num_tokens :]
        right = script[len(written) :][: rng.randint(0, 8)] if rng.randrange(100) < share else []
        return [*right, *drafts[len(ids) % len(drafts)]]

    for options in ({"max_new_tokens": 25}, {"forced_tokens": forced}, {"max_new_tokens": 25, "temperature": 2.0}):
        script = forced
        expected = answer(host(model, 1, attention), asked(prompt, annotated=annotated, **options))
        script = expected[0]
        asked_for = asked(prompt, annotated=annotated, drafter=Proposes(propose), **options)
        found = answer(host(model, 1, attention), asked_for)
        assert found[0] == expected[0]
        assert [shorn(event) for event in found[2]] == [shorn(event) for event in expected[2]]


def test_drafts_under_rules(model):
    """Would catch a draft that rules forbid being kept, and rules that are told of a draft that was not."""
    prompt, _ = example(3)
    plain = Alternating()
    expected, _, _ = answer(host(model, 1, "sparse"), asked(prompt, max_new_tokens=30, rules=plain))
    for drafts in (two_tokens, lambda ids, most: expected[len(ids) - prompt.prompt.num_tokens :]):
        rules = Alternating()
        request = asked(prompt, max_new_tokens=30, rules=rules, drafter=Proposes(drafts))
        assert answer(host(model, 1, "sparse"), request)[0] == expected and rules.written == plain.written


def test_rows_with_and_without_drafts(model):
    """Would catch rows that mix where they bring different numbers of tokens, and ids of others counted wrongly."""
    prompts = [example(seed)[0] for seed in range(3)]
    alone = [answer(host(model, 1, "sparse"), asked(prompt, max_new_tokens=24))[0] for prompt in prompts]
    starts = [prompt.prompt.num_tokens for prompt in prompts]
    right = lambda n: lambda ids, most: alone[n][len(ids) - starts[n] :][:4]  # noqa: E731
    drafters = [Proposes(right(0)), None, Proposes(right(2))]
    requests = [asked(p, max_new_tokens=24, drafter=d) for p, d in zip(prompts, drafters, strict=True)]
    loop = host(model, 3, "sparse")
    written: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number, event in loop.generate(requests):
        if isinstance(event, Token):
            written[number].append(event.id)
            drawn_in_steps = sum(len(ids) - 1 for ids in written.values() if ids)
            assert loop.num_step_tokens >= drawn_in_steps
        assert not isinstance(event, Finished) or event.num_tokens == len(written[number])
    assert list(written.values()) == alone
