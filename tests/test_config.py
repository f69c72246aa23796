"""Training configurations: strict, and the shipped ones load."""

import pytest

from tests.support.paths import ROOT
from training.finetune import FinetuneConfig
from training.loop.config import ConfigError, load_config
from training.pretrain import PretrainConfig

CONFIGS = ROOT / "training" / "configs"


@pytest.mark.parametrize("name", ["arithmetic-span", "arithmetic-plain"])
def test_shipped_adapter_configs_load(name):
    """Would catch a renamed key that leaves a shipped configuration behind."""
    config = load_config(CONFIGS / f"{name}.yaml", FinetuneConfig)
    assert config.annotated == (name == "arithmetic-span")
    assert config.output == f"assets/adapters/{name}"


def test_example_config_loads_and_keeps_to_itself():
    """Would catch an example that is left behind by a renamed key, or one that writes over shipped weights."""
    config = load_config(CONFIGS / "example.yaml", FinetuneConfig)
    assert config.output.startswith("runs/") and config.run.startswith("runs/")


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
        (("task: arithmetic", "task: 2024-13-45"), "not valid YAML"),
        (("rank: 20", "rank: 0"), "lora: rank is a whole number from 1 to 1024, not 0"),
        (("rank: 20", "rank: 1025"), "lora: rank is a whole number from 1 to 1024, not 1025"),
        (("rank: 20", "rank: 100000"), "lora: rank is a whole number from 1 to 1024, not 100000"),
        (("alpha: 40", "alpha: 0"), "lora: alpha is a whole number from 1 to 1000000, not 0"),
        (("alpha: 40", "alpha: 1000001"), "lora: alpha is a whole number from 1 to 1000000, not 1000001"),
        (("alpha: 40", "alpha: 40, target_modules: []"), "lora: target_modules names no layer"),
        (("learning_rate: 0.002", "learning_rate: 0"), "learning_rate is a number above 0"),
        (("learning_rate: 0.002", "learning_rate: -1.0"), "learning_rate is a number above 0"),
        (("learning_rate: 0.002", "learning_rate: .nan"), "learning_rate is a number above 0"),
        (("workers: 14", "workers: -1"), "loop: workers is 0 or more"),
        (("warmup_steps: 100", "warmup_steps: -1"), "loop: warmup_steps is 0 or more"),
        (("evaluate_every: 0", "evaluate_every: -5"), "loop: evaluate_every is 0 or more"),
        (("decay_from: 0.3", "decay_from: 1.5"), "loop: decay_from is a fraction from 0 to 1"),
        (("row_tokens: 4096", "row_tokens: 65536"), "loop: row_tokens is at most 32640"),
        (("max_intervals: 4", "max_intervals: 1"), "loop.max_intervals is 1, but a span adapter"),
        (("loop:", "heldout_operands: [8, 100]\nloop:"), "heldout_operands are numbers from 2 to 64, not 100"),
        (("loop:", "heldout_problems: 0\nloop:"), "heldout_problems is 1 or more"),
        (("rank: 20", "rank: 8, rank: 20"), "line 7: the key 'rank' is given a second time"),
        (("steps: 15000", "steps: 010"), "steps: YAML reads 010 to another base than 10"),
        (("steps: 15000", "steps: 1:30"), "steps: YAML reads 1:30 to another base than 10"),
        (("steps: 15000", "steps: 0x10"), "steps: YAML reads 0x10 to another base than 10"),
        (("steps: 15000", "steps: -0b11"), "steps: YAML reads -0b11 to another base than 10"),
        (("steps: 15000", "steps: 0o17"), "steps: expected int, got '0o17'"),
        (("steps: 15000", "steps: 15000\n  snapshots: [3, 0x10]"), "snapshots: YAML reads 0x10 to another base"),
        (("steps: 15000", f"steps: 15000\n  seed: {10**19}"), f"loop: seed is at most 2147483647, not {10**19}"),
        (("steps: 15000", f"steps: 15000\n  seed: {2**32}"), f"loop: seed is at most 2147483647, not {2**32}"),
        (("learning_rate: 0.002", "learning_rate: 1:30.5"), "YAML reads 1:30.5 to another base"),
        (("mixed_precision: bf16", "mixed_precision: no"), "loop: mixed_precision: YAML takes the bare words yes, no"),
        (("task: arithmetic", "base: elsewhere"), "line 3: the key 'base' is given a second time"),
    ],
)
def test_wrong_keys_and_types_are_named(tmp_path, change, message):
    """Would catch a typo that silently trains with a default, or a value that only fails deep inside training."""
    text = (CONFIGS / "arithmetic-span.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_config(path, FinetuneConfig)
    assert message in str(caught.value)
    assert "changed.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("matrix_lr: 0.015", "matrix_lr: 0"), "matrix_lr is a number above 0"),
        (("other_lr: 0.002", "other_lr: -0.1"), "other_lr is a number above 0"),
        (("weight_decay: 0.02", "weight_decay: -1"), "weight_decay is 0 or more"),
        (("weight_decay: 0.02", "shard_megabytes: 0"), "shard_megabytes is 1 or more"),
        (("num_kv_heads: 6", "num_kv_heads: 4"), "model: num_heads (6) is no multiple of num_kv_heads (4)"),
        (("num_layers: 8", "num_layers: 0"), "model: num_layers is 1 or more"),
        (("mixture:", "mixture: {}\nunused:"), "mixture names no source"),
        (("copy: 24", "news: 24"), "the key 'news' is given a second time"),
    ],
)
def test_wrong_settings_of_the_base_are_named(tmp_path, change, message):
    """Would catch a base that trains for hours on a wrong setting, or fails when it is saved."""
    text = (CONFIGS / "base.yaml").read_text()
    assert change[0] in text
    data = text.replace(*change)
    if "unused:" in data:  # leave nothing of the mixture
        start = data.index("unused:")
        data = data[:start] + data[data.index("matrix_lr") :]
    path = tmp_path / "changed.yaml"
    path.write_text(data)
    with pytest.raises(ConfigError) as caught:
        load_config(path, PretrainConfig)
    assert message in str(caught.value) and "\n" not in str(caught.value)


