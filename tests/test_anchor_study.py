"""The comparison of anchors: what is trained on, what is asked, what comes of it."""

import itertools
import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Token
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import ADAPTERS, BASE
from tests.support.asking import asked
from tests.support.paths import ROOT
from tests.support.summary_tools import write_texts
from training import summary_data
from training.anchors import score, study
from training.anchors.variants import USUAL, VARIANTS
from training.finetune import FinetuneConfig
from training.loop.config import load_config
from training.loop.packing import pack


def config_of(task):
    return load_config(ROOT / "training" / "configs" / f"anchors-{task}.yaml", FinetuneConfig)


@pytest.fixture(scope="module")
def tokenizer():
    return SpanTokenizer.load(BASE)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Packed summaries for the shipped tokenizer, and the pairs that they are of."""
    folder = tmp_path_factory.mktemp("anchors")
    text, pairs = write_texts(folder)
    summary_data.run(text, pairs, str(BASE), folder / "data", "shorten", workers=1)
    return folder / "data", pairs


@pytest.mark.parametrize(
    ("task", "variant"), [(task, one) for task, variants in VARIANTS.items() for one in variants], ids=str
)
def test_every_variant_has_samples_that_fit_a_row(tokenizer, packed, task, variant):
    """Would catch a variant whose steps see more intervals than its rows record, which ends its training."""
    config = config_of(task)
    if task == "summarize":
        config = replace(config, data=str(packed[0]), mixture={"highlights": 2.0, "gaps": 1.0})
    samples = study.stream_of(config, variant, tokenizer)(1, 0, 1)
    loop = config.loop
    rows = pack(itertools.islice(samples, 40), loop.row_tokens, loop.max_intervals, tokenizer.pad_id)
    assert sum(row.used for row in rows) > 1000


def test_a_trained_adapter_is_asked_as_the_engine_asks_it(tokenizer):
    """Would catch a decoder of its own kind that shows bodies something else than the engine does."""
    config, arguments = config_of("arithmetic"), Namespace(sizes=[3, 5], n=3, batch=4)
    questions = [question for question, _ in study.questions(arguments, config, USUAL, tokenizer)]
    adapter = ADAPTERS / "arithmetic-span"
    plain = SpanModel.load(BASE, adapter, "cpu", torch.float32, tokenizer)
    plain.hf.set_attn_implementation("sdpa")
    found = study.answered(plain, questions, tokenizer, 4)
    engine = Engine(SpanModel.load(BASE, adapter, "cpu", torch.float32, tokenizer), tokenizer.markers)
    for question, written in zip(questions, found, strict=True):
        request = asked(question.prompt.rendered, max_new_tokens=question.most_tokens)
        events = [event for event in engine.generate(request, "sparse") if isinstance(event, Token)]
        assert written.answer.ids == [event.id for event in events]
        assert written.question is question


def test_figures_end_to_end(monkeypatch, tmp_path, tokenizer):
    """Would catch answers that are judged by another problem's solution, and shares of the wrong total."""
    monkeypatch.setattr(study, "trained", lambda *_: (ADAPTERS / "arithmetic-span", {"tokens": 0}))
    monkeypatch.chdir(ROOT)
    out = tmp_path / "anchors.json"
    words = ["--task", "arithmetic", "--variants", "usual", "digits", "--sizes", "3", "--n", "5", "--device", "cpu"]
    study.main([*words, "--out", str(out), "--texts", str(tmp_path / "texts.json")])
    usual, digits = json.loads(out.read_text())["cells"]
    assert (usual["variant"], digits["variant"], usual["training_seed"]) == ("usual", "digits", 1)
    figures = usual["figures"]["3"]
    assert (figures["n"], figures["exact_percent"], figures["malformed_percent_of_steps"]) == (5, 100, 0)
    assert 20 < figures["kv_read_percent"] < 100
    # It never saw such names.
    assert digits["figures"]["3"]["exact_percent"] < 100


def test_summaries_are_scored_where_their_references_are(monkeypatch, tmp_path, packed, tokenizer):
    """Would catch texts that are set against other articles' highlights, and a difference with the wrong sign."""
    data, pairs = packed
    config = replace(config_of("summarize"), data=str(data))
    monkeypatch.setattr(study, "load_config", lambda *_: config)
    monkeypatch.setattr(study, "trained", lambda *_: (ADAPTERS / "summarize-span", {"tokens": 0}))
    name = next(file.name.removesuffix(".jsonl.xz") for file in pairs.glob("dev_*"))
    for module in (study, score):
        monkeypatch.setattr(module, "SET", name)
    out, texts = tmp_path / "anchors.json", tmp_path / "texts.json"
    words = ["--task", "summarize", "--n", "2", "--device", "cpu", "--variants", "usual"]
    study.main([*words, "in order", "--out", str(out), "--texts", str(texts)])
    written = json.loads(texts.read_text())
    assert all(len(own) == 2 and all(own.values()) for own in written.values())
    score.main(["--pairs", str(pairs), "--texts", str(texts), "--out", str(out)])
    usual, other = (cell["figures"][name] for cell in json.loads(out.read_text())["cells"])
    assert 0 < usual["rouge_l"] <= 100 and "rouge_l_above_usual" not in usual
    assert other["rouge_l_above_usual"] == pytest.approx(other["rouge_l"] - usual["rouge_l"], abs=1e-3)


def test_variants_that_there_are_not_are_refused(capsys):
    """Would catch a misspelled variant that is left out without a word."""
    with pytest.raises(SystemExit):
        study.main(["--task", "arithmetic", "--variants", "first words"])
    assert "no variants of arithmetic: first words" in capsys.readouterr().err


def test_questions_are_the_same_for_every_variant(tokenizer):
    """Would catch variants that are asked different problems."""
    arguments = Namespace(sizes=[4], n=4, batch=4)
    config = config_of("arithmetic")
    asked_for = [
        [problem.text for _, problem in study.questions(arguments, config, variant, tokenizer)]
        for variant in VARIANTS["arithmetic"]
    ]
    assert all(one == asked_for[0] for one in asked_for)
