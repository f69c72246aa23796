"""Rules kept on a GPU against the same rules in Python: `python -m tests.support.rules_on_gpu`.

For whoever has a GPU, and for compute-sanitizer, under which a test run would take too long:
    compute-sanitizer --tool racecheck --kernel-regex kns=selfspan_draft \\
        python -m tests.support.rules_on_gpu --answers 0
"""

import argparse
import random
import re

import torch

from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import SamplingParams
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.form import MAX_SUMMARY_TOKENS
from selfspan_core.tasks.summarize.rules import RuleTables
from selfspan_core.tasks.summarize.task import Summarize
from tests.support.drafts_on_gpu import GpuRows
from tests.support.paths import SHIPPED
from tests.support.ruled_answers import answers, assert_allowed
from tests.support.ruled_rounds import ruled_rows, run_ruled_rounds
from tests.support.ruled_walks import ruled
from tests.support.ruled_worlds import small_rows
from training.bench.texts import weights_of


def compare_answers(tables: RuleTables, num: int, annotated: bool) -> None:
    """Summaries by the shipped model: rules on the host, in the step, and in the step with drafts."""
    weights = weights_of("summarize-span" if annotated else "summarize-plain", torch.device("cuda"))
    rng, drawn = random.Random(7), SamplingParams(MAX_SUMMARY_TOKENS)
    pool = [re.split(r"(?<=[.!?]) +", " ".join(text.split())) for text in EXAMPLES]
    articles = [rng.sample(sentences, min(len(sentences), 14)) for sentences in rng.choices(pool, k=num)]
    made = [ruled(tables, sentences, "medium", annotated) for sentences in articles]
    forms = [rules.on_device() for _, rules in made]
    own = DeviceDrafts(Summarize().draft_hints(tables.tokenizer))
    kinds = {
        "on the host": ([rules.fork() for _, rules in made], None, {"with_rules": True}),
        "in the step": (forms, None, {"with_device_rules": True}),
        "with drafts": (forms, own, {"with_device_rules": True, "drafts": "auto"}),
    }
    found = {}
    for kind, (rules, drafter, options) in kinds.items():
        requests = [
            PromptRequest(prompt, annotated, drawn, rule, drafter)
            for (prompt, _), rule in zip(made, rules, strict=True)
        ]
        found[kind] = answers(weights, tables.markers, requests, BatchShape(4, 2048, not annotated, **options))
        for number, ids in found[kind].items():
            assert_allowed(ids, made[number][1].fork())
    same = {kind: sum(found[kind][i] == found["on the host"][i] for i in range(num)) for kind in found}
    print(
        f"{'span' if annotated else 'plain'}: all ids are allowed; of {num} answers as with rules on the host: {same}"
    )


def main() -> None:
    """Run; an AssertionError names the row, the query and the last ids of the first difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=4, help="batches of small worlds")
    parser.add_argument("--articles", type=int, default=1, help="batches of articles")
    parser.add_argument("--rows", type=int, default=3, help="of a batch")
    parser.add_argument("--answers", type=int, default=16, help="of the shipped model, by each adapter")
    arguments = parser.parse_args()
    num_drafts = 0
    for seed in range(arguments.worlds):
        rows, references = small_rows(GpuRows, random.Random(seed), arguments.rows)
        num_drafts += run_ruled_rounds(rows, references, random.Random(seed))
    tables = RuleTables(SpanTokenizer.load(SHIPPED))
    for seed in range(arguments.articles):
        rows, references = ruled_rows(GpuRows, tables, seed, arguments.rows)
        num_drafts += run_ruled_rounds(rows, references, random.Random(seed))
    print(f"all limits are equal; {num_drafts} drafts were fed")
    for annotated in (True, False) if arguments.answers else ():
        compare_answers(tables, arguments.answers, annotated)


if __name__ == "__main__":
    main()
