"""What a language model expects of an article's sentences, as `training.foretell` wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_kernels.bench.whole_file import write_whole
from training.data.summary_format import to_bytes


@dataclass(frozen=True)
class Foretold:
    """Expected hits of sentences.

    Attributes:
        hits: by the article's id, float32 [sentences].
    """

    hits: dict[str, np.ndarray]

    @classmethod
    def load(cls, file: Path) -> "Foretold":
        """Read a file that `save` wrote.

        Raises:
            ValueError: it is no such file.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                ids, lengths, hits = (arrays[name] for name in ("ids", "lengths", "hits"))
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{file} is no file of foretold hits: {error}") from None
        return cls(dict(zip(ids.tolist(), np.split(hits.astype(np.float32), np.cumsum(lengths)[:-1]), strict=True)))

    def save(self, file: Path) -> None:
        """Write it, with hits as numbers of 16 bits."""
        ids = list(self.hits)
        hits = np.concatenate([self.hits[one] for one in ids]).astype(np.float16)
        lengths = np.array([len(self.hits[one]) for one in ids])
        write_whole(file, to_bytes({"ids": np.array(ids, np.str_), "lengths": lengths, "hits": hits}))

    def of(self, key: str, num_sentences: int, places: Sequence[int]) -> np.ndarray:
        """Expected hits of some of an article's sentences, float64 [places].

        Not a number where nothing is foretold: the article is unknown, or has other sentences than were foretold.
        """
        hits = self.hits.get(key)
        if hits is None or len(hits) != num_sentences:
            return np.full(len(places), np.nan)
        return hits[list(places)].astype(np.float64)
