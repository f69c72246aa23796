"""What random arithmetic looks like: throughput and statistics of the generator.

python -m training.arithmetic_data --n 1000 --workers 2 --seed 1
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from selfspan_core.spans.protocol import NUM_ANCHORS, Markers
from selfspan_core.tasks.arithmetic.task import Arithmetic, ArithmeticProblem
from training.data.generated import problems


@dataclass
class Statistics:
    """Statistics of a sample of problems."""

    num_examples: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    operators: Counter = field(default_factory=Counter)
    operators_long: Counter = field(default_factory=Counter)
    result_digits: Counter = field(default_factory=Counter)
    partials: Counter = field(default_factory=Counter)
    quotient_clauses: Counter = field(default_factory=Counter)
    divisor_digits: Counter = field(default_factory=Counter)
    tokens_by_operands: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, problem: ArithmeticProblem) -> None:
        """Count one problem."""
        self.num_examples += 1
        self.num_tokens += problem.num_tokens
        self.tokens_by_operands[problem.num_operands].append(problem.num_tokens)
        for step in problem.reductions:
            self.result_digits[len(step.result.lstrip("-"))] += 1
        operators = Counter(step_operator(step.work) for step in problem.reductions)
        self.operators += operators
        if problem.num_operands >= 48:
            self.operators_long += operators
        for step in problem.reductions:
            self._count_working(step.work)

    def _count_working(self, work: str) -> None:
        operator, clauses = step_operator(work), work.count(";") + 1
        if operator == "*":
            self.partials[clauses + 1 if "+" in work else 1] += 1
        elif operator == "/":
            long = ":" in work
            self.quotient_clauses[clauses if long else 0] += 1
            divisor = work.split("=")[0].rpartition("/")[2].strip("(-)")
            if long:
                self.divisor_digits[len(divisor)] += 1

    def merge(self, other: "Statistics") -> None:
        """Add another sample; seconds are those of the slower one, since samples are taken at the same time."""
        self.num_examples += other.num_examples
        self.num_tokens += other.num_tokens
        self.seconds = max(self.seconds, other.seconds)
        for name in ("operators", "operators_long", "result_digits", "partials", "quotient_clauses", "divisor_digits"):
            getattr(self, name).update(getattr(other, name))
        for operands, tokens in other.tokens_by_operands.items():
            self.tokens_by_operands[operands] += tokens

    def report(self) -> dict:
        """Plain figures: shares of one, tokens per example by operand count as [mean, most]."""
        counts = sorted(self.tokens_by_operands.items())
        return {
            "examples": self.num_examples,
            "tokens": self.num_tokens,
            "tokens_per_second": round(self.num_tokens / self.seconds) if self.seconds else None,
            "operators": _shares(self.operators),
            "operators_from_48_operands": _shares(self.operators_long),
            "result_digits": _shares(self.result_digits),
            "products_by_partials": _shares(self.partials),
            "quotients_by_long_division_clauses": _shares(self.quotient_clauses),
            "long_divisions_by_divisor_digits": _shares(self.divisor_digits),
            "tokens_by_operands": {n: [round(sum(t) / len(t)), max(t)] for n, t in counts},
        }


def step_operator(work: str) -> str:
    """The operation of a step: one of `+ - * /`, or `neg` for `-(...)` of one value."""
    operation = work.split("=")[0]
    if operation.startswith("-(") and operation.endswith(")") and operation.count("(") == 1:
        return "neg"
    return next(c for i, c in enumerate(operation) if i and c in "+-*/")


def _shares(counts: Counter) -> dict:
    total = sum(counts.values())
    return {str(key): round(count / total, 4) for key, count in sorted(counts.items(), key=lambda item: str(item[0]))}


class _CharacterTokenizer:
    """One id a character; enough to measure the generator without any model's tokenizer."""

    def __init__(self) -> None:
        self.markers = Markers(1, 2, 4, 5, 6, 7, tuple(range(8, 8 + NUM_ANCHORS)))

    def encode(self, text: str) -> list[int]:
        return [8 + NUM_ANCHORS + ord(character) for character in text]


def sample(seed: int, worker: int, n: int) -> Statistics:
    """Statistics of the first `n` problems of a stream; the seconds are those of making and rendering them."""
    task, tokenizer, statistics = Arithmetic(), _CharacterTokenizer(), Statistics()
    stream = problems(task, seed, worker)
    sampled = []
    start = time.perf_counter()
    for _ in range(n):
        problem = next(stream)
        task.render(problem, tokenizer, annotated=True, with_steps=True)
        sampled.append(problem)
    statistics.seconds = time.perf_counter() - start
    for problem in sampled:
        statistics.add(problem)
    return statistics


def main() -> None:
    """Print throughput and statistics of a sample as JSON."""
    parser = argparse.ArgumentParser(description="Throughput and statistics of the arithmetic generator.")
    parser.add_argument("--n", type=int, default=1000, help="examples per worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = Statistics()
    with ProcessPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(sample, arguments.seed, worker, arguments.n) for worker in range(arguments.workers)]
        for job in jobs:
            total.merge(job.result())
    print(json.dumps(total.report(), indent=1))


if __name__ == "__main__":
    main()
