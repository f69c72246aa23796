"""Training end to end, tiny, on CPU: the same entry points that train the shipped weights."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from cuda_kernels.bench import provenance
from selfspan_core.models.loading import load_base
from selfspan_core.models.model import SpanModel
from selfspan_core.tasks.registry import get_task
from tests.support.slow import sampled
from tests.support.training_tools import train, write_config
from training.data.generated import evaluation_set
from training.data.sources import generated_source, mix
from training.evaluation.batch_decode import decode_greedily
from training.finetune import FinetuneConfig, LoraShape, add_adapter
from training.loop.folded_lora import fold_lora
from training.loop.heldout import exact_answers, heldout_loss
from training.loop.loss import LanguageModelLoss
from training.loop.packing import pack, plain_sample, stack
from training.loop.trainer import LoopConfig, share_of_step, to_device

pytest_plugins = ["tests.support.training_fixtures"]


def test_finetune_saves_resumes_and_serves(tmp_path, tiny_base, tokenizer, train_here, caplog):
    """Would catch an adapter that is not what was trained, a resume that starts over, weights that do not load, and a
    warning at every checkpoint that tied embeddings are saved once."""
    out = train("--config", str(write_config(tmp_path, tiny_base, steps=2)))
    assert "ETA" in out and "exact/2" in out
    first = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    out = train_here("--config", str(write_config(tmp_path, tiny_base, steps=4, workers=0)), "--resume")
    assert "resumed" in out and "step 3/4" in out and "step 2/4" not in out and "shared tensor" not in caplog.text
    second = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.dtype == torch.bfloat16 for tensor in second.values())
    assert not [name for name in second if "embed_tokens" in name and "token_adapter" not in name]
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert report["tokens"] == 4 * 2 * 1024
    assert {"exact/2", "exact_mask_off/2"} == set(report["heldout"])

    merged = SpanModel.load(tiny_base, tmp_path / "adapter", "cpu", torch.float32)
    bare = SpanModel.load(tiny_base, None, "cpu", torch.float32)
    task = get_task("arithmetic")
    prompts = [task.render(p, tokenizer, annotated=True) for p in evaluation_set(get_task("arithmetic"), 4, 2, seed=0)]
    assert decode_greedily(merged, tokenizer.markers, prompts, True, True, 8)
    rows = torch.tensor(tokenizer.markers.ids)
    weights = [m.hf.get_input_embeddings().weight[rows] for m in (merged, bare)]
    assert not torch.equal(*weights), "the markers' embeddings were not trained"


LAUNCHERS = [
    (("accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"), 1),
    # What accelerate's launcher runs for several GPUs; by itself it starts several processes on CPU only with MPI.
    (("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"), 2),
]


@pytest.mark.parametrize(
    ("launcher", "num_processes"),
    sampled(LAUNCHERS, LAUNCHERS[1:]),
)
def test_plain_adapter_under_launchers(tmp_path, tiny_base, monkeypatch, launcher, num_processes):
    """Would catch a script that only runs bare, one that hangs or counts twice where several processes share a step,
    and a plain adapter that trains marker rows it never uses."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = write_config(tmp_path, tiny_base, steps=2, annotated=False)
    out = train("--config", str(config), launcher=launcher)
    assert out.count("step 2/2") == 1
    report = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert (report["num_processes"], report["tokens"]) == (num_processes, 2 * 2 * 1024)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert names and not [name for name in names if "token_adapter" in name]


