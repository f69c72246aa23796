"""Measure answers: `python -m training.evaluate --task arithmetic --operands 8 24 48 64 --n 500`.

Fresh expressions that no training stream yields, greedy decoding, three lanes: the plain adapter with dense
attention, the span adapter with the mask off, and with the mask on. Writes `assets/results/<task>.json`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfspan_core.model import SpanModel
from selfspan_core.provenance import provenance
from selfspan_core.tasks import get_task
from training.arithmetic_data import evaluation_set
from training.batch_decode import Decoded, decode_greedily


@dataclass(frozen=True)
class Lane:
    """One way to answer."""

    name: str
    adapter: str
    annotated: bool
    sparse: bool


LANES = (
    Lane("plain-dense", "arithmetic-plain", annotated=False, sparse=False),
    Lane("span-dense", "arithmetic-span", annotated=True, sparse=False),
    Lane("span-sparse", "arithmetic-span", annotated=True, sparse=True),
)


def summarize(decoded: Sequence[Decoded], right: Sequence[bool], num_steps: int) -> dict:
    """Figures of one lane at one operand count; `num_steps` steps were needed for all of it."""
    attended = sum(row.attended_tokens for row in decoded)
    dense = sum(row.dense_tokens for row in decoded)
    malformed = sum(row.num_malformed for row in decoded)
    return {
        "exact_percent": round(100 * sum(right) / len(right), 2),
        "right": sum(right),
        "n": len(right),
        "mean_tokens": round(statistics.fmean(len(row.ids) for row in decoded), 1),
        "attended_percent_of_dense": round(100 * attended / dense, 2),
        "malformed_steps": malformed,
        "malformed_percent_of_steps": round(100 * malformed / num_steps, 4),
    }


def evaluate_lane(model: SpanModel, lane: Lane, task, problems: list, batch: int) -> tuple[dict, list[dict]]:
    """Decode all problems in one lane; figures, and what went wrong where an answer is wrong."""
    tokenizer = model.tokenizer
    decoded: list[Decoded] = []
    for first in range(0, len(problems), batch):
        prompts = [task.render(p, tokenizer, lane.annotated) for p in problems[first : first + batch]]
        decoded += decode_greedily(
            model, tokenizer.markers, prompts, lane.sparse, lane.annotated, max_new_tokens=model.max_context
        )
    answers = [task.answer(output_text(row.ids, tokenizer)) for row in decoded]
    right = [task.check(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    wrong = [
        {"input": p.text, "expected": p.expected, "answer": a, "malformed_steps": d.num_malformed}
        for p, a, d, ok in zip(problems, answers, decoded, right, strict=True)
        if not ok
    ]
    return summarize(decoded, right, sum(len(p.reductions) for p in problems)), wrong


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="arithmetic", choices=["arithmetic"])
    parser.add_argument("--operands", type=int, nargs="+", default=[8, 24, 48, 64])
    parser.add_argument("--n", type=int, default=500, help="expressions per operand count")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--base", default="assets/base")
    parser.add_argument("--adapters", default="assets/adapters", help="folder that holds the adapters")
    parser.add_argument("--lanes", nargs="+", default=[lane.name for lane in LANES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", default="assets/results/arithmetic.json")
    arguments = parser.parse_args()
    unknown = set(arguments.lanes) - {lane.name for lane in LANES}
    if unknown or arguments.n < 1:
        parser.error(f"no lane is called {', '.join(sorted(unknown))}" if unknown else "--n is 1 or more")
    dtype = getattr(torch, arguments.dtype or "float32")
    task = get_task(arguments.task)
    sets = {operands: evaluation_set(operands, arguments.n, arguments.seed) for operands in arguments.operands}
    results: dict = {"operands": {str(operands): {} for operands in sets}}
    wrong: dict = {}
    for lane in (lane for lane in LANES if lane.name in arguments.lanes):
        adapter = Path(arguments.adapters) / lane.adapter
        model = SpanModel.load(arguments.base, adapter, arguments.device, dtype)
        for operands, problems in sets.items():
            started = time.perf_counter()
            figures, failures = evaluate_lane(model, lane, task, problems, arguments.batch)
            results["operands"][str(operands)][lane.name] = figures
            wrong.setdefault(str(operands), {})[lane.name] = failures[:10]
            seconds = time.perf_counter() - started
            print(f"{operands:3d} operands  {lane.name:12s} {figures}  {seconds:.0f} s", flush=True)
    results |= {"first_wrong_answers": wrong, "seed": arguments.seed, "dtype": str(dtype).removeprefix("torch.")}
    results |= provenance()
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}", file=sys.stderr)


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
