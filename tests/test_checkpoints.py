"""Checkpoints and going on from them: small, no pickles, whole whenever a run is killed, of one configuration."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.support.training_tools import checkpoints_in, write_base_config, write_config
from training import finetune, pretrain
from training.loop import checkpoints, space
from training.loop.muon import StackedMuon
from training.loop.packing import plain_sample
from training.loop.resuming import MAY_CHANGE, changes
from training.loop.trainer import LoopConfig, Trainer

pytest_plugins = ["tests.support.training_fixtures"]


class Killed(BaseException):
    """The process ends here."""


def optimizers(model):
    """Muon for matrices and AdamW for the rest, of what is trained: both sorts of state are in one checkpoint."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in trained if p.shape == (32, 32)], [p for p in trained if p.shape != (32, 32)]
    return [StackedMuon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]


@pytest.fixture
def make(tiny_base, fresh_accelerate):
    """A function that makes a trainer of one layer's weights: (folder, steps, rates) -> Trainer."""

    def constant(seed, shard, num_shards):
        while True:
            yield plain_sample(np.arange(300, 400))

    def trainer(folder, steps, build=optimizers, stream=constant, **changed) -> Trainer:
        fresh_accelerate()
        settings = {"workers": 0, "warmup_steps": 0, "decay_from": 1.0, "checkpoint_every": 2} | changed
        config = LoopConfig(steps=steps, rows_per_step=1, micro_rows=1, row_tokens=128, max_intervals=1, **settings)
        model = LlamaForCausalLM.from_pretrained(tiny_base)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.1." in name)
        return Trainer(model, build, stream, config, folder, 0)

    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer._loss.named_parameters()}


def test_a_resumed_run_on_the_same_data_is_the_run_that_was_not_stopped(tmp_path, make, tiny_base):
    """Would catch an optimizer's state, a frozen weight or a random state that does not come back, frozen weights in
    the checkpoint, and a pickle in its folder. All samples are alike here: a resumed run draws them anew."""
    whole = make(tmp_path / "whole", 4)
    whole.run()
    make(tmp_path / "parts", 4, max_seconds=0.0).run()
    found = tmp_path / "parts" / "checkpoints" / "step-00000001"
    frozen = (tiny_base / "model.safetensors").stat().st_size
    assert sum(file.stat().st_size for file in found.iterdir()) < frozen / 4
    assert {file.suffix for file in found.iterdir()} == {".json", ".safetensors"}
    names = load_file(found / "weights.safetensors")
    assert names and all("layers.1." in name for name in names)
    states = {name.split("/")[2] for name in load_file(found / "optimizers.safetensors")}
    assert states == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    expected = torch.get_rng_state()
    resumed = make(tmp_path / "parts", 4)
    torch.manual_seed(7)
    resumed.start(resume=True)
    assert resumed.step == 1 and torch.equal(torch.get_rng_state(), expected)
    resumed.run()
    assert all(torch.equal(p, weights(resumed)[name]) for name, p in weights(whole).items())


def test_a_resumed_run_draws_its_samples_anew(tmp_path, make):
    """Would catch a run that trains again on what it has seen before it was stopped, and a stream that is not the same
    whenever a run goes on from one checkpoint. What the unstopped run would have drawn is not stored."""
    drawn = []

    def stream(seed, shard, num_shards):
        rng = np.random.default_rng((seed, shard))
        while True:
            drawn.append(rng.integers(300, 8000, 100).tolist())
            yield plain_sample(np.array(drawn[-1]))

    make(tmp_path / "whole", 4, stream=stream).run()
    whole, found = list(drawn), []
    make(tmp_path / "first", 4, stream=stream, max_seconds=0.0).run()
    for name in ("second", "third"):
        shutil.copytree(tmp_path / "first", tmp_path / name)
        drawn.clear()
        resumed = make(tmp_path / name, 4, stream=stream)
        resumed.start(resume=True)
        resumed.run()
        found.append((list(drawn), weights(resumed)))
    (second, there), (third, here) = found
    assert len(second) >= 3 and second == third and not [ids for ids in second if ids in whole]
    assert all(torch.equal(p, here[name]) for name, p in there.items())


