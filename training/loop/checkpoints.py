"""Checkpoints: what a run needs to go on, and no more: trained parameters, optimizers, random states, step, settings.

The frozen base is not in it: it is loaded again from where it came from. accelerate's own `save_state` would store the
base, too, and the optimizers and random states as pickles; here everything is safetensors or JSON, and reading a
checkpoint runs no code. A checkpoint is written under another name, and gets its own when all of it is on the disk.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cuda_kernels.bench.whole_file import make_usual
from training.loop.randomness import random_states, set_random_states
from training.loop.space import require_no_file, require_space

FORMAT = 1
FACTS, WEIGHTS, OPTIMIZERS = "checkpoint.json", "weights.safetensors", "optimizers.safetensors"
UNFINISHED, REMOVED = "unfinished", "removed"
MOST_PROCESSES = 100_000
_NAME = re.compile(r"step-(\d{1,12})(\.replaced)?")


class Checkpoint(NamedTuple):
    """A finished checkpoint, by its folder's name."""

    step: int
    path: Path


@dataclass(frozen=True)
class Trained:
    """What changes while a model is trained.

    Attributes:
        parameters: those with requires_grad, by name.
        optimizers: of these parameters.
        scaler: of the losses, where training is in fp16.
    """

    parameters: Mapping[str, torch.nn.Parameter]
    optimizers: Sequence[Any]
    scaler: Any = None

    @classmethod
    def of(cls, model: torch.nn.Module, optimizers: Sequence[Any], scaler: Any = None) -> "Trained":
        """What is trained of a model that is not wrapped for several processes."""
        return cls({name: p for name, p in model.named_parameters() if p.requires_grad}, optimizers, scaler)

    @property
    def most_bytes(self) -> int:
        """Most bytes of a checkpoint: every parameter, and two numbers for it in the optimizers' states."""
        return 3 * sum(parameter.numel() * parameter.element_size() for parameter in self.parameters.values())


