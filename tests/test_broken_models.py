"""Models with something wrong in them: one line that says what, before anything large is built; no hang, no pickle."""

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ModelError
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.cli_tools import call
from tests.support.damaged import load_as_users_do, tried, try_one
from tests.support.tiny_models import save_byte_tokenizer, save_tiny
from tests.support.training_tools import write_config
from training import finetune


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("good"), is_byte_level=True)


@pytest.fixture
def copied(good, tmp_path):
    """Base and span adapter in folders of their own."""
    for name, folder in (("base", good[0]), ("adapter", good[1] / "arithmetic-span")):
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    return tmp_path / "base", tmp_path / "adapter"


def change(file: Path, **settings) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refusal(base: Path, adapter: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        SpanModel.load(base, adapter, "cpu", torch.float32)
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 1000
    return text


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Whatever builds a model or an adapter fails the test."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a base was built"))
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_, **__: pytest.fail("an adapter was built"))


def test_dozens_of_broken_models(tmp_path):
    """Would catch errors of any other type, errors of many lines, and loading that takes for ever."""
    found = list(tried(tmp_path, seed=1, count=48))
    assert not [one for one in found if one.failure]
    assert 0 < sum(one.outcome == "loaded" for one in found) < 24
    assert not list(tmp_path.glob("adapter")) and not list(tmp_path.glob("base"))


def test_the_mutator_finds_what_it_is_for(tmp_path, good):
    """Would catch a search for errors that takes every one for a refusal, and one that is different at every start."""

    def raises(*_):
        raise KeyError("weight_map")

    def raises_lines(*_):
        raise ModelError("one\ntwo")

    assert "KeyError" in try_one(tmp_path, good, 3, 5, raises).failure
    assert try_one(tmp_path, good, 3, 5, raises_lines).failure == "it is no line"
    same = [try_one(tmp_path, good, 3, 5, lambda *_: None) for _ in range(2)]
    assert same[0].what == same[1].what and same[0].outcome == "loaded" and same[0].failure is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 200_000}, "r has to be a whole number from 1 to 1024, not 200000"),
        ({"r": True}, "r has to be a whole number"),
        ({"r": 0}, "r has to be"),
        ({"lora_alpha": float("nan")}, "lora_alpha has to be a number above 0"),
        ({"lora_alpha": 1e300}, "lora_alpha has to be"),
        ({"target_modules": "(x+x+)+y"}, "target_modules has to be a list of names of modules (no pattern)"),
        ({"target_modules": ["(x+x+)+y"]}, "target_modules has to be a list of names"),
        ({"target_modules": "all-linear"}, "target_modules has to be a list of names"),
        ({"exclude_modules": "(x+x+)+y"}, "exclude_modules has to be a list of names"),
        ({"rank_pattern": {"(x+x+)+y": 2}}, "rank_pattern has to be an object by names"),
        ({"rank_pattern": {"q_proj": 10**6}}, "rank_pattern.q_proj has to be a whole number from 1 to 1024"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights has to be true, false, gaussian or orthogonal, not",
        ),
        ({"init_lora_weights": "loftq"}, "has to be converted to plain LoRA"),
        ({"use_dora": True}, "use_dora is not supported here, and is True"),
        ({"use_rslora": True}, "use_rslora is not supported here"),
        ({"lora_bias": True}, "lora_bias is not supported here"),
        ({"bias": "all"}, "bias is not supported here, and is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported here"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is not supported here"),
        ({"from_the_future": 3}, "from_the_future is not supported here, and is 3"),
        ({"peft_type": "IA3"}, "its peft_type is not LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type has to be CAUSAL_LM"),
        (
            {"trainable_token_indices": {"embed_tokens": [1, 1]}},
            "token_indices has to be a list of different",
        ),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path has to be a name"),
    ],
)
def test_settings_of_adapters(copied, nothing_is_built, settings, message):
    """Would catch a stranger's regular expressions, ranks that fill the memory, and another model than was trained."""
    change(copied[1] / "adapter_config.json", **settings)
    assert message in refusal(*copied)


def test_settings_that_are_off_are_no_reason_to_refuse(copied):
    """Would catch adapters of a newer PEFT refused for settings that they do not use, and paths that are followed."""
    off = {"from_the_future": None, "use_new": False, "new_config": {}, "bias": "none", "lora_dropout": 0.1}
    change(copied[1] / "adapter_config.json", **off, base_model_name_or_path="../../x", revision="main")
    SpanModel.load(*copied, "cpu", torch.float32)


