"""Greedy decoding of many prompts at once, for evaluation: by the engine's own loop, so what is measured is what users
get.

On a GPU, 16-bit models decode in a captured graph; everything else decodes on the host, row by row in attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.events import Failed, Finished, Token
from selfspan_core.engine.host_step import HostStep
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.engine.step import Step
from selfspan_core.models.model import SpanModel
from selfspan_core.params import SamplingParams
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from selfspan_core.spans.tracker import Tracker
from training.evaluation.quantized import QuantizedModel, QuantizedStep


@dataclass
class Decoded:
    """What one row wrote.

    Attributes:
        ids: generated ids, `<eos>` included if it came.
        attended_tokens, dense_tokens: keys read by all decode queries, and what dense attention reads.
        num_malformed: steps that broke the grammar.
    """

    ids: list[int] = field(default_factory=list)
    attended_tokens: int = 0
    dense_tokens: int = 0
    num_malformed: int = 0


def decode_greedily(
    model: SpanModel,
    markers: Markers,
    prompts: Sequence[Rendered],
    sparse: bool,
    annotated: bool,
    max_new_tokens: int,
    rules: Sequence[Rules] | None = None,
) -> list[Decoded]:
    """Decode all prompts to `<eos>` or a token limit.

    Args:
        sparse: apply the span mask; False: every token sees everything, the tracker only reports.
        annotated: whether the model writes steps (see `Tracker`).
        max_new_tokens: per row, cut to what the context holds.
        rules: one per prompt, where not everything may be written: the likeliest id that they allow is.

    Raises:
        ValueError, RuntimeError: a prompt cannot be decoded.
    """
    sampling = SamplingParams(max_new_tokens)
    held_to = rules if rules is not None else [None] * len(prompts)
    requests = [
        PromptRequest(prompt, annotated, sampling, rules=rule) for prompt, rule in zip(prompts, held_to, strict=True)
    ]
    return decode_requests(model, markers, requests, sparse)


def decode_requests(
    model: SpanModel, markers: Markers, requests: Sequence[PromptRequest], sparse: bool
) -> list[Decoded]:
    """What all requests come to, answered at once.

    Raises:
        ValueError, RuntimeError: what the first one that failed, failed of.
    """
    decoded = [Decoded() for _ in requests]
    for number, event in DecodeLoop(_step_for(model, markers, requests, sparse)).generate(requests):
        row = decoded[number]
        if isinstance(event, Token):
            row.ids.append(event.id)
        elif isinstance(event, Finished):
            row.attended_tokens, row.dense_tokens = event.attended_tokens, event.dense_tokens
            row.num_malformed = event.num_malformed
        elif isinstance(event, Failed):
            raise event.error
    return decoded


def _step_for(model: SpanModel, markers: Markers, requests: Sequence[PromptRequest], sparse: bool) -> Step:
    """One row per request."""
    longest = max(request.prompt.prompt.num_tokens for request in requests)
    room = max(request.most_tokens or model.max_context for request in requests)
    capacity = min(model.max_context, longest + room)
    if isinstance(model, QuantizedModel):
        return QuantizedStep(model, markers, len(requests), capacity, not sparse)
    has_index = any(request.prompt.prompt.head_tokens is not None for request in requests)
    if model.device.type == "cuda" and model.dtype is not torch.float32 and not has_index:
        with_rules = any(request.host_rules is not None for request in requests)
        return BatchStep(model.weights, markers, BatchShape(len(requests), capacity, not sparse, with_rules))
    return HostStep(model.weights, markers, len(requests), capacity, not sparse)


def replay(example: Rendered, markers: Markers, sparse: bool, annotated: bool) -> Decoded:
    """What `decode_greedily` returns for a row that writes exactly the example's steps."""
    tracker = Tracker(markers, example.prompt, annotated)
    decoded = Decoded(example.ids[example.prompt.num_tokens :])
    *queries, _ = [tracker.push(token) for token in decoded.ids]
    decoded.dense_tokens = sum(state.position + 1 for state in queries)
    decoded.attended_tokens = sum(state.num_visible for state in queries) if sparse else decoded.dense_tokens
    decoded.num_malformed = tracker.num_malformed
    return decoded
