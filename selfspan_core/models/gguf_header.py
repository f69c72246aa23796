"""The header of a GGUF file: its metadata, and where its tensors lie.

Every count and length in a header is what the file claims, and a file may come from anybody. Here each is compared with
what is left of the file before anything is made of it, so that reading takes time and memory by the header's real size.
Arrays of numbers stay where they are in the file. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = (2, 3)
MOST_KEYS = MOST_TENSORS = 1 << 16
MOST_ELEMENTS = 1 << 23
"""Of all arrays together: a vocabulary of a million pieces has their texts, scores, types and merges."""
MOST_BYTES = 1 << 29
"""Of a header."""
MOST_LEVELS = 2
"""Arrays in an array, and no deeper: nothing that is read here has even those."""
MOST_DIMENSIONS = 4
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's number of a type -> its letter, the same to `struct` and to numpy."""
_LEAST_BYTES = {kind: struct.calcsize(f"<{letter}") for kind, letter in _SCALARS.items()} | {_STRING: 8, _ARRAY: 12}
"""Of one element."""
_LENGTH = struct.Struct("<Q")


class WrongHeader(ValueError):
    """What is wrong with a header, in a few words."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor as the header describes it.

    Attributes:
        shape: as torch has it; the file stores it the other way round.
        kind: the format's number of its type.
        offset: in the file's data, which begins behind the header.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def num_elements(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What stands before a file's data.

    Attributes:
        fields: key -> value; an array of numbers is numpy's, other arrays are lists.
        places: tensor's name -> its place.
        data: the whole file, mapped.
        data_offset: where its data begins.
    """

    fields: Mapping[str, Any]
    places: Mapping[str, TensorPlace]
    data: mmap.mmap
    data_offset: int


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        OSError: the file cannot be read.
        WrongHeader: it is no GGUF file, is cut off, or claims what cannot be.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise WrongHeader("it does not begin as a GGUF file does")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    walk = _Walk(data)
    version = walk.number("I", "the version")
    if version & 0xFFFF == 0:
        raise WrongHeader("it is big-endian, which is not supported")
    if version not in VERSIONS:
        raise WrongHeader(f"it is of version {version}, and 2 and 3 are supported")
    num_tensors = walk.count("tensors", MOST_TENSORS, 32)
    num_keys = walk.count("keys", MOST_KEYS, 13)
    fields: dict[str, Any] = {}
    for _ in range(num_keys):
        key = walk.string("a key")
        if key in fields:
            raise WrongHeader(f"the key {_short(key)} is there twice")
        fields[key] = walk.value(walk.number("I", "a type"), _short(key))
    places: dict[str, TensorPlace] = {}
    for _ in range(num_tensors):
        place = walk.tensor()
        if place.name in places:
            raise WrongHeader(f"the tensor {_short(place.name)} is there twice")
        places[place.name] = place
    alignment = fields.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise WrongHeader("general.alignment is no power of two")
    return Header(fields, places, data, -(-walk.at // alignment) * alignment)


def _short(name: str) -> str:
    return repr(name[:60])


class _Walk:
    """A place in a header that moves on; nothing is read behind its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._num_elements = data, 0
        self._end = min(len(data), MOST_BYTES)
        self.at = 4

    def number(self, letter: str, what: str) -> Any:
        """The next number of a type."""
        form = f"<{letter}"
        at = self._take(struct.calcsize(form), what)
        return struct.unpack_from(form, self._data, at)[0]

    def count(self, what: str, most: int, least_bytes: int) -> int:
        """How many of something follow, each at least so long."""
        found = self.number("Q", f"the number of {what}")
        if found > most:
            raise WrongHeader(f"it claims {found} {what}, and {most} are the most")
        self._require_room(found * least_bytes, f"it claims {found} {what}")
        return found

    def string(self, what: str) -> str:
        """The next string."""
        length = self.number("Q", what)
        self._require_room(length, f"{what} claims {length} bytes")
        at = self._take(length, what)
        try:
            return self._data[at : at + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise WrongHeader(f"{what} is not UTF-8") from error

    def value(self, kind: int, what: str, level: int = 0) -> Any:
        """The next value of a type."""
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, level + 1)
        if kind not in _SCALARS:
            raise WrongHeader(f"{what} is of type {kind}, which the format does not have")
        return self.number(_SCALARS[kind], what)

    def tensor(self) -> TensorPlace:
        """What stands of the next tensor."""
        name = self.string("a tensor's name")
        what = f"the tensor {_short(name)}"
        num = self.number("I", what)
        if not 1 <= num <= MOST_DIMENSIONS:
            raise WrongHeader(f"{what} has {num} dimensions, and 1 to {MOST_DIMENSIONS} are possible")
        shape = tuple(self.number("Q", what) for _ in range(num))[::-1]
        if 0 in shape:
            raise WrongHeader(f"{what} has no elements")
        return TensorPlace(name, shape, self.number("I", what), self.number("Q", what))

    def _array(self, what: str, level: int) -> Any:
        if level > MOST_LEVELS:
            raise WrongHeader(f"{what} is an array of more than {MOST_LEVELS} levels")
        kind = self.number("I", what)
        if kind not in _LEAST_BYTES:
            raise WrongHeader(f"{what} is an array of type {kind}, which the format does not have")
        length = self.number("Q", what)
        self._require_room(length * _LEAST_BYTES[kind], f"{what} claims {length} elements")
        self._num_elements += length
        if self._num_elements > MOST_ELEMENTS:
            raise WrongHeader(f"up to {what}, its arrays have {self._num_elements} elements; {MOST_ELEMENTS} may be")
        if kind in _SCALARS:
            at = self._take(length * _LEAST_BYTES[kind], what)
            return np.frombuffer(self._data, np.dtype(f"<{_SCALARS[kind]}"), length, at)
        if kind == _STRING:
            return self._strings(length, what)
        return [self._array(what, level + 1) for _ in range(length)]

    def _strings(self, num: int, what: str) -> list[str]:
        """The next strings; a vocabulary has so many that each of them counts."""
        found, data, at, end = [], self._data, self.at, self._end
        for number in range(num):
            begin = at + 8
            at = begin + _LENGTH.unpack_from(data, at)[0] if begin <= end else end + 1
            if at > end:
                raise WrongHeader(f"{what}: string {number} is longer than what is left of the file")
            try:
                found.append(data[begin:at].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise WrongHeader(f"{what}: string {number} is not UTF-8") from error
        self.at = at
        return found

    def _take(self, num_bytes: int, what: str) -> int:
        """Where the next bytes begin."""
        self._require_room(num_bytes, f"{what} needs {num_bytes} bytes")
        at, self.at = self.at, self.at + num_bytes
        return at

    def _require_room(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._end - self.at:
            whole = "the file" if self._end == len(self._data) else f"the {MOST_BYTES} bytes that a header may have"
            raise WrongHeader(f"{what}, and {self._end - self.at} bytes are left of {whole}")
