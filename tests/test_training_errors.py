"""Training that cannot begin or go on: one line that says why, and no checkpoint lost."""

import subprocess
import sys

import pytest
import torch
import yaml

from tests.support.paths import ROOT
from tests.support.training_tools import checkpoints_in, write_base_config, write_config
from training import evaluate, finetune, pretrain
from training.data import generated

pytest_plugins = ["tests.support.training_fixtures"]


def test_unknown_key_stops_training_with_its_name(tmp_path, tiny_base, monkeypatch, capsys):
    """Would catch a typo that only shows after hours."""
    path = write_config(tmp_path, tiny_base, steps=1)
    path.write_text(path.read_text().replace("learning_rate", "learning_rat"))
    monkeypatch.setattr(sys, "argv", ["finetune", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        finetune.main()
    assert_one_line_error(caught.value, "unknown key 'learning_rat'", capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "/nowhere/at-all"}, "nowhere"),
        ({"mask_off_share": 1.5}, "mask_off_share is a share from 0 to 1"),
        ({"mask_off_share": 0.5, "annotated": False}, "mask_off_share is for span adapters"),
        ({"task": "poetry"}, "poetry"),
        ({"loop": {"steps": 1, "rows_per_step": 2, "micro_rows": 0}}, "micro_rows is 1 or more"),
        ({"loop": {"steps": 1, "rows_per_step": 2, "micro_rows": 1, "mixed_precision": "b16"}}, "mixed_precision is"),
        ({"lora": {"target_modules": ["q_proj", "nope"]}}, "lora.target_modules: the base has no linear layer"),
        ({"lora": {"target_modules": ["mlp"]}}, "no linear layer called 'mlp'"),
        (
            {"loop": {"steps": 1, "rows_per_step": 2, "micro_rows": 1, "row_tokens": 256}, "heldout_operands": [2, 24]},
            "loop.row_tokens is 256, but the held-out problems of 24 operands",
        ),
        ({"heldout_operands": [2], "heldout_problems": 100_000}, "different problems of 2 operands"),
    ],
)
def test_bad_settings_stop_training_in_one_line(tmp_path, tiny_base, monkeypatch, capsys, change, message):
    """Would catch a stack trace where a setting is wrong."""
    path = write_config(tmp_path, tiny_base, steps=1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    monkeypatch.setattr(generated, "PATIENCE", 1)  # else one of them draws for seconds until it gives up
    monkeypatch.setattr(sys, "argv", ["finetune", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        finetune.main()
    assert_one_line_error(caught.value, message, capsys)


def assert_one_line_error(caught: SystemExit, message: str, capsys) -> None:
    """Exit status 2 and one last line that says what is wrong."""
    lines = capsys.readouterr().err.splitlines()
    assert caught.code == 2 and ": error: " in lines[-1] and message in lines[-1], lines


def test_training_survives_an_evaluation_that_fails(tmp_path, trainer_of):
    """Would catch hours of training lost because the evaluation behind the last step raises."""

    def fail(*_):
        raise ValueError("no figures")

    trainer = trainer_of(tmp_path, 2, fail)
    with pytest.raises(ValueError, match="no figures"):
        trainer.run()
    assert checkpoints_in(tmp_path) == ["step-00000002"]
    resumed = trainer_of(tmp_path, 2)
    resumed.start(resume=True)
    assert resumed.step == 2
    trained = dict(trainer._loss.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in resumed._loss.named_parameters())


def test_the_checkpoint_just_written_is_the_one_that_stays(tmp_path, trainer_of):
    """Would catch a shorter run that deletes its own checkpoints and keeps an older run's, with higher numbers."""
    (tmp_path / "checkpoints" / "step-00000009").mkdir(parents=True)
    trainer_of(tmp_path, 2).run()
    assert checkpoints_in(tmp_path) == ["step-00000002"]


def test_start_refuses_checkpoints_that_do_not_belong(tmp_path, trainer_of, capsys):
    """Would catch a new run over an old one, weights from beyond the last step, and a silent start from nothing."""
    trainer = trainer_of(tmp_path / "new", 2)
    trainer.start(resume=True)
    assert capsys.readouterr().out == f"no checkpoint in {tmp_path / 'new'}: starting from the beginning\n"
    trainer.run()
    with pytest.raises(ValueError, match=r"pass --resume .* or remove the folder"):
        trainer_of(tmp_path / "new", 2).start(resume=False)
    with pytest.raises(ValueError, match=r"step-00000002 is beyond the last step: loop.steps is 1"):
        trainer_of(tmp_path / "new", 1).start(resume=True)
    trainer_of(tmp_path / "new", 3).start(resume=True)
    trainer_of(tmp_path / "unused", 1).start(resume=False)


@pytest.mark.parametrize("module", [finetune, pretrain])
@pytest.mark.parametrize(
    ("arguments", "step", "message"),
    [([], 1, "pass --resume"), (["--resume"], 9, "beyond the last step: loop.steps is 1")],
)
def test_used_run_folders_stop_training_in_one_line(
    tmp_path, tiny_base, trainer_of, monkeypatch, capsys, module, arguments, step, message
):
    """Would catch an entry point that does not ask, or that answers with a stack trace."""
    path = write_config(tmp_path, tiny_base, steps=1) if module is finetune else write_base_config(tmp_path)
    monkeypatch.setattr(pretrain, "HELDOUT_PROBLEMS", 1)
    (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path), *arguments])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert_one_line_error(caught.value, message, capsys)


def test_base_with_rows_too_short_for_its_evaluation(tmp_path, monkeypatch, capsys):
    """Would catch a base that is trained to the end and lost in the evaluation."""
    path = write_base_config(tmp_path)
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"loop": config["loop"] | {"row_tokens": 128}}))
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        pretrain.main()
    assert_one_line_error(caught.value, "loop.row_tokens is 128, but the held-out expressions of", capsys)


def test_entry_points_run_as_files(tmp_path):
    """Would catch `python training/finetune.py` (and `accelerate launch` with it) that finds no package."""
    running = {}
    for name in ("finetune", "pretrain", "evaluate"):  # all at once: each spends its time on imports
        command = [sys.executable, str(ROOT / "training" / f"{name}.py"), "--help"]
        running[name] = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    done = {name: (*process.communicate(timeout=120), process.returncode) for name, process in running.items()}
    for name, (out, complaints, status) in done.items():
        assert status == 0, complaints
        assert f"usage: {name}.py" in out


@pytest.mark.parametrize("operands", ["1", "65"])
def test_evaluation_refuses_operand_counts_that_do_not_exist(monkeypatch, capsys, operands):
    """Would catch a search without end for expressions that no prompt holds."""
    monkeypatch.setattr(sys, "argv", ["evaluate", "--operands", "8", operands])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    assert caught.value.code == 2 and f"not {operands}" in capsys.readouterr().err
