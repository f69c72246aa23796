"""What cannot be loaded: missing folders, damaged files, another base or architecture; errors that say so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from selfspan_core.errors import ModelError
from selfspan_core.models.loading import load_base
from selfspan_core.models.model import SpanModel
from selfspan_core.models.model_names import why_not_found
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.families import save_base, trained_adapter
from tests.support.tiny_models import save_byte_tokenizer


def test_missing_and_incomplete_folders(tmp_path):
    """Would catch a stack trace, or a question to the hub, where a path is wrong."""
    base = save_base(tmp_path / "base", "llama-tied")
    for missing in (tmp_path / "nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(ModelError, match="nowhere"):
            SpanModel.load(missing, None, "cpu", torch.float32)
        with pytest.raises(ModelError, match="nowhere"):
            SpanModel.load(base, missing, "cpu", torch.float32)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="empty"):
        SpanModel.load(empty, None, "cpu", torch.float32)
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="base"):
        SpanModel.load(base, None, "cpu", torch.float32)
    (base / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize("name", ["nope", "no/such/folder", "tests/nope", "./nope", "~/nope-nope"])
def test_names_that_can_be_no_hub_id_are_not_looked_up(name, monkeypatch):
    """Would catch a minute of retries and a hint at the internet connection, where a folder's name is mistyped."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(OSError, match="there is no model folder"):
        SpanTokenizer.load(name)
    with pytest.raises(ModelError, match="there is no model folder"):
        SpanModel.load(name, None, "cpu", torch.float32)
    assert why_not_found("some-one/some-model") is None and why_not_found("assets/base") is None


def test_pickled_weights_are_never_read(tmp_path):
    """A pickle runs code when it is loaded: a base or adapter that has nothing else is refused."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        SpanModel.load(base, adapter, "cpu", torch.float32)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: {k: v for k, v in tensors.items() if "layers.1." not in k}, "9 of the tensors are missing"),
        (lambda tensors, config: config.update(tie_word_embeddings=False) or tensors, "missing, lm_head.weight among"),
        (lambda tensors, config: config.update(num_hidden_layers=1) or tensors, "9 of the tensors are too many"),
    ],
    ids=["a layer is missing", "the head is missing", "a layer too many"],
)
def test_a_base_without_all_of_its_tensors(tmp_path, change, message):
    """Transformers makes missing tensors up, at random, and warns: 1+2 was 1, and the exit status 0."""
    base = save_base(tmp_path / "base", "llama-tied")
    config = json.loads((base / "config.json").read_text())
    tensors = change(load_file(base / "model.safetensors"), config)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize("change", [{"intermediate_size": 8}, {"num_key_value_heads": 4}])
def test_a_base_with_tensors_of_another_shape(tmp_path, change):
    """Would catch a message that leaves open which tensor is wrong, and tensors made up where the shape differs."""
    base = save_base(tmp_path / "base", "llama-tied")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(
        ModelError, match=r"another shape, model\.layers\.0\..*weight among them, which is \("
    ) as caught:
        SpanModel.load(base, None, "cpu", torch.float32)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "named",
    ["adapter_model.bin", "pytorch_model.bin", "../elsewhere.safetensors", "sub/a.safetensors", 3, ["a.safetensors"]],
)
def test_a_config_that_names_other_weights(tmp_path, named):
    """A line of config.json sent transformers to adapter_model.bin, a pickle, whatever it was told of safetensors."""
    base = save_base(tmp_path / "base", "llama-tied")
    tensors = load_file(base / "model.safetensors")
    torch.save(tensors, base / "adapter_model.bin")
    save_file(tensors, tmp_path / "elsewhere.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    with pytest.raises(ModelError, match="safetensors files beside it only") as caught:
        SpanModel.load(base, None, "cpu", torch.float32)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_that_names_an_index(tmp_path):
    """Would catch an index under another name that is read unchecked, and good files that are refused with bad ones."""
    base = save_base(tmp_path / "base", "llama-tied")
    tensors = load_file(base / "model.safetensors")
    torch.save(tensors, base / "pytorch_model.bin")
    config = json.loads((base / "config.json").read_text())
    (base / "model.safetensors").rename(base / "other.safetensors")
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    SpanModel.load(base, None, "cpu", torch.float32)
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "own.safetensors.index.json"}))
    index = base / "own.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "other.safetensors")}))
    SpanModel.load(base, None, "cpu", torch.float32)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "pytorch_model.bin")}))
    with pytest.raises(ModelError, match=r"own\.safetensors\.index\.json names 'pytorch_model\.bin'"):
        SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": []}])
def test_an_index_without_metadata(tmp_path, metadata):
    """Transformers ended in a KeyError, and the user in its traceback."""
    base = save_base(tmp_path / "base", "llama-tied")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    whole = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": whole} | metadata))
    with pytest.raises(ModelError, match=r"index\.json is no index of weights: .*metadata"):
        SpanModel.load(base, None, "cpu", torch.float32)


def test_an_adapter_beside_a_base(tmp_path):
    """Transformers would load an adapter that lies with the base, from a pickle if there is nothing else."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter", num_steps=1)
    torch.save(load_file(adapter / "adapter_model.safetensors"), base / "adapter_model.bin")
    (base / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config\.json\)"):
        SpanModel.load(base, None, "cpu", torch.float32)


