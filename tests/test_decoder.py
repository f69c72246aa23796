"""The decode step written out: the same logits as the model's own forward."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from selfspan_core.attention.readers import DenseReader
from selfspan_core.attention.reference import masked_attention, visibility_mask
from selfspan_core.engine.decoder import Decoder, TorchOps
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights, DenseMatrix
from tests.support.engine_tools import tiny_config

MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, scaled rotary": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama, one key head, tied": (
        LlamaForCausalLM,
        LlamaConfig,
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}
CAPACITY = 24


def make(name):
    kind, config, changes = MODELS[name]
    torch.manual_seed(1)
    hf = kind(config(**tiny_config(**changes))).eval()
    for parameter_name, parameter in hf.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:
            parameter.data = torch.rand_like(parameter) + 0.5
    return SpanModel(hf)


def attend_to_all_before(cache, positions, model):
    """Attention of every row over its own past, by the reference; zeros for rows without a token."""
    rotary = DecodeWeights(model).rotary(cache.capacity)
    num_heads = model.hf.config.num_attention_heads

    def attend(layer, qkv):
        query = torch.zeros(len(qkv), num_heads, model.head_dim)
        TorchOps().rotary_write(qkv, rotary, positions, query, cache.keys[layer], cache.values[layer])
        out = torch.zeros_like(query)
        for row, position in enumerate(positions.tolist()):
            if position < 0:
                continue
            end = position + 1
            keys, values = (x[layer][row : row + 1, :, :end] for x in (cache.keys, cache.values))
            mask = visibility_mask([((0, end),)], end)
            out[row] = masked_attention(query[row, None, :, None], keys, values, mask, model.head_dim**-0.5)[0, :, 0]
        return out

    return attend


def whole(model, ids):
    """Logits after the last id by transformers' own forward over all of them."""
    reader = DenseReader(model.new_cache(len(ids)))
    reader.plan(0, None)
    return model.forward_logits(torch.tensor([ids]), 0, reader)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_same_logits_as_the_models_own_forward(name):
    """Would catch weights in the wrong order, a norm or bias left out, a position that is off, rows that mix."""
    model = make(name)
    vocab = model.vocab_size
    generator = torch.Generator().manual_seed(3)
    # Three rows: one starts late, one ends early.
    streams = [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in (12, 7, 9)]
    begins = (0, 0, 3)
    expected = [whole(model, ids) for ids in streams]
    cache = model.new_cache(CAPACITY, batch=3)
    decoder = Decoder(DecodeWeights(model), 3, TorchOps())
    for step in range(12):
        at = [step - begin if 0 <= step - begin < len(ids) else -1 for ids, begin in zip(streams, begins, strict=True)]
        ids = torch.tensor([ids[place] if place >= 0 else 0 for ids, place in zip(streams, at, strict=True)])
        positions = torch.tensor(at, dtype=torch.int32)
        logits = decoder(ids, attend_to_all_before(cache, positions, model))
        for row, (stream, place) in enumerate(zip(streams, at, strict=True)):
            if place == len(stream) - 1:
                torch.testing.assert_close(logits[row], expected[row], atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_model_still_works_and_shares_its_weights():
    """Would catch fused weights that are a second copy, or a model that is broken by its fused weights."""
    model = make("llama")
    ids = [5, 6, 7, 8]
    before = whole(model, ids)
    weights = DecodeWeights(model)
    torch.testing.assert_close(whole(model, ids), before)
    fused = weights.layers[0].qkv.weight
    projection = model.hf.get_decoder().layers[0].self_attn.k_proj
    assert projection.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()


def test_other_activations_are_refused():
    """Would catch a model whose activation is silently taken for another."""
    model = SpanModel(LlamaForCausalLM(LlamaConfig(**tiny_config(hidden_act="gelu"))).eval())
    with pytest.raises(ValueError, match="knows the activation 'silu', not 'gelu'"):
        DecodeWeights(model)


class Halved:
    """A matrix that is stored in another form than plain floats: here as twice of itself."""

    def __init__(self, matrix: DenseMatrix) -> None:
        self._twice, self._bias = 2 * matrix.weight, matrix.bias
        self.shape, self.num_bytes, self.floats = matrix.shape, 2 * matrix.num_bytes, None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._twice) / 2 + (0 if self._bias is None else self._bias)


def test_matrices_apply_themselves():
    """Would catch a step that reaches for a matrix's floats, so that weights could be stored in one form only."""
    model = make("llama")
    plain, other = DecodeWeights(model), DecodeWeights(model)
    other.layers = [
        replace(layer, **{name: Halved(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")})
        for layer in other.layers
    ]
    other.head = Halved(other.head)
    assert other.shapes == plain.shapes and other.num_bytes > plain.num_bytes
    ids, num_kv_heads = torch.tensor([3, 5]), model.num_kv_heads
    # Attention of a first token is its own value.
    attention = lambda layer, qkv: qkv[:, -num_kv_heads:].repeat_interleave(plain.num_heads // num_kv_heads, 1)  # noqa: E731
    logits = [Decoder(weights, 2, TorchOps())(ids, attention) for weights in (plain, other)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
