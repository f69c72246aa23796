"""GGUF files that are damaged in any place, and whose headers claim more, less or other things than there are."""

import contextlib
import functools
import struct
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from selfspan_core.errors import ModelError
from tests.support.gguf_bytes import ARRAY, STRING, UINT8, array, claims_of, entry, header, string

Damage = tuple[list[tuple[float, bytes, int]], list[tuple[int, int]], list[bytes]]
"""Bytes written somewhere (where, what, length to cut behind it), claims replaced (which, by what), and keys added."""

_SMALL = st.integers(0, 20)
_CLAIMS = _SMALL | st.sampled_from(
    [255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, -1]
)
_LENGTHS = st.integers(0, 1 << 40) | _CLAIMS.map(lambda number: number % (1 << 64))
_VALUES = st.recursive(
    st.binary(max_size=60),
    lambda inner: st.builds(
        lambda kind, length, one, times: array(kind, length, (one * times)[:20_000]),
        st.sampled_from([UINT8, STRING, ARRAY, ARRAY, 6, 12, 77]),
        _LENGTHS,
        inner,
        st.sampled_from([1, 1, 2, 300]),
    ),
    max_leaves=4,
)
_KEYS = st.sampled_from(
    ["z", "general.alignment", "llama.rope.scaling.type", "tokenizer.ggml.scores", "tokenizer.ggml.add_bos_token"]
) | st.binary(max_size=5)
_ENTRIES = st.builds(
    entry,
    _KEYS,
    st.sampled_from([STRING, ARRAY, ARRAY, ARRAY, UINT8, 4, 7, 12, 13, 1 << 31]),
    _VALUES | st.builds(string, st.binary(max_size=9), st.none() | _LENGTHS),
)
DAMAGES: st.SearchStrategy[Damage] = st.tuples(
    st.lists(
        st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9), st.sampled_from([0, 0, 0, 1, 100])), max_size=3
    ),
    st.lists(st.tuples(st.integers(0, 9999), _CLAIMS), max_size=3),
    st.lists(_ENTRIES, max_size=2),
)
KNOWN: tuple[Damage, ...] = (
    ([], [], []),
    ([], [], [entry("z", ARRAY, array(UINT8, 1 << 40, bytes(900)))]),
    ([], [], [entry("z", ARRAY, array(ARRAY, 1, b"") * 3000)]),
    ([], [], [entry("z", ARRAY, array(UINT8, 1 << 20, bytes(1 << 20)))]),
    ([], [], [entry("tokenizer.ggml.add_bos_token", STRING, string(b"\xff\xfe"))]),
)
"""The whole file, and what once hung, took seconds, or ended in an error of another kind."""


@functools.cache
def _whole() -> tuple[bytes, list[tuple[int, str]]]:
    """A whole file of a tiny model, and where it claims anything."""
    from tests.support.tiny_gguf import tiny_model, write

    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder) / "tiny.gguf", tiny_model()).read_bytes()
    return data, claims_of(data)


def _damaged(damage: Damage) -> bytes:
    """The file with that damage."""
    (whole, claims), (changes, replaced, added) = _whole(), damage
    data = bytearray(whole)
    for which, number in replaced:
        # The first claims are of the file, the last of its tensors; most of all are lengths of pieces.
        at, letter = claims[which % len(claims) if which % 2 else -(which % 200) - 1 if which % 4 else which % 80]
        struct.pack_into(f"<{letter}", data, at, number % (1 << 8 * struct.calcsize(letter)))
    for where, written, cut in changes:
        at = int(where * where * len(data))  # near the beginning, where the header is
        data[at : at + len(written)] = written
        if cut:
            del data[at + cut :]
    if added and len(data) >= 24:
        num_keys = struct.unpack_from("<Q", data, 16)[0]
        struct.pack_into("<Q", data, 16, min(num_keys + len(added), (1 << 64) - 1))
        data[24:24] = b"".join(added)
    return bytes(data)


def gguf_file(damage: Damage) -> int:
    """A damaged GGUF file is read, or refused in one line: its header says how much of anything there is."""
    from selfspan_core.models.gguf_file import GgufFile
    from selfspan_core.models.gguf_fit import require_fit
    from selfspan_core.models.gguf_tokenizer import tokenizer_of

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "damaged.gguf"
        for data in (_damaged(damage), header(*damage[2])):
            file.write_bytes(data)
            try:
                opened = GgufFile(file)
                with contextlib.suppress(ModelError):  # tokenizer and tensors are looked at whether or not all fits
                    require_fit(opened)
                tokenizer_of(opened)
                for _ in opened.tensors():
                    pass
            except ModelError as error:
                assert str(file) in str(error) and "\n" not in str(error), str(error)
    return 1
