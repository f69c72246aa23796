"""Training configurations: strict, and the shipped ones load."""

from pathlib import Path

import pytest

from training.config import ConfigError, load_config
from training.finetune import FinetuneConfig
from training.pretrain import PretrainConfig

CONFIGS = Path(__file__).parent.parent / "training" / "configs"


@pytest.mark.parametrize("name", ["arithmetic-span", "arithmetic-plain"])
def test_shipped_adapter_configs_load(name):
    """Would catch a renamed key that leaves a shipped configuration behind."""
    config = load_config(CONFIGS / f"{name}.yaml", FinetuneConfig)
    assert config.annotated == (name == "arithmetic-span")
    assert config.output == f"assets/adapters/{name}"


def test_shipped_base_config_loads():
    """Would catch a renamed key that leaves the base's configuration behind."""
    assert load_config(CONFIGS / "base.yaml", PretrainConfig).mixture["copy"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("learning_rate: 0.002", "learnin_rate: 0.002"), "unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        (("rank: 20", "rnak: 16"), "lora: unknown key 'rnak'; did you mean 'rank'"),
        (("rank: 20", "rank: sixteen"), "rank: expected int, got 'sixteen'"),
        (("annotated: true", "annotated: 1"), "annotated: expected bool, got 1"),
        (("task: arithmetic\n", ""), "the key 'task' is missing"),
        (("micro_rows: 32", "micro_rows: 7"), "rows_per_step"),
        (("row_tokens: 4096", "row_tokens: 4000"), "multiple of 128"),
        (("lora:", "lora: ["), "not valid YAML"),
    ],
)
def test_wrong_keys_and_types_are_named(tmp_path, change, message):
    """Would catch a typo that silently trains with a default."""
    text = (CONFIGS / "arithmetic-span.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_config(path, FinetuneConfig)
    assert message in str(caught.value)
    assert "changed.yaml" in str(caught.value)


def test_missing_and_empty_files_are_errors(tmp_path):
    """Would catch a traceback where a sentence would do."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml", FinetuneConfig)
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "empty.yaml", FinetuneConfig)
