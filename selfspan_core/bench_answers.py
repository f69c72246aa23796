"""Time to a whole answer on this CPU, with drafts and without: `python -m selfspan_core.bench_answers`.

Physics: a decode step reads every weight once, however many tokens go through it; a few tokens more cost operations,
not bytes. So a pass that verifies drafts takes little longer than one without, and the time to an answer is the number
of passes times the time of one. Self-selected lanes write more tokens than a plain one (names), and read fewer keys;
their headers say what their bodies copy.

Method: the usual model of each task answers expressions that training never saw, and articles of this project (the
examples, and their sentences in other orders), one at a time. For every input the lanes take turns, in an order that
changes, and the whole is repeated; a lane's time for an input is the median of its repetitions, prefill included.
Drafts must not change an answer: every drafted answer is compared with the undrafted one, and the number that differ is
in the results. "lookup" is prompt lookup, the strongest lossless baseline for a lane without spans. Run it on an idle
machine.
"""

import argparse
import itertools
import json
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import place, write_whole
from selfspan_core.engine.events import Finished, Token
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.learned import common
from selfspan_core.params import ADAPTERS, Drafts, SamplingParams
from selfspan_core.tasks.base import Problem, Task
from selfspan_core.tasks.registry import get_task

RESULT = Path("assets/results/cpu_answers.json")
OPERANDS = (24, 48, 64)
LENGTHS = ("short", "medium")


@dataclass(frozen=True)
class AnswerLane:
    """One way to answer: name, adapter, attention, drafts."""

    name: str
    adapter: str
    attention: str
    drafts: Drafts


LANES = (
    AnswerLane("plain dense", "plain", "dense", "off"),
    AnswerLane("plain dense + lookup", "plain", "dense", "auto"),
    AnswerLane("span dense + drafts", "span", "dense", "auto"),
    AnswerLane("span sparse", "span", "sparse", "off"),
    AnswerLane("span sparse + drafts", "span", "sparse", "auto"),
)


@dataclass(frozen=True)
class Answered:
    """One answer: its ids, seconds with the prefill, and its last token's figures."""

    ids: tuple[int, ...]
    seconds: float
    last: Token
    share_read: float


def answer(store: ModelStore, task: Task, problem: Problem, lane: AnswerLane) -> Answered:
    """Let one lane answer one input."""
    engine = store.engine(task.name, lane.adapter)
    annotated, tokenizer = lane.adapter == "span", engine.model.tokenizer
    assert tokenizer is not None
    prompt = task.render(problem, tokenizer, annotated)
    rules = task.rules(prompt, tokenizer, annotated)
    request = PromptRequest(prompt, annotated, SamplingParams(task.max_tokens), rules)
    hints = task.draft_hints(tokenizer)
    drafter = engine.drafter(request, hints, lane.drafts, lane.attention, store.impl)
    request = replace(request, drafter=drafter)
    tokens: list[Token] = []
    for event in engine.generate(request, lane.attention, store.impl):
        if isinstance(event, Token):
            tokens.append(event)
        elif isinstance(event, Finished):
            read = event.attended_tokens / max(event.dense_tokens, 1)
            return Answered(tuple(token.id for token in tokens), event.seconds, tokens[-1], read)
    raise RuntimeError("an answer did not finish")


def measure(store: ModelStore, task: Task, problems: Sequence[Problem], repeats: int, name: str = "") -> dict[str, Any]:
    """Figures of all lanes over some inputs; a bar with the name shows how long it will take."""
    from tqdm import tqdm

    answers: dict[tuple[str, int], list[Answered]] = {}
    orders = itertools.cycle(itertools.permutations(LANES))
    with tqdm(total=repeats * len(problems) * len(LANES), unit="answer", desc=name, leave=False) as bar:
        for _, (number, problem) in itertools.product(range(repeats), enumerate(problems)):
            for lane in next(orders):
                answers.setdefault((lane.name, number), []).append(answer(store, task, problem, lane))
                bar.update()
    figures = {lane.name: lane_figures(lane, answers, len(problems)) for lane in LANES}
    dense, lookup = figures["plain dense"]["seconds"], figures["plain dense + lookup"]["seconds"]
    for one in figures.values():
        one["plain_dense_over_this"] = round(dense / one["seconds"], 3)
        one["lookup_over_this"] = round(lookup / one["seconds"], 3)
    return figures


