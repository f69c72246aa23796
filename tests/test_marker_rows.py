"""Where the rows of new markers start, and that what is trained from there is what is served."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from selfspan_core.models.loading import load_base, resize_for_tokenizer
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.tiny_models import save_tiny
from tests.support.training_tools import write_config
from training.finetune import FinetuneConfig, add_adapter
from training.loop.config import load_config
from training.loop.marker_rows import meanings, start_marker_rows

pytest_plugins = ["tests.support.training_fixtures"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random base whose tokenizer of bytes lacks the markers."""
    folder, _ = save_tiny(tmp_path_factory.mktemp("bytes"), is_byte_level=True)
    return folder


def adapted(base, folder, marker_start: str, is_tied: bool = True):
    """A base in an adapter that starts as a configuration says, and the rows of its embedding before."""
    tokenizer = SpanTokenizer.load(base)
    file = write_config(folder, base, steps=1)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"marker_start": marker_start}))
    model = load_base(base, torch.float32, "sdpa")
    resize_for_tokenizer(model, tokenizer)
    if not is_tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    before = model.get_input_embeddings().weight.detach().clone()
    return add_adapter(model, tokenizer, load_config(file, FinetuneConfig)), before, tokenizer


def rows_of(model, name: str) -> torch.Tensor:
    """The trainable rows of a layer."""
    (rows,) = (value for key, value in model.named_parameters() if f"{name}.token_adapter.trainable" in key)
    return rows.detach()


@pytest.mark.parametrize("is_tied", [True, False])
def test_markers_start_at_what_they_mean(base, tmp_path, is_tied):
    """Would catch rows in the order of another list, names that start alike, and a base that is changed."""
    model, before, tokenizer = adapted(base, tmp_path, "meaning", is_tied)
    for name in ("embed_tokens",) if is_tied else ("embed_tokens", "lm_head"):
        rows = rows_of(model, name)
        known = before if name == "embed_tokens" else model.get_base_model().lm_head.weight.detach()
        by_id = dict(zip(tokenizer.markers.ids, rows, strict=True))
        for marker, text in (("ref", "["), ("go", "]"), ("res", "="), ("end", "\n")):
            (piece,) = tokenizer.encode(text)
            assert torch.allclose(by_id[getattr(tokenizer.markers, marker)], known[piece])
        names = torch.stack([by_id[token] for token in tokenizer.markers.anchors])
        digits = torch.stack([known[tokenizer.encode(str(i))].mean(dim=0) for i in range(len(names))])
        apart = torch.cdist(names, names).fill_diagonal_(torch.inf)
        assert apart.min() > 0.3 * known.std() * names.shape[1] ** 0.5
        assert torch.nn.functional.cosine_similarity(names, digits).mean() > 0.5
    known = [value for key, value in model.named_parameters() if "embed_tokens" in key and "trainable" not in key]
    assert known and all(torch.equal(weight, before) for weight in known)


def test_without_the_option_rows_are_those_of_the_resized_base(base, tmp_path):
    """Would catch a start that nobody asked for."""
    model, before, tokenizer = adapted(base, tmp_path, "random")
    assert torch.equal(rows_of(model, "embed_tokens"), before[list(tokenizer.markers.ids)])
    assert meanings(tokenizer)[tokenizer.markers.anchors[17]] == tokenizer.encode("17")


def test_a_model_without_trained_rows_is_refused(base):
    """Would catch an option that does nothing."""
    with pytest.raises(ValueError, match="trains no markers' rows"):
        start_marker_rows(LlamaForCausalLM.from_pretrained(base), SpanTokenizer.load(base))


def test_what_started_at_a_meaning_is_served(base, tmp_path, train_here):
    """Would catch serving from the resized base's rows in place of those that were trained."""
    file = write_config(tmp_path, base, steps=1, workers=0)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"marker_start": "meaning"}))
    train_here("--config", str(file))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (trained,) = (rows for name, rows in stored.items() if "embed_tokens" in name)
    started, before, tokenizer = adapted(base, tmp_path, "meaning")
    ids = list(tokenizer.markers.ids)
    assert torch.allclose(trained.float(), rows_of(started, "embed_tokens"), atol=3e-3)
    assert not torch.allclose(trained.float(), before[ids], atol=3e-3)
    served = SpanModel.load(base, tmp_path / "adapter", "cpu", torch.float32)
    assert torch.equal(served.hf.get_input_embeddings().weight[ids], trained.float())
