"""Measure answers that are right or wrong: `python -m training.evaluate --task arithmetic --operands 8 24 --n 500`.

Fresh problems of the task's generator that no training stream yields, greedy decoding (by drafts, see
`evaluation.drafts`), three lanes: the plain adapter with dense attention, the span adapter with the mask off, and with
the mask on. Writes `assets/results/<task>.json`. With `--inputs FILE`, inputs that somebody wrote take the place of the
generator's (`evaluation.given`), and the results lie in `assets/results/<task>_inputs.json`.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.models.learned import learned_of
from selfspan_core.models.model import SpanModel
from selfspan_core.tasks.registry import TASKS, get_task
from training.data.generated import evaluation_set
from training.evaluation.batch_decode import Decoded
from training.evaluation.drafts import decode_by_drafts
from training.evaluation.given import given_problems
from training.evaluation.lanes import EvaluationLane, lanes_of, weights_of
from training.evaluation.results import INPUTS, results_path


def summarize(decoded: Sequence[Decoded], right: Sequence[bool], exact: Sequence[bool], num_steps: int) -> dict:
    """Figures of one lane at one size.

    Args:
        right: whether each answer is right; exact: whether each row is the worked solution, token for token.
        num_steps: steps that were needed for all of it.
    """
    attended = sum(row.attended_tokens for row in decoded)
    dense = sum(row.dense_tokens for row in decoded)
    malformed = sum(row.num_malformed for row in decoded)
    return {
        "exact_percent": round(100 * sum(right) / len(right), 2),
        "right": sum(right),
        "exact_steps_percent": round(100 * sum(exact) / len(exact), 2),
        "n": len(right),
        "mean_tokens": round(statistics.fmean(len(row.ids) for row in decoded), 1),
        "attended_percent_of_dense": round(100 * attended / dense, 2),
        "malformed_steps": malformed,
        "malformed_percent_of_steps": round(100 * malformed / num_steps, 4),
    }


def evaluate_lane(model: SpanModel, lane: EvaluationLane, task, problems: list, batch: int) -> tuple[dict, list[dict]]:
    """Decode all problems in one lane; figures, and what went wrong where an answer is wrong."""
    tokenizer = model.tokenizer
    decoded: list[Decoded] = []
    exact: list[bool] = []
    num_by_token = 0
    for first in range(0, len(problems), batch):
        chosen = problems[first : first + batch]
        drafts = [task.render(p, tokenizer, lane.annotated, with_steps=True) for p in chosen]
        # Whoever writes more than the longest worked solution has lost its way; without a limit a few such rows would
        # take most of the time.
        limit = max(p.num_tokens for p in chosen)
        draft_batch = 16 if model.device.type == "cuda" else 1
        rows, num_left = decode_by_drafts(
            model, tokenizer.markers, drafts, lane.sparse, lane.annotated, limit, draft_batch
        )
        decoded += rows
        exact += [row.ids == d.ids[d.prompt.num_tokens :] for row, d in zip(rows, drafts, strict=True)]
        num_by_token += num_left
    answers = [task.answer(output_text(row.ids, tokenizer)) for row in decoded]
    right = [task.check(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    wrong = [
        {"input": p.text, "expected": p.expected, "answer": a, "malformed_steps": d.num_malformed}
        for p, a, d, ok in zip(problems, answers, decoded, right, strict=True)
        if not ok
    ]
    figures = summarize(decoded, right, exact, sum(p.num_steps for p in problems))
    return figures | {"decoded_token_by_token": num_by_token}, wrong


def run_job(
    arguments: argparse.Namespace, lane: EvaluationLane, operands: int | str, device: str
) -> tuple[dict, list[dict], float]:
    """One lane at one size, or with the given inputs, in a process of its own; figures, failures, seconds."""
    started = time.perf_counter()
    adapter = Path(arguments.adapters) / lane.adapter
    model = SpanModel.load(arguments.base, adapter, device, getattr(torch, arguments.dtype))
    task = get_task(arguments.task)
    task = task.for_model(task.max_tokens, learned_of(adapter))
    if isinstance(operands, str):
        problems = given_problems(task, arguments.inputs)
    else:
        problems = evaluation_set(task, operands, arguments.n, arguments.seed)
    figures, wrong = evaluate_lane(model, lane, task, problems, arguments.batch)
    return figures, wrong, time.perf_counter() - started


def write_results(arguments: argparse.Namespace, figures: dict, wrong: dict, origin: dict) -> None:
    """Write what is known so far: a long evaluation that is cut off leaves its finished parts.

    `origin` is the provenance as it was at the start, when code and weights were loaded.
    """
    results = {
        INPUTS if arguments.inputs else TASKS[arguments.task].generator.size_name: {
            str(n): {k: figures[n][k] for k in arguments.lanes if k in figures[n]} for n in arguments.operands
        },
        "first_wrong_answers": {str(n): wrong[n] for n in arguments.operands},
        "seed": arguments.seed,
        "dtype": arguments.dtype,
    }
    write_whole(arguments.out, json.dumps(results | origin, indent=2) + "\n")


def main(task: str, words: Sequence[str]) -> None:
    """Evaluate the task of that name as the words of the command line say."""
    arguments = parse_arguments(task, words)
    lanes = [lane for lane in lanes_of(task) if lane.name in arguments.lanes]
    try:
        origin = {"weights_sha256": weights_of(arguments.base, arguments.adapters, lanes)} | provenance()
    except (OSError, ValueError) as error:  # no such base, or no weights in a folder
        sys.exit(str(error))
    named = INPUTS if arguments.inputs else TASKS[task].generator.size_name
    figures: dict = {operands: {} for operands in arguments.operands}
    wrong: dict = {operands: {} for operands in arguments.operands}
    # A small model's decoding waits for the host: several processes share one GPU well. The longest go first.
    work = [(lane, operands) for operands in sorted(arguments.operands, reverse=True) for lane in lanes]
    devices = itertools.cycle(devices_of(arguments.device))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        jobs = {pool.submit(run_job, arguments, *job, device): job for job, device in zip(work, devices, strict=False)}
        for done, job in enumerate(as_completed(jobs), start=1):
            lane, operands = jobs[job]
            try:
                figures[operands][lane.name], failures, seconds = job.result()
            except ValueError as error:  # a model that is missing, or more expressions than there are
                pool.shutdown(cancel_futures=True)
                sys.exit(f"{operands} {named}, {lane.name}: {error}")
            wrong[operands][lane.name] = failures[:10]
            write_results(arguments, figures, wrong, origin)
            line = f"{operands:>3} {named}  {lane.name:12s} {figures[operands][lane.name]}"
            print(f"[{done}/{len(jobs)}] {line}  {seconds:.0f} s", flush=True)
    print(f"wrote {arguments.out}", file=sys.stderr)


def devices_of(device: str) -> list[str]:
    """`cuda` means every GPU of the machine; any other name means what it says."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if device == "cuda" else [device]


