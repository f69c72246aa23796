"""Greedy answers out of vLLM on a GPU beside those of the project's own engine: `python -m tests.support.vllm_on_gpu`.

Expressions and articles, in both lanes, one at a time and many at once, with graphs or without. In 16 bits near ties
come out either way: where two answers part, the gap of the own engine's logits there is told.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.events import Failed, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.export import export_merged
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.params import SamplingParams as OwnParams
from selfspan_core.paths import ADAPTERS
from selfspan_core.serve.vllm_plugin import support
from selfspan_core.serve.vllm_plugin.client import Asked, account_of, asked
from selfspan_core.serve.vllm_plugin.plugin import register
from selfspan_core.tasks.arithmetic.task import random_problem
from training.bench.texts import articles
from training.bench_vllm import ENVIRONMENT, scheduling

OPERANDS = (4, 8, 16, 24)
ARTICLE_TOKENS = (300, 600, 900)
MOST = {"arithmetic": 900, "summarize": 200}


def inputs(task: str, count: int, seed: int, tokenizer) -> list[str]:
    """Texts of a task."""
    if task == "arithmetic":
        rng = random.Random(seed)
        return [random_problem(rng, OPERANDS[number % len(OPERANDS)]).text for number in range(count)]
    each = -(-count // len(ARTICLE_TOKENS))
    return [one.text for size in ARTICLE_TOKENS for one in articles(size, each, seed, tokenizer)][:count]


class Measure(Protocol):
    """The project's own engine, whose greedy answers are the measure."""

    tokenizer: SpanTokenizer

    def answers(self, asked: Sequence[Asked], most: int) -> list[list[int]]:
        """Greedy ids, of requests of one lane."""

    def gap(self, one: Asked, ids: Sequence[int], place: int, other: int) -> float:
        """How much likelier the own id is than vLLM's, where answers part."""


class Own:
    """The project's own engine with captured steps, whose greedy answers are the measure."""

    def __init__(self, folder: Path, rows: int, capacity: int) -> None:
        self.weights = DecodeWeights(SpanModel.load(folder, device="cuda", dtype=torch.bfloat16))
        self.tokenizer = self.weights.model.tokenizer
        self._rows, self._capacity = rows, capacity

    def _run(self, requests: Sequence[PromptRequest], attention: str, rows: int) -> list[list[Token]]:
        shape = BatchShape(rows, self._capacity, attention == "dense")
        found: list[list[Token]] = [[] for _ in requests]
        for number, event in BatchEngine(self.weights, self.tokenizer.markers, shape).generate(requests):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Token):
                found[number].append(event)
        return found

    def answers(self, asked: Sequence[Asked], most: int) -> list[list[int]]:
        """Greedy ids, of requests of one lane."""
        requests = [PromptRequest(one.rendered, True, OwnParams(most)) for one in asked]
        return [[event.id for event in one] for one in self._run(requests, asked[0].attention, self._rows)]

    def gap(self, one: Asked, ids: Sequence[int], place: int, other: int) -> float:
        """How much likelier the own id is than vLLM's, where answers part."""
        forced = PromptRequest(
            one.rendered, True, OwnParams(place + 1), forced_tokens=ids[: place + 1], with_logits=True
        )
        (events,) = self._run([forced], one.attention, 1)
        logits = events[place].logits.float()
        return float(logits[ids[place]] - logits[other])


def compare(own: Measure, requests: Sequence[Asked], theirs: Sequence[Sequence[int]], most: int) -> dict:
    """How many answers are equal, and the gaps where others part."""
    gaps, others = [], []
    for number, (one, mine, ids) in enumerate(zip(requests, own.answers(requests, most), theirs, strict=True)):
        place = next((i for i, pair in enumerate(zip(mine, ids, strict=False)) if pair[0] != pair[1]), None)
        if place is not None:
            gaps.append(round(own.gap(one, mine, place, ids[place]), 4))
        elif len(mine) != len(ids):
            others.append(f"{number}: {len(ids)} ids, not {len(mine)}")
    accounts = [account_of(ids, one, own.tokenizer.markers) for one, ids in zip(requests, theirs, strict=True)]
    read = sum(one.attended_tokens for one in accounts) / sum(one.dense_tokens for one in accounts)
    equal = len(requests) - len(gaps) - len(others)
    return {"answers": len(requests), "equal": equal, "gaps": sorted(gaps), "others": others, "read": round(read, 3)}


