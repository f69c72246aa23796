"""Summaries end to end, tiny, on CPU: data, adapters, decoding and scores by the commands that make what ships."""

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml

from cuda_kernels.bench.pictures import PictureError, save_picture
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.learned import Learned, learned_of
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.rules import RuleTables, SummaryRules
from selfspan_core.tasks.summarize.task import Summarize
from selfspan_core.tasks.summarize.written import read_steps
from tests.support.asking import generate
from tests.support.paths import ROOT
from tests.support.summary_tools import write_texts
from tests.support.tiny_models import save_tiny
from training import evaluate, finetune, picture_curve, summary_curve, summary_data
from training.data.summary_format import MAX_LONG_TOKENS
from training.data.summary_mixture import learned_from, parts_of
from training.data.summary_source import PackedSummaries
from training.evaluation import summary_decode, summary_evaluate
from training.evaluation.batch_decode import decode_greedily
from training.evaluation.summary_evaluate import sample_text
from training.finetune import FinetuneConfig
from training.loop.config import ConfigError, load_config
from training.materials import training_material
from training.reports import curve

CONFIGS = ROOT / "training" / "configs"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Texts, packed data in both forms, a random base and two random adapters."""
    folder = tmp_path_factory.mktemp("summaries")
    text, pairs = write_texts(folder)
    base, _ = save_tiny(folder, max_context=2048, task="summarize")
    for form in summary_data.FORMS:
        summary_data.run(text, pairs, str(base), folder / form, form, workers=1)
    return folder


def config_of(made: Path, folder: Path, annotated: bool, form: str = "shorten", workers: int = 1) -> dict:
    mixture = {"highlights": 2, "titles": 1, "gaps": 1} if form == "shorten" else {"highlights": 1}
    return {
        "base": str(made / "base"),
        "task": "summarize",
        "annotated": annotated,
        "output": str(folder / "adapter"),
        "run": str(folder / "run"),
        "lora": {"rank": 2, "alpha": 4},
        "learning_rate": 0.001,
        "mask_off_share": 0.25 if annotated else 0.0,
        "data": str(made / form),
        "mixture": mixture,
        "sentence_dropout": 0.1,
        "loop": {
            "steps": 2,
            "rows_per_step": 1,
            "micro_rows": 1,
            "row_tokens": 1024,
            "warmup_steps": 1,
            "workers": workers,
            "log_every": 1,
            "checkpoint_every": 2,
        },
    }


WITHOUT_TEXTS = """
import sys
sys.modules.update(dict.fromkeys(["sentencex", "nltk", "rouge_score"]))
from accelerate.state import AcceleratorState, GradientState
from {module} import main
for words in {runs!r}:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.argv[1:] = words
    main()
    print("\\f")
