"""Put figures from the results files into README, docs/results.md and the model card: `python -m training.report`.

A block `<!-- results:NAME -->` ... `<!-- /results:NAME -->` holds what this script makes of the files; with `--check`
nothing is written, and the exit status is 1 if a document is out of date. Each block is made by a function of
`training.reports`; one whose name ends in `_brief` is the small table of the README. A task's blocks, NAME and
NAME_brief, have the task's name, and the look of its kind of evaluation.
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial

from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.registry import PREFERRED
from selfspan_core.tasks.base import EvaluationKind
from selfspan_core.tasks.registry import TASKS
from training.reports.anchors import findings_anchors
from training.reports.answers import answers, answers_brief
from training.reports.base_model import base
from training.reports.cpu import cpu
from training.reports.curve import curve
from training.reports.drafts import drafts, drafts_brief
from training.reports.engine import engine, engine_brief
from training.reports.findings import (
    findings_break_even,
    findings_clustered,
    findings_models,
    findings_overhead,
    findings_speculation,
)
from training.reports.kernel import kernel, kernel_brief, kernel_on, kernel_remarks
from training.reports.llamacpp import llamacpp
from training.reports.markdown import ROOT, from_document
from training.reports.paged import paged
from training.reports.problems import problems, problems_brief
from training.reports.products import products
from training.reports.quantization import findings_quantization
from training.reports.queries import queries
from training.reports.stream import stream
from training.reports.summary import summaries, summaries_brief
from training.reports.visitors import visitors
from training.reports.vllm import vllm, vllm_brief
from training.reports.weights import findings_weights

__all__ = ["BLOCK", "DOCUMENTS", "blocks", "filled", "kernel_on", "kernel_remarks", "main"]

DOCUMENTS = ("README.md", "docs/results.md", "docs/findings.md", "assets/MODEL_CARD.md")
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)
COMMON_BLOCKS: dict[str, Callable[[], str]] = {
    "answers": answers,
    "answers_brief": answers_brief,
    "base": base,
    "cpu": cpu,
    "curve": curve,
    "drafts": drafts,
    "drafts_brief": drafts_brief,
    "engine": engine,
    "engine_brief": engine_brief,
    "findings_anchors": findings_anchors,
    "findings_break_even": findings_break_even,
    "findings_clustered": findings_clustered,
    "findings_models": findings_models,
    "findings_overhead": findings_overhead,
    "findings_quantization": findings_quantization,
    "findings_weights": findings_weights,
    "findings_speculation": findings_speculation,
    "kernel": kernel,
    "kernel_brief": kernel_brief,
    "llamacpp": llamacpp,
    "paged": paged,
    "products": products,
    "queries": queries,
    "stream": stream,
    "visitors": visitors,
    "vllm": vllm,
    "vllm_brief": vllm_brief,
}
"""Blocks of the base model and of the machine's speed, which belong to no task."""
TASK_BLOCKS: dict[EvaluationKind, dict[str, Callable[..., str]]] = {
    "problems": {"": problems, "_brief": problems_brief},
    "summaries": {"": summaries, "_brief": summaries_brief},
}
"""What a task's results become, by its kind of evaluation (`Task.evaluation`), and by what its blocks' names end in."""


def blocks() -> dict[str, Callable[[], str]]:
    """Every block by its name: two of each task, made of its results file, and those that belong to no task.

    The blocks of a model that is the usual one of a task have its name in theirs: `summarize_smollm2_135m`.
    """
    of_tasks = {
        f"{name}{end}": partial(block, task)
        for name, task in TASKS.items()
        for end, block in TASK_BLOCKS[task.evaluation].items()
    }
    of_models = {
        f"{name}_{re.sub('[^a-z0-9]', '_', model)}{end}": partial(block, TASKS[name], model)
        for name, models in PREFERRED.items()
        for model in models
        for end, block in TASK_BLOCKS[TASKS[name].evaluation].items()
    }
    return of_tasks | of_models | COMMON_BLOCKS


def filled(text: str, document: str) -> str:
    """A document's text with every block made from today's results files.

    Args:
        text: the document as it is.
        document: its path from the project's root, which its links start from.
    """
    known = blocks()
    return BLOCK.sub(lambda block: block[1] + from_document(known[block[2]](), document) + block[3], text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is out of date")
    arguments = parser.parse_args()
    stale = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        if filled(text, name) != text:
            stale.append(name)
            if not arguments.check:
                write_whole(ROOT / name, filled(text, name))
    print("out of date: " + ", ".join(stale) if stale else "up to date")
    sys.exit(1 if stale and arguments.check else 0)


if __name__ == "__main__":
    main()
