"""Headers of GGUF files that lie: each is refused in one line and at once, or read in time by its size."""

import os
import struct

import numpy as np
import pytest

from selfspan_core.errors import ModelError
from selfspan_core.models.gguf_file import GgufFile
from selfspan_core.models.gguf_header import WrongHeader, read_header
from selfspan_core.serve import cli
from tests.support.clock import MOST_S, least_s
from tests.support.gguf_bytes import ARRAY, MAGIC, STRING, UINT8, array, entry, header, string, tensor

HUGE = 1 << 40
NESTED = b"".join(array(ARRAY, 1, b"") for _ in range(3000)) + array(UINT8, 1, b"\1")


def one(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """A file of one tensor without data."""
    return header(num_tensors=1, tensors=tensor(name, shape, kind, offset))


LIES = {
    "magic": (b"GGML" + bytes(40), "does not begin as a GGUF file"),
    "empty": (b"", "does not begin as a GGUF file"),
    "only magic": (b"GGUF", "bytes are left of the file"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(40), "it is big-endian"),
    "version": (b"GGUF\7\0\0\0" + bytes(40), "it is of version 7"),
    "keys": (header(num_keys=HUGE), f"it claims {HUGE} keys"),
    "keys in a short file": (header(num_keys=5000), "it claims 5000 keys, and"),
    "tensors": (header(num_tensors=HUGE), f"it claims {HUGE} tensors"),
    "array": (header(entry("z", ARRAY, array(UINT8, HUGE, bytes(900)))), f"'z' claims {HUGE} elements, and 900 bytes"),
    "array of strings": (header(entry("z", ARRAY, array(STRING, HUGE, bytes(900)))), f"'z' claims {HUGE} elements"),
    "string in an array": (header(entry("z", ARRAY, array(STRING, 1, string("a", HUGE)))), "string 0 is longer than"),
    "string": (header(entry("z", STRING, string("a", HUGE))), f"'z' claims {HUGE} bytes"),
    "key": (MAGIC + struct.pack("<QQ", 0, 1) + string("a" * 20, HUGE), f"a key claims {HUGE} bytes"),
    "levels": (header(entry("z", ARRAY, NESTED)), "'z' is an array of more than 2 levels"),
    "nested length": (header(entry("z", ARRAY, array(ARRAY, 1, array(UINT8, HUGE, b"")))), f"claims {HUGE} elements"),
    "type": (header(entry("z", 77, b"")), "'z' is of type 77"),
    "element type": (header(entry("z", ARRAY, array(77, 3, b""))), "'z' is an array of type 77"),
    "architecture": (
        MAGIC + struct.pack("<QQ", 0, 1) + entry("general.architecture", STRING, string(b"\xff\xfe")),
        "'general.architecture' is not UTF-8",
    ),
    "name of a key": (header(entry(b"\xff\xfe", UINT8, b"\0")), "a key is not UTF-8"),
    "piece": (header(entry("z", ARRAY, array(STRING, 1, string(b"\xff")))), "'z': string 0 is not UTF-8"),
    "twice": (header(entry("z", UINT8, b"\0"), entry("z", UINT8, b"\0")), "the key 'z' is there twice"),
    "alignment": (header(entry("general.alignment", 4, b"\3\0\0\0")), "general.alignment is no power of two"),
    "dimensions": (one("a", [1] * 9), "the tensor 'a' has 9 dimensions"),
    "no elements": (one("a", [3, 0]), "the tensor 'a' has no elements"),
    "shape": (one("a", [1 << 62, 1 << 62]), "the tensor 'a' ends behind the end of the file"),
    "offset": (one("a", [1], offset=1 << 63), "the tensor 'a' ends behind the end of the file"),
    "type of a tensor": (one("a", [32], 99), "the tensor 'a' is of type 99"),
    "row": (one("a", [33], 2), "rows of 33 values, which is no multiple of 32"),
    "overlap": (
        header(num_tensors=2, tensors=tensor("a", [8]) + tensor("b", [8], offset=4)) + bytes(400),
        "the tensor 'b' begins inside the tensor 'a'",
    ),
}


@pytest.mark.parametrize("what", LIES)
def test_lies_are_refused(tmp_path, what):
    """Would catch a length that is believed: a loop or memory without end, or another error than the one to show."""
    data, message = LIES[what]
    file = tmp_path / "z.gguf"
    file.write_bytes(data)

    def refused() -> None:
        with pytest.raises(ModelError) as caught:
            GgufFile(file)
        assert str(file) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)

    assert least_s(refused) < MOST_S


def test_the_command_line_says_it_in_a_line(tmp_path, monkeypatch, capsys):
    """Would catch a run that hangs on a file of a kilobyte, or ends in a traceback."""
    monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "z.gguf"
    for what in ("array", "levels", "architecture"):
        file.write_bytes(LIES[what][0])
        assert cli.main(["run", "1+1", "--device", "cpu", "--model", str(file)]) == cli.EXIT_BAD_INPUT
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and str(file) in line and LIES[what][1] in line
    assert not (tmp_path / "cache").exists()


MEGABYTE = 1 << 20
LONG = {
    "numbers": header(entry("z", ARRAY, array(UINT8, MEGABYTE, os.urandom(MEGABYTE)))),
    "empty strings": header(entry("z", ARRAY, array(STRING, MEGABYTE // 8, bytes(MEGABYTE)))),
    "empty arrays": header(entry("z", ARRAY, array(ARRAY, MEGABYTE // 12, array(UINT8, 0, b"") * (MEGABYTE // 12)))),
    "keys": header(*(entry(f"{number:x}", UINT8, b"\0") for number in range(60_000))),
    "tensors": header(num_tensors=25_000, tensors=b"".join(tensor(f"{n:x}", [1], 24, n) for n in range(25_000)))
    + bytes(25_100),
}


@pytest.mark.parametrize("what", LONG)
def test_time_by_size(tmp_path, what):
    """Would catch an object for each element of an array of numbers, and time that grows with the square."""
    file = tmp_path / "long.gguf"
    file.write_bytes(LONG[what])
    assert least_s(lambda: GgufFile(file)) < MOST_S


def test_a_vocabulary_of_a_million(tmp_path):
    """Would catch a bound that refuses a model that may be, or strings that are cut in the wrong places."""
    num, kind = 1_000_000, 6
    pieces = [f"ä{number}" for number in range(num)]
    scores = np.arange(num, dtype="<f4")
    file = tmp_path / "large.gguf"
    data = header(
        entry("tokens", ARRAY, array(STRING, num, b"".join(map(string, pieces)))),
        entry("scores", ARRAY, array(kind, num, scores.tobytes())),
        entry("merges", ARRAY, array(STRING, num, b"".join(map(string, pieces)))),
        entry("flags", ARRAY, array(ARRAY, 2, array(7, 1, b"\1") + array(7, 2, b"\0\1"))),
    )
    file.write_bytes(data)
    fields = read_header(file).fields
    assert fields["tokens"] == pieces and np.array_equal(fields["scores"], scores)
    assert [flags.tolist() for flags in fields["flags"]] == [[True], [False, True]]


def test_elements_in_total(tmp_path, monkeypatch):
    """Would catch a bound on each array alone: a file can have thousands of them."""
    monkeypatch.setattr("selfspan_core.models.gguf_header.MOST_ELEMENTS", 10)
    file = tmp_path / "many.gguf"
    file.write_bytes(header(*(entry(f"z{number}", ARRAY, array(UINT8, 4, bytes(4))) for number in range(3))))
    with pytest.raises(WrongHeader, match="up to 'z2', its arrays have 12 elements; 10 may be"):
        read_header(file)
