"""Text to ids and back; no typed text can become a marker.

`SpanTokenizer` wraps a transformers tokenizer: the shipped one, or that of any Llama-family model, which then gets the
markers that it lacks. Its `encode` and `decode` are exact inverses and know neither `<bos>` nor `<eos>` nor markers:
those are put in by whoever lays out ids (`selfspan_core.spans.protocol`), never by typing.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from selfspan_core.errors import ModelError
from selfspan_core.models.base_config import built_config
from selfspan_core.models.json_file import one_line, read_object
from selfspan_core.models.model_names import why_not_found
from selfspan_core.models.token_bytes import IdBytes, id_bytes
from selfspan_core.spans.protocol import ANCHORS, END, GO, MARKER_PIECES, REF, RES, Markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KINDS = {REF: "ref", GO: "go", RES: "res", END: "end"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
MOST_IDS = 1 << 21
"""Each takes a row of the model's embedding."""
_PROBE = " ".join((*MARKER_PIECES[:5], MARKER_PIECES[-1]))


class TextCodec:
    """Plain text to ids and back; small and quick to start, so that every worker process can have its own.

    Args:
        state: the JSON that `to_json` gives.
    """

    def __init__(self, state: str) -> None:
        self._tokenizer = Tokenizer.from_str(state)
        # Not part of the JSON: without it, typed markers would be read as markers.
        self._tokenizer.encode_special_tokens = True

    def to_json(self) -> str:
        """JSON from which another process can make the same codec."""
        return self._tokenizer.to_str()

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it is. Half of a surrogate pair, which is no text, becomes U+FFFD."""
        return self._tokenizer.encode(_well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of many texts, faster: on all cores unless the environment has TOKENIZERS_PARALLELISM=false."""
        well_formed = [_well_formed(text) for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(well_formed, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not (yet) a whole character become U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    @functools.cached_property
    def id_bytes(self) -> IdBytes | None:
        """See `token_bytes.id_bytes`."""
        return id_bytes(json.loads(self.to_json())["decoder"], self._tokenizer.get_vocab(with_added_tokens=True))


class SpanTokenizer:
    """A tokenizer with the span markers.

    Attributes:
        hf: the transformers tokenizer, markers included. Its own `__call__` may read typed markers as markers (that is
            how transformers is made); `encode` below never does.
        markers: ids of the markers, `<bos>` (None where the tokenizer has none) and `<eos>`.
        num_added: how many marker pieces had to be added; the model's embedding has to be resized to fit.
        vocab_size: number of ids, added ones included; every id is below it.
        pad_id: id to pad rows with (the `<eos>` id where the tokenizer has no padding token).
        codec: the part that knows plain text only.
    """

    def __init__(self, hf: "PreTrainedTokenizerBase") -> None:
        """Wrap a fast transformers tokenizer; marker pieces that it lacks are added to it.

        Raises:
            ValueError: it is not a fast tokenizer, has no `<eos>`, or could produce a marker from typed text.
        """
        if not getattr(hf, "is_fast", False):
            raise ValueError("only tokenizers with a tokenizer.json (fast tokenizers) can be used")
        if hf.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token")
        self.hf = hf
        known = hf.get_vocab()
        missing = [piece for piece in MARKER_PIECES if piece not in known]
        added = [AddedToken(piece, special=True, normalized=False) for piece in missing]
        self.num_added = hf.add_tokens(added, special_tokens=True) if added else 0
        vocabulary = hf.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > MOST_IDS:
            raise ValueError(f"the tokenizer's ids go up to {self.vocab_size - 1}; {MOST_IDS} are supported")
        self.markers = _markers(hf, vocabulary)
        self.pad_id: int = hf.eos_token_id if hf.pad_token_id is None else hf.pad_token_id
        structural = {self.markers.bos, self.markers.eos, hf.pad_token_id, *self.markers.ids} - {None}
        self._dropped = frozenset(structural)
        self.codec = _codec(hf, structural)
        self._kinds = {vocabulary[piece]: kind for piece, kind in _KINDS.items()}
        if not self._dropped.isdisjoint(self.encode(_PROBE)):
            raise ValueError("this tokenizer turns typed marker text into markers")

    @classmethod
    def load(cls, path_or_hub_id: str | Path) -> "SpanTokenizer":
        """Load from a folder, or by hub id through transformers (which then decides about cache and network).

        Raises:
            FileNotFoundError: a path that does not exist, or a folder without a tokenizer.
            OSError: transformers found no such tokenizer.
            ValueError: see `__init__`.
        """
        from transformers import AutoTokenizer

        reason = why_not_found(path_or_hub_id)
        if reason is not None:
            raise FileNotFoundError(reason)
        path = Path(path_or_hub_id).expanduser()
        if path.is_dir():
            if not any((path / name).is_file() for name in _TOKENIZER_FILES):
                raise FileNotFoundError(f"the folder {path} holds no {_TOKENIZER_FILES[0]}")
            try:
                # Given, so that transformers does not read the model's settings itself, unchecked.
                config = _config_of(path)
                return cls(AutoTokenizer.from_pretrained(str(path), config=config, trust_remote_code=False))
            except ModelError:
                raise
            except Exception as error:  # errors of any type, and tokenizers' of none, on files that are damaged
                lacks = "" if (path / _TOKENIZER_FILES[0]).is_file() else f" (it holds no {_TOKENIZER_FILES[0]})"
                raise ValueError(
                    f"the tokenizer in the folder {path}{lacks} cannot be used: {one_line(error)}"
                ) from error
        try:
            return cls(AutoTokenizer.from_pretrained(str(path_or_hub_id), trust_remote_code=False))
        except OSError as error:
            here = f"there is no folder {str(path_or_hub_id)!r} here"
            raise OSError(f"{here}, and the hub gave no model of that name: {error}") from error
        except Exception as error:
            raise ValueError(f"the tokenizer of {str(path_or_hub_id)!r} cannot be used: {one_line(error)}") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it is: no `<bos>`, no `<eos>`, and never a marker's id, whatever the text holds."""
        return self.codec.encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of many texts, faster."""
        return self.codec.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; markers, `<bos>`, `<eos>` and padding are dropped.

        The exact inverse of `encode`. Bytes that are not (yet) a whole character become U+FFFD.
        """
        return self.codec.decode([token for token in ids if token not in self._dropped])

    def piece(self, token: int) -> str:
        """The text of a single id, or the name of a marker or special token."""
        if token in self._dropped:
            return self.hf.convert_ids_to_tokens([token])[0]
        return self.codec.decode([token])

    def id_bytes(self) -> IdBytes | None:
        """What `decode` makes of ids, as bytes; see `token_bytes.id_bytes`. Of ids that it drops, they mean nothing."""
        return self.codec.id_bytes

    def marker_kind(self, token: int) -> str | None:
        """`"ref"`, `"go"`, `"res"`, `"end"` or `"anchor"`; None for everything else."""
        if token in self.markers.anchor_index:
            return "anchor"
        return self._kinds.get(token)


def _config_of(folder: Path) -> Any:
    """The checked configuration of the model in a folder; None of a folder with a tokenizer alone."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    return built_config(read_object(file), str(folder))


def _markers(hf: "PreTrainedTokenizerBase", vocabulary: dict[str, int]) -> Markers:
    ref, go, res, end = (vocabulary[piece] for piece in (REF, GO, RES, END))
    anchors = tuple(vocabulary[piece] for piece in ANCHORS)
    markers = Markers(hf.bos_token_id, hf.eos_token_id, ref, go, res, end, anchors)
    if {markers.bos, markers.eos} & set(markers.ids):
        raise ValueError("the tokenizer uses a marker's name for its begin or end of sequence")
    return markers


def _codec(hf: "PreTrainedTokenizerBase", structural: set[int]) -> TextCodec:
    """A copy of the backend for plain text only: special tokens are never matched, nothing is put before the text.

    Llama-2-like tokenizers put a space before every text and take it off again when decoding; parts of a prompt are
    encoded one by one, so both halves of that have to go.
    """
    state = json.loads(hf.backend_tokenizer.to_str())
    state["post_processor"] = state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["id"] in structural
    state["normalizer"] = _without(state["normalizer"], "normalizers", {"Prepend"})
    state["pre_tokenizer"] = _no_prefix(state["pre_tokenizer"], "pretokenizers")
    state["decoder"] = _no_prefix(_without(state["decoder"], "decoders", {"Strip"}), "decoders")
    return TextCodec(json.dumps(state))


def _without(part: dict | None, children: str, types: set[str]) -> dict | None:
    """A pipeline part without the members of some types."""
    if part is None or part["type"] in types:
        return None
    if part["type"] != "Sequence":
        return part
    return part | {children: [child for child in part[children] if child["type"] not in types]}


def _no_prefix(part: dict | None, children: str) -> dict | None:
    """A pre-tokenizer or decoder that neither adds a space in front nor takes one away."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        return part | {children: [_no_prefix(child, children) for child in part[children]]}
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    if part["type"] == "ByteLevel":
        return part | {"add_prefix_space": False}
    return part


def _well_formed(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
