"""A random Llama with the shipped tokenizer and two random adapters: real files, senseless output."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.paths import SHIPPED


def save_tiny(folder: Path, max_context: int = 512, task: str = "arithmetic") -> tuple[Path, Path]:
    """Write `base` and `adapters/TASK-{span,plain}` below a folder; returns the two folders."""
    base, adapters = folder / "base", folder / "adapters"
    tokenizer = SpanTokenizer.load(SHIPPED)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=max_context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.markers.bos,
        eos_token_id=tokenizer.markers.eos,
        pad_token_id=tokenizer.pad_id,
    )
    LlamaForCausalLM(config).save_pretrained(base)
    for file in SHIPPED.glob("tokenizer*"):
        (base / file.name).write_bytes(file.read_bytes())
    for adapter in ("span", "plain"):
        lora = LoraConfig(
            r=2,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            trainable_token_indices={"embed_tokens": list(tokenizer.markers.ids)} if adapter == "span" else None,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
        model.save_pretrained(adapters / f"{task}-{adapter}", save_embedding_layers=False)
    return base, adapters
