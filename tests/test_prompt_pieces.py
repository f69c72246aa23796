"""Long prompts on a CPU, which go through the decoder in pieces."""

import itertools

import pytest

from selfspan_core.engine import host_step
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.events import Failed, Waiting
from selfspan_core.engine.host_step import HostStep
from selfspan_core.models.model import SpanModel
from tests.support.asking import asked
from tests.support.batch_tools import CAPACITY, by_request, example
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import MARKERS

ATTENTIONS = ("dense", "sparse")


@pytest.fixture(scope="module")
def model():
    return SpanModel(tiny_hf())


def host(model, batch, attention):
    return DecodeLoop(HostStep(model.weights, MARKERS, batch, CAPACITY, attention == "dense"))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_long_prompt_in_pieces(model, attention, monkeypatch):
    """Would catch a piece that does not see the ones before it, a last piece whose id is lost, a row that goes on with
    half a prompt, and a run that cannot be stopped before its prompt is through."""
    pairs = [example(seed, num_steps=2) for seed in range(3)]
    requests = [asked(prompt, forced_tokens=forced, with_logits=True) for prompt, forced in pairs]
    whole = by_request(host(model, 2, attention).generate(requests))
    monkeypatch.setattr(host_step, "LONG_PROMPT", 1)
    monkeypatch.setattr(host_step, "PIECE_TOKENS", 5)
    loop, found, num_waiting = host(model, 2, attention), [], [0] * 3
    for number, event in loop.generate(requests):
        if isinstance(event, Waiting):
            num_waiting[number] += 1
        else:
            found.append((number, event))
    # The first piece is done when a row begins, and Prefilled comes of the last one.
    assert num_waiting == [-(-prompt.prompt.num_tokens // 5) - 2 for prompt, _ in pairs] and min(num_waiting) > 1
    assert by_request(found) == whole
    running = loop.generate(requests)
    assert next(running) == (0, Waiting())
    running.close()
    assert loop._step.num_outstanding == 0 and by_request(loop.generate(requests[:1])).keys() == {0}


def test_a_piece_that_fails_ends_its_request_alone(model, monkeypatch):
    """Would catch an engine that is given up, or another row that is counted on, for a piece that found no memory."""
    monkeypatch.setattr(host_step, "LONG_PROMPT", 1)
    monkeypatch.setattr(host_step, "PIECE_TOKENS", 5)
    pairs, loop, calls = [example(seed, num_steps=2) for seed in range(2)], host(model, 2, "sparse"), itertools.count()
    requests = [asked(prompt, forced_tokens=forced) for prompt, forced in pairs]
    expected = by_request(loop.generate(requests[1:]))[0]
    prefill = loop._step._prefill

    def failing(ids, start, reader):
        if next(calls) == 3:  # each row has its first piece at once
            raise MemoryError("no memory")
        return prefill(ids, start, reader)

    monkeypatch.setattr(loop._step, "_prefill", failing)
    events = list(loop.generate(requests))
    (failed,) = [event for number, event in events if number == 0 and not isinstance(event, Waiting)]
    assert isinstance(failed, Failed) and isinstance(failed.error, MemoryError) and not loop.is_lost
    assert by_request((0, event) for number, event in events if number == 1)[0] == expected