def lane_figures(lane: AnswerLane, answers: dict[tuple[str, int], list[Answered]], num: int) -> dict[str, Any]:
    """Means over inputs of one lane."""
    mine = [answers[lane.name, number] for number in range(num)]
    # The same adapter and attention without drafts wrote it, too.
    undrafted = {("span", "sparse"): "span sparse", ("plain", "dense"): "plain dense"}.get(
        (lane.adapter, lane.attention)
    )
    last = [one[0].last for one in mine]
    drafted, accepted = sum(token.num_drafted for token in last), sum(token.num_accepted for token in last)
    figures: dict[str, Any] = {
        "seconds": round(statistics.fmean(statistics.median(a.seconds for a in one) for one in mine), 4),
        "tokens": round(statistics.fmean(len(one[0].ids) for one in mine), 1),
        "tokens_per_pass": round(sum(len(one[0].ids) - 1 for one in mine) / sum(token.num_passes for token in last), 2),
        "kv_read_percent": round(100 * statistics.fmean(one[0].share_read for one in mine), 1),
    }
    if drafted:
        figures["drafts_right_percent"] = round(100 * accepted / drafted, 1)
    if lane.drafts != "off" and undrafted is not None:
        figures["answers_that_drafts_changed"] = sum(
            a.ids != answers[undrafted, number][0].ids for number, one in enumerate(mine) for a in one
        )
    return figures


def expressions(operands: int, count: int, seed: int) -> list[Problem]:
    """Expressions that training never saw."""
    generator = get_task("arithmetic").generator
    rng = random.Random(f"answers {operands} {seed}")
    return [generator.problem(rng, operands, held_out=True) for _ in range(count)]


def articles(count: int, seed: int, length: str, only_longest: bool = False) -> list[Problem]:
    """The project's own articles, or the longest of them, then their sentences in other orders."""
    task = get_task("summarize", length=length)
    parsed = [task.parse(text) for text in sorted(task.examples, key=len)[-1 if only_longest else 0 :]]
    more = [task.similar(problem, seed) for problem in parsed]
    every = itertools.chain(parsed, itertools.chain.from_iterable(zip(*more, strict=True)))
    return list(itertools.islice(every, count))


def inputs(arguments: argparse.Namespace) -> Iterator[tuple[str, Task, list[Problem]]]:
    """Every kind of input: its name, its task, and the inputs."""
    count, seed = arguments.n, arguments.seed
    for operands in arguments.operands:
        yield f"{operands} operands", get_task("arithmetic"), expressions(operands, count, seed)
    for length in arguments.lengths:
        task = get_task("summarize", length=length)
        yield f"summaries, {length}", task, articles(count, seed, length)
        longest = articles(count, seed, length, only_longest=True)
        yield f"{len(longest[0].text.split())} words, {length}", task, longest


def for_usual_model(task: Task, store: ModelStore) -> Task:
    """The task as the model that usually answers it learned it."""
    learned = common(store.learned(task.name, adapter) for adapter in ADAPTERS)
    return task.for_model(store.engine(task.name, "span").model.max_context, learned)


def model_facts(store: ModelStore, task: str) -> dict[str, str]:
    """The model that answers a task, and its numbers."""
    spec = store.choose(task).spec
    return {"model": spec.name, "numbers": store.device_with(store.impl, spec.name).removeprefix("CPU, ")}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operands", type=int, nargs="*", default=OPERANDS)
    parser.add_argument("--lengths", nargs="*", default=LENGTHS, choices=LENGTHS)
    parser.add_argument("--n", type=int, default=8, help="inputs of each kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="PyTorch threads (default: PyTorch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=place, default=RESULT)
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    load_average = os.getloadavg()[0]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    origin, store = provenance(), ModelStore(base=None, device="cpu")
    results, models = {}, {}
    for name, task, problems in inputs(arguments):
        models[task.name] = model_facts(store, task.name)
        results[name] = measure(store, for_usual_model(task, store), problems, arguments.repeats, name)
        print(name, flush=True)
        for lane, one in results[name].items():
            print(
                f"  {lane:22s} {one['seconds']:7.3f} s  {one['tokens']:6.0f} tokens  "
                f"{one['tokens_per_pass']:5.2f} a pass  {one['plain_dense_over_this']:5.2f} x plain dense  "
                f"{one['lookup_over_this']:5.2f} x lookup  changed {one.get('answers_that_drafts_changed', '-')}",
                flush=True,
            )
    document = {
        **origin,
        "seed": arguments.seed,
        "models": models,
        "clock": "host",
        "inputs": arguments.n,
        "repeats": arguments.repeats,
        "load_average_at_start": round(load_average, 2),
        "lanes": {lane.name: {"adapter": lane.adapter, "attention": lane.attention} for lane in LANES},
        "answers": results,
    }
    write_whole(arguments.output, json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
