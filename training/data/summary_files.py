"""The texts that summaries are made of: the files, their rows, and the passages of dev and test articles."""

import json
import lzma
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training.text_data import share_of

REWRITTEN = ("highlights", "roundups", "briefs", "leads", "events")
"""Kinds whose references are sentences of their own, which a model can be taught to write."""
EVENTS = "events"
"""The source of documents that are several articles of one event, joined."""
PASSAGE_WORDS, PASSAGE_STRIDE, MAX_PASSAGES = 13, 4, 2


def source_files(text: Path | None, pairs: Path | None, form: str) -> tuple[list[tuple[str, Path]], list[Path]]:
    """(source, file) of the training files, and the dev and test files.

    Raises:
        FileNotFoundError: there are no training files.
    """
    listed = [*(sorted(text.glob("*.jsonl.xz")) if text else []), *(sorted(pairs.glob("*.jsonl.xz")) if pairs else [])]
    named = [(file.name.split(".")[0], file) for file in listed]
    kept_out = [file for name, file in named if name.startswith(("dev_", "test_"))]
    files = [(name, file) for name, file in named if file not in kept_out]
    if form == "rewrite":
        files = [(name, file) for name, file in files if kind_of(name) in REWRITTEN]
    if not files:
        raise FileNotFoundError(f"no *.jsonl.xz files in {text}, no train_*.jsonl.xz files in {pairs}")
    return files, kept_out


def kind_of(source: str) -> str:
    """The kind of summaries that a source's documents have."""
    if source == EVENTS:
        return "events"
    if source.startswith("train_cnn"):
        return "highlights"
    if source.startswith("train_allsides"):
        return "roundups"
    if source.startswith("train_bbc"):
        return "extracts"
    if source.startswith("train_"):
        return "briefs"
    return "leads" if source.startswith("wikipedia") else "titles"


def rows_of(file: Path) -> Iterator[dict]:
    """Rows of a file of xz-compressed JSON lines."""
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def jobs_of(files: Sequence[tuple[str, Path]], size: int = 200) -> Iterator[tuple[str, list[dict]]]:
    """(source, some rows of it), in order."""
    for source, file in files:
        rows = []
        for row in rows_of(file):
            rows.append(row)
            if len(rows) == size:
                yield source, rows
                rows = []
        if rows:
            yield source, rows


def event_jobs_of(files: Sequence[tuple[str, Path]], size: int = 50) -> Iterator[tuple[str, list[dict]]]:
    """(EVENTS, some rows), each row the articles of one event one below the other, in an order drawn by the event.

    Rows of an event share their summary; an event of one article alone gives none.
    """
    events: dict[str, list[dict]] = defaultdict(list)
    for _, file in files:
        for row in rows_of(file):
            if row.get("event"):
                events[str(row["event"])].append(row)
    joined = []
    for event, rows in events.items():
        if len(rows) > 1:
            random.Random(f"event {event}").shuffle(rows)
            article = "\n".join(row["article"] for row in rows)
            joined.append({"id": f"event-{event}", "event": event, "article": article, "summary": rows[0]["summary"]})
    for at in range(0, len(joined), size):
        yield EVENTS, joined[at : at + size]


def hash_of(words: Sequence[str]) -> int:
    """A number for a run of words, the same in every process."""
    return int(share_of(" ".join(words), "passage") * 2**53)


def passages_of(files: Iterable[Path]) -> frozenset[int]:
    """All runs of PASSAGE_WORDS words of the articles of some files."""
    found = set()
    for file in files:
        for row in rows_of(file):
            words = row["article"].lower().split()
            found.update(hash_of(words[at : at + PASSAGE_WORDS]) for at in range(len(words) - PASSAGE_WORDS + 1))
    return frozenset(found)


def shares_passages(text: str, passages: frozenset[int]) -> bool:
    """Whether a text has more of the passages than the one or two that a publisher may print below every article."""
    words = text.lower().split()
    last = len(words) - PASSAGE_WORDS
    runs = (words[at : at + PASSAGE_WORDS] for at in range(0, last, PASSAGE_STRIDE))
    return sum(hash_of(run) in passages for run in runs) > MAX_PASSAGES
