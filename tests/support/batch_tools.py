"""Requests for the batch engine, and their events without what no two runs share."""

import copy

import torch

from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Finished, Token
from selfspan_core.engine.host_step import HostStep
from selfspan_core.engine.rules import Limits
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.render import render
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import FIRST_TEXT, MARKERS, VOCAB, worked_example

CAPACITY = 160


def example(seed, num_steps=3):
    rendered = render(worked_example(seed, num_segments=3, num_steps=num_steps), MARKERS)
    return rendered, rendered.ids[rendered.prompt.num_tokens :]


def shorn(event):
    """An event without what no two runs share."""
    if isinstance(event, Token):
        return event.id, event.position, event.visible, event.num_visible, event.phase, event.step, event.malformed
    if isinstance(event, Finished):
        return (
            event.reason,
            event.num_tokens,
            event.attended_tokens,
            event.dense_tokens,
            event.num_malformed,
            event.steps,
        )
    return type(event), getattr(event, "num_tokens", None), getattr(event, "step", None)


def alone(weights, request, attention):
    """What the engine of one sequence says of a request."""
    return [shorn(event) for event in Engine(weights.model, MARKERS).generate(request, attention)]


def by_request(pairs):
    events: dict[int, list] = {}
    for number, event in pairs:
        events.setdefault(number, []).append(shorn(event))
    return events


class Proposes:
    """A drafter by a function of the ids so far."""

    def __init__(self, propose) -> None:
        self._propose = propose
        self.num_asked = 0

    def propose(self, state, most):
        self.num_asked += 1
        assert list(state.ids)[state.num_prompt :] and most >= 1
        assert state.state.position == len(state.ids) - 1
        return self._propose(list(state.ids), most)


def host(model, batch, attention, impl="gather"):
    return DecodeLoop(HostStep(model.weights, MARKERS, batch, CAPACITY, attention == "dense", impl))


def answer(loop, request):
    """Ids and logits of one request."""
    events = [event for _, event in loop.generate([request])]
    assert not any(isinstance(event, Failed) for event in events), events
    tokens = [event for event in events if isinstance(event, Token)]
    return [token.id for token in tokens], [token.logits for token in tokens], events


def on_cuda(**changes):
    hf = tiny_hf(head_dim=64, **changes).to(torch.bfloat16)
    return DecodeWeights(SpanModel(hf.cuda()))


class Alternating:
    """Rules: an even id behind an odd one and the other way round; two ids are never written."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def limits(self) -> Limits:
        wanted = (self.written[-1] + 1) % 2 if self.written else 0
        only = range(wanted, VOCAB, 2) if len(self.written) % 3 else None
        return Limits(only, (FIRST_TEXT, FIRST_TEXT + 1))

    def push(self, token: int) -> None:
        self.written.append(token)

    def fork(self) -> "Alternating":
        other = copy.copy(self)
        other.written = list(self.written)
        return other