def test_rates_come_from_the_configuration(tmp_path, make):
    """Would catch the old learning rate, brought back by the optimizer's state, under a report of the new one."""
    make(tmp_path, 4, max_seconds=0.0).run()
    resumed = make(
        tmp_path,
        6,
        lambda model: [
            *optimizers(model)[:1],
            torch.optim.AdamW(optimizers(model)[1].param_groups[0]["params"], lr=0.5),
        ],
    )
    resumed.start(resume=True)
    assert [o.param_groups[0]["base_lr"] for o in resumed._optimizers] == [0.02, 0.5]
    assert resumed.report()["changed_settings"][0] == {
        "after_step": 1,
        "setting": "loop.max_seconds",
        "before": 0.0,
        "then": None,
    }
    resumed.run()
    assert [o.param_groups[0]["lr"] for o in resumed._optimizers] == pytest.approx([0.02, 0.5])


@pytest.mark.parametrize("at", range(9))
def test_killed_while_a_checkpoint_is_written(tmp_path, make, monkeypatch, at):
    """Would catch a moment at which neither the old checkpoint is whole nor the new one."""
    calls = iter(range(1000))
    armed = []

    def killing(name, function, half):
        def call(*arguments, **keywords):
            if armed and next(calls) == at:
                half(*arguments)
                armed.clear()
                raise Killed(name)
            return function(*arguments, **keywords)

        return call

    path_type = type(tmp_path)
    monkeypatch.setattr(
        checkpoints, "save_file", killing("save", checkpoints.save_file, lambda _, f: f.write_text("x"))
    )
    monkeypatch.setattr(checkpoints, "_to_disk", killing("disk", checkpoints._to_disk, lambda *_: None))
    monkeypatch.setattr(path_type, "rename", killing("rename", path_type.rename, lambda *_: None))
    first_file = lambda folder, **_: next(iter(sorted(folder.glob("*"))), folder / "none").unlink(missing_ok=True)  # noqa: E731
    monkeypatch.setattr(checkpoints.shutil, "rmtree", killing("remove", shutil.rmtree, first_file))
    trainer = make(tmp_path, 4)
    trainer.start(resume=False)
    trainer._run_evaluation = lambda: None
    save = trainer.save
    trainer.save = lambda: (armed.append(1) if trainer.step == 4 else None, save())
    with pytest.raises(Killed):
        trainer.run()
    resumed = make(tmp_path, 5)
    resumed.start(resume=True)
    assert resumed.step in (2, 4)
    resumed.run()
    assert checkpoints_in(tmp_path) == ["step-00000005"]


def test_a_full_disk_costs_no_checkpoint(tmp_path, make, monkeypatch):
    """Would catch the last whole checkpoint removed for one that cannot be written."""
    make(tmp_path, 4, max_seconds=0.0).run()
    resumed = make(tmp_path, 4)
    resumed.start(resume=True)

    def full(*_):
        raise checkpoints.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        resumed.run()
    assert checkpoints.found_in(tmp_path / "checkpoints")[-1].step == 1
    checkpoints.facts_of(checkpoints.found_in(tmp_path / "checkpoints")[-1])


def _cut(name, share=0.5):
    def cut(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def _other_facts(**changed):
    def change(folder):
        facts = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps(facts | changed))

    return change


