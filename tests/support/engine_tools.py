"""A tiny random Llama, its lanes, and what is read off their events."""

import functools

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfspan_core.attention.reference import visibility_mask
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.model import SpanModel
from selfspan_core.spans import protocol
from selfspan_core.spans.render import Rendered, VisibleRun, render
from tests.support.asking import generate
from tests.support.span_examples import FIRST_TEXT, MARKERS, VOCAB, worked_example

TOLERANCE = 1e-4
LANES = {
    "dense": {"attention": "dense"},
    "gather": {"attention": "sparse", "impl": "gather"},
    "reference": {"attention": "sparse", "impl": "reference"},
}


def tiny_config(**changes) -> dict:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
        # Large enough that wrong visibility moves logits by far more than the tolerance.
        "initializer_range": 0.2,
    }
    return sizes | changes


def tiny_hf(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**tiny_config(**changes))).eval()


def example_run(seed=0, **options) -> tuple[Rendered, list[int]]:
    """A random example: its rendering, which serves as the prompt too, and the ids that follow the prompt."""
    rendered = render(worked_example(seed, **options), MARKERS)
    return rendered, rendered.ids[rendered.prompt.num_tokens :]


def run(engine, prompt, lane, forced, **options) -> list:
    return list(generate(engine, prompt, forced_tokens=forced, with_logits=True, **LANES[lane], **options))


def tokens(events) -> list[Token]:
    return [event for event in events if isinstance(event, Token)]


def logits(events) -> torch.Tensor:
    return torch.stack([token.logits for token in tokens(events)])


def whole_sequence_logits(hf, ids, visibility, attention) -> torch.Tensor:
    """One transformers forward over everything, as in training, under a 4D mask of who sees whom."""
    hf.set_attn_implementation(attention)
    mask = visibility_mask(visibility, len(ids))[None, None]
    if attention == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return hf(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]


def text_prompt(num_tokens) -> Rendered:
    ids = [FIRST_TEXT + i % 20 for i in range(num_tokens)]
    return Rendered(ids, protocol.PromptLayout(num_tokens, 1, {}), [0] * num_tokens, [VisibleRun(0, (), 0)])


def drawn(engine, prompt, **options) -> list[int]:
    return [token.id for token in tokens(generate(engine, prompt, max_new_tokens=30, **options))]


@functools.cache
def tiny_engine() -> Engine:
    """An engine of the tiny Llama; made once per process."""
    return Engine(SpanModel(tiny_hf()), MARKERS)