def options() -> argparse.ArgumentParser:
    """How much is compared, on whatever device."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--expressions", type=int, default=200)
    parser.add_argument("--articles", type=int, default=60)
    parser.add_argument("--alone", type=int, default=16, help="of them, also one at a time")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--out", type=Path)
    return parser


def write_all(
    found: dict[str, Any],
    arguments: argparse.Namespace,
    of_task: Callable[[str, int, argparse.Namespace], dict],
) -> None:
    """Compare both tasks, as many texts as `options` say; add the figures to `found`, and write that to `--out`."""
    for task, count in (("arithmetic", arguments.expressions), ("summarize", arguments.articles)):
        if count:
            found[task] = of_task(task, count, arguments)
            if arguments.out:
                write_whole(arguments.out, json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Compare; print; write `--out`."""
    parser = options()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--eager", action="store_true", help="without graphs")
    parser.add_argument("--scheduling", default="async", choices=("async", "sync"))
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    register()
    own = {"rows": arguments.rows, "graphs": not arguments.eager, "scheduling": arguments.scheduling}
    write_all(provenance() | own, arguments, of_task)


def of_task(task: str, count: int, arguments: argparse.Namespace) -> dict:
    """One task, in a vLLM of its own."""
    import vllm

    folder, most = Path(tempfile.mkdtemp()) / task, MOST[task]
    export_merged("selfspan-17m", ADAPTERS / f"{task}-span", folder, "bfloat16")
    own = Own(folder, arguments.rows, 2048)
    llm = vllm.LLM(
        str(folder),
        dtype="bfloat16",
        enforce_eager=arguments.eager,
        max_model_len=2048,
        max_num_seqs=arguments.rows,
        logits_processors=[support.SPAN_REQUESTS],
        **scheduling(arguments.scheduling, True),
        gpu_memory_utilization=0.3,
    )

    def answers(requests: Sequence[Asked]) -> list[list[int]]:
        common = {"temperature": 0.0, "detokenize": False, "max_tokens": most}
        each = [vllm.SamplingParams(**common, extra_args=one.extra_args) for one in requests]
        outputs = llm.generate([one.prompt for one in requests], each, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    found = lanes_of(task, count, arguments.alone, own, answers)
    llm.llm_engine.engine_core.shutdown()
    return found


def lanes_of(
    task: str, count: int, alone: int, own: Measure, theirs: Callable[[Sequence[Asked]], list[list[int]]]
) -> dict:
    """Both lanes of one task, and both together.

    Args:
        task: its name.
        count: of texts.
        alone: how many of them are also asked one at a time.
        own: the measure.
        theirs: greedy ids out of vLLM, of requests that are asked at once.
    """
    found: dict[str, Any] = {}
    texts = inputs(task, count, 2024, own.tokenizer)
    lanes = {lane: [asked(task, text, own.tokenizer, lane) for text in texts] for lane in ("dense", "sparse")}
    for lane, requests in lanes.items():
        started = time.perf_counter()
        found[lane] = compare(own, requests, theirs(requests), MOST[task]) | {
            "s": round(time.perf_counter() - started, 1)
        }
        print(task, lane, "many at once", found[lane], flush=True)
        few = requests[:alone]
        found[f"{lane}, alone"] = compare(own, few, [theirs([one])[0] for one in few], MOST[task])
        print(task, lane, "alone", found[f"{lane}, alone"], flush=True)
    mixed = [one for pair in zip(*lanes.values(), strict=True) for one in pair]
    both = theirs(mixed)
    for number, (lane, requests) in enumerate(lanes.items()):
        found[f"{lane}, among both"] = compare(own, requests, both[number::2], MOST[task])
        print(task, lane, "among both", found[f"{lane}, among both"], flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
