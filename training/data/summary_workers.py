"""Documents made by several processes at once, and the prompts of the articles that are evaluated on."""

import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from threadpoolctl import threadpool_limits

from selfspan_core.models.tokenizer import TextCodec
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.form import MAX_CONTEXT, MAX_SUMMARY_TOKENS
from selfspan_core.tasks.summarize.task import segments_of
from training.data.summary_documents import DocumentMaker
from training.data.summary_files import event_jobs_of, jobs_of, kind_of, rows_of
from training.data.summary_format import EXAMPLES_SET, LONG_SET, MAX_LONG_TOKENS, Document, Packed
from training.data.summary_ranking import Ranker
from training.text_data import HELDOUT_SHARE, split_of

MAX_ARTICLE_TOKENS = MAX_CONTEXT - MAX_SUMMARY_TOKENS - 64
BATCHES_PER_WORKER = 3
NUM_LONG, LONG_WORDS = 100, (600, 4500)
"""Articles of LONG_SET: how many, and the fewest and most words of each."""

Made = tuple[list[tuple[str, Document]], Counter]
"""(split, document) of some rows, and the counts of `DocumentMaker`."""

_maker: DocumentMaker | None = None  # of a worker process, set when the process starts; unused in the main process


def documents_of(
    files: Sequence[tuple[str, Path]],
    passages: frozenset[int],
    codec: TextCodec,
    form: str,
    workers: int,
    ranker: Ranker | None = None,
) -> Iterator[tuple[str, list[Made]]]:
    """All documents of some files, some at a time and in order.

    Args:
        files: (source, file) of the training files.
        passages: word runs of the dev and test articles, which no document may share.
        codec: of the tokenizer.
        form: one of `summary_format.FORMS`.
        workers: processes.
        ranker: of `ranked` summaries; None: there are none.

    Returns:
        (name of the newest source, documents and counts of the next rows).
    """
    arguments = (codec.to_json(), form, passages, ranker)
    jobs = itertools.chain(
        jobs_of(files), event_jobs_of([(name, file) for name, file in files if name.startswith("train_")])
    )
    # A fresh interpreter each: forking a process that has threads may hang.
    with multiprocessing.get_context("spawn").Pool(max(1, workers), _start_worker, arguments) as pool:
        # In batches: `imap` would read all texts into memory at once.
        while batch := list(itertools.islice(jobs, BATCHES_PER_WORKER * max(1, workers))):
            yield batch[-1][0], pool.map(_make, batch, chunksize=1)


def _start_worker(codec_json: str, form: str, passages: frozenset[int], ranker: Ranker | None) -> None:
    global _maker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threadpool_limits(1)  # one per process: the trees would take all cores in each
    _maker = DocumentMaker(TextCodec(codec_json), form, passages, ranker)


def _make(job: tuple[str, list[dict]]) -> Made:
    source, rows = job
    _maker.counts.clear()
    made = [(split_of(row, HELDOUT_SHARE), _maker.make(source, row)) for row in rows]
    return [(split, document) for split, document in made if document is not None], Counter(_maker.counts)


def evaluation_prompts(files: Sequence[Path], codec: TextCodec, texts: Sequence[tuple[str, Path]] = ()) -> Packed:
    """The articles of dev and test files, the project's own examples and long articles, without summaries.

    The end of an article that is longer than the context is cut off.

    Args:
        files: dev and test files.
        codec: of the tokenizer.
        texts: (source, file) of the training files, whose held-out news has the long articles.
    """
    maker, packed = DocumentMaker(codec, "shorten", frozenset()), Packed()
    articles = [
        (f"{file.name.split('.')[0]}/{row['id']}", row["article"], MAX_ARTICLE_TOKENS)
        for file in files
        for row in rows_of(file)
    ]
    articles += [(f"{EXAMPLES_SET}/{number}", text, MAX_ARTICLE_TOKENS) for number, text in enumerate(EXAMPLES)]
    articles += [(f"{LONG_SET}/{row['id']}", row["text"], MAX_LONG_TOKENS) for row in long_articles(texts)]
    for name, text, most_tokens in articles:
        sentences = maker.beginning(maker.sentences(text), most_tokens)
        packed.add(Document(name, segments_of(sentences), ()), codec)
    return packed


def long_articles(texts: Sequence[tuple[str, Path]]) -> list[dict]:
    """The longest held-out news articles within LONG_WORDS, the shortest of them first."""
    fewest, most = LONG_WORDS
    found = [
        row
        for source, file in texts
        if kind_of(source) == "titles"
        for row in rows_of(file)
        if split_of(row, HELDOUT_SHARE) == "heldout" and fewest <= len(row["text"].split()) <= most
    ]
    return sorted(found, key=lambda row: (len(row["text"].split()), str(row["id"])))[-NUM_LONG:]
