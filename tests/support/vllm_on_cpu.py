"""Greedy answers out of vLLM on a CPU beside those of the project's own engine: `python -m tests.support.vllm_on_cpu`.

As `tests.support.vllm_on_gpu`, in float32 and without graphs; a gap of 0 at four digits is a tie.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cuda_kernels.bench.provenance import provenance
from selfspan_core.serve.vllm_plugin.client import Asked
from tests.support.vllm_on_gpu import MOST, lanes_of, options, write_all
from tests.support.vllm_tools import ENVIRONMENT, PAGE_SIZE, Beside

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
    parser = options()
    parser.description = __doc__.splitlines()[0]
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    import vllm

    found = provenance() | {"rows": arguments.rows, "graphs": False, "dtype": "float32"}
    found["versions"]["vllm"] = vllm.__version__  # the package for CPUs has another name
    write_all(found, arguments, of_task)


if __name__ == "__main__":
    sys.exit(main())