def found_in(folder: Path) -> list[Checkpoint]:
    """The finished checkpoints in a folder, the newest (by its step) last; anything else there is ignored."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir()]
    # Of two of one step, the one that is about to be replaced comes first.
    order = sorted((int(match[1]), match[2] is None, path) for match, path in named if match)
    return [Checkpoint(step, path) for step, _, path in order]


def require_room(folder: Path, trained: Trained) -> None:
    """Whether checkpoints could be written into a folder, asked before training. Raises OSError where not."""
    # A checkpoint is removed when the next one is whole.
    require_space(folder, 2 * trained.most_bytes, "checkpoints")
    for name in (UNFINISHED, REMOVED):
        require_no_file(folder / name, "checkpoints")


def write(accelerator: Accelerator, folder: Path, trained: Trained, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step into a folder and drop all others, at any moment of which one is whole.

    Args:
        accelerator: every process calls this at the same step.
        folder: of the run's checkpoints.
        trained: what is stored; the same in all processes.
        facts: JSON-able, with `step`.

    Returns:
        The checkpoint.

    Raises:
        OSError: it could not be written; those that were there are still there.
    """
    unfinished = folder / UNFINISHED
    path = folder / f"step-{facts['step']:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    _write_json(_random_file(unfinished, accelerator.process_index), random_states(accelerator.device))
    if accelerator.is_main_process:
        _write_trained(unfinished, trained, {**facts, "num_processes": accelerator.num_processes})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.replaced"))
        unfinished.rename(path)
        _to_disk(folder)
        _remove_others(folder, path)
    accelerator.wait_for_everyone()
    return path


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `write` was told, `step` and `settings` among it.

    Raises:
        ValueError: this is no whole checkpoint, or one of another version.
    """
    try:
        facts = json.loads((checkpoint.path / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, and this version reads {FORMAT}")
        if facts["step"] != checkpoint.step or not isinstance(facts["settings"], dict):
            raise ValueError(f"{FACTS} is of another checkpoint")
        # Older checkpoints do not say of how many processes they are.
        written = max(1, len(list(checkpoint.path.glob("random-*.json"))))
        changed, num_processes = facts.setdefault("changed", []), facts.setdefault("num_processes", written)
        if not isinstance(changed, list) or not all(isinstance(change, dict) for change in changed):
            raise ValueError(f"{FACTS}: changed is no list of changes")
        if type(num_processes) is not int or not 1 <= num_processes <= MOST_PROCESSES:
            raise ValueError(f"{FACTS}: num_processes is {str(num_processes)[:20]}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unusable(checkpoint, error) from error
    return facts


def load(accelerator: Accelerator, checkpoint: Checkpoint, trained: Trained) -> None:
    """Set parameters, optimizers' states and random states to those of a checkpoint.

    Learning rates and other settings of the optimizers are not in it: they are those of the configuration.

    Raises:
        ValueError: the checkpoint is not whole, or of another model; nothing that is trained has changed then.
    """
    facts = facts_of(checkpoint)
    try:
        weights, states = load_file(checkpoint.path / WEIGHTS), load_file(checkpoint.path / OPTIMIZERS)
        _require_shapes(weights, trained)
        loaded = _states(states, facts["numbers"], trained)
        scaler = facts["scaler"]
        for index in range(facts["num_processes"]):
            if not _random_file(checkpoint.path, index).is_file():
                raise ValueError(f"{_random_file(checkpoint.path, index).name} is missing")
        # Processes that the run did not have before start from their seeds.
        if accelerator.process_index < facts["num_processes"]:
            set_random_states(_random_file(checkpoint.path, accelerator.process_index), accelerator.device)
        if trained.scaler is not None and scaler:
            trained.scaler.load_state_dict(scaler)
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, SafetensorError) as error:
        raise _unusable(checkpoint, error) from error
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.copy_(weights[name])
    for optimizer, state in zip(trained.optimizers, loaded, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_file(folder: Path, process: int) -> Path:
    return folder / f"random-{process}.json"


def _unusable(checkpoint: Checkpoint, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ValueError(
        f"{checkpoint.path} cannot be gone on from ({reason}); remove that folder to go on from an older checkpoint, "
        "or from the beginning where there is none"
    )


def _write_trained(folder: Path, trained: Trained, facts: Mapping[str, Any]) -> None:
    tensors, numbers = {}, {}
    for number, optimizer in enumerate(trained.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                name = f"{number}/{index}/{key}"
                (tensors if isinstance(value, torch.Tensor) else numbers)[name] = value
    _write_tensors(folder / WEIGHTS, trained.parameters)
    _write_tensors(folder / OPTIMIZERS, tensors)
    scaler = trained.scaler.state_dict() if trained.scaler is not None else None
    _write_json(folder / FACTS, {"format": FORMAT, **facts, "numbers": numbers, "scaler": scaler})


def _states(tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any], trained: Trained) -> list[dict]:
    """The states of all optimizers as `load_state_dict` takes them."""
    states: list[dict[int, dict[str, Any]]] = [{} for _ in trained.optimizers]
    parameters = [[p for group in one.param_groups for p in group["params"]] for one in trained.optimizers]
    for name, value in {**tensors, **numbers}.items():
        number, index, key = name.split("/")
        parameter = parameters[int(number)][int(index)]
        if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
            raise ValueError(f"{OPTIMIZERS}: {name} is {list(value.shape)} and not {list(parameter.shape)}")
        states[int(number)].setdefault(int(index), {})[key] = value
    return states


def _require_shapes(weights: Mapping[str, torch.Tensor], trained: Trained) -> None:
    for name in sorted(weights.keys() ^ trained.parameters.keys()):
        raise ValueError(f"{WEIGHTS}: {name} is {'not trained now' if name in weights else 'missing'}")
    for name, parameter in trained.parameters.items():
        if weights[name].shape != parameter.shape:
            raise ValueError(f"{WEIGHTS}: {name} is {list(weights[name].shape)} and not {list(parameter.shape)}")


def _remove_others(folder: Path, path: Path) -> None:
    """Remove all checkpoints but one. Each is renamed first, so that what is left of one is never taken for whole."""
    removed = folder / REMOVED
    shutil.rmtree(removed, ignore_errors=True)
    for other in found_in(folder):
        if other.path != path:
            other.path.rename(removed)
            shutil.rmtree(removed)


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file, on the disk when this returns."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # what the system said is in its text alone
        raise OSError(f"{file} could not be written: {error}") from error
    make_usual([file])
    _to_disk(file)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")
    _to_disk(file)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
