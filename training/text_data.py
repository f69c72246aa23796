"""English text as token shards: what the base model reads in pre-training.

    python -m training.text_data --text DIR [--pairs DIR] --tokenizer assets/base --out DIR [--workers N]

The text is the user's own; nothing is downloaded, and its licence is a matter between the user and its owner. `--text`
is a folder of `NAME-K.jsonl.xz` files (xz-compressed JSON lines with `id`, `text` and perhaps `title`); files of one
NAME make one source. `--pairs` is a folder of `train_*.jsonl.xz` files (`id`, `article`, `summary`, perhaps `event`),
which make the source `summaries`; its other files (dev_*, test_*) are never read.

Every document becomes `<bos> tokens <eos>`. One longer than the model's context is cut into pieces of equal length,
each behind a `<bos>` of its own, the last one alone with `<eos>`. Per source and split two arrays are written,
`SOURCE-SPLIT.tokens.npy` (all ids) and `SOURCE-SPLIT.offsets.npy` (where each document starts), and one `meta.json`.
About one document in 200, chosen by a hash of its id, is held out and never trained on.
"""

import argparse
import hashlib
import json
import lzma
import math
import multiprocessing
import os
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.tokenizer import SpanTokenizer, TextCodec

SUMMARIES = "summaries"
SUMMARY_CUE, TITLE_CUE = "\nSummary: ", "\nTitle: "
SPLITS = ("train", "heldout")
MAX_TOKENS = 4096
HELDOUT_SHARE = 0.005
CHUNK_BYTES = 1 << 20
META = "meta.json"


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of one file, still JSON: the unit of work of one process."""

    source: str
    lines: bytes


@dataclass
class Encoded:
    """Documents of one source and split: `tokens` end to end, `lengths` of the documents, words counted."""

    tokens: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    words: int = 0

    def add(self, other: "Encoded") -> None:
        """Append another one's documents."""
        self.tokens += other.tokens
        self.lengths += other.lengths
        self.words += other.words