def _other_states(**changed):
    def change(folder):
        states = json.loads((folder / "random-0.json").read_text())
        found = {name: alter(states[name]) for name, alter in changed.items()}
        (folder / "random-0.json").write_text(json.dumps(states | found))

    return change


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda folder: (folder / "random-0.json").unlink(), "random-0.json is missing"),
        (_cut("random-0.json"), "random-0.json"),
        (_other_states(torch=lambda state: state[:-1]), "random-0.json"),
        (_other_states(torch=lambda state: [999, *state[1:]]), "random-0.json"),
        (_other_states(torch=lambda state: [10**30, *state[1:]]), "random-0.json"),
        (_other_states(torch=lambda state: None), "random-0.json"),
        (_other_states(numpy=lambda state: [state[0], [-1, *state[1][1:]], *state[2:]]), "random-0.json"),
        (_other_states(numpy=lambda state: [state[0], [10**30, *state[1][1:]], *state[2:]]), "random-0.json"),
        (_other_states(numpy=lambda state: [state[0], state[1][1:], *state[2:]]), "random-0.json"),
        (_other_states(numpy=lambda state: [*state[:2], 10**6, *state[3:]]), "random-0.json"),
        (_other_states(python=lambda state: [state[0], [-1, *state[1][1:]], None]), "random-0.json"),
        (_other_states(python=lambda state: [*state[:2], "0"]), "random-0.json"),
        (_other_states(python=lambda state: {}), "random-0.json"),
        (lambda folder: (folder / "random-0.json").write_text("[]"), "random-0.json"),
        (_other_facts(changed=None), "checkpoint.json: changed"),
        (_other_facts(changed="loop.steps"), "checkpoint.json: changed"),
        (_other_facts(changed=[1]), "checkpoint.json: changed"),
        (_other_facts(num_processes=2), "random-1.json is missing"),
        (_other_facts(num_processes=0), "checkpoint.json: num_processes"),
        (_other_facts(num_processes=10**30), "checkpoint.json: num_processes"),
        (_other_facts(num_processes=None), "checkpoint.json: num_processes"),
    ],
)
def test_damaged_states_are_told_by_their_file(tmp_path, make, damage, file):
    """Would catch a traceback, a message that leaves the file open, and a run that goes on with other random numbers
    since their state was lost."""
    make(tmp_path, 4, max_seconds=0.0).run()
    damage(tmp_path / "checkpoints" / "step-00000001")
    resumed = make(tmp_path, 4)
    with pytest.raises(ValueError, match="step-00000001 cannot be gone on from") as caught:
        resumed.start(resume=True)
    assert file in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_that_does_not_say_of_how_many_processes_it_is(tmp_path, make):
    """Would catch checkpoints of before that cannot be gone on from any more."""
    make(tmp_path, 4, max_seconds=0.0).run()
    file = tmp_path / "checkpoints" / "step-00000001" / "checkpoint.json"
    facts = json.loads(file.read_text())
    assert facts.pop("num_processes") == 1
    file.write_text(json.dumps(facts))
    resumed = make(tmp_path, 4)
    resumed.start(resume=True)
    assert resumed.step == 1


@pytest.mark.parametrize(
    "damage",
    [
        _cut("weights.safetensors"),
        _cut("weights.safetensors", 0),
        _cut("optimizers.safetensors", 0.9),
        _cut("checkpoint.json"),
        _cut("random-0.json"),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text(100_000 * "["),
        lambda folder: (folder / "optimizers.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()),
        lambda folder: [file.unlink() for file in folder.iterdir()],
        _other_facts(format=0),
        _other_facts(step=9),
        _other_facts(settings=3),
        _other_facts(numbers={"9/9/step": 1}),
    ],
)
def test_damaged_checkpoints(tmp_path, make, damage):
    """Would catch a traceback, or a run that goes on from half of a checkpoint."""
    make(tmp_path, 4, max_seconds=0.0).run()
    damage(tmp_path / "checkpoints" / "step-00000001")
    resumed = make(tmp_path, 4)
    before = weights(resumed)
    with pytest.raises(ValueError, match=r"step-00000001 cannot be gone on from .* remove that folder") as caught:
        resumed.start(resume=True)
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(p, before[name]) for name, p in weights(resumed).items())


