"""What headers cost: `python -m training.header_cost` -> assets/results/headers.json.

A self-selected answer is longer than the plain one by its names, and its headers read everything. This counts both, by
the tracker, over texts of every size: worked answers as the tasks' generators make them, and summaries that the shipped
small model wrote. Counts do not depend on the machine; the tracker's time does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import BASE
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Phase, Tracker
from selfspan_core.tasks.registry import TASKS, get_task
from training.bench.replay import Recording
from training.bench.results import check_out, count
from training.bench.texts import summaries
from training.data.generated import evaluation_set

SIZES = {"arithmetic": (8, 24, 48, 64), "trace": (10, 40, 100, 200)}
ARTICLES = (500, 900, 1900)
SEED = 2024
OUT = Path("assets/results/headers.json")


@dataclass(frozen=True)
class Texts:
    """Answers to the same inputs, with names and without."""

    task: str
    size: str
    span: Sequence[Recording]
    plain: Sequence[Recording]


def worked(task: str, size: int, num: int, seed: int, tokenizer: SpanTokenizer) -> Texts:
    """Worked answers of a task's generator."""
    made, generator = get_task(task), TASKS[task].generator
    assert generator is not None
    sides: list[list[Recording]] = []
    problems = evaluation_set(made, size, num, seed)
    for annotated in (True, False):
        rendered = [made.render(problem, tokenizer, annotated, with_steps=True) for problem in problems]
        sides.append(
            [
                Recording(one.prompt, tuple(one.ids[(n := one.prompt.num_tokens) :]), annotated, tuple(one.ids[:n]))
                for one in rendered
            ]
        )
    return Texts(task, f"{size} {generator.size_name}", *sides)


def every(arguments: argparse.Namespace) -> Iterator[Texts]:
    """All texts that are counted."""
    tokenizer = SpanTokenizer.load(BASE)
    for task, sizes in SIZES.items():
        for size in sizes:
            yield worked(task, size, arguments.num, arguments.seed, tokenizer)
    for num_tokens in arguments.articles:
        text = summaries(num_tokens, arguments.num, arguments.seed, torch.device("cpu"))
        yield Texts("summarize", text.name, text.span, text.plain)


def counted(texts: Texts, markers: Markers) -> dict:
    """Means over texts; the last id of an answer never becomes a query."""
    tokens, reads = {"header": 0, "body": 0}, {"header": 0, "body": 0}
    dense = plain_tokens = plain_reads = prompt_names = 0
    for one in texts.span:
        tracker = Tracker(markers, one.layout)
        states = [tracker.push(token) for token in one.ids]
        for state in states:
            tokens["body" if state.phase is Phase.BODY else "header"] += 1
        for state in states[:-1]:
            reads["body" if state.phase is Phase.BODY else "header"] += state.num_visible
            dense += state.position + 1
        prompt_names += len(one.layout.segments)
    for one in texts.plain:
        plain_tokens += len(one.ids)
        plain_reads += sum(one.num_visible(markers, is_dense=True)[:-1])
    num = len(texts.span)
    return {
        "task": texts.task,
        "size": texts.size,
        "texts": num,
        "prompt_names": prompt_names / num,
        "tokens": {part: total / num for part, total in tokens.items()},
        "plain_tokens": plain_tokens / num,
        "reads": {part: total / num for part, total in reads.items()},
        "dense_reads": dense / num,
        "plain_reads": plain_reads / num,
        "tracker_us_per_token": 1e6 * seconds_per_token(texts.span, markers),
    }


def seconds_per_token(recordings: Sequence[Recording], markers: Markers) -> float:
    """Of the tracker in Python, on this CPU; the median of five rounds."""
    rounds = []
    for _ in range(5):
        trackers = [(Tracker(markers, one.layout), one.ids) for one in recordings]
        started = time.perf_counter()
        for tracker, ids in trackers:
            for token in ids:
                tracker.push(token)
        rounds.append((time.perf_counter() - started) / sum(len(ids) for _, ids in trackers))
    return statistics.median(rounds)


def main(argv: Sequence[str] | None = None) -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=count, default=32, help="texts of each size")
    parser.add_argument("--articles", type=count, nargs="*", default=ARTICLES, help="tokens of a summarized article")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    check_out(parser, arguments.out)
    document, markers = provenance() | {"seed": arguments.seed, "texts": []}, SpanTokenizer.load(BASE).markers
    for texts in every(arguments):
        document["texts"].append(counted(texts, markers))
        print(json.dumps(document["texts"][-1]), flush=True)
        write_whole(arguments.out, json.dumps(document, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