def share_of(key: str, salt: str) -> float:
    """A number in [0, 1) that depends on key and salt alone, on any machine."""
    digest = hashlib.blake2b(f"{salt}:{key}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(document: dict, heldout_share: float) -> str:
    """`"train"` or `"heldout"`; articles about one event share a summary, so they go to the same side."""
    return SPLITS[share_of(str(document.get("event") or document["id"]), "heldout") < heldout_share]


def body_and_ending(document: dict, source: str) -> tuple[str, str]:
    """The text of a document, and the part of it that may not be lost when the text is too long.

    An article with its summary; a news text, every other one with its title as a one-line summary at the end; any
    other text below its title.
    """
    if source == SUMMARIES:
        return document["article"], SUMMARY_CUE + document["summary"]
    text, title = document["text"], document.get("title")
    if not title:
        return text, ""
    if source == "news" and share_of(str(document["id"]), "title last") < 0.5:
        return text, TITLE_CUE + title
    return f"{title}\n{text}", ""


def pieces_of(body: np.ndarray, ending: np.ndarray, bos: list[int], eos: int, source: str) -> list[np.ndarray]:
    """Ids of one document as one or more pieces of at most MAX_TOKENS ids."""
    room = MAX_TOKENS - len(bos) - 1
    if source == SUMMARIES:
        body = body[: max(0, room - len(ending))]
    ids = np.concatenate([body, ending])
    num_pieces = max(1, math.ceil(len(ids) / room))
    pieces = [np.concatenate([bos, piece]).astype(body.dtype) for piece in np.array_split(ids, num_pieces)]
    pieces[-1] = np.append(pieces[-1], body.dtype.type(eos))
    return pieces


class Encoder:
    """Turns chunks into ids; one per process.

    Args:
        codec_json: `TextCodec.to_json()` of the tokenizer.
        bos: id that opens every piece, None for tokenizers that have none.
        eos: id that ends every document.
        dtype: of the ids.
        heldout_share: how many of the documents are held out.
    """

    def __init__(self, codec_json: str, bos: int | None, eos: int, dtype: np.dtype, heldout_share: float) -> None:
        # Every core already has a process.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._codec = TextCodec(codec_json)
        self._bos = [] if bos is None else [bos]
        self._eos = eos
        self._dtype = dtype
        self._heldout_share = heldout_share

    def encode(self, chunk: Chunk) -> dict[str, Encoded]:
        """Documents of a chunk by split.

        Raises:
            ValueError: a line is not a JSON object with the fields that its source needs.
        """
        documents = [document_of(line, chunk.source) for line in chunk.lines.splitlines() if line.strip()]
        texts = [text for document in documents for text in body_and_ending(document, chunk.source)]
        ids = [np.array(row, self._dtype) for row in self._codec.encode_batch(texts)]
        result = {split: Encoded() for split in SPLITS}
        for i, document in enumerate(documents):
            body, ending = ids[2 * i], ids[2 * i + 1]
            if not len(body):
                continue
            into = result[split_of(document, self._heldout_share)]
            pieces = pieces_of(body, ending, self._bos, self._eos, chunk.source)
            into.tokens += pieces
            into.lengths += map(len, pieces)
            into.words += len(texts[2 * i].split()) + len(texts[2 * i + 1].split())
        for encoded in result.values():
            encoded.tokens = [np.concatenate(encoded.tokens)] if encoded.tokens else []
        return result


def document_of(line: bytes, source: str) -> dict:
    """One line of a file, checked."""
    document = json.loads(line)
    needed = ("id", "article", "summary") if source == SUMMARIES else ("id", "text")
    for key in needed:
        if not isinstance(document, dict) or document.get(key) is None:
            raise ValueError(f"a document of source '{source}' has no '{key}': {line[:80]!r}")
    return document


def dtype_of(tokenizer: SpanTokenizer) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


_encoder: Encoder | None = None  # one per worker process, set when the process starts


def _start_worker(*encoder_arguments) -> None:
    global _encoder
    _encoder = Encoder(*encoder_arguments)


def _encode(chunk: Chunk) -> tuple[str, dict[str, Encoded]]:
    return chunk.source, _encoder.encode(chunk)


def source_files(text: Path | None, pairs: Path | None) -> list[tuple[str, Path]]:
    """(source, file) of everything to read, in a fixed order.

    Raises:
        FileNotFoundError: there is nothing to read.
    """
    found = [(re.sub(r"-\d+$", "", file.name.split(".")[0]), file) for file in _listed(text, "*.jsonl.xz")]
    found += [(SUMMARIES, file) for file in _listed(pairs, "train_*.jsonl.xz")]
    if not found:
        raise FileNotFoundError(f"no *.jsonl.xz files in {text}, no train_*.jsonl.xz files in {pairs}")
    return found


def _listed(folder: Path | None, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder else []


def chunks(source: str, file: Path) -> Iterator[Chunk]:
    """A file in chunks of whole lines."""
    with lzma.open(file, "rb") as stream:
        rest = b""
        while block := stream.read(CHUNK_BYTES):
            head, newline, tail = block.rpartition(b"\n")
            if newline:
                yield Chunk(source, rest + head)
                rest = tail
            else:
                rest += block
        if rest:
            yield Chunk(source, rest)


def encode_files(
    files: list[tuple[str, Path]], tokenizer: SpanTokenizer, workers: int, heldout_share: float = HELDOUT_SHARE
) -> dict[tuple[str, str], Encoded]:
    """All documents by (source, split), in the order of the files, whatever the number of workers."""
    markers = tokenizer.markers
    arguments = (tokenizer.codec.to_json(), markers.bos, markers.eos, dtype_of(tokenizer), heldout_share)
    result: dict[tuple[str, str], Encoded] = defaultdict(Encoded)
    start, num_bytes = time.perf_counter(), 0
    ahead, stopped = threading.Semaphore(4 * workers), threading.Event()

    def feed() -> Iterator[Chunk]:
        # The pool by itself would read everything at once.
        for source, file in files:
            for chunk in chunks(source, file):
                ahead.acquire()
                if stopped.is_set():
                    return
                yield chunk

    # A fresh interpreter each: forking a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start_worker, arguments) as pool:
        try:
            for number, (source, encoded) in enumerate(pool.imap(_encode, feed())):
                ahead.release()
                for split, documents in encoded.items():
                    result[source, split].add(documents)
                    num_bytes += sum(part.nbytes for part in documents.tokens)
                if number % 50 == 0:
                    print(f"{source}: {num_bytes / 1e6:.0f} MB of ids, {time.perf_counter() - start:.0f} s", flush=True)
        finally:
            # After an error the pool waits for its feeding thread, which may be waiting for this generator.
            stopped.set()
            ahead.release()
    return result


def write(out: Path, encoded: dict[tuple[str, str], Encoded], dtype: np.dtype, facts: dict) -> dict:
    """Write the arrays and, last, `meta.json` with these facts and the counts; returns what it holds."""
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)
    sources: dict[str, dict] = defaultdict(dict)
    for source in sorted({source for source, _ in encoded}):
        for split in SPLITS:
            documents = encoded.get((source, split), Encoded())
            tokens = np.concatenate(documents.tokens) if documents.tokens else np.zeros(0, dtype)
            np.save(out / f"{source}-{split}.tokens.npy", tokens)
            np.save(out / f"{source}-{split}.offsets.npy", np.cumsum([0, *documents.lengths], dtype=np.int64))
            counts = {"documents": len(documents.lengths), "tokens": len(tokens), "words": documents.words}
            sources[source][split] = counts
    meta = facts | {"max_tokens": MAX_TOKENS, "sources": sources}
    write_whole(out / META, json.dumps(meta, indent=2) + "\n")
    return meta


class TextShards:
    """The documents of one source and split, read from a folder that this module wrote. Memory-mapped.

    Attributes:
        num_tokens: ids in all documents.
        tokens: all ids end to end, uint16 (uint32 for vocabularies beyond 65,536), shape [num_tokens].
        offsets: int64, shape [len + 1]; document i is `tokens[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, folder: str | Path, source: str, split: str = "train") -> None:
        """Open; reads only the offsets.

        Raises:
            FileNotFoundError: the folder holds no finished shards.
            ValueError: it has no such source or split.
        """
        folder = Path(folder)
        if not (folder / META).is_file():
            raise FileNotFoundError(f"no token shards in {folder}; python -m training.text_data writes them")
        known = json.loads((folder / META).read_text(encoding="utf-8"))["sources"]
        if source not in known or split not in SPLITS:
            raise ValueError(f"no text '{source}', split '{split}' in {folder}; sources: {', '.join(known)}")
        self.tokens = np.load(folder / f"{source}-{split}.tokens.npy", mmap_mode="r")
        self.offsets = np.load(folder / f"{source}-{split}.offsets.npy")
        self.num_tokens = len(self.tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """Ids of one document (or piece of a long one), `<bos>` and `<eos>` included; a view, not to be written.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def indices(self, seed: int, worker: int = 0, num_workers: int = 1) -> Iterator[int]:
        """Document numbers without end, shuffled anew each epoch; the workers' shares of an epoch are disjoint.

        Raises:
            ValueError: there is no document for this worker.
        """
        if not 0 <= worker < num_workers <= len(self):
            raise ValueError(f"worker {worker} of {num_workers} for {len(self)} documents")
        epoch = 0
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(self))
            yield from order[worker::num_workers].tolist()
            epoch += 1

    def stream(self, seed: int, worker: int = 0, num_workers: int = 1) -> Iterator[np.ndarray]:
        """The documents in the order of `indices`."""
        return map(self.document, self.indices(seed, worker, num_workers))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="folder of NAME-K.jsonl.xz files with id, title, text")
    parser.add_argument("--pairs", type=Path, help="folder of train_*.jsonl.xz files with id, article, summary")
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--heldout", type=float, default=HELDOUT_SHARE, help="share of the documents to hold out")
    args = parser.parse_args()
    try:
        run(args.text, args.pairs, args.tokenizer, args.out, args.workers, args.heldout)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


def run(
    text: Path | None,
    pairs: Path | None,
    tokenizer: str,
    out: Path,
    workers: int,
    heldout_share: float = HELDOUT_SHARE,
) -> dict:
    """Build the shards and print counts of each source; returns the meta data."""
    start = time.perf_counter()
    files, loaded = source_files(text, pairs), SpanTokenizer.load(tokenizer)
    encoded = encode_files(files, loaded, max(1, workers), heldout_share)
    facts = {"vocab_size": loaded.vocab_size, "heldout_share": heldout_share}
    meta = write(out, encoded, dtype_of(loaded), facts)
    for source, splits in meta["sources"].items():
        for split, count in splits.items():
            line = f"{source:12} {split:8} {count['documents']:8,} documents {count['tokens']:13,} tokens"
            print(f"{line} {count['words']:12,} words {count['tokens'] / max(1, count['words']):.3f} tokens per word")
    print(f"{time.perf_counter() - start:.1f} s")
    return meta


if __name__ == "__main__":
    main()
