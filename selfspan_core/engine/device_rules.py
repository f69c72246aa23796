"""What a captured step has to know of a row's rules to keep them by itself, without the host. No torch here.

A task describes its rules as plain tables. What they say is defined by `tabled_rules.TabledRules`, in plain Python;
`cuda_kernels/csrc/rules.cuh` does the same on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from selfspan_core.engine.rules import Rules

ENDS, CLOSES, UNFIT, BYTE = 1, 2, 4, 8
"""Classes of ids, as bits: it ends a sentence; it may stand behind such an id; no body may hold it; it stands for one
byte, and is no text unless the whole run of such ids is UTF-8."""
LETTER, JOINT = 1 << 24, 1 << 25
"""Bits of a character: it is part of a word; it may stand between two such characters of one word."""
CODE_BITS = LETTER - 1
NUM_CHARACTERS = 0x40000
"""Characters from here on are part of no word."""
RUN_WORDS = 4
"""Words in a row that must not be said twice."""
MAX_STEPS, MAX_BODY = 8, 160
"""Most steps of a row, and most ids of a body."""
MOST_WAYS = 128
"""Sentences of the text that are looked at, the first ones, where a beginning has to go on as one of them does."""
BYTES_PER_ID, CODES_PER_TOKEN = 16, 8
"""Room on the device: bytes of text per id of the vocabulary on average, and codes of words per token of a prompt."""


class HostOnly(NamedTuple):
    """Why the host has to keep a row's rules."""

    reason: str


@dataclass(frozen=True, eq=False)
class IdTables:
    """What ids are to rules, for all rows of one tokenizer.

    Attributes:
        classes: uint8 `[num_ids]`, bits as above.
        text, starts: uint8 and int32 `[num_ids + 1]`: id i stands for the bytes `text[starts[i]:starts[i + 1]]`, and a
            text is the bytes of its ids, read as UTF-8.
        characters: int32 `[NUM_CHARACTERS]`: 0 for what is part of no word; else a code, which two characters share if
            words do not tell them apart, and LETTER or JOINT.
    """

    classes: np.ndarray
    text: np.ndarray
    starts: np.ndarray
    characters: np.ndarray


@dataclass(frozen=True)
class Bounds:
    """The numbers of a row's rules.

    Attributes:
        fewest_steps, most_steps: as long as there is something to read.
        most_reads: segments that a header names.
        shortest_body: ids beside those that end a sentence or stand behind its end; a whole source may be shorter.
        longest_body: ids.
        ngram: so many ids in a row come once in a body.
        start: no body begins with the same so many ids as one before it.
    """

    fewest_steps: int
    most_steps: int
    most_reads: int
    shortest_body: int
    longest_body: int
    ngram: int
    start: int


@dataclass(frozen=True, eq=False)
class DeviceRules:
    """The rules of one prompt; never changed, so that any number of runs may share them.

    Attributes:
        tables: of the tokenizer.
        bounds: numbers.
        annotated: whether steps have headers; else `opening` alone stands between bodies.
        opening: the id that opens a step; no body may hold it.
        prompt: ids.
        source_start: where the text begins in the prompt that sentences may come from; it reaches to the end.
        segments: name -> where its text lies in the prompt, `[start, end)`, in the order of the text; in annotated
            rows.
        readable: the names that headers may read at first, in the same order.
        fresh: the names of the steps, as many as `most_steps`; of annotated rows with segments.
        words: name -> the words of its text, each as the codes of its characters.

    Raises:
        ValueError: something is beyond what the device has room for; the message says what.
    """

    tables: IdTables
    bounds: Bounds
    annotated: bool
    opening: int
    prompt: Sequence[int]
    source_start: int
    segments: Mapping[int, tuple[int, int]]
    readable: Sequence[int]
    fresh: Sequence[int]
    words: Mapping[int, Sequence[tuple[int, ...]]]

    def __post_init__(self) -> None:
        too_much = self._too_much()
        if too_much:
            raise ValueError(f"rules on the device: {too_much}")

    def _too_much(self) -> str:
        bounds, num_prompt = self.bounds, len(self.prompt)
        if not 1 <= bounds.fewest_steps <= bounds.most_steps <= MAX_STEPS:
            return f"{bounds.most_steps} steps, where {MAX_STEPS} are the most"
        if not max(bounds.shortest_body, bounds.ngram, bounds.start) <= bounds.longest_body <= MAX_BODY:
            return f"bodies of {bounds.longest_body} ids, where {MAX_BODY} are the most"
        if min(bounds.shortest_body, bounds.ngram, bounds.start, bounds.most_reads) < 1:
            return "a number below 1"
        if self.segments and len(self.fresh) < bounds.most_steps:
            return f"{len(self.fresh)} names for {bounds.most_steps} steps"
        num_ids = len(self.tables.classes)
        if not self.tables.classes[self.opening] & UNFIT:
            return "bodies that may hold the id that opens a step"
        if len(self.tables.text) > BYTES_PER_ID * num_ids:
            return f"ids of more than {BYTES_PER_ID} bytes on average"
        num_runs = sum(max(0, len(words) - RUN_WORDS + 1) for words in self.words.values())
        if num_runs > num_prompt:
            return f"{num_runs} runs of words in a prompt of {num_prompt} tokens"
        num_codes = sum(len(word) + 1 for words in self.words.values() for word in words)
        if num_codes > CODES_PER_TOKEN * num_prompt:
            return f"words of {num_codes} letters in a prompt of {num_prompt} tokens"
        return ""


@runtime_checkable
class Tabled(Rules, Protocol):
    """Rules that may have a form for the device."""

    def on_device(self) -> DeviceRules | HostOnly:
        """The same rules as tables, before any id was pushed; or why that cannot be."""
        ...


class KeptRules(NamedTuple):
    """A run's rules in the form in which they are kept.

    Attributes:
        rules: asked by the host, or as tables.
        on_host_because: why the host has to be asked before each captured step; empty where it has not.
    """

    rules: Rules | DeviceRules | None
    on_host_because: str = ""