"""


def run_without_texts(module: str, *runs: list[str]) -> list[str]:
    """Run a command, once for each list of words, as on a machine that has neither a sentence splitter nor scores.

    All in one process, which spends most of its time on imports. Returns what each run writes.
    """
    command = [sys.executable, "-c", WITHOUT_TEXTS.format(module=module, runs=runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\f\n")[:-1]


TRAINED = ((True, "shorten"), (False, "shorten"), (True, "rewrite"))


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> dict[tuple[bool, str], tuple[Path, str]]:
    """A folder with an adapter, and what its training wrote, of every kind of adapter."""
    folders = {kind: tmp_path_factory.mktemp("trained") for kind in TRAINED}
    for number, (kind, folder) in enumerate(folders.items()):
        # A process that has trained is not to be forked: it has torch's threads in it.
        config = config_of(made, folder, *kind, workers=0 if number else 1)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    runs = [["--config", str(folder / "config.yaml")] for folder in folders.values()]
    written = run_without_texts("training.finetune", *runs)
    return dict(zip(folders, zip(folders.values(), written, strict=True), strict=True))


@pytest.mark.parametrize(("annotated", "form"), TRAINED)
def test_adapters_train_from_packed_data_alone(made, trained, annotated, form):
    """Would catch a trainer that needs texts or a splitter, an adapter that does not load, figures that are lost."""
    folder, written = trained[annotated, form]
    assert "ETA" in written
    report = json.loads((folder / "adapter" / "training.json").read_text())
    assert report["config"]["task"] == "summarize" and report["tokens"] == 2 * 1024
    expected = {"exact_step", "first_read", "loss"} if annotated else {"exact_step", "loss"}
    assert {name.partition("/")[0] for name in report["heldout"]} <= expected
    learned = learned_of(folder / "adapter")
    assert learned.options == {"form": (form,)} and 0 < learned.document_tokens <= 1024
    merged = SpanModel.load(made / "base", folder / "adapter", "cpu", torch.float32)
    assert merged.max_context == 2048


def run_evaluation(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--task", "summarize", *words])
    evaluate.main()


def test_evaluation_end_to_end(made, tmp_path, monkeypatch, capsys):
    """Would catch lanes decoded under wrong rules, figures that are missing, and texts that may not be copied."""
    common = ["--base", str(made / "base"), "--data", str(made / "shorten"), "--device", "cpu", "--batch", "16"]
    decoded, out = [tmp_path / "short.json", tmp_path / "others.json"], tmp_path / "summarize.json"
    settings = [["short", "short rewritten"], ["short without rules", "medium copies only"]]
    common += ["--sets", "dev_cnndm", "test_summeval", "examples"]
    adapters = ["--adapters", str(made / "adapters")]
    runs = [
        [*common, *adapters, "--settings", *names, "--decode-only", str(file)]
        for file, names in zip(decoded, settings, strict=True)
    ]
    (written,) = run_without_texts("training.evaluate", ["--task", "summarize", *runs[0]])
    assert "span-sparse, short: " in written and "span-sparse, short rewritten: " in written
    lanes = json.loads(decoded[0].read_text())["outputs"]
    assert all(lane["short"] != lane["short rewritten"] for lane in lanes.values()), "both forms are asked for alike"
    # A random model that no rules hold writes as much as it may; copies are shorter than this.
    monkeypatch.setattr(summary_decode, "MAX_SUMMARY_TOKENS", 80)
    run_evaluation(monkeypatch, *runs[1])
    assert "span-sparse, short without rules: " in capsys.readouterr().out
    readings = ["--readings", str(tmp_path / "all.md")]
    run_evaluation(
        monkeypatch,
        *common,
        *("--pairs", str(made / "pairs"), "--decoded", *map(str, decoded), "--out", str(out)),
        *readings,
    )
    results = json.loads(out.read_text())
    assert set(results["sets"]) == {"dev_cnndm", "test_summeval", "examples"}
    assert results["commit"] and "weights_sha256" in results and results["dtype"] == "float32"
    for name, figures in results["sets"].items():
        assert ("baselines" in figures) == (name != "examples")
        for lane, by_setting in figures["lanes"].items():
            for setting, row in by_setting.items():
                assert ("rougeL" in row) == (name != "examples")
                assert ("rougeL_mean" in row) == (name == "test_summeval")
                for num in (1, 2, 3) if name != "examples" else ():
                    over = row["rougeL_over"][f"lead-{num}"]["difference"]
                    assert over == pytest.approx(
                        row["rougeL"] - figures["baselines"][f"lead-{num}"]["rougeL"], abs=0.02
                    )
                if setting == "short without rules":
                    continue
                assert row["malformed_steps_percent"] == 0 and row["unfinished_percent"] == 0, (lane, setting)
                if setting == "medium copies only":
                    assert row["copied_or_shortened_percent"] == row["grounded_words_percent"] == 100
                    assert 2 <= row["mean_steps"] <= 5
                assert (row["attended_percent_of_dense"] == 100) == (lane != "span-sparse")
    samples, everything = (tmp_path / "summarize_samples.md").read_text(), (tmp_path / "all.md").read_text()
    rows = list(summary_data.rows_of(made / "pairs" / "dev_cnndm.jsonl.xz"))
    assert not any(sentence in samples for row in rows for sentence in row["article"].split(". "))
    assert any(row["summary"] in everything for row in rows)
    assert "examples/0" in samples
    other = json.loads(decoded[1].read_text()) | {"dtype": "bfloat16"}
    with pytest.raises(ValueError, match="differs in dtype: bfloat16 and float32"):
        summary_evaluate.together([json.loads(decoded[0].read_text()), other])
    with pytest.raises(ValueError, match="plain-dense, short is there twice"):
        summary_evaluate.together(2 * [json.loads(decoded[0].read_text())])


def test_a_curve_over_training_tokens(made, trained, tmp_path, monkeypatch, capsys):
    """Would catch points in another order than their tokens', lanes of another snapshot, runs that do not match."""
    monkeypatch.setattr(summary_decode, "MAX_SUMMARY_TOKENS", 40)
    runs = []
    for annotated in (True, False):
        run = tmp_path / ("span" if annotated else "plain")
        for name, tokens in (("adapter", 2048), ("adapter-step-1", 1024)):
            shutil.copytree(trained[annotated, "shorten"][0] / "adapter", run / name)
            report = json.loads((run / name / "training.json").read_text()) | {"tokens": tokens}
            (run / name / "training.json").write_text(json.dumps(report))
        runs.append(str(run))
    words = [*runs, "--data", str(made / "shorten"), "--base", str(made / "base"), "--set", "dev_cnndm"]
    words += ["--device", "cpu", "--dtype", "float32", "--settings", "short"]
    decoded, out = tmp_path / "decoded.json", tmp_path / "curve.json"
    summary_curve.main([*words, "--decode-only", str(decoded)])
    summary_curve.main([*words, "--decoded", str(decoded), "--pairs", str(made / "pairs"), "--out", str(out)])
    results = json.loads(out.read_text())
    assert [point["tokens"] for point in results["points"]] == [1024, 2048] and results["commit"]
    lanes = results["points"][0]["lanes"]
    assert lanes["span-sparse"]["short"]["attended_percent_of_dense"] < 100
    assert lanes["span-dense"]["short"]["attended_percent_of_dense"] == 100
    monkeypatch.setattr(curve, "read", lambda path: results)
    assert "| 0 M, short |" in curve.curve()
    save_picture(picture_curve.draw(results), tmp_path / "curve.png", {})
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(PictureError, match="no results of"):
        picture_curve.series_of({"points": []})
    shutil.rmtree(tmp_path / "plain" / "adapter-step-1")
    with pytest.raises(SystemExit, match="was kept at"):
        summary_curve.main([*words, "--decode-only", str(decoded)])
    with pytest.raises(SystemExit, match="holds no adapter"):
        summary_curve.main([str(tmp_path), *words[1:], "--decode-only", str(decoded)])


