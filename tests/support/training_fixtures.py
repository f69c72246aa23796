"""Fixtures of the training tests: a tiny base, and training in this process."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import LlamaConfig, LlamaForCausalLM

from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.paths import SHIPPED
from training import finetune
from training.loop.packing import plain_sample
from training.loop.trainer import LoopConfig, Trainer


@pytest.fixture(scope="session")
def tokenizer():
    return SpanTokenizer.load(SHIPPED)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, tokenizer):
    """A random Llama of two small layers with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.markers.bos,
        eos_token_id=tokenizer.markers.eos,
        pad_token_id=tokenizer.pad_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in SHIPPED.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def fresh_accelerate():
    """A function that makes accelerate forget, so that training in this process begins as in one of its own."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    yield forget
    forget()


@pytest.fixture
def train_here(monkeypatch, capsys, fresh_accelerate):
    """As `train`, in this process: seconds quicker, for what several processes could not show better."""

    def run(*arguments: str) -> str:
        fresh_accelerate()
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        finetune.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def trainer_of(tiny_base, fresh_accelerate):
    """A function that makes a small trainer in this process: (run folder, steps, evaluation) -> Trainer."""

    def stream(seed, shard, num_shards):
        while True:
            yield plain_sample(np.arange(300, 400))

    def make(folder: Path, steps: int, evaluate=None) -> Trainer:
        config = LoopConfig(steps=steps, rows_per_step=1, micro_rows=1, row_tokens=128, max_intervals=1, workers=0)
        model = LlamaForCausalLM.from_pretrained(tiny_base)
        return Trainer(model, lambda m: [torch.optim.SGD(m.parameters(), 0.1)], stream, config, folder, 0, evaluate)

    return make
