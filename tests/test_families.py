"""Every supported family, from a hub-like folder to two lanes: resize, train under the span mask, save, load, run."""

import pytest
import torch
from safetensors.torch import load_file

from selfspan_core.engine.engine import Engine
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.asking import generate
from tests.support.families import (
    FAMILIES,
    LANES,
    example_for,
    masked_logits,
    new_adapter,
    run_logits,
    save_adapter,
    save_base,
    train,
    trained_adapter,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_train_save_load_run(family, tmp_path):
    """The whole way for one family.

    Would catch attention that bypasses the hook, a wrong grouping of heads, a merge that loses marker rows (tied
    embeddings share them with the output layer), and served logits that are not the trained ones.
    """
    base = save_base(tmp_path / "base", family)
    tokenizer = SpanTokenizer.load(base)
    model = new_adapter(base, tokenizer, seed=1)
    rendered = example_for(tokenizer)
    losses = train(model, rendered, num_steps=3)
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        trained = masked_logits(model, rendered)[rendered.prompt.num_tokens - 1 : -1]
    adapter = save_adapter(model, tmp_path / "adapter")
    assert not list(adapter.glob("*.bin")) and not list(base.glob("*.bin"))

    loaded = SpanModel.load(base, adapter, "cpu", torch.float32)
    assert loaded.vocab_size >= tokenizer.vocab_size
    engine = Engine(loaded, loaded.tokenizer.markers)
    lanes = {lane: run_logits(engine, rendered, lane) for lane in LANES}
    assert (lanes["gather"] - lanes["reference"]).abs().max() < 1e-4
    assert (lanes["gather"] - trained).abs().max() < 1e-3, "merged and served differs from trained, unmerged"
    assert (lanes["dense"] - lanes["reference"]).abs().max() > 0.01
    written = list(generate(engine, rendered, attention="sparse", max_new_tokens=5))
    assert written[-1].num_tokens == 5 or written[-1].reason == "eos"


def test_merged_marker_rows_are_the_trained_ones(tmp_path):
    """Tied embeddings: marker rows of input and output are the adapter's, and no other row moved."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter")
    bare = SpanModel.load(base, None, "cpu", torch.float32)
    merged = SpanModel.load(base, adapter, "cpu", torch.float32)
    rows = list(merged.tokenizer.markers.ids)
    stored = load_file(adapter / "adapter_model.safetensors")
    (delta,) = [value for name, value in stored.items() if "token_adapter" in name or "trainable_tokens" in name]
    table, output = merged.hf.get_input_embeddings().weight, merged.hf.get_output_embeddings().weight
    assert table.data_ptr() == output.data_ptr()
    torch.testing.assert_close(table[rows], delta)
    others = [row for row in range(table.shape[0]) if row not in set(rows)]
    assert torch.equal(table[others], bare.hf.get_input_embeddings().weight[others])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_is_merged_before_rounding(tmp_path, dtype):
    """Would catch sums rounded twice, rotary frequencies rounded with the weights, and tied weights torn apart."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter")
    exact = SpanModel.load(base, adapter, "cpu", torch.float32)
    model = SpanModel.load(base, adapter, "cpu", dtype)
    assert model.dtype is dtype
    for one, other in zip(exact.hf.parameters(), model.hf.parameters(), strict=True):
        assert torch.equal(one.to(dtype), other)
    for one, other in zip(exact.hf.buffers(), model.hf.buffers(), strict=True):
        assert torch.equal(one, other)
    assert model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight


def test_each_adapter_is_a_model_of_its_own(tmp_path):
    """Two lanes with two adapters: would catch adapter state that one lane switches under the other."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapters = [trained_adapter(base, tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    first = SpanModel.load(base, adapters[0], "cpu", torch.float32)
    rendered = example_for(first.tokenizer)
    before = run_logits(Engine(first, first.tokenizer.markers), rendered, "gather")
    second = SpanModel.load(base, adapters[1], "cpu", torch.float32)
    other = run_logits(Engine(second, second.tokenizer.markers), rendered, "gather")
    assert torch.equal(run_logits(Engine(first, first.tokenizer.markers), rendered, "gather"), before)
    assert (other - before).abs().max() > 0.01


def test_rows_added_for_markers_are_the_same_in_every_process(tmp_path):
    """Would catch a plain adapter that is served with other random rows than it was trained with."""
    base = save_base(tmp_path / "base", "qwen3")
    torch.manual_seed(3)
    first = SpanModel.load(base, None, "cpu", torch.float32)
    state = torch.random.get_rng_state()
    second = SpanModel.load(base, None, "cpu", torch.float32)
    for one, other in zip(first.hf.parameters(), second.hf.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state), "loading a model disturbs the global generator"
