"""Rules of rows on the device: which ids may come next, kept inside a captured graph by the drafting kernel.

What rules say has its specification in plain Python, which this module does not import: `row_at_start` takes any object
with its attributes.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cuda_kernels.checks import check_tensor
from cuda_kernels.compile import load
from cuda_kernels.launcher import Launcher, int32s, pointers
from cuda_kernels.tracker import Grammar

MAX_STEPS, MAX_BODY, RUN_WORDS, NUM_CHARACTERS, MOST_WAYS = 8, 160, 4, 0x40000, 128
"""MOST_STEPS, MOST_BODY, RUN_WORDS, NUM_CHARACTERS and MOST_WAYS in limits.cuh and words.cuh."""
BYTES_PER_ID, CODES_PER_TOKEN = 16, 8
"""Room for the text of the vocabulary's ids, and for the words of a row's segments."""
BETWEEN = 1
"""Phase of a row with rules between two steps (RULES_BETWEEN in rules.cuh)."""
ENDS, CLOSES = 1, 2
NARROW_THREADS = 512
_MASK = 0xFFFFFFFF


def limits_words(grammar: Grammar) -> int:
    """Length of a query's limits in words of 32 bits (struct Limits in limits.cuh)."""
    return 2 + 4 + -(-len(grammar.anchors) // 32) + 1 + MAX_BODY + MAX_STEPS + 1 + MOST_WAYS


def row_words(grammar: Grammar) -> int:
    """Length of a row's rules in words of 32 bits (struct RuledRow in rules.cuh)."""
    num = len(grammar.anchors)
    state = 3 + grammar.max_reads + 1 + 4 + -(-num // 32)
    return state + 2 * MAX_STEPS + 12 + MAX_STEPS + 3 * num + -(-num // 32)


def hash_of(numbers: Sequence[int]) -> int:
    """A sum of 32 bits that tells most sequences apart (hash_of in words.cuh)."""
    found = 0
    for number in numbers:
        found = (found ^ number) * 0x01000193 & _MASK
    return found


def runs_of(grammar: Grammar, words: Mapping[int, Sequence[tuple[int, ...]]]) -> tuple[np.ndarray, np.ndarray]:
    """Every RUN_WORDS words in a row, and all words letter by letter.

    Args:
        grammar: the protocol's numbers.
        words: name -> the words of its segment, as codes.

    Returns:
        Runs, int32 `[num_runs, 3]`: sum, index of the name, place of the first letter; in the order of their sums. And
        codes, int32 `[num_codes]`, with a 0 behind every word.
    """
    index = {token: number for number, token in enumerate(grammar.anchors)}
    of_word = functools.cache(hash_of)
    codes: list[int] = []
    runs: list[tuple[int, int, int]] = []
    for name, own in words.items():
        starts = []
        for word in own:
            starts.append(len(codes))
            codes += [*word, 0]
        sums = [of_word(tuple(word)) for word in own]
        for first in range(len(own) - RUN_WORDS + 1):
            runs.append((hash_of(sums[first : first + RUN_WORDS]), index[name], starts[first]))
    table = np.array(sorted(runs), dtype=np.int64).reshape(-1, 3)
    return table.astype(np.uint32).view(np.int32), np.array(codes, dtype=np.int32)


def row_at_start(grammar: Grammar, rules: Any, num_runs: int) -> np.ndarray:
    """A row's rules behind its prompt, int32 `[row_words]`.

    Args:
        grammar: the protocol's numbers.
        rules: an object with the attributes of the engine's `DeviceRules`.
        num_runs: as many as `runs_of` has found.
    """
    index = {token: number for number, token in enumerate(grammar.anchors)}
    num, bounds = len(grammar.anchors), rules.bounds
    state = np.zeros(3 + grammar.max_reads + 1 + 4, dtype=np.int32)
    state[0] = BETWEEN
    extents, places = np.zeros((num, 2), dtype=np.int32), np.full(num, -1, dtype=np.int32)
    ended = []
    for place, (name, (start, end)) in enumerate(rules.segments.items()):
        extents[index[name]], places[index[name]] = (start, end), place
        if _is_ended([rules.tables.classes[token] for token in rules.prompt[start:end]]):
            ended.append(index[name])
    numbers = (
        *(rules.annotated, bounds.fewest_steps, bounds.most_steps, bounds.most_reads),
        *(bounds.shortest_body, bounds.longest_body, bounds.ngram, bounds.start),
        *(rules.opening, rules.source_start, len(rules.prompt), num_runs),
    )
    parts = (
        state,
        _bits([index[name] for name in rules.readable], num),
        np.zeros(2 * MAX_STEPS, dtype=np.int32),
        np.array(numbers, dtype=np.int32),
        np.array([*rules.fresh, *[0] * MAX_STEPS][:MAX_STEPS], dtype=np.int32),
        extents.reshape(-1),
        places,
        _bits(ended, num),
    )
    return np.concatenate(parts)


def _is_ended(classes: Sequence[int]) -> bool:
    """Whether ids of such classes end as a sentence does."""
    last = next((one for one in reversed(classes) if not one & CLOSES), 0)
    return bool(last & ENDS)


def _bits(places: Sequence[int], num: int) -> np.ndarray:
    """int32 `[num / 32, rounded up]`, a bit per place."""
    flags = np.zeros(32 * -(-num // 32), dtype=np.uint8)
    flags[list(places)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


class RuleBuffers:
    """The rules of a batch's rows, on one device.

    Args:
        grammar: the protocol's numbers.
        batch: rows.
        text_length: ids of a row's text, prompt and answer.
        max_queries: of a row in a round.
        device: of all tensors.

    Attributes:
        rows: int32 `[batch, row_words]`. runs: int32 `[batch, max_runs, 3]`. codes: int32 `[batch, max_codes]`.
        limits: int32 `[batch, max_queries, limits_words]`, of the last round.
        classes: uint8 `[vocab_size]`. starts: int32 `[vocab_size + 1]`. text: uint8. characters: int32
            `[NUM_CHARACTERS]`.
    """

    def __init__(
        self, grammar: Grammar, batch: int, text_length: int, max_queries: int, device: torch.device | str
    ) -> None:
        zeros = lambda *shape, dtype=torch.int32: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
        vocab_size = grammar.vocab_size
        self.grammar = grammar
        self.rows, self.limits = zeros(batch, row_words(grammar)), zeros(batch, max_queries, limits_words(grammar))
        self.runs, self.codes = zeros(batch, text_length, 3), zeros(batch, CODES_PER_TOKEN * text_length)
        self.classes, self.text = (zeros(size, dtype=torch.uint8) for size in (vocab_size, BYTES_PER_ID * vocab_size))
        self.starts, self.characters = zeros(vocab_size + 1), zeros(NUM_CHARACTERS)
        self._held: dict[str, np.ndarray] = {}

    def begin(self, row: int, rules: Any | None) -> None:
        """A sequence begins in a row; waits for nothing.

        Args:
            row: of the batch.
            rules: an object with the attributes of the engine's `DeviceRules`; None: the row has no rules.

        Raises:
            ValueError: ids are others than those of an earlier row, or there is no room.
        """
        if rules is None:
            self.rows[row, 0].fill_(0)
            return
        self._hold(rules.tables)
        runs, codes = runs_of(self.grammar, rules.words)
        if len(runs) > self.room[0] or len(codes) > self.room[1]:
            raise ValueError(f"rules: {len(runs)} runs of words, {len(codes)} letters; a row has no room for them")
        self.runs[row, : len(runs)].copy_(torch.from_numpy(runs), non_blocking=True)
        self.codes[row, : len(codes)].copy_(torch.from_numpy(codes), non_blocking=True)
        table = row_at_start(self.grammar, rules, len(runs))
        self.rows[row].copy_(torch.from_numpy(table), non_blocking=True)

    def _hold(self, tables: Any) -> None:
        """What ids are, for all rows: written once."""
        for name in ("classes", "starts", "text", "characters"):
            given, held, room = getattr(tables, name), self._held.get(name), getattr(self, name)
            if held is given:
                continue
            if held is not None and not np.array_equal(held, given):
                raise ValueError(f"rules: other {name} of ids than those of an earlier row")
            if len(given) > len(room):
                raise ValueError(f"rules: {len(given)} {name} of ids, and there is room for {len(room)}")
            if held is None:
                room[: len(given)].copy_(torch.tensor(given), non_blocking=True)
                # Ids of the model that the tokenizer lacks have no text.
                room[len(given) :].fill_(int(given[-1]) if name == "starts" else 0)
            self._held[name] = given

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """In the order in which the drafting kernel takes them."""
        return (self.rows, self.classes, self.starts, self.text, self.characters, self.runs, self.codes, self.limits)

    @property
    def room(self) -> tuple[int, int]:
        """Of a row: runs and codes."""
        return self.runs.shape[1], self.codes.shape[1]

    def arguments(self) -> tuple[np.uint64 | np.int32, ...]:
        """Of the drafting kernel."""
        return (*pointers(*self.tensors), *int32s(*self.room))


class RuleKeeper:
    """Launcher of the kernel that narrows logits for one batch.

    Args:
        buffers: of the batch.
        kinds: int16 `[vocab_size]`, see `Grammar.kinds`.
        dtype: of the logits.
    """

    def __init__(self, buffers: RuleBuffers, kinds: torch.Tensor, dtype: torch.dtype) -> None:
        self.buffers, self._kinds, self._dtype = buffers, kinds, dtype
        is_bf16, max_queries = int(dtype is torch.bfloat16), buffers.limits.shape[1]
        macros = (*buffers.grammar.macros(), f"-DMAX_QUERIES={max_queries}", f"-DIS_BF16={is_bf16}")
        self._narrow = load("narrow.cu", "selfspan_narrow", macros, kinds.device.index)
        self._launch = Launcher(kinds.device)

    def narrow(self, num_queries: int, positions: torch.Tensor, logits: torch.Tensor) -> None:
        """Minus infinity at every id that may not come next, as the last round's drafting kernel has left it.

        Args:
            num_queries: of every row.
            positions: int32 `[batch * num_queries]`, negative where there is no token.
            logits: `[batch * num_queries, vocab_size]`; is written.
        """
        buffers, vocab_size = self.buffers, self.buffers.grammar.vocab_size
        num_tokens = len(buffers.rows) * num_queries
        check_tensor("positions", positions, (num_tokens,), torch.int32, self._kinds.device, contiguous=True)
        check_tensor("logits", logits, (num_tokens, vocab_size), self._dtype, self._kinds.device, contiguous=True)
        arguments = (
            *pointers(buffers.limits, self._kinds, buffers.classes, positions),
            *int32s(num_queries, vocab_size),
            *pointers(logits),
        )
        self._launch(self._narrow, num_tokens, NARROW_THREADS, arguments)