def test_an_index_of_the_hub(tmp_path, monkeypatch):
    """Would catch a check of folders only: a hub model's index may name a pickle as well as any."""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}))
    save_base(tmp_path / "base", "llama-tied")
    files = {index.name: index, "config.json": tmp_path / "base" / "config.json"}
    monkeypatch.setattr("selfspan_core.models.weight_files.cached_file", lambda _, name: files.get(name))
    with pytest.raises(ModelError, match=r"names 'pytorch_model\.bin'"):
        load_base("some-one/some-model", torch.float32, "sdpa")


@pytest.mark.parametrize(
    "shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/a.safetensors", "gone.safetensors", 3]
)
def test_an_index_of_something_else(tmp_path, shard):
    """An index may name a pickle, which transformers then loads, told not to or not; or a file of somebody else's."""
    base = save_base(tmp_path / "base", "llama-tied")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    save_file(tensors, tmp_path / "elsewhere.safetensors", {"format": "pt"})
    torch.save(tensors, base / "pytorch_model.bin")
    index = base / "model.safetensors.index.json"
    whole = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": whole}))
    SpanModel.load(base, None, "cpu", torch.float32)
    index.write_text(json.dumps({"metadata": {}, "weight_map": whole | {min(whole): shard}}))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        SpanModel.load(base, None, "cpu", torch.float32)


def test_damaged_files(tmp_path):
    """Would catch an unexplained crash on a half-copied file."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    good = config.read_text()
    config.write_text(good[:40])
    with pytest.raises(ModelError, match="damaged"):
        SpanModel.load(base, adapter, "cpu", torch.float32)
    settings = json.loads(good)
    for bad in ([], {}, settings | {"trainable_token_indices": "x"}, settings | {"peft_type": "IA3"}):
        config.write_text(json.dumps(bad))
        with pytest.raises(ModelError, match="damaged"):
            SpanModel.load(base, adapter, "cpu", torch.float32)
    config.write_text(good)
    base_config = base / "config.json"
    good = base_config.read_text()
    for bad in ({}, {"model_type": "unheard of"}, json.loads(good) | {"intermediate_size": 8}):
        base_config.write_text(json.dumps(bad))
        with pytest.raises(ModelError, match="base"):
            SpanModel.load(base, None, "cpu", torch.float32)
    base_config.write_text(good)
    (adapter / "adapter_model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(ModelError, match="damaged"):
        SpanModel.load(base, adapter, "cpu", torch.float32)
    (base / "model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(ModelError, match="base"):
        SpanModel.load(base, None, "cpu", torch.float32)


@pytest.mark.parametrize("other", ["qwen3", "llama-head_dim", "qwen2-tied-spare-rows"])
def test_an_adapter_of_another_base(tmp_path, other):
    """Would catch an adapter that is merged in part, or a shape error that explains nothing."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(save_base(tmp_path / "other", other), tmp_path / "adapter", num_steps=1)
    with pytest.raises(ModelError, match="made for another base"):
        SpanModel.load(base, adapter, "cpu", torch.float32)


def test_an_adapter_with_missing_or_extra_weights(tmp_path):
    """Peft only warns where weights are missing: would catch an adapter that is silently half there."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter", num_steps=1)
    file = adapter / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if "q_proj" in name)
    for wrong, message in (
        ({key: value for key, value in stored.items() if key != name}, "is damaged: .* it lacks"),
        (stored | {name.replace("layers.0", "layers.7"): stored[name].clone()}, "another base .* nothing takes"),
        ({key: value for key, value in stored.items() if "layers.0" not in key}, "another base .* all of that layer"),
    ):
        save_file(wrong, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            SpanModel.load(base, adapter, "cpu", torch.float32)


def test_an_adapter_of_a_larger_vocabulary(tmp_path):
    """Would catch an index error deep in peft."""
    base = save_base(tmp_path / "base", "llama-tied")
    adapter = trained_adapter(base, tmp_path / "adapter", num_steps=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["trainable_token_indices"]["embed_tokens"][-1] = 99_999
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="99999"):
        SpanModel.load(base, adapter, "cpu", torch.float32)


def test_another_architecture(tmp_path):
    """Would catch a model that loads and then attends to the wrong things."""
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20)).save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="gpt2"):
        SpanModel.load(tmp_path, None, "cpu", torch.float32)
