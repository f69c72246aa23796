"""Whether drafts change a text: `python -m training.check_drafts` -> assets/results/lossless_<device>.json.

Every answer is decoded greedily with drafts and without: expressions of several lengths and summaries (with their
rules), each self-selected and dense, on the CPU in float32 by the step on the host, on a GPU in 16 bits by captured
steps. On a GPU a step of another size sums in another order, so that where two logits are as near as rounding moves
them, the texts may part: such a tie is counted with the gap between the two ids, from a run of one row that is led
through the undrafted text. How far rounding moves logits is measured: the same text is led through a step of all rows,
too, and what this moves is rounding alone. The check fails at a gap that is more than MOST_STEPS of the type's numbers
and more than twice what rounding moved in that text.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import starmap
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.decode_loop import DecodeLoop
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.host_step import HostStep
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS
from selfspan_core.params import SamplingParams
from selfspan_core.tasks.base import Task
from selfspan_core.tasks.registry import get_task
from training.bench.results import check_out, count, name_of_gpu
from training.bench.texts import articles, weights_of
from training.data.generated import evaluation_set

OPERANDS = (4, 8, 16, 24, 48)
ARTICLE_TOKENS = (300, 600, 900, 1500)
LANES = {"span sparse": ("span", "sparse"), "span dense": ("span", "dense"), "plain dense": ("plain", "dense")}
SEED = 2024
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
MOST_STEPS = {torch.float32: 64, torch.bfloat16: 4}
"""Of the numbers near the logits that a type can tell apart: 0.25 at 32 in bfloat16."""


class Side:
    """One lane of one task: the same requests with drafts and without.

    Args:
        task: whose inputs are answered.
        lane: of LANES.
        device: "cpu" or a CUDA device.
        rows: answered at once.
        model: which answers, by name.
    """

    def __init__(self, task: Task, lane: str, device: torch.device, rows: int, model: str = DEFAULT_MODEL) -> None:
        self.task, self._rows, self._device = task, rows, device
        adapter, self._attention = LANES[lane]
        self.annotated = adapter == "span"
        self.weights = weights_of(f"{task.name}-{adapter}", device, model)
        self.tokenizer = self.weights.model.tokenizer
        self._engine = Engine(self.weights.model, self.tokenizer.markers)

    def request(self, problem, drafts: str) -> PromptRequest:
        """What is asked, with rules and drafter of its own."""
        prompt = self.task.render(problem, self.tokenizer, self.annotated)
        hints, impl = self.task.draft_hints(self.tokenizer), "gather" if self._device.type == "cpu" else "captured"
        rules = self._engine.rules(self.task.rules(prompt, self.tokenizer, self.annotated), impl).rules
        request = PromptRequest(prompt, self.annotated, SamplingParams(self.task.max_tokens), rules)
        return replace(request, drafter=self._engine.drafter(request, hints, drafts, self._attention, impl))

    def texts(self, problems: Sequence, drafts: str) -> tuple[list[list[int]], int]:
        """Ids of every answer, and how many of them are drafts."""
        requests = [self.request(problem, drafts) for problem in problems]
        longest = max(request.prompt.prompt.num_tokens for request in requests)
        capacity = min(self.weights.model.max_context, longest + self.task.max_tokens)
        ids: list[list[int]] = [[] for _ in requests]
        num_accepted = 0
        for number, event in DecodeLoop(self._step(capacity, requests, drafts)).generate(requests):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                ids[number].append(event.id)
                num_accepted += event.is_draft
        return ids, num_accepted

    def _step(self, capacity: int, requests: Sequence[PromptRequest], drafts: str) -> HostStep | BatchStep:
        weights, markers, is_dense = self.weights, self.tokenizer.markers, self._attention == "dense"
        if self._device.type == "cpu":
            return HostStep(weights, markers, self._rows, capacity, is_dense)
        has_rules = any(request.host_rules is not None for request in requests)
        keeps_rules = any(request.device_rules is not None for request in requests)
        return BatchStep(weights, markers, BatchShape(self._rows, capacity, is_dense, has_rules, drafts, keeps_rules))

    def led(self, problem, written: Sequence[int], rows: int) -> list[torch.Tensor]:
        """What every id of a text is drawn from, `[vocab_size]` each, by a step of so many rows, led through it."""
        request = self.request(problem, "off")
        request = replace(request, rules=None, forced_tokens=written, with_logits=True)
        shape = BatchShape(rows, request.prompt.prompt.num_tokens + len(written) + 1, self._attention == "dense")
        step = (
            HostStep(self.weights, self.tokenizer.markers, rows, shape.capacity, shape.is_dense)
            if self._device.type == "cpu"
            else BatchStep(self.weights, self.tokenizer.markers, shape)
        )
        tokens = [event for _, event in DecodeLoop(step).generate([request]) if isinstance(event, Token)]
        return [token.logits.float() for token in tokens[: len(written)]]

    def tie(self, problem, number: int, place: int, drafted: int, written: Sequence[int]) -> "Tie":
        """Where an undrafted text and a drafted one part, and how far rounding moves logits up to there."""
        text = written[: place + 1]
        alone, among = self.led(problem, text, 1), self.led(problem, text, self._rows)
        ids = (written[place], drafted)
        logits = (float(alone[place][ids[0]]), float(alone[place][ids[1]]))
        return Tie(number, place, ids, logits, max(starmap(moved_gap, zip(alone, among, strict=True))))


def moved_gap(logits: torch.Tensor, others: torch.Tensor) -> float:
    """How far the gap between the two likeliest ids moves, in other logits `[vocab_size]` of the same place."""
    (one, other), ids = logits.topk(2)
    return abs(float((one - other) - (others[ids[0]] - others[ids[1]])))


@dataclass(frozen=True)
class Tie:
    """Where a text came out otherwise.

    Attributes:
        number: of the input, in its part.
        place: of the id in the answer.
        ids, logits: undrafted and drafted.
        moved: by how much at most another number of rows moves the gap between the two likeliest ids of a place, up to
            this one: rounding alone.
    """

    number: int
    place: int
    ids: tuple[int, int]
    logits: tuple[float, float]
    moved: float = 0.0

    @property
    def gap(self) -> float:
        """How much likelier the undrafted id was."""
        return self.logits[0] - self.logits[1]

    def num_steps(self, dtype: torch.dtype) -> float:
        """The gap's size, in steps of a type's numbers at the larger logit."""
        exponent = math.frexp(max(map(abs, self.logits)))[1] - 1
        return abs(self.gap) / (torch.finfo(dtype).eps * 2.0**exponent)


@dataclass
class Compared:
    """Figures of one lane over some inputs; those of parts of them add up.

    Attributes:
        answers, tokens: undrafted ones. drafts_kept: of the drafted ones.
        ties: where an answer came out otherwise.
        seconds: of work.
    """

    answers: int = 0
    tokens: int = 0
    drafts_kept: int = 0
    ties: list[Tie] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: "Compared") -> None:
        """Account for another part."""
        self.answers, self.tokens = self.answers + other.answers, self.tokens + other.tokens
        self.drafts_kept, self.seconds = self.drafts_kept + other.drafts_kept, self.seconds + other.seconds
        self.ties += other.ties

    def widest(self, dtype: torch.dtype) -> Tie | None:
        """The tie that is most steps of a type wide: gaps of small logits are narrow and may be many steps."""
        return max(self.ties, key=lambda tie: tie.num_steps(dtype), default=None)

    @property
    def moved(self) -> float:
        """What rounding moved at most, in the texts that parted."""
        return max((tie.moved for tie in self.ties), default=0.0)

    def figures(self, dtype: torch.dtype) -> dict:
        """As the results file has them: of every tie how much likelier the undrafted id was, and how many steps."""
        ties, widest = sorted(self.ties, key=lambda tie: tie.gap), self.widest(dtype)
        found = {name: getattr(self, name) for name in ("answers", "tokens", "drafts_kept", "seconds")}
        found |= {"ties": [tie.gap for tie in ties], "steps": [round(tie.num_steps(dtype), 2) for tie in ties]}
        found["rounding_moved"] = self.moved
        return found | {"widest": asdict(widest) if widest else None, "answers_that_drafts_changed": len(ties)}


def compare(side: Side, problems: Sequence) -> Compared:
    """Both ways over some inputs."""
    started = time.perf_counter()
    plain, _ = side.texts(problems, "off")
    drafted, accepted = side.texts(problems, "auto")
    ties = []
    for number, (problem, a, b) in enumerate(zip(problems, plain, drafted, strict=True)):
        if a != b:
            place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            if place is None:
                raise RuntimeError(f"of two texts that are the same up to there, one has {len(a)} ids, one {len(b)}")
            ties.append(side.tie(problem, number, place, b[place], a))
    return Compared(len(problems), sum(map(len, plain)), accepted, ties, time.perf_counter() - started)


def unexplained(lanes: Sequence[Compared], dtype: torch.dtype) -> list[Tie]:
    """Ties that are wider than rounding makes them in their own texts."""
    ties = [tie for lane in lanes for tie in lane.ties if tie.num_steps(dtype) > MOST_STEPS[dtype]]
    return [tie for tie in ties if abs(tie.gap) > 2 * tie.moved]


def compare_part(task: Task, lane: str, device: str, rows: int, model: str, problems: Sequence) -> Compared:
    """`compare` in a process of its own, on one core of a CPU."""
    if device == "cpu":
        torch.set_num_threads(1)
    return compare(Side(task, lane, torch.device(device), rows, model), problems)


def inputs(arguments: argparse.Namespace, tokenizer) -> Iterator[tuple[str, Task, list]]:
    """Kinds of inputs: name, task, problems."""
    if arguments.expressions:
        yield "expressions", get_task("arithmetic"), _expressions(arguments)
    if not arguments.articles:
        return
    each = -(-arguments.articles // len(ARTICLE_TOKENS))
    found = [one for size in ARTICLE_TOKENS for one in articles(size, each, arguments.seed, tokenizer)]
    yield "articles", get_task("summarize", length="medium"), found[: arguments.articles]


def _expressions(arguments: argparse.Namespace) -> list:
    each = -(-arguments.expressions // len(OPERANDS))
    task = get_task("arithmetic")
    problems = [one for operands in OPERANDS for one in evaluation_set(task, operands, each, arguments.seed)]
    return problems[: arguments.expressions]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, choices=list(MODELS))
    parser.add_argument("--expressions", type=int, default=500)
    parser.add_argument("--articles", type=int, default=300)
    parser.add_argument("--rows", type=count, default=8, help="answered at once")
    parser.add_argument("--jobs", type=count, default=1, help="processes side by side; on a CPU, one for each core")
    parser.add_argument("--part", type=count, default=500, help="inputs of a process at a time")
    parser.add_argument("--lanes", nargs="+", default=list(LANES), choices=list(LANES))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="default: assets/results/lossless_<device>[_<model>].json")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device")
    numbers = (arguments.expressions, arguments.articles)
    if min(numbers) < 0 or max(numbers) == 0 or arguments.seed < 0:
        parser.error("--expressions, --articles, --seed: 0 or more, and at least one expression or article")
    for task, number in zip(("arithmetic", "summarize"), numbers, strict=True):
        if number and not MODELS[arguments.model].has_both_adapters(task):
            parser.error(
                f"--model {arguments.model}: it has no adapters for the task {task}; leave its inputs out with 0"
            )
    check_out(parser, arguments.out)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Decode, compare, write."""
    arguments = parse_arguments(argv)
    device, origin = torch.device(arguments.device), provenance()
    of_model = "" if arguments.model == DEFAULT_MODEL else f"_{arguments.model}"
    out = arguments.out or Path("assets/results") / f"lossless_{name_of_gpu(device)}{of_model}.json"
    dtype = DTYPES[device.type]
    document: dict = {**origin, "model": arguments.model, "seed": arguments.seed}
    document["dtype"] = str(dtype).removeprefix("torch.")
    document |= {"rows": arguments.rows, "lanes": {}}
    tokenizer = weights_of("summarize-span", torch.device("cpu"), arguments.model).model.tokenizer
    parts = [
        (name, lane, task, problems[first : first + arguments.part])
        for name, task, problems in inputs(arguments, tokenizer)
        for lane in arguments.lanes
        for first in range(0, len(problems), arguments.part)
    ]
    found: dict[str, dict[str, Compared]] = {}
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(compare_part, task, lane, device.type, arguments.rows, arguments.model, problems): (name, lane)
            for name, lane, task, problems in parts
        }
        for number, job in enumerate(as_completed(jobs), start=1):
            name, lane = jobs[job]
            found.setdefault(name, {}).setdefault(lane, Compared()).add(job.result())
            print(f"{number} of {len(jobs)}: {name}, {lane}: {found[name][lane].figures(dtype)}", flush=True)
    for name in found:
        document["lanes"][name] = {lane: found[name][lane].figures(dtype) for lane in LANES if lane in found[name]}
    write_whole(out, json.dumps(document, indent=1) + "\n")
    print(f"wrote {out}")
    lanes = [lane for by_lane in found.values() for lane in by_lane.values()]
    for tie in unexplained(lanes, dtype):
        raise SystemExit(f"drafts changed a text: {tie}: {tie.num_steps(dtype):.1f} steps of {dtype}")


if __name__ == "__main__":
    main()
