"""What benchmarks at full size share: the results file as it grows, the machine, memory between two cells."""

import argparse
import gc
import json
import math
import time
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from training.bench.shapes import Machine


class Results:
    """The results file, written again after every part, so that an interrupted run keeps its finished parts."""

    def __init__(self, path: Path, head: dict) -> None:
        self._path, self._content = path, head | {"shapes": {}}
        self._started = time.perf_counter()

    def add(self, name: str, value: object) -> None:
        """Add a part."""
        self._content[name] = value
        self._write(name, value)

    def add_cell(self, shape: str, part: str, cell: dict) -> None:
        """Add a cell of a shape."""
        self._content["shapes"].setdefault(shape, {}).setdefault(part, []).append(cell)
        self._write(f"{shape} {part}", cell)

    def _write(self, name: str, value: object) -> None:
        write_whole(self._path, json.dumps(rounded(self._content), indent=1) + "\n")
        print(f"{time.perf_counter() - self._started:6.1f} s  {name}: {json.dumps(rounded(value))[:900]}", flush=True)


def rounded(value: object) -> object:
    """The value with all numbers rounded to six digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def free_memory(machine: Machine) -> None:
    """Free the memory of the last cell for the next."""
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def find_machine(device: torch.device) -> Machine:
    """The device with its limits. A CPU is only for rehearsals and has no limits here."""
    if device.type != "cuda":
        return Machine(device, 1e10, 8e9)
    from cuda_kernels.bench.benchmark import read_stream_tb_per_s

    rate = 1e12 * read_stream_tb_per_s()
    torch.cuda.empty_cache()
    return Machine(device, rate, torch.cuda.mem_get_info(device)[0])


def count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option `--device` of a benchmark for GPUs."""
    default = "cuda" if torch.cuda.is_available() else None
    parser.add_argument("--device", default=default, choices=("cpu", "cuda"), help="cpu only rehearses")


def check_rehearsal(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rehearsal: str) -> None:
    """Refuse a device that is not there, and to rehearse with a shape that would take hours.

    Args:
        parser: says so.
        arguments: with `device` and `shapes`.
        rehearsal: the command that runs without a GPU.
    """
    if arguments.device is None or (arguments.device == "cuda" and not torch.cuda.is_available()):
        parser.error(f"no CUDA device; in a few minutes without one: {rehearsal}")
    if arguments.device == "cpu" and set(arguments.shapes) != {"tiny"}:
        parser.error(f"--device cpu only rehearses, with --shapes tiny: {rehearsal}")


def begin_results(arguments: argparse.Namespace, name: str, machine: Machine, head: dict) -> tuple[Results, Path]:
    """A results file with its origin, and where it is written.

    A rehearsal is no result, so it is written where no report reads it.

    Args:
        arguments: with `device`, `out` and `seed`.
        name: what the file's name begins with.
        machine: that is measured.
        head: what else stands at the top.
    """
    origin, device = provenance(), torch.device(arguments.device)
    if device.type == "cuda":
        from cuda_kernels.bench.benchmark import gpu_versions

        origin["versions"] |= gpu_versions()
    folder = Path("assets/results" if device.type == "cuda" else "runs")
    out = arguments.out or folder / f"{name}_{name_of_gpu(device)}.json"
    rate = {"read_stream_tb_per_s": machine.bytes_per_second / 1e12, "seed": arguments.seed}
    return Results(out, {**rate, "clock": "device", **head, **origin}), out


def check_out(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """Refuse a place for results where no file can be, before anything is measured."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        parser.error(f"--out: {out} is a folder, or lies in none")


def name_of_gpu(device: torch.device) -> str:
    """As it stands in the name of a results file."""
    gpu = torch.cuda.get_device_name(device).removeprefix("NVIDIA ") if device.type == "cuda" else "cpu"
    return "".join(c if c.isalnum() else "_" for c in gpu.lower())
