"""The ranker of a folder of texts: words counted on its news with titles, trees learned from its highlights."""

import itertools
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from selfspan_core.models.tokenizer import TextCodec
from training.data.summary_documents import DocumentMaker, allowed_places
from training.data.summary_features import TitleWords, WordCounts
from training.data.summary_files import jobs_of, kind_of, shares_passages
from training.data.summary_foretold import Foretold
from training.data.summary_ranking import Candidates, Highlighted, Ranker, cross_validated

MIN_HIGHLIGHTED, MIN_TITLED = 200, 1_000
"""Articles with highlights and with titles below which there is no ranker."""
MAX_TITLED_JOBS = 100
JOB_ROWS = 50
NUM_CHOSEN = 2


@dataclass
class _Worker:
    """What a worker process holds; unused in the main process."""

    maker: DocumentMaker | None = None
    words: TitleWords | None = None
    foretold: Foretold | None = None


worker = _Worker()


@dataclass(frozen=True)
class RankerReport:
    """How a ranker was learned: articles counted, articles learned from, and ROUGE-L on those it had not seen."""

    num_titled: int
    num_highlighted: int
    rouge_l: dict[str, float] = field(default_factory=dict)


def ranker_of(
    files: Sequence[tuple[str, Path]],
    passages: frozenset[int],
    codec: TextCodec,
    workers: int,
    foretold: Foretold | None = None,
) -> tuple[Ranker | None, RankerReport]:
    """The ranker that some training files give, and how good it is; None if there are too few articles.

    Args:
        files: (source, file) of the training files.
        passages: word runs of the dev and test articles; articles that share one are left out.
        codec: of the tokenizer, whose lengths decide where a long article ends.
        workers: processes.
        foretold: what a language model expects of sentences, which is one more feature; None: there is no such.
    """
    titled = [(name, file) for name, file in files if kind_of(name) == "titles"]
    highlighted = [(name, file) for name, file in files if kind_of(name) == "highlights"]
    counts = WordCounts()
    with pool_of(workers, codec, passages) as pool:
        for more in pool.imap_unordered(_count, itertools.islice(jobs_of(titled), MAX_TITLED_JOBS)):
            counts.add(more)
    if counts.num_articles < MIN_TITLED:
        return None, RankerReport(counts.num_articles, 0)
    words = counts.title_words()
    print(f"words of {counts.num_articles:,} articles with titles counted", flush=True)
    with pool_of(workers, codec, passages, words, foretold) as pool:
        made = pool.imap(_highlighted, jobs_of(highlighted, JOB_ROWS))
        articles = [article for some in made for article in some]
        if len(articles) < MIN_HIGHLIGHTED:
            return None, RankerReport(counts.num_articles, len(articles))
        scores = cross_validated(articles, words, NUM_CHOSEN, pool)
    report = RankerReport(counts.num_articles, len(articles), scores)
    return Ranker(articles, words, foretold=foretold), report


def pool_of(
    workers: int,
    codec: TextCodec,
    passages: frozenset[int],
    words: TitleWords | None = None,
    foretold: Foretold | None = None,
):
    """Processes whose `worker` has a maker of documents, and what features are counted with."""
    arguments = (codec.to_json(), passages, words, foretold)
    # A fresh interpreter each: forking a process that has threads may hang.
    return multiprocessing.get_context("spawn").Pool(max(1, workers), _start_worker, arguments)


def _start_worker(
    codec_json: str, passages: frozenset[int], words: TitleWords | None, foretold: Foretold | None
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threadpool_limits(1)  # one per process
    worker.maker = DocumentMaker(TextCodec(codec_json), "shorten", passages)
    worker.words, worker.foretold = words, foretold


def _count(job: tuple[str, list[dict]]) -> WordCounts:
    counts = WordCounts()
    for row in job[1]:
        text = str(row.get("text") or "")
        if not shares_passages(text, worker.maker.passages):
            counts.count(str(row.get("title") or ""), text)
    return counts


def _highlighted(job: tuple[str, list[dict]]) -> list[Highlighted]:
    made = []
    for row in job[1]:
        sentences = worker.maker.learned(row)
        if sentences is None:
            continue
        allowed = allowed_places(sentences)
        candidates = Candidates.of(sentences, allowed, worker.words, worker.foretold, str(row["id"]))
        if candidates is not None:
            made.append(Highlighted.of(candidates, str(row["summary"])))
    return made