def test_baselines_need_no_model(made, tmp_path, monkeypatch):
    """Would catch baselines that cannot be had before there are adapters."""
    out = tmp_path / "summarize.json"
    words = ["--base", str(made / "base"), "--data", str(made / "shorten"), "--pairs", str(made / "pairs")]
    run_evaluation(monkeypatch, *words, "--baselines-only", "--out", str(out))
    figures = json.loads(out.read_text())["sets"]["dev_cnndm"]
    assert figures["baselines"]["lead-1"]["rougeL"] > 0 and "lanes" not in figures


def test_batched_decoding_follows_the_rules_as_a_single_run_does(made):
    """Would catch rules mixed up between rows, or applied to the wrong step's logits."""
    model = SpanModel.load(made / "base", made / "adapters" / "summarize-span", "cpu", torch.float32)
    tokenizer, task = model.tokenizer, Summarize("medium", max_context=2048)
    tables = RuleTables(tokenizer)
    sentences = task.parse(EXAMPLES[0]).segments
    texts = [" ".join(chosen) for chosen in (sentences, sentences[3:], sentences[:4])]
    prompts = [task.render(task.parse(text), tokenizer, annotated=True) for text in texts]
    rules = [SummaryRules(tables, prompt.ids, prompt.prompt, "medium", True) for prompt in prompts]
    rows = decode_greedily(model, tokenizer.markers, prompts, True, True, 700, rules)
    for prompt, row in zip(prompts, rows, strict=True):
        engine = Engine(model, tokenizer.markers)
        again = SummaryRules(tables, prompt.ids, prompt.prompt, "medium", True)
        events = generate(engine, prompt, "sparse", forced_tokens=row.ids, with_logits=True)
        for event in events:
            if isinstance(event, Token):
                only, banned = again.limits()
                logits = event.logits.clone()
                logits[list(banned)] = -torch.inf
                if only is not None:
                    logits = torch.full_like(logits, -torch.inf).index_copy(0, torch.tensor(only), logits[list(only)])
                assert logits[event.id] >= logits.max() - 1e-4
                again.push(event.id)
        steps = read_steps(row.ids, prompt.prompt, tokenizer)
        assert 2 <= len(steps) <= 5 and not any(step.malformed for step in steps)


