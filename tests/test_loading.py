"""Loading: new rows, adapters merged one matrix at a time, and what it writes to the terminal."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from selfspan_core.errors import ModelError
from selfspan_core.models import coded_matrix, loading
from selfspan_core.models.adapters import merge_adapter
from selfspan_core.models.int8_matrix import Int8Matrix
from selfspan_core.models.loading import AS_STORED, load_base, resize_for_tokenizer
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A base that is stored in float16 and lacks the markers, and its adapters."""
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"), is_byte_level=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    model.save_pretrained(base)
    return base, adapters


def resized(base, dtype, is_tied=True):
    """A base with rows for its tokenizer, its embedding before, and the tokenizer."""
    tokenizer, model = SpanTokenizer.load(base), load_base(base, dtype, "sdpa")
    if not is_tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    before = model.get_input_embeddings().weight.detach().clone()
    resize_for_tokenizer(model, tokenizer)
    return model, before, tokenizer


@pytest.mark.parametrize("is_tied", [True, False])
def test_new_rows(tiny, monkeypatch, is_tied):
    """Would catch old rows that move, a head that is left behind or cut loose, rows that are alike or others next
    time, and blocks of rows that do not add up to the mean."""
    model, before, tokenizer = resized(tiny[0], torch.float32, is_tied)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (head.weight is embedding.weight) == is_tied
    assert embedding.num_embeddings == head.out_features == model.config.vocab_size == tokenizer.vocab_size
    assert len(embedding.weight) == len(head.weight) == tokenizer.vocab_size
    for weight, old in ((embedding.weight, before), (head.weight, before if is_tied else before + 1)):
        assert torch.equal(weight[: len(old)], old)
        torch.testing.assert_close(weight[len(old) :], old.mean(0).expand(tokenizer.num_added, -1), atol=1e-4, rtol=0)
        assert len(weight[len(old) :].unique(dim=0)) == tokenizer.num_added
    monkeypatch.setattr(loading, "ROWS_AT_A_TIME", 7)
    torch.manual_seed(5)
    again, *_ = resized(tiny[0], torch.float32, is_tied)
    torch.testing.assert_close(again.get_input_embeddings().weight, embedding.weight)
    assert model(torch.tensor([[tokenizer.vocab_size - 1]])).logits.shape[-1] == tokenizer.vocab_size


@pytest.mark.parametrize("adapter", ["span", "plain"])
def test_sums_are_rounded_once(tiny, adapter):
    """Would catch a sum in the type that the base is stored in, a rounding before the sum, and a tensor left in it."""
    base, folder = tiny[0], tiny[1] / f"arithmetic-{adapter}"
    wide, *_ = resized(base, torch.float32)
    expected = PeftModel.from_pretrained(wide, folder).merge_and_unload().state_dict()
    stored, _, tokenizer = resized(base, AS_STORED)
    assert stored.dtype is torch.float16
    merged = merge_adapter(stored, folder, base, torch.bfloat16)
    found, new_rows = merged.state_dict(), slice(tokenizer.vocab_size - tokenizer.num_added, None)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight") and adapter == "plain":
            # The type in which nobody trained them rounds the new rows, too.
            torch.testing.assert_close(tensor[new_rows].float(), expected[name][new_rows], atol=1e-3, rtol=2**-7)
            tensor, expected[name] = tensor[: new_rows.start], expected[name][: new_rows.start]
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_an_adapter_that_is_not_finite(tiny, tmp_path):
    """Would catch a model that answers with the first id for ever, because one number of its adapter is none."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (tiny[1] / "arithmetic-span").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "adapter_model.safetensors")
    next(tensor for name, tensor in weights.items() if "lora_B" in name)[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model, *_ = resized(tiny[0], AS_STORED)
    with pytest.raises(ModelError, match="not finite"):
        merge_adapter(model, folder, tiny[0], torch.bfloat16)


def test_loading_says_nothing(tiny, capfd):
    """Would catch progress bars and advice of libraries, and a process whose own bars are gone from then on."""
    logging.enable_progress_bar()
    SpanModel.load(tiny[0], tiny[1] / "arithmetic-span", dtype=torch.bfloat16)
    said = capfd.readouterr()
    assert said.out == "" and "Loading weights" not in said.err and "embeddings" not in said.err
    assert logging.is_progress_bar_enabled()


def test_blocks_of_8_bits(monkeypatch):
    """Would catch scales of one block that are used for another."""
    weight = torch.randn(50, 32).bfloat16() * torch.randn(50, 1).bfloat16()
    whole_weight, parts_weight = weight.clone(), weight.clone()
    whole = Int8Matrix.of(whole_weight, None)
    monkeypatch.setattr(coded_matrix, "ROWS_AT_A_TIME", 8)
    parts = Int8Matrix.of(parts_weight, None)
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scales, parts.scales)
    assert torch.equal(whole_weight, parts_weight)
