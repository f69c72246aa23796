"""Broken models, seeded: a tiny base or adapter with one or two things wrong in its settings, files or tensors.

`tried(folder, seed, count)` makes and loads some and tells what came of each; a command that looks for errors of other
types for hours can be built on it.
"""

import json
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ModelError, SettingError
from selfspan_core.models.model import SpanModel
from tests.support.tiny_models import save_tiny

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1024, 65536, 200_000, 10**6, 2**31, 10**30, 0.0, 0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), "", "x", "no", "../../x", "/etc/passwd", "(a+)+$", ".*", "all-linear", "gaussian"),
    *("pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "float16", "int8", "ä\0", "q_proj" * 500),
    *([], [[]], [0], [-1], [1, 1], ["x"], ["q_proj"], [None], [10**9], list(range(2000)), ["(x+x+)+y"] * 3),
    *({}, {"x": 1}, {"q_proj": 3}, {"q_proj": 0}, {"(a+)+$": 2}, {"rope_type": "x"}, {"embed_tokens": ["x"]}),
    *({"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0}, {"quant_method": "gptq", "bits": 4}, {"": {"": {}}}),
)
ADAPTER_KEYS = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "peft_type"),
    *("task_type", "init_lora_weights", "use_rslora", "use_dora", "bias", "modules_to_save", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern", "layer_replication", "trainable_token_indices", "lora_bias"),
    *("target_parameters", "base_model_name_or_path", "auto_mapping", "megatron_config", "loftq_config"),
    *("eva_config", "corda_config", "use_qalora", "alora_invocation_tokens", "lora_dropout", "unheard_of"),
)
BASE_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"),
    *("rms_norm_eps", "hidden_act", "tie_word_embeddings", "attention_bias", "mlp_bias", "quantization_config"),
    *("sliding_window", "layer_types", "dtype", "torch_dtype", "architectures", "auto_map", "num_labels"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_weights", "configuration_files", "id2label"),
    *("transformers_version", "use_sliding_window", "max_window_layers", "initializer_range", "pruned_heads"),
)
MOST_S = 2.0


@dataclass(frozen=True)
class Tried:
    """What came of one broken model.

    Attributes:
        number: with the seed, which one it was.
        what: was done to it.
        outcome: "loaded", or the first line of what it was refused with.
        failure: why that is a fault of this project, or None: an error of another type, one of several lines, or one
            that took long.
        seconds: of the processor that loading took.
    """

    number: int
    what: str
    outcome: str
    failure: str | None
    seconds: float


def tried(folder: Path, seed: int, count: int, load: Callable[[Path, Path], object] | None = None) -> Iterator[Tried]:
    """Make and load broken models, each in a folder of its own that is removed again.

    Args:
        folder: where they are made.
        seed: the same ones come again.
        count: how many.
        load: of (base, adapter); by default as the command line loads them, tokenizer and warm-up included.
    """
    good = save_tiny(folder / "good", is_byte_level=True)
    for number in range(count):
        yield try_one(folder, good, seed, number, load or load_as_users_do)


def try_one(
    folder: Path, good: tuple[Path, Path], seed: int, number: int, load: Callable[[Path, Path], object]
) -> Tried:
    """The broken model of that number, made of good (base, adapters), loaded, and removed."""
    rng = random.Random(f"{seed}/{number}")
    base, adapter = folder / "base", folder / "adapter"
    shutil.copytree(good[0], base)
    shutil.copytree(good[1] / f"arithmetic-{rng.choice(('span', 'plain'))}", adapter)
    what = "; ".join(_damaged(base, adapter, rng) for _ in range(rng.choice((1, 1, 2))))
    # Of this thread: a hang is work, and a machine that others use makes no one slow here.
    started, failure, outcome = time.thread_time(), None, "loaded"
    try:
        load(base, adapter)
    except (ModelError, SettingError) as error:
        outcome = f"{type(error).__name__}: {error}"
        failure = None if len(outcome.splitlines()) == 1 and len(outcome) < 1000 else "it is no line"
    except Exception as error:  # whatever it is, it is what this looks for
        outcome = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = "".join(traceback.format_exception(error))
    seconds = time.thread_time() - started
    for made in (base, adapter):
        shutil.rmtree(made, ignore_errors=True)
    return Tried(number, what, outcome, failure or (f"{seconds:.1f} s" if seconds > MOST_S else None), seconds)


def _damaged(base: Path, adapter: Path, rng: random.Random) -> str:
    try:
        return rng.choice(DAMAGES)(base, adapter, rng)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError):
        return "and what is damaged already"  # the second damage to one file


def load_as_users_do(base: Path, adapter: Path) -> None:
    """A model as the app and the command line have it, warmed up."""
    store = ModelStore(base, folders={"span": adapter}, device="cpu")
    store.engine("arithmetic", "span")