LAUGHS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
LISTS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 20 aliases"),
        (LISTS, "more than 20 aliases"),
        ("a: " + 3000 * "[" + 3000 * "]", "more than 20 levels"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "more than 20 levels"),
        ("# " + 2**20 * "x", "far too long"),
        (f"base: [{'a, ' * 100_000}]", "base: expected str, got ['a', 'a'"),
    ],
    ids=["merges", "lists", "flow", "block", "long", "a long value"],
)
def test_documents_that_grow(tmp_path, text, message):
    """Would catch a few lines of aliases that take the machine, a RecursionError, and an error that fills a screen."""
    path = tmp_path / "large.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, FinetuneConfig)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_one_alias_for_two_places(tmp_path):
    """Would catch a bound on aliases that refuses what they are for."""
    text = (CONFIGS / "arithmetic-span.yaml").read_text()
    path = tmp_path / "alias.yaml"
    path.write_text(text.replace("rows_per_step: 32", "rows_per_step: &rows 64").replace("rows: 32", "rows: *rows"))
    assert load_config(path, FinetuneConfig).loop.micro_rows == 64


@pytest.mark.parametrize("written", ["2e-3", "2E-3", "2.0e-3", "+2e-3"])
def test_numbers_may_be_written_with_an_exponent(tmp_path, written):
    """Would catch YAML 1.1's idea that 2e-3 is a word, which everybody who trains runs into."""
    path = tmp_path / "changed.yaml"
    path.write_text((CONFIGS / "example.yaml").read_text().replace("learning_rate: 0.002", f"learning_rate: {written}"))
    assert load_config(path, FinetuneConfig).learning_rate == 0.002


def test_merge_keys_are_no_repetition(tmp_path):
    """Would catch the check for repeated keys refusing YAML's own way to override what was merged."""
    text = (CONFIGS / "arithmetic-span.yaml").read_text()
    path = tmp_path / "merged.yaml"
    path.write_text(text.replace("lora: {rank: 20, alpha: 40}", "lora: {<<: {rank: 8, alpha: 16}, rank: 4}"))
    config = load_config(path, FinetuneConfig)
    assert (config.lora.rank, config.lora.alpha) == (4, 16)


def test_missing_and_empty_files_are_errors(tmp_path):
    """Would catch a traceback where a sentence would do."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml", FinetuneConfig)
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(tmp_path / "empty.yaml", FinetuneConfig)
