"""Answers of batches whose rules are kept here or there, and whether they are what the rules allow."""

from collections.abc import Sequence

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers


def answers(
    weights: DecodeWeights, markers: Markers, requests: Sequence[PromptRequest], shape: BatchShape
) -> dict[int, list[int]]:
    """Ids by request."""
    found: dict[int, list[int]] = {number: [] for number in range(len(requests))}
    for number, event in BatchEngine(weights, markers, shape).generate(requests):
        assert not isinstance(event, Failed), event
        if isinstance(event, Token):
            found[number].append(event.id)
    return found


def assert_allowed(ids: Sequence[int], rules: Rules | None) -> None:
    """Rules that nobody has told of any id allow these, one after the other."""
    for place, token in enumerate(ids if rules is not None else ()):
        assert rules.limits().allow(token), f"id {token} at {place} behind {ids[max(0, place - 20) : place]}"
        rules.push(token)
