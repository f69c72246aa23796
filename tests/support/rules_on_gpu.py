"""Rules kept on a GPU against the same rules in Python: `python -m tests.support.rules_on_gpu`.

For whoever has a GPU, and for compute-sanitizer, under which a test run would take too long:
    compute-sanitizer --tool racecheck --kernel-regex kns=selfspan_draft python -m tests.support.rules_on_gpu
"""

import argparse
import random

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.rules import RuleTables
from tests.support.drafts_on_gpu import GpuRows
from tests.support.paths import SHIPPED
from tests.support.ruled_rounds import ruled_rows, run_ruled_rounds
from tests.support.ruled_worlds import small_rows


def main() -> None:
    """Run; an AssertionError names the row, the query and the last ids of the first difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=4, help="batches of small worlds")
    parser.add_argument("--articles", type=int, default=1, help="batches of articles")
    parser.add_argument("--rows", type=int, default=3, help="of a batch")
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


if __name__ == "__main__":
    main()
