"""The commands `export` and `serve`: a merged model for other engines, and vLLM started on one. No torch at import."""

import argparse
import itertools
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from selfspan_core.errors import ModelError, ModelUnavailable
from selfspan_core.models.export_record import ExportRecord, of_config
from selfspan_core.models.json_file import read_object
from selfspan_core.models.learned import learned_of
from selfspan_core.models.marker_ids import CONFIG_KEY, read_from_config
from selfspan_core.models.registry import MODELS, resolve_model
from selfspan_core.serve.vllm_plugin.support import BACKEND_ON_CUDA, SPAN_REQUESTS, SPAN_WORKER

ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""What vLLM is started with: its other runner knows no logits processors of this kind."""

CPU_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "2"}
"""GiB of keys and values on a CPU, where vLLM would take nearly all memory, and end where that is not free."""

NO_CHECKS, PROCESSORS, MODEL = "--skip-tokenizer-init", "--logits-processors", "--model"
REFUSED = {
    NO_CHECKS: "without a tokenizer vLLM checks no ids, and one id too large ends the server for all",
    PROCESSORS: "vLLM keeps the last list of them, and without this project's a server reads everything: run the "
    "command that --print shows, with yours added to its list",
    MODEL: "the folder is named before --, and checked",
}
"""Options of vLLM that no server is started with, and why."""
TIMES = "--enable-per-request-metrics"
"""vLLM's option for the times of a request, by its own clock, behind the answer."""
LOOKED_FOR = (
    *(*REFUSED, TIMES, "--served-model-name", "--disable-log-stats", "--max-num-seqs", "--attention-backend"),
    *("--no-async-scheduling", "--gpu-memory-utilization", "--kv-cache-memory-bytes"),
)
"""Options of vLLM that are known here, also by their beginnings, which vLLM takes for the whole."""


def export(arguments: argparse.Namespace) -> str:
    """Write a base with a task's adapter merged in; returns what to tell the user.

    Raises:
        ModelError: base or adapter cannot be used, or the folder cannot be written.
    """
    spec = resolve_model(arguments.model)
    adapter = arguments.adapter_folder or spec.adapter_folder(arguments.task, arguments.adapter)
    from selfspan_core.models.export import export_merged
    from selfspan_core.models.places import place_of

    # A name tells whoever asks a server which files to look up: only those that everybody has.
    is_shipped = MODELS.get(spec.name) is spec and not arguments.adapter_folder
    name = spec.name if is_shipped else None
    record = ExportRecord(arguments.task, arguments.adapter, name, learned_of(Path(adapter)))
    folder = export_merged(place_of(spec.source), adapter, arguments.out, arguments.dtype, record)
    return f"{spec.name} with {adapter} merged in: {folder}"


def vllm_command(model: str, options: list[str]) -> list[str]:
    """The command that serves an exported folder by vLLM.

    Args:
        model: the folder.
        options: more of vLLM's own, as they were typed.

    Raises:
        ModelUnavailable: vLLM is not installed.
        ModelError: the folder was not exported, or an option is one that no server should have.
    """
    given = named_options(options)
    for option, reason in REFUSED.items():
        if option in given:
            raise ModelError(f"{option} behind --: {reason}")
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        export = f"`selfspan export --task NAME --out {shlex.quote(model)}`"
        raise ModelError(f"there is no exported model in {model!r}: {export} makes it")
    config = read_object(folder / "config.json")
    read_from_config(config.get(CONFIG_KEY), model)
    if find_spec("vllm") is None:
        raise ModelUnavailable(
            "vLLM is not installed here: pip install '.[vllm,gpu]' in a checkout, or see docs/serving.md for CPUs"
        )
    # Not the command `vllm serve`: that of the package for CPUs looks for a package called vllm, and ends.
    start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", MODEL, str(folder)]
    start += [PROCESSORS, SPAN_REQUESTS, *_of_device(options)]
    return [*start, *_for_clients(of_config(config, model), str(folder), options), *options]


def named_options(options: list[str]) -> set[str]:
    """The options that are given, as vLLM spells them: it takes `_` for `-`, and more of them from a file.

    Args:
        options: as they were typed; of `--config FILE` the file's keys count too.

    Raises:
        ModelError: that file cannot be read.
    """
    given = {"--" + option[2:].split("=")[0].replace("_", "-") for option in options if option.startswith("--")}
    files = [option.partition("=")[2] for option in options if option.startswith("--config=")]
    files += [after for option, after in itertools.pairwise(options) if option == "--config"]
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"cannot read vLLM's options in {file!r}: {reason}") from error
        if not isinstance(content, dict):
            raise ModelError(f"vLLM's options in {file!r} are no `name: value` lines")
        given |= {f"--{name}".replace("_", "-") for name in content}
    return given | {whole for whole in LOOKED_FOR for option in given if len(option) > 2 and whole.startswith(option)}


def _of_device(options: list[str]) -> list[str]:
    """Options that only CUDA has or lacks: the backend whose place ours takes, as many rows as it has room for, and ids
    followed on the device, so that the host plans a step ahead.
    """
    import torch

    if not torch.cuda.is_available():
        return ["--no-async-scheduling"]
    from cuda_kernels.checks import MAX_BATCH

    given = named_options(options)
    rows = [] if "--max-num-seqs" in given else ["--max-num-seqs", str(MAX_BATCH)]
    backend = [] if "--attention-backend" in given else ["--attention-backend", BACKEND_ON_CUDA]
    ahead = [] if "--no-async-scheduling" in given else ["--async-scheduling", "--worker-cls", SPAN_WORKER]
    return [*ahead, *rows, *backend]


def environment_of(options: list[str]) -> dict[str, str]:
    """What vLLM is started with beside the command; what the environment or the options say already is left alone."""
    import torch

    given = named_options(options)
    says_memory = not given.isdisjoint({"--gpu-memory-utilization", "--kv-cache-memory-bytes"})
    names_memory = torch.cuda.is_available() or says_memory or not CPU_CACHE.keys().isdisjoint(os.environ)
    return ENVIRONMENT if names_memory else ENVIRONMENT | CPU_CACHE


def _for_clients(record: ExportRecord | None, folder: str, options: list[str]) -> list[str]:
    """Options for who takes the server as an engine: a name that says what is served, and times of each request."""
    given = named_options(options)
    name = None if record is None else record.served_name
    names = ["--served-model-name", folder, name] if name and "--served-model-name" not in given else []
    are_counted = given.isdisjoint({"--disable-log-stats", TIMES})
    return [*names, *([TIMES] if are_counted else [])]


def serve(arguments: argparse.Namespace) -> int:
    """Print the command and become it; with `--print`, print it only.

    Raises:
        ModelError, ModelUnavailable: see `vllm_command`.
    """
    options = arguments.options[1:] if arguments.options[:1] == ["--"] else arguments.options
    command, environment = vllm_command(arguments.model, options), environment_of(options)
    print(" ".join([*(f"{name}={value}" for name, value in environment.items()), shlex.join(command)]), flush=True)
    if not arguments.print:
        os.execvpe(command[0], command, {**os.environ, **environment})
    return 0
