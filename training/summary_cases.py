"""Articles with summaries as a language model learns from them which sentences an editor would use: ids, and hits.

    python -m training.summary_cases --pairs DIR --tokenizer smollm2-135m --out data/smol-cases.npz.xz

Hits are what the trees of `data.summary_ranking` learn, too: the words of the summary that a sentence, without what it
can do without, holds in their order. `training.foretell` learns from the file and needs neither texts nor a splitter.
Held-out documents and those that share a passage with a file named dev_* or test_* are left out.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer, TextCodec
from training.data.summary_documents import allowed_places
from training.data.summary_files import jobs_of, kind_of, passages_of, source_files
from training.data.summary_format import KINDS, NO_HITS, Document, Packed, write
from training.data.summary_ranker import JOB_ROWS, pool_of, worker
from training.data.summary_ranking import common_length
from training.data.summary_shorten import shorten_fully
from training.data.summary_words import stems

LEARNED_FROM = ("highlights", "roundups", "briefs")
MIN_SENTENCES = 2
MOST_HITS = NO_HITS - 1


@dataclass(frozen=True)
class Case:
    """An article's sentences, and the hits of each; NO_HITS where no summary may be made of it."""

    id: str
    kind: str
    sentences: tuple[str, ...]
    hits: tuple[int, ...]

    @classmethod
    def of(cls, key: str, kind: str, sentences: Sequence[str], summary: str) -> "Case":
        """The case of an article with a summary."""
        reference = stems(summary)
        hits = (
            min(MOST_HITS, common_length(stems(shorten_fully(sentence)), reference)) if is_allowed else NO_HITS
            for sentence, is_allowed in zip(sentences, allowed_places(sentences), strict=True)
        )
        return cls(key, kind, tuple(sentences), tuple(hits))


@dataclass
class PackedCases:
    """Cases as flat arrays."""

    packed: Packed = field(default_factory=Packed)
    kinds: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)

    def add(self, case: Case, codec: TextCodec) -> None:
        """Append a case, encoded."""
        self.packed.add(Document(case.id, case.sentences, ()), codec)
        self.kinds.append(KINDS.index(case.kind))
        self.hits += case.hits

    def arrays(self, dtype: np.dtype) -> dict[str, np.ndarray]:
        """Those of `Packed`, `kinds` of the documents, and `hits` of all of their segments."""
        return self.packed.arrays(dtype) | {
            "kinds": np.array(self.kinds, np.uint8),
            "hits": np.array(self.hits, np.uint8),
        }


def cases_of(
    files: Sequence[tuple[str, Path]], passages: frozenset[int], codec: TextCodec, workers: int
) -> Iterator[Case]:
    """The cases of some training files, in order.

    Args:
        files: (source, file) of the training files.
        passages: word runs of the dev and test articles; articles that share one are left out.
        codec: of the tokenizer, whose lengths decide where a long article ends.
        workers: processes.
    """
    learned = [(name, file) for name, file in files if kind_of(name) in LEARNED_FROM]
    with pool_of(workers, codec, passages) as pool:
        for made in pool.imap(_cases, jobs_of(learned, JOB_ROWS)):
            yield from made


def _cases(job: tuple[str, list[dict]]) -> list[Case]:
    source, rows = job
    made = []
    for row in rows:
        sentences = worker.maker.learned(row)
        if sentences is not None and len(sentences) >= MIN_SENTENCES:
            made.append(Case.of(str(row["id"]), kind_of(source), sentences, str(row["summary"])))
    return made


def run(pairs: Path, tokenizer: str, out: Path, workers: int) -> int:
    """Write the cases of a folder; returns how many there are.

    Args:
        pairs: folder of texts, see the command line.
        tokenizer: a registered model, a folder, a GGUF file or a hub id.
        out: the file.
        workers: processes.

    Raises:
        FileNotFoundError: there is nothing to learn from.
    """
    started = time.perf_counter()
    files, kept_out = source_files(None, pairs, "shorten")
    loaded = SpanTokenizer.load(place_of_base(tokenizer))
    cases = PackedCases()
    for case in cases_of(files, passages_of(kept_out), loaded.codec, workers):
        cases.add(case, loaded.codec)
        if len(cases.kinds) % 500 == 0:
            print(f"{len(cases.kinds):,} articles, {time.perf_counter() - started:.0f} s", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    size = write(out, cases.arrays(np.dtype(np.uint16 if loaded.vocab_size <= 1 << 16 else np.uint32)))
    print(f"wrote {out}: {len(cases.kinds):,} articles, {size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s")
    return len(cases.kinds)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of train_*, dev_*, test_* files")
    parser.add_argument(
        "--tokenizer", required=True, help="whose tokenizer: a registered model, a folder, a GGUF file or a hub id"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    try:
        run(arguments.pairs, arguments.tokenizer, arguments.out, arguments.workers)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
