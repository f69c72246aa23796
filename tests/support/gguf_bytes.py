"""Headers of GGUF files byte by byte, true or not, and where a whole file says how much of anything there is."""

import struct

MAGIC = b"GGUF\x03\0\0\0"
STRING, ARRAY, UINT8 = 8, 9, 0
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of numbers by the format's types."""


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A string, which may claim another length than it has."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and its value."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, values: bytes) -> bytes:
    """An array's value that claims a length."""
    return struct.pack("<IQ", kind, length) + values


def header(*entries: bytes, num_tensors: int = 0, num_keys: int | None = None, tensors: bytes = b"") -> bytes:
    """A file of metadata: the architecture, and these entries."""
    every = (entry("general.architecture", STRING, string("llama")), *entries)
    counts = struct.pack("<QQ", num_tensors, len(every) if num_keys is None else num_keys)
    return MAGIC + counts + b"".join(every) + tensors


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """What a header says of a tensor."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def claims_of(data: bytes) -> list[tuple[int, str]]:
    """Offset and type (of `struct`) of every count, length, type and dimension in a file that is whole."""
    found: list[tuple[int, str]] = [(4, "I"), (8, "Q"), (16, "Q")]
    num_tensors, num_keys = struct.unpack_from("<QQ", data, 8)
    at = 24

    def claim(letter: str) -> int:
        nonlocal at
        found.append((at, letter))
        at += struct.calcsize(f"<{letter}")
        return struct.unpack_from(f"<{letter}", data, found[-1][0])[0]

    def skip(kind: int) -> None:
        nonlocal at
        if kind == STRING:
            length = claim("Q")
            at += length
        elif kind == ARRAY:
            inner, length = claim("I"), claim("Q")
            for _ in range(length):
                skip(inner)
        else:
            at += SIZES[kind]

    for _ in range(num_keys):
        skip(STRING)
        skip(claim("I"))
    for _ in range(num_tensors):
        skip(STRING)
        for letter in ["Q"] * claim("I") + ["I", "Q"]:
            claim(letter)
    return found
