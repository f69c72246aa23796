"""Whether drafts change a text: `python -m training.check_drafts` -> assets/results/lossless_<device>.json.

Every answer is decoded greedily with drafts and without: expressions of several lengths and summaries (with their
rules), each self-selected and dense, on the CPU in float32 by the step on the host, on a GPU in 16 bits by captured
steps. On a GPU a step of another size sums in another order, so that where two logits are as near as rounding moves
them, the texts may part: such a tie is counted with the gap between the two ids, from the undrafted run.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.host_step import HostStep
from selfspan_core.engine.request import PromptRequest
from selfspan_core.params import SamplingParams
from selfspan_core.tasks.base import Task
from selfspan_core.tasks.registry import get_task
from training.bench.results import name_of_gpu
from training.bench.texts import articles, weights_of
from training.data.generated import evaluation_set

OPERANDS = (4, 8, 16, 24, 48)
ARTICLE_TOKENS = (300, 600, 900, 1500)
LANES = {"span sparse": ("span", "sparse"), "span dense": ("span", "dense"), "plain dense": ("plain", "dense")}
SEED = 2024


class Side:
    """One lane of one task: the same requests with drafts and without.

    Args:
        task: whose inputs are answered.
        lane: of LANES.
        device: "cpu" or a CUDA device.
        rows: answered at once.
    """

    def __init__(self, task: Task, lane: str, device: torch.device, rows: int) -> None:
        self.task, self._rows, self._device = task, rows, device
        adapter, self._attention = LANES[lane]
        self.annotated = adapter == "span"
        self.weights = weights_of(f"{task.name}-{adapter}", device)
        self.tokenizer = self.weights.model.tokenizer
        self._engine = Engine(self.weights.model, self.tokenizer.markers)

    def request(self, problem, drafts: str) -> PromptRequest:
        """What is asked, with rules and drafter of its own."""
        prompt = self.task.render(problem, self.tokenizer, self.annotated)
        rules = self.task.rules(prompt, self.tokenizer, self.annotated)
        request = PromptRequest(prompt, self.annotated, SamplingParams(self.task.max_tokens), rules)
        hints, impl = self.task.draft_hints(self.tokenizer), "gather" if self._device.type == "cpu" else "captured"
        return replace(request, drafter=self._engine.drafter(request, hints, drafts, self._attention, impl))

    def texts(self, problems: Sequence, drafts: str) -> tuple[list[list[int]], int]:
        """Ids of every answer, and how many of them are drafts."""
        requests = [self.request(problem, drafts) for problem in problems]
        longest = max(request.prompt.prompt.num_tokens for request in requests)
        capacity = min(self.weights.model.max_context, longest + self.task.max_tokens)
        ids: list[list[int]] = [[] for _ in requests]
        num_accepted = 0
        for number, event in DecodeLoop(self._step(capacity, requests[0], drafts)).generate(requests):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                ids[number].append(event.id)
                num_accepted += event.is_draft
        return ids, num_accepted

    def _step(self, capacity: int, request: PromptRequest, drafts: str) -> HostStep | BatchStep:
        weights, markers, is_dense = self.weights, self.tokenizer.markers, self._attention == "dense"
        if self._device.type == "cpu":
            return HostStep(weights, markers, self._rows, capacity, is_dense)
        has_rules = request.rules is not None
        return BatchStep(weights, markers, BatchShape(self._rows, capacity, is_dense, has_rules, drafts))

    def gap(self, problem, written: Sequence[int], place: int, other: int) -> float:
        """How much likelier the undrafted id is than the other one, where the texts part."""
        request = self.request(problem, "off")
        request = replace(request, rules=None, forced_tokens=written[: place + 1], with_logits=True)
        shape = BatchShape(1, request.prompt.prompt.num_tokens + place + 2, self._attention == "dense")
        step = (
            HostStep(self.weights, self.tokenizer.markers, 1, shape.capacity, shape.is_dense)
            if self._device.type == "cpu"
            else BatchStep(self.weights, self.tokenizer.markers, shape)
        )
        (logits,) = [
            event.logits.float()
            for _, event in DecodeLoop(step).generate([request])
            if isinstance(event, Token) and event.position == request.prompt.prompt.num_tokens + place
        ]
        return float(logits[written[place]] - logits[other])


def compare(side: Side, problems: Sequence) -> dict:
    """Figures of one lane over some inputs."""
    started = time.perf_counter()
    plain, _ = side.texts(problems, "off")
    drafted, accepted = side.texts(problems, "auto")
    gaps = []
    for problem, a, b in zip(problems, plain, drafted, strict=True):
        if a != b:
            place = next(i for i, (x, y) in enumerate(zip([*a, -1], [*b, -1], strict=False)) if x != y)
            gaps.append(side.gap(problem, a, place, b[place]))
    num_tokens = sum(map(len, plain))
    return {
        "answers": len(problems),
        "tokens": num_tokens,
        "drafts_kept": accepted,
        "answers_that_drafts_changed": len(gaps),
        "ties": sorted(gaps),
        "seconds": time.perf_counter() - started,
    }


def inputs(arguments: argparse.Namespace, tokenizer) -> Iterator[tuple[str, Task, list]]:
    """Kinds of inputs: name, task, problems."""
    each = -(-arguments.expressions // len(OPERANDS))
    task = get_task("arithmetic")
    problems = [one for operands in OPERANDS for one in evaluation_set(task, operands, each, arguments.seed)]
    yield "expressions", task, problems[: arguments.expressions]
    each = -(-arguments.articles // len(ARTICLE_TOKENS))
    found = [one for size in ARTICLE_TOKENS for one in articles(size, each, arguments.seed, tokenizer)]
    yield "articles", get_task("summarize", length="medium"), found[: arguments.articles]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expressions", type=int, default=500)
    parser.add_argument("--articles", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8, help="answered at once")
    parser.add_argument("--lanes", nargs="+", default=list(LANES), choices=list(LANES))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Decode, compare, write; the file is written again after every lane."""
    arguments = parse_arguments(argv)
    device, origin = torch.device(arguments.device), provenance()
    out = arguments.out or Path("assets/results") / f"lossless_{name_of_gpu(device)}.json"
    dtype = "float32" if device.type == "cpu" else "bfloat16"
    document: dict = {**origin, "seed": arguments.seed, "dtype": dtype, "rows": arguments.rows, "lanes": {}}
    tokenizer = weights_of("summarize-span", torch.device("cpu")).model.tokenizer
    for name, task, problems in inputs(arguments, tokenizer):
        for lane in arguments.lanes if problems else ():
            figures = compare(Side(task, lane, device, arguments.rows), problems)
            document["lanes"].setdefault(name, {})[lane] = figures
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(f"{name}, {lane}: {figures}", flush=True)


if __name__ == "__main__":
    main()
