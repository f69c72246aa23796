"""A random Llama with the shipped tokenizer or another, and two random adapters: real files, senseless output."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfspan_core.models.learned import RECORD, Learned, record_of
from selfspan_core.models.loading import resize_for_tokenizer
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.paths import SHIPPED


def save_byte_tokenizer(folder: Path) -> None:
    """A fast tokenizer of single bytes, <s> and </s>: 258 ids and no markers, as a hub model's has none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def record_learned(adapters: Path, learned: Learned, *names: str) -> None:
    """Write what training would have recorded beside some adapters of a folder."""
    for name in names:
        (adapters / name / RECORD).write_text(json.dumps(record_of(learned)), encoding="utf-8")


def save_tiny(
    folder: Path, max_context: int = 512, task: str = "arithmetic", is_byte_level: bool = False
) -> tuple[Path, Path]:
    """Write `base` and `adapters/TASK-{span,plain}` below a folder; returns the two folders.

    Args:
        is_byte_level: a tokenizer of bytes, without markers, in place of the shipped one.
    """
    base, adapters = folder / "base", folder / "adapters"
    base.mkdir(parents=True)
    if is_byte_level:
        save_byte_tokenizer(base)
    else:
        for file in SHIPPED.glob("tokenizer*"):
            (base / file.name).write_bytes(file.read_bytes())
    tokenizer = SpanTokenizer.load(base)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size - tokenizer.num_added,
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
    for adapter in ("span", "plain"):
        lora = LoraConfig(
            r=2,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            trainable_token_indices={"embed_tokens": list(tokenizer.markers.ids)} if adapter == "span" else None,
            task_type="CAUSAL_LM",
        )
        hf = LlamaForCausalLM.from_pretrained(base)
        resize_for_tokenizer(hf, tokenizer)
        model = get_peft_model(hf, lora)
        model.save_pretrained(adapters / f"{task}-{adapter}", save_embedding_layers=False)
    return base, adapters
