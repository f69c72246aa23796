"""Greedy answers out of vLLM on a CPU beside those of the project's own engine: `python -m tests.support.vllm_on_cpu`.

As `tests.support.vllm_on_gpu`, in float32 and without graphs; a gap of 0 at four digits is a tie.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.serve.vllm_plugin.client import Asked
from tests.support.vllm_on_gpu import MOST, lanes_of
from tests.support.vllm_tools import ENVIRONMENT, PAGE_SIZE, Beside
from training.bench.results import count

MAX_CONTEXT = 2048


class OwnOnCpu:
    """The project's own engine, row by row; an answer is computed once."""

    def __init__(self, beside: Beside) -> None:
        self.tokenizer = beside.tokenizer
        self._beside = beside
        self._known: dict[int, list[int]] = {}

    def answers(self, asked: Sequence[Asked], most: int) -> list[list[int]]:
        """Greedy ids; the requests live as long as this does."""
        for one in asked:
            if id(one) not in self._known:
                self._known[id(one)] = self._beside.own_ids(one, most)
        return [self._known[id(one)] for one in asked]

    def gap(self, one: Asked, ids: Sequence[int], place: int, other: int) -> float:
        """How much likelier the own id is than vLLM's, where answers part."""
        logits = self._beside.own_logits(one, ids[: place + 1])[place]
        return float(logits[ids[place]] - logits[other])


def of_task(task: str, num_texts: int, arguments: argparse.Namespace) -> dict:
    """One task, in a vLLM of its own, with pages for all rows."""
    pages = arguments.rows * MAX_CONTEXT // PAGE_SIZE + 1
    folder = Path(tempfile.mkdtemp()) / task
    beside = Beside(task, folder, pages, max_model_len=MAX_CONTEXT, max_num_seqs=arguments.rows)

    def theirs(requests: Sequence[Asked]) -> list[list[int]]:
        outputs = beside.answers(requests, max_tokens=MOST[task])
        return [list(output.outputs[0].token_ids) for output in outputs]

    try:
        return lanes_of(task, num_texts, arguments.alone, OwnOnCpu(beside), theirs)
    finally:
        beside.close()


def main() -> None:
    """Compare; print; write `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expressions", type=count, default=200)
    parser.add_argument("--articles", type=count, default=60)
    parser.add_argument("--alone", type=count, default=16, help="of them, also one at a time")
    parser.add_argument("--rows", type=count, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    import vllm

    found: dict[str, Any] = provenance() | {"rows": arguments.rows, "graphs": False, "dtype": "float32"}
    found["versions"]["vllm"] = vllm.__version__  # the package for CPUs has another name
    for task, num_texts in (("arithmetic", arguments.expressions), ("summarize", arguments.articles)):
        found[task] = of_task(task, num_texts, arguments)
        if arguments.out:
            write_whole(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