def load_alone(base: Path, adapter: Path) -> None:
    """A model as evaluations and trainings have it."""
    SpanModel.load(base, adapter, "cpu", torch.float32)


def _change_settings(file: Path, keys: tuple[str, ...], rng: random.Random) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    key = rng.choice(keys)
    if rng.random() < 0.1:
        content.pop(key, None)
        what = f"{file.name} without {key}"
    else:
        content[key] = rng.choice(VALUES)
        what = f"{file.name}: {key} = {str(content[key])[:60]!r}"
    file.write_text(json.dumps(content), encoding="utf-8")
    return what


def change_base(base: Path, adapter: Path, rng: random.Random) -> str:
    """Another value, or none, for a setting of the base."""
    return _change_settings(base / "config.json", BASE_KEYS, rng)


def change_adapter(base: Path, adapter: Path, rng: random.Random) -> str:
    """Another value, or none, for a setting of the adapter."""
    return _change_settings(adapter / "adapter_config.json", ADAPTER_KEYS, rng)


def _any_file(base: Path, adapter: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(file for folder in (base, adapter) for file in folder.iterdir() if file.is_file()))


def drop_file(base: Path, adapter: Path, rng: random.Random) -> str:
    """A file is missing, or is a folder."""
    file = _any_file(base, adapter, rng)
    file.unlink()
    if rng.random() < 0.3:
        file.mkdir()
        return f"{file.name} is a folder"
    return f"no {file.name}"


def cut_file(base: Path, adapter: Path, rng: random.Random) -> str:
    """A file is cut off, or some bytes of it are others."""
    file = _any_file(base, adapter, rng)
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        size = rng.choice((0, 3, len(data) // 3, max(0, len(data) - 1)))
        file.write_bytes(data[:size])
        return f"{file.name} cut off after {size} bytes"
    for _ in range(rng.choice((1, 5, 50))):
        data[rng.randrange(min(len(data), rng.choice((8, 2000, len(data)))))] = rng.randrange(256)
    file.write_bytes(data)
    return f"{file.name} with other bytes"


def nest_file(base: Path, adapter: Path, rng: random.Random) -> str:
    """A file of settings is JSON of another form: too many levels, a list, a number of many digits."""
    files = [file for folder in (base, adapter) for file in folder.glob("*.json") if file.name != "tokenizer.json"]
    file = rng.choice(sorted(files))
    texts = {"levels": 100_000 * "[", "objects": 5000 * '{"a":', "list": "[1]", "digits": f'{{"r": {"9" * 5000}}}'}
    kind = rng.choice(sorted(texts))
    file.write_text(texts[kind], encoding="utf-8")
    return f"{file.name} of {kind}"


def change_tensors(base: Path, adapter: Path, rng: random.Random) -> str:
    """A tensor is missing, renamed, of another shape or type, not finite, or there is one too many."""
    file = rng.choice((base / "model.safetensors", adapter / "adapter_model.safetensors"))
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kind = rng.choice(("missing", "renamed", "longer", "wider", "flat", "integers", "nan", "empty", "more"))
    other = {
        "renamed": lambda: {f"{name}_x" if rng.random() < 0.5 else name.replace("layers.0", "layers.9"): tensor},
        "longer": lambda: {name: torch.cat([tensor, tensor])},
        "wider": lambda: {name: torch.cat([tensor, tensor], -1)},
        "flat": lambda: {name: tensor.flatten()},
        "integers": lambda: {name: tensor.to(torch.int8)},
        "nan": lambda: {name: torch.full_like(tensor, float("nan"))},
        "empty": lambda: {name: tensor[:0]},
        "more": lambda: {name: tensor, f"../{name}": tensor.clone()},
        "missing": dict,
    }[kind]()
    save_file(tensors | other, file, {"format": "pt"})
    return f"{file.name}: {name} {kind}"


def point_elsewhere(base: Path, adapter: Path, rng: random.Random) -> str:
    """An index in place of the weights, which names what it should not, or not all."""
    tensors = list(load_file(base / "model.safetensors"))
    (base / "model.safetensors").rename(base / "part.safetensors")
    place = rng.choice(("part.safetensors", "../../x.safetensors", "pytorch_model.bin", "gone.safetensors", 3, None))
    names: Any = dict.fromkeys(tensors, "part.safetensors")
    names[rng.choice(tensors)] = place
    content = rng.choice(({"metadata": {}, "weight_map": names}, {"weight_map": names}, {"weight_map": [names]}, []))
    (base / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    return f"an index that names {place!r}"


DAMAGES = (
    *(change_base, change_base, change_base, change_adapter, change_adapter, change_adapter),
    *(drop_file, cut_file, nest_file, change_tensors, change_tensors, point_elsewhere),
)
"""Each takes (base, adapter, rng), does something to one of them, and says what; the commonest stand there often."""
