"""Answers in 16 bits that came out otherwise: whether rounding explains where they part.

Steps of different sizes sum in different orders, so that two ids may change places whose logits are as near as rounding
moves them. An answer with another id than that is wrong, however many answers of a batch are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.protocol import Markers
from training.check_drafts import MOST_STEPS, Tie


def logits_behind(
    weights: DecodeWeights, markers: Markers, request: PromptRequest, ids: Sequence[int], is_dense: bool
) -> torch.Tensor:
    """What the last of some ids is drawn from, `[vocab_size]`, rules apart, where a row alone is led through them."""
    led = replace(request, rules=None, drafter=None, forced_tokens=ids, with_logits=True)
    shape = BatchShape(1, request.prompt.prompt.num_tokens + len(ids) + 1, is_dense)
    tokens = []
    for _, event in BatchEngine(weights, markers, shape).generate([led]):
        assert not isinstance(event, Failed), event.error
        tokens += [event] if isinstance(event, Token) else []
    assert [token.id for token in tokens] == list(ids)
    return tokens[-1].logits.float()


def ties_of(
    weights: DecodeWeights,
    markers: Markers,
    requests: Sequence[PromptRequest],
    answers: tuple[Mapping[int, Sequence[int]], Mapping[int, Sequence[int]]],
    is_dense: bool,
) -> list[Tie]:
    """Where the answers part.

    Args:
        weights, markers: of the model.
        requests: greedy ones.
        answers: ids by the request's number: those that should have come, and those that came.
        is_dense: whether all was read.

    Raises:
        AssertionError: of two answers one goes on behind the other's end.
    """
    found = []
    for number, request in enumerate(requests):
        wanted, came = (list(one[number]) for one in answers)
        if wanted == came:
            continue
        place = next((n for n, (a, b) in enumerate(zip(wanted, came, strict=False)) if a != b), None)
        assert place is not None, f"answer {number} has {len(came)} ids, not {len(wanted)}, and is the same up to there"
        logits = logits_behind(weights, markers, request, wanted[: place + 1], is_dense)
        ids = wanted[place], came[place]
        found.append(Tie(number, place, ids, (float(logits[ids[0]]), float(logits[ids[1]]))))
    return found


def assert_near_ties(ties: Sequence[Tie], dtype: torch.dtype) -> None:
    """Every two logits are at most MOST_STEPS of the type's numbers apart."""
    wide = [(tie, round(tie.num_steps(dtype), 1)) for tie in ties if tie.num_steps(dtype) > MOST_STEPS[dtype]]
    assert not wide, f"no rounding explains these, with their steps of {dtype}: {wide}"
