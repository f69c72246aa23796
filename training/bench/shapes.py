"""Models of published shapes with random weights, and caches for them; what a benchmark of any shape begins with."""

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfspan_core.attention.kv_cache import KVCache
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights, Store

SHAPES = {
    # hidden, intermediate, layers, heads, key/value heads, vocabulary
    "tiny": (128, 256, 2, 2, 1, 8192),
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "Llama-3-8B": (4096, 14336, 32, 32, 8, 128256),
    "13B": (5120, 13824, 40, 40, 40, 32000),
    "33B": (6656, 17920, 60, 52, 52, 32000),
    "65B": (8192, 22016, 80, 64, 64, 32000),
}
ROOM_FOR_THE_REST = 4e9


@dataclass(frozen=True)
class Machine:
    """Where the benchmark runs: bytes per second that a kernel which only reads gets, and bytes of memory."""

    device: torch.device
    bytes_per_second: float
    memory_bytes: float


def random_weights(shape: str, device: torch.device, max_context: int, store: Store | None = None) -> DecodeWeights:
    """A model of a named shape with random weights, bfloat16 on CUDA, stored as they are or otherwise."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=max_context,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return DecodeWeights(SpanModel(LlamaForCausalLM(config)), store)
    finally:
        torch.set_default_dtype(before)


def parameters(shape: str) -> int:
    """Of a named shape."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    head_dim = hidden // heads
    return layers * (2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * intermediate) + 2 * vocab * hidden


def kv_bytes(weights: DecodeWeights) -> int:
    """Keys and values of one token over all layers."""
    model = weights.model
    element = torch.empty(0, dtype=model.dtype).element_size()
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * element


def make_cache(weights: DecodeWeights, machine: Machine, batch: int, capacity: int) -> tuple[KVCache, int] | None:
    """A cache, and how many layers share each of its layers: as few as the device's memory allows; None: not even 4."""
    model = weights.model
    whole = kv_bytes(weights) * batch * capacity
    for shared in (1, 2, 4):
        if model.num_layers % shared:
            continue
        if whole / shared + weights.num_bytes + ROOM_FOR_THE_REST < machine.memory_bytes:
            layers = model.num_layers // shared
            cache = KVCache(layers, model.num_kv_heads, model.head_dim, capacity, model.dtype, model.device, batch)
            # Finite numbers: what a cache holds before it is written may be anything.
            for tensor in (*cache.keys, *cache.values):
                tensor.normal_()
            cache.keys, cache.values = cache.keys * shared, cache.values * shared
            return cache, shared
    return None