@pytest.mark.slow
def test_two_processes_resume_as_one_with_two_workers(tmp_path, tiny_base, monkeypatch):
    """Would catch a second process that resumes with the first one's part of the data, or at its beginning, and a state
    that comes back to one process alone."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    losses = []
    for num_processes in (1, 2):
        launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), "-m")
        folder = tmp_path / str(num_processes)
        folder.mkdir()
        path = write_config(folder, tiny_base, steps=3, workers=2 // num_processes)
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(config | {"loop": config["loop"] | {"max_seconds": 0.0}}))
        assert "reached at step 1" in train("--config", str(path), launcher=launcher)
        path.write_text(yaml.safe_dump(config))
        out = train("--config", str(path), "--resume", launcher=launcher)
        assert "resumed" in out and out.count("step 3/3") == 1
        entries = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        losses.append({entry["step"]: entry["loss"] for entry in entries if "loss" in entry})
    assert list(losses[0]) == [1, 2, 3] and losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.mark.parametrize("annotated", [True, False])
def test_folded_lora_is_lora(tiny_base, tokenizer, annotated):
    """Would catch a folded layer that scales, transposes or forgets something: it would train another adapter."""
    config = FinetuneConfig(
        base=str(tiny_base),
        task="arithmetic",
        annotated=annotated,
        output="adapter",
        run="run",
        loop=LoopConfig(steps=1, rows_per_step=1, micro_rows=1),
        learning_rate=0.1,
        lora=LoraShape(rank=3, alpha=7),
    )
    model = add_adapter(load_base(tiny_base, torch.float32, "sdpa"), tokenizer, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, tokenizer.vocab_size, (2, 16))
    expected = model(ids).logits
    model.zero_grad()
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert fold_lora(model) == 2 * 7
    model.zero_grad()
    folded = model(ids).logits
    folded.square().mean().backward()
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)
    assert gradients
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3)


def test_time_limit_and_cut_off_checkpoints(tmp_path, tiny_base, train_here):
    """Would catch a limit without a checkpoint to go on from, and a resume from one that was never finished."""
    path = write_config(tmp_path, tiny_base, steps=4, workers=0)
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"loop": config["loop"] | {"max_seconds": 0.0}}))
    assert "reached at step 1" in train_here("--config", str(path))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000001"]
    (checkpoints / "unfinished").mkdir()
    out = train_here("--config", str(path), "--resume")
    assert "step-00000001" in out and "reached at step 2" in out
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000002"]


def test_command_without_private_paths(monkeypatch):
    """Would catch a home folder published in a results file."""
    inside = str(Path.cwd() / "assets" / "base")
    monkeypatch.setattr(sys, "argv", ["x", "--base", inside, "--out=/home/me/out.json", "/home/me/a b", "--n", "5"])
    assert provenance.command().endswith(" --base assets/base --out=out.json 'a b' --n 5")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", [str(Path.cwd() / "training" / "finetune.py"), "--resume"])
    assert provenance.command() == "python training/finetune.py --resume"


def test_weights_have_a_digest_of_their_own(tmp_path):
    """Would catch results of one set of weights being taken for those of another that came into the same folder."""
    digest = provenance.weights_digest
    (tmp_path / "a.safetensors").write_bytes(b"one")
    before = digest(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    assert digest(tmp_path) == before
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert digest(tmp_path) != before
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        digest(tmp_path / "smollm2-135m")


def test_snapshots_are_adapters_of_their_step(tmp_path, tiny_base, train_here):
    """Would catch a snapshot of other weights, and training that goes on with what was rounded for the file."""
    found = {}
    for name, snapshots in (("with", [1]), ("without", [])):
        folder = tmp_path / name
        folder.mkdir()
        path = write_config(folder, tiny_base, steps=2, workers=0)
        config = yaml.safe_load(path.read_text())
        config["loop"]["snapshots"] = snapshots
        path.write_text(yaml.safe_dump(config))
        train_here("--config", str(path))
        found[name] = load_file(folder / "adapter" / "adapter_model.safetensors")
    first = load_file(tmp_path / "with" / "adapter-step-1" / "adapter_model.safetensors")
    report = json.loads((tmp_path / "with" / "adapter-step-1" / "training.json").read_text())
    assert report["tokens"] == 2 * 1024 and first.keys() == found["with"].keys()
    assert any(not torch.equal(first[key], found["with"][key]) for key in first)
    torch.testing.assert_close(found["with"], found["without"], rtol=0, atol=0)
    assert not list((tmp_path / "without").glob("adapter-step-*"))
    with pytest.raises(ValueError, match="snapshots are steps from 1 to 1"):
        LoopConfig(steps=2, rows_per_step=1, micro_rows=1, snapshots=(2,))


def test_exact_answers_is_what_greedy_decoding_writes(tiny_base, tokenizer):
    """Would catch an off-by-one between teacher forcing and decoding, which would report rates that nobody gets."""
    model = LlamaForCausalLM.from_pretrained(tiny_base).eval()
    prompt = [1, 300, 301, 302]
    written = model.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, attention_mask=torch.ones(1, 4, dtype=torch.long)
    )[0].tolist()
    wrong = [*written[:-1], written[-1] ^ 1]
    samples = [plain_sample(np.array(ids)) for ids in (written, wrong)]
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        module = LanguageModelLoss(model)
        rate = exact_answers(module, torch.device("cpu"), samples, [[(4, 10)], [(4, 10), (4, 9)]], (128, 1, 0), 1)
    assert rate == pytest.approx(2 / 3)


def test_heldout_loss_does_not_depend_on_batching(tiny_base):
    """Would catch a mean of means, or padding rows that count."""
    model = LlamaForCausalLM.from_pretrained(tiny_base).eval()
    model.set_attn_implementation("sdpa")
    rng = np.random.default_rng(0)
    rows = list(pack((plain_sample(rng.integers(300, 8000, n)) for n in (90, 20, 100, 7, 60)), 128, 1, 0))
    with torch.no_grad():
        module = LanguageModelLoss(model)
        losses = [heldout_loss(module, torch.device("cpu"), rows, micro) for micro in (1, 2, 4)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_loss_is_that_of_all_logits(tiny_base):
    """Would catch a target whose logits are those of another place, or places that only fill up and count."""
    model = LlamaForCausalLM.from_pretrained(tiny_base)
    model.set_attn_implementation("sdpa")
    rng = np.random.default_rng(1)
    samples = (plain_sample(rng.integers(300, 8000, n), rng.integers(0, 2, n)) for n in (90, 20, 100, 7, 60))
    batch = to_device(
        {key: torch.from_numpy(value) for key, value in stack(list(pack(samples, 128, 1, 0))).items()},
        torch.device("cpu"),
    )
    module, found = LanguageModelLoss(model), []
    for whole in (True, False):
        model.zero_grad()
        logits = module.logits(batch["ids"], batch["bounds"]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten()) if whole else module(**batch)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_mixture_follows_its_shares_in_tokens():
    """Would catch shares counted in samples: long documents would crowd out short tasks."""

    def constant(value: int, length: int):
        def stream(seed, shard, num_shards):
            while True:
                yield plain_sample(np.full(length, value))

        return stream

    stream = mix({"a": constant(1, 500), "b": constant(2, 10)}, {"a": 1.0, "b": 3.0})(0, 0, 1)
    tokens = {1: 0, 2: 0}
    for _ in range(20_000):
        sample = next(stream)
        tokens[int(sample.ids[0])] += len(sample.ids)
    assert tokens[2] / tokens[1] == pytest.approx(3, rel=0.02)
    with pytest.raises(ValueError, match="'c'"):
        mix({"a": constant(1, 5)}, {"c": 1.0})


@pytest.mark.parametrize(
    ("rows", "micro", "processes", "expected"),
    [(32, 32, 1, (32, 1)), (32, 32, 2, (16, 1)), (32, 8, 2, (8, 2)), (24, 8, 3, (8, 1)), (4, 2, 4, (1, 1))],
)
def test_rows_of_a_step_are_shared_by_processes(rows, micro, processes, expected):
    """Would catch a configuration for one GPU that several GPUs refuse, or that makes another batch there."""
    config = LoopConfig(steps=1, rows_per_step=rows, micro_rows=micro)
    assert share_of_step(config, processes) == expected


@pytest.mark.parametrize(("rows", "micro", "processes"), [(32, 32, 3), (32, 16, 64), (24, 8, 2)])
def test_rows_that_cannot_be_shared_are_an_error(rows, micro, processes):
    """Would catch a batch silently smaller or larger than configured."""
    config = LoopConfig(steps=1, rows_per_step=rows, micro_rows=micro)
    with pytest.raises(ValueError, match="rows per step"):
        share_of_step(config, processes)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_examples_without_the_mask(tokenizer, share):
    """Would catch a share that is ignored, or one that changes which examples are drawn."""
    examples = [
        list(itertools.islice(generated_source(get_task("arithmetic"), tokenizer, True, s)(3, 0, 1), 200))
        for s in (0.0, share)
    ]
    assert all((a.ids == b.ids).all() for a, b in zip(*examples, strict=True))
    unmasked = sum(len(sample.runs) == 1 for sample in examples[1])
    assert unmasked == pytest.approx(200 * share, abs=0 if share in (0.0, 1.0) else 20)


def test_learning_rate_schedule():
    """Would catch a warm-up that never ends or a decay that does not reach zero."""
    config = LoopConfig(steps=1000, rows_per_step=2, micro_rows=1, warmup_steps=10, decay_from=0.5)
    assert config.lr_scale(0) == pytest.approx(0.1)
    assert config.lr_scale(10) == config.lr_scale(500) == 1.0
    assert config.lr_scale(999) == pytest.approx(1 / 500)
