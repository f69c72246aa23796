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
from training.data.summary_files import event_jobs_of, jobs_of, rows_of
from training.data.summary_format import EXAMPLES_SET, Document, Packed
from training.data.summary_ranking import Ranker
from training.text_data import HELDOUT_SHARE, split_of

MAX_ARTICLE_TOKENS = MAX_CONTEXT - MAX_SUMMARY_TOKENS - 64
BATCHES_PER_WORKER = 3

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


def evaluation_prompts(files: Sequence[Path], codec: TextCodec) -> Packed:
    """The articles of dev and test files and the project's own examples, without summaries.

    The end of an article that is longer than the context is cut off.
    """
    maker, packed = DocumentMaker(codec, "shorten", frozenset()), Packed()
    articles = [(f"{file.name.split('.')[0]}/{row['id']}", row["article"]) for file in files for row in rows_of(file)]
    articles += [(f"{EXAMPLES_SET}/{number}", text) for number, text in enumerate(EXAMPLES)]
    for name, text in articles:
        sentences = maker.beginning(maker.sentences(text), MAX_ARTICLE_TOKENS)
        packed.add(Document(name, segments_of(sentences), ()), codec)
    return packed
