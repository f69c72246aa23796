"""Tiny models of every family, and adapters that are trained a step or two."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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

from selfspan_core.attention.reference import visibility_mask
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.loading import load_base, resize_for_tokenizer
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.render import Example, Part, Step, render
from tests.support.asking import generate
from tests.support.span_examples import MARKERS as SMALL_MARKERS
from tests.support.span_examples import worked_example
from tests.support.tiny_models import save_byte_tokenizer

SIZES = {
    "vocab_size": 260,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


# Grouped-query attention everywhere; head_dim other than hidden / heads, spare rows, biases and windows among them.
FAMILIES = {
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama-head_dim": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False, "head_dim": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"tie_word_embeddings": False, "sliding_window": 200}),
    "qwen2-tied-spare-rows": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True, "vocab_size": 640}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": False, "head_dim": 24}),
    "qwen3-tied-one-kv-head": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 1},
    ),
}


LANES = {
    "dense": {"attention": "dense"},
    "gather": {"attention": "sparse", "impl": "gather"},
    "reference": {"attention": "sparse", "impl": "reference"},
}


def save_base(folder: Path, family: str, seed: int = 0) -> Path:
    model_class, config_class, changes = FAMILIES[family]
    torch.manual_seed(seed)
    model_class(config_class(**(SIZES | changes))).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def example_for(tokenizer: SpanTokenizer, seed: int = 0):
    """A random worked example, its ids moved to a tokenizer's markers and text."""
    small = worked_example(seed, num_segments=4, num_steps=5)
    markers = tokenizer.markers
    moved = {SMALL_MARKERS.bos: markers.bos} | dict(zip(SMALL_MARKERS.anchors, markers.anchors, strict=False))
    digits = tokenizer.encode("0123456789+-*/=()")
    move = lambda token: moved.get(token, digits[token % len(digits)])  # noqa: E731
    ids = lambda tokens: tuple(move(token) for token in tokens)  # noqa: E731
    parts = tuple(Part(ids(part.ids), part.name and move(part.name)) for part in small.parts)
    steps = tuple(Step(ids(step.reads), move(step.name), ids(step.work), ids(step.result)) for step in small.steps)
    return render(Example(ids(small.scaffold), parts, steps), markers)


def new_adapter(base: Path, tokenizer: SpanTokenizer, seed: int) -> PeftModel:
    torch.manual_seed(seed)
    hf = load_base(base, torch.float32, "sdpa")
    resize_for_tokenizer(hf, tokenizer)
    rows = list(tokenizer.markers.ids)
    trained_rows = {"embed_tokens": rows} | ({} if hf.config.tie_word_embeddings else {"lm_head": rows})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(
        hf,
        LoraConfig(
            r=4, lora_alpha=8, target_modules=targets, trainable_token_indices=trained_rows, task_type="CAUSAL_LM"
        ),
    )


def masked_logits(model, rendered) -> torch.Tensor:
    """One forward over the whole example under its span mask, `[T, vocab]`."""
    mask = visibility_mask(rendered.visibility, len(rendered.ids))[None, None]
    return model(input_ids=torch.tensor([rendered.ids]), attention_mask=mask, use_cache=False).logits[0]


def train(model: PeftModel, rendered, num_steps: int = 2) -> list[float]:
    """Optimizer steps on one example under its span mask; returns the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    targets = torch.tensor(rendered.ids[1:])
    learned = torch.tensor(rendered.loss_mask[1:], dtype=torch.bool)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(masked_logits(model, rendered)[:-1][learned], targets[learned])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_adapter(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    return folder


def trained_adapter(base: Path, folder: Path, seed: int = 0, num_steps: int = 2) -> Path:
    tokenizer = SpanTokenizer.load(base)
    model = new_adapter(base, tokenizer, seed)
    train(model, example_for(tokenizer), num_steps)
    return save_adapter(model, folder)


def run_logits(engine: Engine, rendered, lane: str) -> torch.Tensor:
    forced = rendered.ids[rendered.prompt.num_tokens :]
    events = generate(engine, rendered, forced_tokens=forced, with_logits=True, **LANES[lane])
    return torch.stack([event.logits for event in events if isinstance(event, Token)])