def test_patterns_and_layers_are_those_of_peft(good, tmp_path):
    """Would catch a check that takes other layers for adapted than PEFT does, and refuses what fits."""
    hf = AutoModelForCausalLM.from_pretrained(good[0])
    lora = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "mlp.down_proj", "v_proj"],
        exclude_modules=["layers.1.self_attn.v_proj"],
        layers_to_transform=[1],
        rank_pattern={"down_proj": 3, "layers.1.self_attn.q_proj": 5},
        alpha_pattern={"q_proj": 7},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    wrapped = peft.get_peft_model(hf, lora)
    wrapped.save_pretrained(tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    found = SpanModel.load(good[0], tmp_path / "adapter", "cpu", torch.float32).hf.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name][: len(weight)], weight)


def test_an_adapter_for_another_base_names_its_own(copied, monkeypatch):
    """Would catch 114 lines of mismatched sizes that leave open which base would fit."""
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_, **__: pytest.fail("an adapter was built"))
    file = copied[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    wider = {name: torch.cat([t, t], -1) if "lora_A" in name else t for name, t in tensors.items()}
    save_file(wider, file, {"format": "pt"})
    change(copied[1] / "adapter_config.json", base_model_name_or_path="some-one/large")
    text = refusal(*copied)
    assert "(it names 'some-one/large' as its base): 4 of its 9 tensors have another shape" in text
    assert "q_proj.lora_A.weight among them, which is [2, 64] and would have to be [2, 32]" in text
    save_file(tensors, file, {"format": "pt"})
    change(copied[1] / "adapter_config.json", r=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 7}, "r is 7, the tensors have rank 2 (model.layers.0.self_attn.q_proj.lora_A.weight)"),
        ({"rank_pattern": {"q_proj": 7}}, "rank_pattern.q_proj is 7, the tensors have rank 2"),
        ({"target_modules": ["q_proj", "v_proj", "nope"]}, "there is no module 'nope' with a matrix in the base"),
        ({"target_modules": ["q_proj"]}, "nothing takes model.layers.0.self_attn.v_proj.lora_A.weight"),
        (
            {"target_modules": ["q_proj", "v_proj", "o_proj"]},
            "it lacks model.layers.0.self_attn.o_proj.lora_A.weight",
        ),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "trainable_token_indices names 1 tokens, "),
    ],
)
def test_settings_that_are_not_those_of_the_tensors(copied, monkeypatch, settings, message):
    """Would catch a search for another base, where one setting of the adapter is wrong."""
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_, **__: pytest.fail("an adapter was built"))
    change(copied[1] / "adapter_config.json", base_model_name_or_path="some-one/large", **settings)
    text = refusal(*copied)
    assert message in text and "another base" not in text and "adapter_config.json" in text
    change(copied[1] / "adapter_config.json", target_modules=["q_proj", "v_proj", "lm_head"])
    assert "it changes lm_head, which in this base is one with the embedding" in refusal(*copied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers has to be a whole number from 1 to 1024, not 1000000"),
        ({"num_hidden_layers": 1000}, "of the tensors are missing"),
        ({"hidden_size": 65536}, "of the tensors have another shape"),
        ({"vocab_size": 2**31}, "vocab_size has to be"),
        ({"num_attention_heads": 0}, "num_attention_heads has to be"),
        ({"num_attention_heads": 3}, "its config.json is damaged:"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"head_dim": 3}, "a head has 3 dimensions"),
        (
            {"rope_parameters": {"rope_type": "spiral"}},
            "is of type 'spiral', and supported are default,",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: of type yarn it needs factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor has to be a number above 0, not 0"),
        ({"rope_parameters": [1]}, "rope_parameters has to be an object"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps has to be a number above 0"),
        ({"dtype": "int8"}, "dtype has to be float32 or"),
        ({"layer_types": ["full_attention"]}, "layer_types has to be one of"),
        ({"eos_token_id": "x"}, "eos_token_id has to be a token's id"),
        ({"model_type": ["llama"]}, "models of type ['llama'] are not supported; llama, mistral, qwen2, qwen3 are"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "its weights are quantized (quantization",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'), which is not supported; the same model in float16"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "its weights are quantized"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "its weights are quantized"),
        ({"quantization_config": 3}, "its weights are quantized"),
    ],
)
def test_settings_of_bases(copied, nothing_is_built, settings, message):
    """Would catch a million layers that are built until the memory is full, and errors of libraries."""
    change(copied[0] / "config.json", **settings)
    assert message in refusal(copied[0])


def test_settings_that_are_never_read(copied):
    """Would catch code of a model's folder that is run, another file of settings in place of the checked one, and a
    table of a billion labels."""
    (copied[0] / "code.py").write_text("raise SystemExit('this was run')")
    change(
        copied[0] / "config.json",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        configuration_files=["config.4.0.0.json", "../../x.json"],
        num_labels=2**31,
    )
    change(copied[0] / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tokenizer", None]})
    SpanModel.load(*copied, "cpu", torch.float32)


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_damaged_weights(copied, nothing_is_built, where):
    """Would catch a file of weights that is cut off and read to its end first, and codes taken for weights."""
    base, adapter = copied
    file = base / "model.safetensors" if where == "base" else adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert f"{file} is damaged, or cut off" in refusal(base, adapter)
    file.write_bytes(whole)
    tensors = load_file(file)
    save_file({name: tensor.to(torch.int32) for name, tensor in tensors.items()}, file)
    assert "is stored as I32: quantized weights are not supported" in refusal(base, adapter)
    file.unlink()
    assert file.name in refusal(base, adapter)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", 100_000 * "["),
        ("config.json", "[1]"),
        ("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", 5000 * '{"a":'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": "Nope", "eos_token": 3}'),
        ("generation_config.json", "[]"),
    ],
)
def test_damaged_settings(copied, name, text):
    """Would catch RecursionError, AttributeError and errors of no type at all from inside of libraries."""
    (copied[0] / name).write_text(text)
    assert "base" in refusal(*copied)


def test_a_tokenizer_of_another_base(copied, tmp_path):
    """Would catch an embedding that grows by all ids of a tokenizer that was made for another base, or by billions."""
    from tokenizers import Tokenizer

    content = json.loads((copied[0] / "tokenizer.json").read_text())
    for number, message in ((9_000, "made for another base model: its ids go up to"), (2**31, "are supported")):
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {k: v for k, v in vocabulary.items() if k != "more"} | {"more": number}
        (copied[0] / "tokenizer.json").write_text(json.dumps(content))
        assert Tokenizer.from_file(str(copied[0] / "tokenizer.json"))
        assert message in refusal(*copied)


def test_a_window_that_holds_no_prompt(copied):
    """Would catch the warm-up's own error, which says nothing of the model, as a traceback."""
    change(copied[0] / "config.json", max_position_embeddings=16)
    with pytest.raises(ModelError, match=r"config.json \(max_position_embeddings, sliding_window\) allows 16 tokens"):
        load_as_users_do(*copied)
    change(copied[0] / "config.json", max_position_embeddings=512, model_type="mistral", sliding_window=16)
    with pytest.raises(ModelError, match=r"sliding_window\) allows 16 tokens"):
        load_as_users_do(*copied)


def test_numbers_that_are_none_in_the_base(copied):
    """Would catch an adapter merged into a base that answers nothing, for its norms are not finite."""
    file = copied[0] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    assert "the base's base_model.model.model.norm has numbers that are not finite" in refusal(*copied)


def test_programs_say_it_in_one_line(copied, good, tmp_path, monkeypatch, capsys):
    """Would catch a check that only the library has, and a traceback in front of the line."""
    save_byte_tokenizer(copied[0])
    change(copied[0] / "config.json", quantization_config={"quant_method": "gptq"})
    own = [f"--span-adapter={copied[1]}", f"--plain-adapter={good[1] / 'arithmetic-plain'}"]
    assert call(monkeypatch, "--model", str(copied[0]), *own, "--device", "cpu", stdin=b"1+2\n") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "its weights are quantized" in error
    monkeypatch.setattr(sys, "argv", ["finetune", "--config", str(write_config(tmp_path, copied[0], steps=1))])
    with pytest.raises(SystemExit) as caught:
        finetune.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and "error: " in last and "its weights are quantized" in last


def test_loading_makes_no_warnings(good, recwarn):
    """Would catch advice of libraries to somebody who can do nothing about it."""
    SpanModel.load(good[0], good[1] / "arithmetic-span", "cpu", torch.float32)
    assert not [str(warning.message) for warning in recwarn if "transformers" in str(warning.filename)]
    assert isinstance(SpanTokenizer.load(good[0]), SpanTokenizer) and ModelStore(good[0]).default
