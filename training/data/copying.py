"""Tasks of exact copying by name, made from token shards while training runs.

A passage of 3 to 60 segments, each behind its name (consecutive names from a random one), then some requests about it:

    <bos>Repeat:<|a5|> First sentence.<|a6|> Second one.<|a7|> ...
    Repeat<|a6|>: Second one.
    Repeat<|a7|>: ... <eos>

One variant per example:

    repeat       a name, answered by its sentence
    repeat_two   two names, answered by both sentences in that order
    find         how a sentence begins (enough to tell it from the others), answered by its name
    numbers      a passage of random numbers with operators between them; a name, answered by its number

No segment is asked for twice in an example.

The sentences come from the text that `training.text_data` was given. A sentence ends after `.`, `!` or `?` (and closing
quotes) before a space, at a line break, or at MAX_SENTENCE tokens; line breaks themselves are dropped. The cut is made
on ids, so an answer is its sentence id for id, up to the line break or `<eos>` behind it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import Markers
from training.text_data import META, SUMMARIES, TextShards

MAX_TOKENS = 2048
MAX_PASSAGE = 1100  # requests fill the rest of an example, because their answers are the training targets
MAX_SENTENCE = 96
MIN_SENTENCE = 3
MIN_SEGMENTS, MAX_SEGMENTS = 3, 60
MIN_REQUESTS, MAX_REQUESTS = 6, 24
VARIANTS = {"repeat": 0.5, "repeat_two": 0.25, "find": 0.15, "numbers": 0.1}  # shares of the examples

_ENDING = re.compile(r"[.!?…]+[\"'”’)\]]*")
_CLOSING = re.compile(r"[\"'”’)\]]+")
_ABBREVIATED = re.compile(r" ?([A-Z]|Mr|Mrs|Ms|Dr|St|Gov|Sen|Rep|Gen|Lt|Col|Prof|No|vs)")


@dataclass(frozen=True)
class CopyExample:
    """One passage with its requests.

    Attributes:
        ids: int32 [n], n at most MAX_TOKENS.
        loss_mask: int8 [n], 1 on answers (with the line break or `<eos>` that ends each) and on what can be learned of
            the passage: prose, and every name but the first. 0 on requests and random numbers, which nothing predicts.
        answers: token ranges `[start, end)` of the answers, what ends each of them included.
        variant: a key of VARIANTS.
    """

    ids: np.ndarray
    loss_mask: np.ndarray
    answers: list[tuple[int, int]]
    variant: str


def copy_examples(
    folder: str | Path,
    tokenizer: SpanTokenizer,
    seed: int,
    worker: int = 0,
    num_workers: int = 1,
    split: str = "train",
    passage_loss: bool = True,
) -> Iterator[CopyExample]:
    """Endless examples from all prose of a folder of token shards; the same arguments give the same examples.

    Args:
        folder: output folder of `training.text_data`.
        tokenizer: the tokenizer with which the folder was written.
        seed, worker, num_workers: workers draw from disjoint documents within an epoch.
        split: "train" or "heldout".
        passage_loss: False for loss on the answers alone.

    Raises:
        FileNotFoundError: the folder holds no finished shards.
        ValueError: they were written with another tokenizer, or no source has a document per worker.
    """
    meta_file = Path(folder) / META
    shards = {}
    if meta_file.is_file():
        meta = json.loads(meta_file.read_text(encoding="utf-8"))
        if meta["vocab_size"] != tokenizer.vocab_size:
            raise ValueError(f"the shards have {meta['vocab_size']} ids, the tokenizer has {tokenizer.vocab_size}")
        shards = {source: TextShards(folder, source, split) for source in meta["sources"] if source != SUMMARIES}
    else:
        raise FileNotFoundError(f"no token shards in {folder}; python -m training.text_data writes them")
    usable = [source for source in shards if len(shards[source]) >= num_workers]
    if not usable:
        raise ValueError(f"no source in {folder} has {num_workers} documents in its split '{split}'")
    rng = np.random.default_rng((seed, worker, 1))
    maker = CopyMaker(tokenizer, rng, passage_loss)
    streams = [shards[source].stream(seed, worker, num_workers) for source in usable]
    weights = np.array([shards[source].num_tokens for source in usable], float)
    variants, shares = list(VARIANTS), np.array(list(VARIANTS.values()))
    while True:
        variant = variants[rng.choice(len(variants), p=shares / shares.sum())]
        if variant == "numbers":
            yield maker.numbers()
            continue
        document = next(streams[rng.choice(len(streams), p=weights / weights.sum())])
        example = maker.prose(document, variant)
        if example is not None:
            yield example


@dataclass
class _Draft:
    """An example being written: runs of ids, and a 0/1 loss for each run."""

    runs: list[np.ndarray]
    losses: list[int]
    length: int
    answers: list[tuple[int, int]]

    def add(self, ids: np.ndarray, loss: int) -> None:
        self.runs.append(ids)
        self.losses.append(loss)
        self.length += len(ids)


class CopyMaker:
    """Makes examples for one tokenizer.

    Args:
        tokenizer: gives the ids of the fixed words, and says which ids end a sentence.
        rng: the only source of randomness.
        passage_loss: see `copy_examples`.
    """

    def __init__(self, tokenizer: SpanTokenizer, rng: np.random.Generator, passage_loss: bool = True) -> None:
        self._rng = rng
        self._passage_loss = int(passage_loss)
        self._markers: Markers = tokenizer.markers
        self._encode = tokenizer.encode
        bos = [] if self._markers.bos is None else [self._markers.bos]
        self._scaffold = _ids(bos + tokenizer.encode("Repeat:"))
        self._repeat, self._find = _ids(tokenizer.encode("Repeat")), _ids(tokenizer.encode("Find:"))
        self._colon, self._newline = _ids(tokenizer.encode(":")), _ids(tokenizer.encode("\n"))
        self._eos = _ids([self._markers.eos])
        self._names = [_ids([anchor]) for anchor in self._markers.anchors]
        self._operators = [_ids(tokenizer.encode(operator)) for operator in "+-*/"]
        self._parentheses = [_ids(tokenizer.encode(character)) for character in "()"]
        self._numbers: dict[int, np.ndarray] = {}
        pieces = [
            tokenizer.piece(i) if i not in self._markers.anchor_index else "" for i in range(tokenizer.vocab_size)
        ]
        self._ending = _table(bool(_ENDING.fullmatch(piece.rstrip("\n"))) for piece in pieces)
        self._closing = _table(bool(_CLOSING.fullmatch(piece)) for piece in pieces)
        self._abbreviated = _table(bool(_ABBREVIATED.fullmatch(piece)) for piece in pieces)
        self._spaced = _table(piece.startswith(" ") for piece in pieces)
        self._line_break = _table("\n" in piece for piece in pieces)
        self._blank = _table(piece.isspace() for piece in pieces)

    def sentence_ends(self, ids: np.ndarray) -> np.ndarray:
        """Ascending positions behind the sentences of a run of ids; what follows the last of them is no whole one."""
        ending = self._ending[ids]
        ending[1:] &= ~self._abbreviated[ids[:-1]]
        ending[1:] |= self._closing[ids[1:]] & ending[:-1]
        ending[:-1] &= self._spaced[ids[1:]]
        return np.flatnonzero(ending | self._line_break[ids]) + 1

    def sentences(self, ids: np.ndarray) -> list[np.ndarray]:
        """A run of ids as sentences of MIN_SENTENCE to MAX_SENTENCE ids, line breaks dropped; the rest is left out."""
        found, start = [], 0
        for end in self.sentence_ends(ids).tolist():
            stop = end
            while stop > start and self._blank[ids[stop - 1]]:
                stop -= 1
            # Too short to stand alone: "No." joins what follows, unless its line ends there.
            if stop - start < MIN_SENTENCE and stop == end:
                continue
            if stop - start >= MIN_SENTENCE:
                found += [ids[at : min(at + MAX_SENTENCE, stop)] for at in range(start, stop, MAX_SENTENCE)]
            start = end
        return [sentence for sentence in found if len(sentence) >= MIN_SENTENCE]

    def prose(self, document: np.ndarray, variant: str) -> CopyExample | None:
        """An example out of a part of a document; None if that part has too few sentences."""
        sentences = self._passage(document)
        if len(sentences) < MIN_SEGMENTS:
            return None
        offset = self._offset()
        draft = _Draft([self._scaffold], [0], len(self._scaffold), [])
        for index, sentence in enumerate(sentences):
            draft.add(self._name(offset, index), self._passage_loss if index else 0)
            draft.add(sentence, self._passage_loss)
        # A segment asked for twice could be copied from its first answer, which is easier and teaches less.
        order = self._rng.permutation(len(sentences)).tolist()
        per_request = 2 if variant == "repeat_two" else 1
        num_requests = min(self._rng.integers(MIN_REQUESTS, MAX_REQUESTS + 1), len(order) // per_request)
        for at in range(0, num_requests * per_request, per_request):
            asked = order[at : at + per_request]
            names = [self._name(offset, index) for index in asked]
            if variant != "find":
                self._request(draft, [self._repeat, *names], [sentences[index] for index in asked])
            elif (beginning := self._beginning(sentences, asked[0])) is not None:
                self._request(draft, [self._find, beginning], names)
        return self._finish(draft, variant) if draft.answers else None

    def numbers(self) -> CopyExample:
        """An example about random numbers from -99,999 to 99,999, written as arithmetic writes them."""
        offset = self._offset()
        numbers = [self._number() for _ in range(self._segments())]
        draft = _Draft([self._scaffold], [0], len(self._scaffold), [])
        for index, (value, ids) in enumerate(numbers):
            bracketed = value < 0 and index > 0
            if index:
                draft.add(self._operators[self._rng.integers(len(self._operators))], 0)
            if bracketed:
                draft.add(self._parentheses[0], 0)
            draft.add(self._name(offset, index), self._passage_loss if index else 0)
            draft.add(ids, 0)
            if bracketed:
                draft.add(self._parentheses[1], 0)
        for index in self._rng.permutation(len(numbers))[: 2 * MAX_REQUESTS].tolist():
            self._request(draft, [self._repeat, self._name(offset, index)], [numbers[index][1]])
        return self._finish(draft, "numbers")

    def _passage(self, document: np.ndarray) -> list[np.ndarray]:
        """Consecutive sentences from somewhere in a document, as many as wanted if it has them."""
        start = int(self._rng.integers(1, max(2, len(document) - MAX_PASSAGE // 2)))
        window = np.asarray(document[start : start + MAX_PASSAGE + MAX_SENTENCE], np.int32)
        sentences = self.sentences(window)
        if start > 1:
            sentences = sentences[1:]  # begins in the middle
        sentences = sentences[: self._segments()]
        lengths = np.cumsum([len(sentence) + 1 for sentence in sentences])
        return sentences[: int(np.searchsorted(lengths, MAX_PASSAGE, side="right"))]

    def _segments(self) -> int:
        """A number of segments; small numbers are more likely, so that answers are a good share of the tokens."""
        return MIN_SEGMENTS + int((MAX_SEGMENTS - MIN_SEGMENTS + 1) * self._rng.random() ** 1.5)

    def _offset(self) -> int:
        return int(self._rng.integers(len(self._names)))

    def _name(self, offset: int, index: int) -> np.ndarray:
        return self._names[(offset + index) % len(self._names)]

    def _number(self) -> tuple[int, np.ndarray]:
        value = int(self._rng.integers(10 ** int(self._rng.integers(1, 6))))
        value = -value if self._rng.random() < 0.25 else value
        if value not in self._numbers:
            self._numbers[value] = _ids(self._encode(str(value)))
        return value, self._numbers[value]

    def _beginning(self, sentences: list[np.ndarray], chosen: int) -> np.ndarray | None:
        """The first 3 to 8 ids of a sentence, more if others begin alike; None if that does not tell it apart."""
        sentence = sentences[chosen]
        others = [other for index, other in enumerate(sentences) if index != chosen]
        for length in range(int(self._rng.integers(3, 9)), 25):
            beginning = sentence[:length]  # a shorter sentence as a whole: others may still begin with it
            if not any(np.array_equal(other[: len(beginning)], beginning) for other in others):
                return beginning
        return None

    def _request(self, draft: _Draft, request: list[np.ndarray], answer: list[np.ndarray]) -> None:
        """Add a request and its answer if there is room; what ends the answer is added with the next request."""
        length = 2 + sum(map(len, request)) + sum(map(len, answer)) + len(self._newline)
        if draft.length + length > MAX_TOKENS:
            return
        self._end_answer(draft, self._newline)
        for run in [*request, self._colon]:
            draft.add(run, 0)
        start = draft.length
        for run in answer:
            draft.add(run, 1)
        draft.answers.append((start, draft.length))

    def _end_answer(self, draft: _Draft, ending: np.ndarray) -> None:
        draft.add(ending, int(bool(draft.answers)))
        if draft.answers:
            start, end = draft.answers[-1]
            draft.answers[-1] = (start, end + len(ending))

    def _finish(self, draft: _Draft, variant: str) -> CopyExample:
        self._end_answer(draft, self._eos)
        loss_mask = np.repeat(np.array(draft.losses, np.int8), [len(run) for run in draft.runs])
        return CopyExample(np.concatenate(draft.runs), loss_mask, draft.answers, variant)


def _ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def _table(flags: Iterator[bool]) -> np.ndarray:
    return np.fromiter(flags, bool)
