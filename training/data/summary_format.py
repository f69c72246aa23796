"""The form of packed summaries: kinds, file names, and documents as arrays of ids."""

import io
import lzma
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.tokenizer import TextCodec

KINDS = (
    *("highlights", "roundups", "extracts", "briefs", "titles", "gaps", "leads", "choices", "openings", "events"),
    "ranked",
)
META = "meta.json"
EVALUATION = "evaluation"
EVALUATION_SETS = ("dev_cnndm", "test_cnndm", "test_summeval")
EXAMPLES_SET = "examples"
LONG_SET = "heldout_long"
"""Long news articles that no training sees, without summaries; for models whose context holds them."""
NO_READ = 2**16 - 1
NO_HITS = 2**8 - 1
MAX_LONG_TOKENS = 7_500
"""Of a long document with its sentences' names: what a context of 8,192 holds beside instruction and summary."""


@dataclass(frozen=True)
class Target:
    """One summary of a document: kind, and steps as (places of the sentences read, text)."""

    kind: str
    steps: tuple[tuple[tuple[int, ...], str], ...]


@dataclass(frozen=True)
class Document:
    """An article in sentences, with its summaries."""

    id: str
    sentences: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclass
class Packed:
    """Documents as flat lists of numbers; `arrays` converts them to what is stored.

    Attributes:
        tokens: ids of all segments end to end.
        segment_lengths: of every segment; document_segments: how many each document has.
        target_documents, target_kinds, target_steps: per summary its document, its kind (a place in KINDS), its number
            of steps.
        step_reads: per step two places of segments, NO_READ where there is no second.
        step_lengths, step_tokens: the bodies.
        ids: of the documents.
    """

    tokens: list = field(default_factory=list)
    segment_lengths: list = field(default_factory=list)
    document_segments: list = field(default_factory=list)
    target_documents: list = field(default_factory=list)
    target_kinds: list = field(default_factory=list)
    target_steps: list = field(default_factory=list)
    step_reads: list = field(default_factory=list)
    step_lengths: list = field(default_factory=list)
    step_tokens: list = field(default_factory=list)
    ids: list = field(default_factory=list)

    def add(self, document: Document, codec: TextCodec) -> None:
        """Append a document, encoded."""
        for ids in codec.encode_batch(f" {sentence}" for sentence in document.sentences):
            self.tokens += ids
            self.segment_lengths.append(len(ids))
        for target in document.targets:
            self.target_documents.append(len(self.ids))
            self.target_kinds.append(KINDS.index(target.kind))
            self.target_steps.append(len(target.steps))
            for reads, text in target.steps:
                ids = codec.encode(f" {text}")
                self.step_reads.append((*reads, NO_READ)[:2])
                self.step_lengths.append(len(ids))
                self.step_tokens += ids
        self.document_segments.append(len(document.sentences))
        self.ids.append(document.id)

    def arrays(self, dtype: np.dtype) -> dict[str, np.ndarray]:
        """All numbers as arrays of the smallest types that hold them."""
        types = {"target_kinds": np.uint8, "target_steps": np.uint8, "target_documents": np.uint32}
        types |= {"tokens": dtype, "step_tokens": dtype}
        arrays = {
            name: np.array(values, types.get(name, np.uint16)) for name, values in vars(self).items() if name != "ids"
        }
        arrays["step_reads"] = arrays["step_reads"].reshape(-1, 2)
        return arrays | {"ids": np.array(self.ids, dtype=np.str_)}


def to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a file that `numpy.load` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def write(path: Path, arrays: dict[str, np.ndarray]) -> int:
    """Write arrays, compressed; returns the file's size in bytes."""
    write_whole(path, lzma.compress(to_bytes(arrays), preset=6))
    return path.stat().st_size


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `write` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False) as arrays:
            return dict(arrays)
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise ValueError(f"{path} holds no packed arrays: {error}") from None
