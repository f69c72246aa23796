"""GGUF files as llama.cpp's converter writes them, of random models: what reads them is compared with the model."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

NUM_TOKENS = 259
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_model(
    architecture: str = "llama", tied: bool = False, num_tokens: int = NUM_TOKENS, **settings
) -> PreTrainedModel:
    """A random model, two layers, four heads that share two."""
    kind, config = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[architecture]
    torch.manual_seed(3)
    made = config(
        vocab_size=num_tokens,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        **settings,
    )
    model = kind(made).eval()
    for parameter in model.parameters():  # norms and biases would all be alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def write(path: Path, model: PreTrainedModel, quantization: str = "F32", **metadata) -> Path:
    """Write a model with a tokenizer of bytes, of which `metadata` replaces or adds values (None leaves one out)."""
    config, architecture = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", *alphabet(), "ab"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * 257],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    for key, value in (values | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        if value is not None:
            writer.add_key_value(key, value, kind_of(value), sub_type_of(value))
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            add_tensor(writer, config, name, tensor.numpy(), quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def alphabet() -> list[str]:
    """A piece for every byte."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def kind_of(value: object) -> gguf.GGUFValueType:
    """The format's type of a value."""
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return gguf.GGUFValueType[kinds[type(value)]]


def sub_type_of(value: object) -> gguf.GGUFValueType | None:
    """The type of a list's elements."""
    return kind_of(value[0]) if isinstance(value, list) else None


def add_tensor(writer: gguf.GGUFWriter, config, name: str, values: np.ndarray, quantization: str) -> None:
    """One tensor; of llama, queries and keys as llama.cpp turns them."""
    stem, _, kind = name.rpartition(".")
    layer = ""
    if stem.startswith("model.layers."):
        _, _, number, stem = stem.split(".", 3)
        layer = f"blk.{number}."
    if config.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
        values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
    own_name = f"{layer}{NAMES[stem]}.{kind}"
    if values.ndim == 1 or quantization == "F32":
        writer.add_tensor(own_name, np.ascontiguousarray(values))
        return
    stored = gguf.GGMLQuantizationType[quantization]
    writer.add_tensor(own_name, gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
