"""Summaries to learn from: articles annotated with steps, as ids in small packed files.

    python -m training.summary_data --text DIR --pairs DIR --tokenizer assets/base --out data/summarize

The folders are those of `training.text_data`; nothing is downloaded. Sentences are split, aligned and shortened here,
once: training reads ids and needs neither the texts nor a sentence splitter, so that `--out` is all that a machine with
GPUs has to be given. Kinds of summaries (shares of a `mixture` in the configuration):

    highlights   news articles with their highlights            (train_cnndm, train_cnn_highlights_*)
    roundups     news articles with a neutral round-up          (train_allsides_*)
    extracts     news articles with extracted sentences         (train_bbc_*)
    briefs       articles with one sentence that says it all    (all other train_* files)
    titles       news articles: what the title draws on         (news-*)
    gaps         news articles: the sentences that say most of what the others say, the title's first among them
    leads        encyclopedia articles: what the first paragraph draws on in the rest   (wikipedia-*)
    choices      of highlights, roundups and extracts: two or three sentences that together cover much of the summary;
                 drawn several times per article, sets that cover more with a higher probability
    openings     of the same and of news with titles: one such sentence (for a title: the one that it draws on), and
                 the first one or two other sentences of the article. News puts what matters first, which is the
                 strongest sign of importance (Zhu et al., arXiv 1912.11602, train on it alone)
    ranked       of news, highlights, roundups and extracts: two sentences, and four, that a small model expects the
                 highest ROUGE-L of, without the phrases that they can do without (`data.summary_ranking`)
    events       two or more articles of one event, one below the other, with its round-up   (rows with an `event`)

With `--form rewrite` the bodies are the references' own sentences, each of which reads two sentences where the second
adds words, a name or a number to it; kinds without such sentences are left out.

One document in 200 is held out, by the hash that `training.text_data` uses. Documents that share a passage with a file
named dev_* or test_* are left out; those files become `evaluation`: prompts alone, for `training.evaluate`. With them
stand the longest of the held-out news, by which it is seen whether long articles are read to their end.

`ranked` summaries can be chosen with what a language model expects of sentences: `training.summary_cases` writes
what it learns from, `training.foretell` teaches it on a GPU, and the data is made again with that as `--foretold`.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.form import FORMS
from training.data.summary_files import rows_of, source_files
from training.data.summary_foretold import Foretold
from training.data.summary_format import (
    EVALUATION,
    EVALUATION_SETS,
    EXAMPLES_SET,
    KINDS,
    META,
    NO_READ,
    Document,
    Packed,
    Target,
    write,
)
from training.text_data import SPLITS

__all__ = [
    "EVALUATION",
    "EVALUATION_SETS",
    "EXAMPLES_SET",
    "FORMS",
    "KINDS",
    "META",
    "NO_READ",
    "Document",
    "Packed",
    "Target",
    "main",
    "rows_of",
    "run",
]


def run(
    text: Path | None,
    pairs: Path | None,
    tokenizer: str,
    out: Path,
    form: str,
    workers: int,
    foretold: Path | None = None,
) -> dict:
    """Make the files and print how many documents and summaries of each kind there are.

    Args:
        text, pairs: folders of texts, see the command line; either may be missing.
        tokenizer: a registered model, a folder, a GGUF file or a hub id.
        out: folder for the packed files.
        form: one of FORMS.
        workers: processes.
        foretold: what `training.foretell` wrote of the same texts; the ranker learns how far that can be trusted.

    Returns:
        The meta data, as META holds them.

    Raises:
        FileNotFoundError: there is nothing to train on.
        ValueError: `foretold` is no such file.
    """
    # Here, not above: it imports a sentence splitter and a stemmer, which readers of the packed files do not need.
    from training.data.summary_files import passages_of
    from training.data.summary_ranker import ranker_of
    from training.data.summary_workers import documents_of, evaluation_prompts

    started = time.perf_counter()
    expected = None if foretold is None else Foretold.load(foretold)
    files, kept_out = source_files(text, pairs, form)
    loaded = SpanTokenizer.load(place_of_base(tokenizer))
    dtype = np.dtype(np.uint16 if loaded.vocab_size <= 1 << 16 else np.uint32)
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)
    write(out / f"{EVALUATION}.npz.xz", evaluation_prompts(kept_out, loaded.codec, files).arrays(dtype))
    packed, counts = {split: Packed() for split in SPLITS}, Counter()
    passages, ranker, learned = passages_of(kept_out), None, None
    if form == "shorten":
        ranker, learned = ranker_of(files, passages, loaded.codec, workers, expected)
        print(f"ranker: {learned}" if ranker else f"no ranker of sentences, of too few articles: {learned}", flush=True)
    for source, batch in documents_of(files, passages, loaded.codec, form, workers, ranker):
        for documents, counted in batch:
            counts += counted
            for split, document in documents:
                packed[split].add(document, loaded.codec)
        num_made = sum(len(part.ids) for part in packed.values())
        print(f"{source}: {num_made:,} documents so far, {time.perf_counter() - started:.0f} s", flush=True)
    sizes = {split: write(out / f"{split}.npz.xz", packed[split].arrays(dtype)) for split in SPLITS}
    for split in SPLITS:
        counts.update(counts_of(packed[split], split))
    meta = {"form": form, "vocab_size": loaded.vocab_size, "counts": dict(sorted(counts.items())), "bytes": sizes}
    meta |= {"ranker": dataclasses.asdict(learned)} if ranker else {}
    write_whole(out / META, json.dumps(meta, indent=2) + "\n")
    print(json.dumps(meta, indent=2))
    print(f"{time.perf_counter() - started:.0f} s")
    return meta


def counts_of(packed: Packed, split: str) -> dict[str, int]:
    """How many summaries of each kind, documents and tokens a split has."""
    kinds = Counter(KINDS[kind] for kind in packed.target_kinds)
    counts = {f"{split}: {kind}": number for kind, number in kinds.items()}
    counts[f"{split}: steps"] = len(packed.step_reads)
    counts[f"{split}: steps of two reads"] = sum(second != NO_READ for _, second in packed.step_reads)
    return counts | {f"{split}: documents": len(packed.ids), f"{split}: tokens": len(packed.tokens)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="folder of NAME-K.jsonl.xz files with id, title, text")
    parser.add_argument("--pairs", type=Path, help="folder of train_*, dev_*, test_* files (id, article, summary)")
    parser.add_argument(
        "--tokenizer", required=True, help="whose tokenizer: a registered model, a folder, a GGUF file or a hub id"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed files")
    parser.add_argument("--form", choices=FORMS, default="shorten")
    parser.add_argument("--foretold", type=Path, help="what training.foretell wrote of the same texts")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        run(args.text, args.pairs, args.tokenizer, args.out, args.form, args.workers, args.foretold)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
