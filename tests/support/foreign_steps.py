"""How often a plain lane says what the article has not, with the decoding rules and without:

    python -m tests.support.foreign_steps DIR/dev_cnndm.jsonl.xz [--first 0] [--articles 100] [--show]

Decodes medium summaries of the file's articles on a CPU with the small model, by drafts from earlier text, and prints
of the steps: how many there are, how many have a word that the article has not, and how many begin with the same six
words as a step before.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from selfspan_core.engine.drafters import drafter
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import SamplingParams
from selfspan_core.tasks.summarize.form import MAX_SUMMARY_TOKENS
from selfspan_core.tasks.summarize.own_words import words_of
from selfspan_core.tasks.summarize.task import Summarize, problem_of
from selfspan_core.tasks.summarize.written import read_lines
from training.data.summary_documents import DocumentMaker
from training.data.summary_files import rows_of
from training.data.summary_workers import MAX_ARTICLE_TOKENS
from training.evaluation.batch_decode import decode_requests

BASE, ADAPTER = "assets/base", Path("assets/adapters/summarize-plain")
SAME_WORDS, NUM_DRAFTS = 6, 7


def summaries(file: Path, first: int, num: int, has_rules: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Of each article: its id, its sentences as one text, and the steps of its summary."""
    tokenizer = SpanTokenizer.load(BASE)
    model = SpanModel.load(BASE, ADAPTER, "cpu", tokenizer=tokenizer)
    maker, task = DocumentMaker(tokenizer.codec, "shorten", frozenset()), Summarize("medium")
    sampling, hints = SamplingParams(MAX_SUMMARY_TOKENS), task.draft_hints(tokenizer)
    for row in islice(rows_of(file), first, first + num):
        sentences = maker.beginning(maker.sentences(row["article"]), MAX_ARTICLE_TOKENS)
        prompt = task.render(problem_of(sentences, "medium"), tokenizer, annotated=False)
        rules = task.rules(prompt, tokenizer, annotated=False) if has_rules else None
        drafts = drafter(tokenizer.markers, False, hints, NUM_DRAFTS, None)
        request = PromptRequest(prompt, False, sampling, rules, drafts)
        (decoded,) = decode_requests(model, tokenizer.markers, [request], sparse=False)
        yield row["id"], " ".join(sentences), [step.text for step in read_lines(decoded.ids, tokenizer)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a dev_* or test_* file of article pairs")
    parser.add_argument("--first", type=int, default=0, help="articles passed over")
    parser.add_argument("--articles", type=int, default=100)
    parser.add_argument("--show", action="store_true", help="the foreign steps, too")
    given = parser.parse_args()
    if not given.file.is_file():
        sys.exit(f"there is no file {given.file}: name a dev_* or test_* file of article pairs")
    for has_rules in (True, False):
        num = foreign = alike = 0
        for name, article, steps in summaries(given.file, given.first, given.articles, has_rules):
            known, begun = set(words_of(article)), set()
            for words, text in ((words_of(text), text) for text in steps):
                others = [word for word in words if word not in known]
                num, foreign, alike = num + 1, foreign + bool(others), alike + (tuple(words[:SAME_WORDS]) in begun)
                begun.add(tuple(words[:SAME_WORDS]))
                if others and given.show:
                    print(f"  {name}: {', '.join(others)}: {text}")
        kind = "with rules" if has_rules else "without rules"
        print(f"{kind}: {num} steps, {foreign} with a foreign word, {alike} that begin as an earlier one", flush=True)


if __name__ == "__main__":
    main()
