"""Which stages `training.reproduce` runs; nothing is run here."""

import subprocess
import sys
from pathlib import Path

import pytest

from training import reproduce
from training.reproduce import parse_arguments, select, stages

ADAPTERS = ["arithmetic-span", "arithmetic-plain", "summarize-span", "summarize-plain"]
NAMES = ["text", "base", "summaries", *ADAPTERS, "evaluation", "summarize-evaluation", "cpu", "report"]
ALL = stages("TEXT", "PAIRS", 2, ("--n", "5"))


def names_of(remake: list[str], exists) -> list[str]:
    return [stage.name for stage in select(ALL, remake, exists)]


def test_stages_in_order():
    """Would catch a stage that is missing, or one before what it builds on."""
    assert [stage.name for stage in ALL] == NAMES


def test_without_products_everything_is_made():
    """Would catch a stage that is skipped where its product does not exist."""
    assert names_of([], lambda product: False) == NAMES


@pytest.mark.parametrize(
    ("remake", "expected"),
    [
        ([], ["report"]),
        (["all"], NAMES),
        (["cpu", "base"], ["base", "cpu", "report"]),
        (["report"], ["report"]),
    ],
)
def test_products_that_exist_are_made_on_request_only(remake, expected):
    """Would catch a clone, which holds the products, in which nothing can be made again, or all of it by accident."""
    assert names_of(remake, lambda product: True) == expected


def test_a_missing_product_is_made_beside_a_remade_one():
    """Would catch `--remake` that forgets what a remade stage needs, such as the token shards in a clone."""
    assert names_of(["base"], lambda product: product != Path("data/text/meta.json")) == ["text", "base", "report"]


def test_a_remade_training_stage_resumes():
    """Would catch an interrupted remake that starts over when the same command is given again."""
    resumes = {stage.name for stage in select(ALL, ["all"]) if "--resume" in stage.command(num_gpus=1)}
    assert resumes == {"base", *ADAPTERS}


def test_command_line(capsys):
    """Would catch `--remake` that swallows the evaluation's arguments, or takes a stage that does not exist."""
    required = ["--text", "a", "--pairs", "b"]
    arguments = parse_arguments([*required, "--remake", "base", "cpu", "--", "--n", "5"])
    assert (arguments.remake, arguments.evaluation) == (["base", "cpu"], ["--n", "5"])
    assert parse_arguments(required).remake == []
    with pytest.raises(SystemExit):
        parse_arguments([*required, "--remake", "bass"])
    assert "'bass'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "ran", "hint"),
    [([], ["report"], True), (["--remake", "cpu"], ["cpu", "report"], False)],
)
def test_what_is_run_and_said(tmp_path, monkeypatch, capsys, options, ran, hint):
    """Would catch a run in a clone that does nothing and does not say how to make it do something."""
    for stage in ALL:
        if stage.product is not None:
            (tmp_path / stage.product).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / stage.product).touch()
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "run", lambda stage, logs: started.append(stage.name))
    monkeypatch.setattr(sys, "argv", ["reproduce", "--text", "a", "--pairs", "b", *options])
    reproduce.main()
    out = capsys.readouterr().out
    assert started == ran
    assert ("--remake STAGE" in out) == hint
    assert "base: assets/base/pretraining.json exists, skipped" in out


@pytest.mark.parametrize(("status", "attempts"), [(1, 3), (2, 1)])
def test_only_what_may_succeed_is_tried_again(tmp_path, monkeypatch, status, attempts):
    """Would catch three rounds of the same wrong setting, or a lost GPU that ends the run at once."""
    tried = []
    done = subprocess.CompletedProcess([], status)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: tried.append(command) or done)
    with pytest.raises(RuntimeError, match="base failed"):
        reproduce.run(next(stage for stage in ALL if stage.name == "base"), tmp_path)
    assert len(tried) == attempts
