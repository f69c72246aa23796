"""The encoding of a text that comes as bytes: UTF-8, UTF-16 or UTF-32; else cp1252, if it looks like that."""

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UTF8_SEQUENCE = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# What English in Mac Roman or a Central European encoding becomes: "ItÕs", "ÒIt", "jaŸñ", "lu»ou", "¯ó³".
_OTHER_LETTERS = re.compile(r"[a-zß-ÿ][À-ÖØ-ÞŠŽŒŸ]|[À-ÖØ-Þ][A-Z][a-z]|[a-zß-ÿ][¡-©«¬®-¶¸¹»-¿×÷•†‡ˆ‰][A-Za-zß-ÿ]")
SIGNS = frozenset(b"\x96\x97\xa0\xb7\xd7\xf7")
"""Dashes, a space, and signs of multiplication and division in cp1252."""
MAX_HIGH_SHARE = 0.15
"""Of the bytes of an English text in cp1252 that are not ASCII."""
MIN_ZERO_SHARE = 0.3
"""Of zeros among every second byte of English in UTF-16; nearly all of them are."""


class UnknownEncoding(ValueError):
    """The bytes are no text in an encoding that is read; the message names what was found."""


def decoded(data: bytes) -> tuple[str, str]:
    """The text of some bytes, and the name of its encoding: "utf-8", "utf-16-le" and so on, or "cp1252".

    Raises:
        UnknownEncoding: they are no such text, or damaged.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding), encoding
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = data[start::2]
        if len(data) % 2 == 0 and half.count(0) > max(1, MIN_ZERO_SHARE * len(half)) and 0 not in data[1 - start :: 2]:
            return _decoded(data, encoding), encoding
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError as error:
        if not _is_western(data):
            raise UnknownEncoding(f"neither UTF-8 nor cp1252 text (byte {error.start + 1})") from None
        return data.decode("cp1252"), "cp1252"


def decoded_line(line: bytes) -> tuple[str, str]:
    """As `decoded`, of a line of an expression: too short to tell an encoding by its letters, but with few signs.

    Raises:
        UnicodeDecodeError: it is not UTF-8, and has something else than signs of calculation in cp1252.
    """
    try:
        return line.decode(), "utf-8"
    except UnicodeDecodeError:
        if {byte for byte in line if byte >= 0x80} - SIGNS:
            raise
        return line.decode("cp1252"), "cp1252"


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnknownEncoding(f"not {encoding.upper()} text, as its beginning says (byte {error.start + 1})") from None


def _is_western(data: bytes) -> bool:
    """Whether bytes look like English in cp1252: few beyond ASCII, all of them characters, and no UTF-8 among them."""
    num_high = sum(byte >= 0x80 for byte in data)
    if num_high > MAX_HIGH_SHARE * len(data) or _NO_TEXT.search(data) or _UTF8_SEQUENCE.search(data):
        return False
    return not set(data) & {0x81, 0x8D, 0x8F, 0x90, 0x9D} and not _OTHER_LETTERS.search(data.decode("cp1252"))