def test_both_forms_in_one_adapter(made, tmp_path, monkeypatch):
    """Would catch a folder of a mixture that is not drawn from, and markers that start at random all the same."""
    mixture = {"s/highlights": 1, "s/titles/among": 1, "r/highlights": 1, "r/events": 1}
    config = config_of(made, tmp_path, True, workers=0) | {
        "data": {"s": str(made / "shorten"), "r": str(made / "rewrite")},
        "mixture": mixture,
        "marker_start": "meaning",
    }
    config["loop"] |= {"row_tokens": 8192, "max_intervals": 4, "steps": 1, "checkpoint_every": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    config = load_config(tmp_path / "config.yaml", FinetuneConfig)
    tokenizer = SpanTokenizer.load(made / "base")
    stream, heldout, learned = training_material(config, tokenizer)
    prompts = [tokenizer.decode(sample.ids[:20].tolist()) for sample in islice(stream(0, 0, 1), 30)]
    assert {"in your own words:" in prompt for prompt in prompts} == {True, False}
    assert set(heldout._samples) <= set(mixture)
    # Articles among others are the longest documents; a folder of one form alone has its articles' own length.
    assert learned == Learned({"form": ("shorten", "rewrite")}, MAX_LONG_TOKENS)
    one = learned_from(parts_of(str(made / "rewrite"), {"highlights": 1.0}, tokenizer, annotated=True), 8192)
    packed = PackedSummaries(made / "rewrite", tokenizer)
    documents = {packed.document_of(number) for number in packed.of_kind("highlights").tolist()}
    assert one.options == {"form": ("rewrite",)}
    assert one.document_tokens == max(sum(len(ids) + 1 for ids in packed.segments(place)) for place in documents)


@pytest.mark.parametrize("name", ["smollm2-summarize-span", "smollm2-summarize-plain"])
def test_configs_of_a_language_model_load(name):
    """Would catch a lane with other data than the other, rows too short for long documents, an adapter too large."""
    config = load_config(CONFIGS / f"{name}.yaml", FinetuneConfig)
    span = load_config(CONFIGS / "smollm2-summarize-span.yaml", FinetuneConfig)
    assert (config.mixture, config.data, config.lora) == (span.mixture, span.data, span.lora)
    assert config.annotated == name.endswith("span") == (config.marker_start == "meaning")
    total, loop = sum(config.mixture.values()), config.loop
    shares = {part: sum(v for k, v in config.mixture.items() if part in k) / total for part in ("rewrite", "among")}
    assert 0.2 <= shares["rewrite"] <= 0.3 and 0.05 <= shares["among"] <= 0.15
    assert loop.row_tokens == 8192 and loop.rows_per_step * loop.row_tokens == 16 * 4096
    assert set(config.lora.target_modules) == set(finetune.ALL_LINEAR) and config.lora.rank <= 8


@pytest.mark.parametrize("name", ["summarize-span", "summarize-plain", "summarize-rewrite"])
def test_shipped_configs_load(name):
    """Would catch a renamed key that leaves a configuration behind, and lanes that are trained differently."""
    config = load_config(CONFIGS / f"{name}.yaml", FinetuneConfig)
    assert config.annotated == (name != "summarize-plain") and config.task == "summarize"
    assert (name == "summarize-rewrite") == (config.output.startswith("runs/"))
    if name == "summarize-plain":
        span = load_config(CONFIGS / "summarize-span.yaml", FinetuneConfig)
        assert (config.mixture, config.data, config.lora) == (span.mixture, span.data, span.lora)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "needs data"),
        ({"mixture": {}}, "needs data"),
        ({"mixture": {"poems": 1}}, "the mixture names 'poems'"),
        ({"mixture": {"a/titles": 1}}, "the mixture names 'a/titles'"),
        ({"data": {"a": "x", "b": "y"}, "mixture": {"a/titles": 1}}, "data has 'b', but no key of the mixture"),
        ({"data": {"a/b": "x"}, "mixture": {"a/titles": 1}}, "data has no 'a'"),
        ({"data": ["x"]}, "data: expected str or dict, got ['x']"),
        ({"data": {"a": 3}}, "data: expected str, got 3"),
        ({"marker_start": "there"}, "marker_start is random or meaning, not there"),
        ({"annotated": False, "mask_off_share": 0, "marker_start": "meaning"}, "marker_start is for span adapters"),
        ({"task": "arithmetic"}, "are for the task summarize, not arithmetic"),
        ({"sentence_dropout": 1.0}, "sentence_dropout is a share"),
        ({"mixture": {"highlights": -1}}, "the share of 'highlights' is -1"),
        ({"data": "/nowhere"}, "no packed summaries in /nowhere"),
        ({"loop": {"steps": 1, "rows_per_step": 1, "micro_rows": 1, "max_intervals": 3}}, "needs 4 or more"),
    ],
)
def test_bad_settings_stop_training_in_one_line(made, tmp_path, monkeypatch, capsys, change, message):
    """Would catch a stack trace where a setting is wrong."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_of(made, tmp_path, True) | change))
    monkeypatch.setattr(sys, "argv", ["finetune", "--config", str(path)])
    with pytest.raises((SystemExit, ConfigError)) as caught:
        finetune.main()
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and message in lines[-1], lines


def test_samples_of_own_examples_are_shown_in_full():
    """Would catch a samples file in which there is nothing to read."""
    row = {"lane": "span-sparse", "setting": "short", "rougeL": None, "sentences": 3, "reads": [[0, 2]], "words": 2}
    row |= {"copied": [True], "attended_percent": 12.4, "text": ["A <b>town</b>."], "reference": None}
    row |= {"sources": [["One.", "Two."]]}
    own = sample_text([row | {"article": "examples/0"}], with_texts=False)
    assert "* A <b>town</b>." in own and "reads sentence 1 3" in own and "12 % of the keys" in own
    assert "town" not in sample_text([row | {"article": "test_cnndm/7"}], with_texts=False)