def test_strays_in_the_folder_of_checkpoints(tmp_path, make):
    """Would catch a traceback about a name that is no number, and a file that is taken for a checkpoint."""
    for name in ("step-abc", "step-", "step--1", "step-1e3", f"step-{10**20}", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000007").write_text("a file")
    make(tmp_path, 4, max_seconds=0.0).run()
    resumed = make(tmp_path, 4)
    resumed.start(resume=True)
    assert resumed.step == 1


CONFIG = {"lora": {"rank": 8, "target_modules": ("q_proj",)}, "mixture": {"a": 1.0}, "loop": {"seed": 0, "steps": 5}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora": {"rank": 16, "target_modules": ("q_proj",)}}, "lora.rank is 16, and the run to go on with has 8"),
        (
            {"lora": {"rank": 8, "target_modules": ("v_proj",)}},
            r'lora.target_modules is \["v_proj"\], and .* \["q_proj"\]',
        ),
        ({"mixture": {"a": 1.0, "b": 1.0}}, "mixture.b is 1.0, and the run to go on with has not given"),
        ({"loop": {"seed": 1, "steps": 5}}, "loop.seed is 1, and the run to go on with has 0"),
    ],
)
def test_settings_that_may_not_change(changed, message):
    """Would catch a run whose second half has another meaning than its first."""
    with pytest.raises(ValueError, match=message):
        changes(CONFIG, CONFIG | changed)
    assert changes(CONFIG, CONFIG) == {}
    assert changes(CONFIG, CONFIG | {"loop": {"seed": 0, "steps": 9}}) == {"loop.steps": (5, 9)}


def test_settings_that_may_change_exist():
    """Would catch a setting that was renamed and cannot change any more since then."""
    known = {*finetune.FinetuneConfig.__dataclass_fields__, *pretrain.PretrainConfig.__dataclass_fields__}
    known |= {f"loop.{name}" for name in LoopConfig.__dataclass_fields__}
    assert known >= MAY_CHANGE


def test_another_rank_is_refused_and_another_rate_is_taken(tmp_path, tiny_base, train_here, capsys):
    """Would catch a traceback of mismatched shapes, and a rate in the report that nothing was trained with."""
    path = write_config(tmp_path, tiny_base, steps=1, workers=0)
    config = yaml.safe_load(path.read_text())
    train_here("--config", str(path))
    path.write_text(yaml.safe_dump(config | {"lora": {"rank": 4, "alpha": 4}}))
    with pytest.raises(SystemExit) as caught:
        train_here("--config", str(path), "--resume")
    assert caught.value.code == 2
    assert "lora.rank is 4, and the run to go on with has 2" in capsys.readouterr().err.splitlines()[-1]
    path.write_text(yaml.safe_dump(config | {"learning_rate": 0.25, "loop": config["loop"] | {"steps": 2}}))
    assert "from here on learning_rate is 0.25, before it was 0.001" in train_here("--config", str(path), "--resume")
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert {"after_step": 1, "setting": "learning_rate", "before": 0.001, "then": 0.25} in report["changed_settings"]


@pytest.mark.parametrize("module", [finetune, pretrain])
@pytest.mark.parametrize("key", ["output", "run", "output below a file", "no room"])
def test_places_that_cannot_be_written(tmp_path, tiny_base, monkeypatch, capsys, fresh_accelerate, module, key):
    """Would catch a run that is trained to the end and then cannot be saved."""
    path = write_config(tmp_path, tiny_base, steps=1) if module is finetune else write_base_config(tmp_path)
    config = yaml.safe_load(path.read_text())
    (tmp_path / "file").write_text("here")
    if key == "no room":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=10))
    else:
        place = tmp_path / "file" / "below" if "below" in key else tmp_path / "file"
        path.write_text(yaml.safe_dump(config | {key.split()[0]: str(place)}))
    monkeypatch.setattr(pretrain, "HELDOUT_PROBLEMS", 1)
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("it was trained"))
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    message = "MB are free" if key == "no room" else "cannot be written to"
    line = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and message in line and ": error: " in line
    assert (tmp_path / "file").read_text() == "here"
