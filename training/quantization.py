"""Answers with fewer bits: `python -m training.quantization` -> assets/results/quantization.json.

Method. The shipped small model and its adapters for expressions, with weights and caches rounded to the numbers that
fewer bits have (`evaluation.quantized`), greedily, in three lanes; problems as in `training.evaluate`. What it costs is
in the answers alone: times are those of floats. A share of n right answers has an interval (Wilson, 95 %).
"""

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.tasks.registry import get_task
from training.bench.results import count
from training.data.generated import evaluation_set
from training.evaluation.lanes import EvaluationLane, lanes_of, weights_of
from training.evaluation.problem_evaluate import devices_of, evaluate_lane
from training.evaluation.quantized import QUANTIZATIONS, load_quantized

TASK = "arithmetic"
OUT = Path("assets/results/quantization.json")
LANES = {lane.name: lane for lane in lanes_of(TASK)}


@dataclass(frozen=True)
class Job:
    """One lane at one size, with so many bits."""

    kind: str
    lane: EvaluationLane
    operands: int
    device: str

    def run(self, arguments: argparse.Namespace) -> tuple[dict, float]:
        """Its figures, and the seconds that they took."""
        began = time.perf_counter()
        adapter = Path(arguments.adapters) / self.lane.adapter
        model = load_quantized(arguments.base, adapter, self.device, torch.float32, QUANTIZATIONS[self.kind])
        task = get_task(TASK)
        problems = evaluation_set(task, self.operands, arguments.n, arguments.seed)
        figures, _ = evaluate_lane(model, self.lane, task, problems, arguments.batch)
        return figures, time.perf_counter() - began


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """All of them, the longest first."""
    sizes, devices = sorted(arguments.operands, reverse=True), itertools.cycle(devices_of(arguments.device))
    chosen = itertools.product(sizes, arguments.kinds, arguments.lanes)
    return [Job(kind, LANES[lane], size, device) for (size, kind, lane), device in zip(chosen, devices, strict=False)]


def measure(arguments: argparse.Namespace, origin: dict) -> None:
    """Run the jobs; the file holds what is finished."""
    found: dict = {str(size): {kind: {} for kind in arguments.kinds} for size in arguments.operands}
    jobs = jobs_of(arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        running = {pool.submit(job.run, arguments): job for job in jobs}
        for done, future in enumerate(as_completed(running), start=1):
            job, (figures, seconds) = running[future], future.result()
            found[str(job.operands)][job.kind][job.lane.name] = figures
            write_whole(arguments.out, json.dumps({"operands": found} | origin, indent=1) + "\n")
            told = f"{job.operands:>3} operands, {job.kind}, {job.lane.name}: {figures['exact_percent']} % right"
            print(f"[{done}/{len(jobs)}] {told}, {figures['malformed_steps']} malformed  {seconds:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--operands", type=count, nargs="+", default=[8, 24, 48, 64], help="numbers in an expression")
    parser.add_argument("--n", type=count, default=200, help="expressions of each size")
    parser.add_argument("--kinds", nargs="+", default=list(QUANTIZATIONS), choices=list(QUANTIZATIONS))
    parser.add_argument("--lanes", nargs="+", default=list(LANES), choices=list(LANES))
    parser.add_argument("--base", default="assets/base")
    parser.add_argument("--adapters", default="assets/adapters", help="folder that holds the adapters")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", help="cuda uses every GPU of the machine")
    parser.add_argument("--batch", type=count, default=128 if on_gpu else 32, help="rows decoded at once")
    parser.add_argument("--jobs", type=count, default=6 if on_gpu else 2, help="lanes decoded at the same time")
    parser.add_argument("--out", type=place, default=OUT)
    arguments = parser.parse_args(argv)
    lanes = [LANES[name] for name in arguments.lanes]
    digests = weights_of(arguments.base, arguments.adapters, lanes)
    measure(arguments, {"seed": arguments.seed, "n": arguments.n, "weights_sha256": digests} | provenance())
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