def parse_arguments(task: str, words: Sequence[str]) -> argparse.Namespace:
    """The command line of one task's evaluation, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    generator, lanes = TASKS[task].generator, [lane.name for lane in lanes_of(task)]
    parser.add_argument("--task", default=task, choices=list(TASKS))
    parser.add_argument(
        f"--{generator.size_name}", "--sizes", dest="operands", type=int, nargs="+", default=list(generator.sizes)
    )
    parser.add_argument("--inputs", type=Path, help="a file of inputs, in place of the generator's problems")
    parser.add_argument("--n", type=int, default=500, help=f"problems per number of {generator.size_name}")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--base", default="assets/base")
    parser.add_argument("--adapters", default="assets/adapters", help="folder that holds the adapters")
    parser.add_argument("--lanes", nargs="+", default=lanes)
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu", help="cuda uses every GPU of the machine")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 32, help="rows decoded at once")
    num_jobs = 4 * torch.cuda.device_count() or 1  # of the longest, four at a time fit the memory of a large GPU
    parser.add_argument("--jobs", type=int, default=num_jobs, help="lanes decoded at the same time")
    parser.add_argument(
        "--out", type=place, help=f"by default {results_path(task)}, of inputs {results_path(task, is_given=True)}"
    )
    arguments = parser.parse_args(words)
    arguments.out = arguments.out or place(results_path(task, is_given=bool(arguments.inputs)))
    if arguments.inputs:
        try:
            given_problems(get_task(task), arguments.inputs)
        except (OSError, ValueError) as error:
            parser.error(f"--inputs: {error}")
    unknown = set(arguments.lanes) - set(lanes)
    if unknown:
        parser.error(f"no lane is called {', '.join(sorted(unknown))}; there are {', '.join(lanes)}")
    for size in arguments.operands:
        if not generator.least <= size <= generator.most:
            bounds = f"{generator.least} to {generator.most} {generator.size_name}"
            parser.error(f"a problem of the task {task} has {bounds}, not {size}")
    for name in ("n", "batch", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is 1 or more")
    if arguments.inputs:
        arguments.operands = [arguments.inputs.stem]
    return arguments


def output_text(ids: Sequence[int], tokenizer) -> str:
    """What a lane wrote, as `Task.answer` takes it: markers dropped, each step on a line of its own."""
    pieces, run = [], []
    for token in ids:
        if tokenizer.marker_kind(token) == "end":
            pieces.append(tokenizer.decode(run))
            run = []
        else:
            run.append(token)
    pieces.append(tokenizer.decode(run))
    return "\n".join(pieces)


if __name__ == "__main__":
    main()
