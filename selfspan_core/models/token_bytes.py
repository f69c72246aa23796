"""The bytes that a tokenizer's ids stand for, where its text is made of them.

Two kinds of tokenizers are like that: byte-level ones (GPT-2's), whose pieces are bytes written as characters, and
those that fall back to bytes (Llama-2's), whose pieces are text, and beside them 256 that stand for a byte each.
"""

import re
from collections.abc import Mapping
from typing import Any

IdBytes = tuple[tuple[bytes, ...], frozenset[int]]
"""The bytes of every id; and the ids that stand for a byte, which is text only where a whole run of them is UTF-8."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


def id_bytes(decoder: Mapping[str, Any] | None, vocabulary: Mapping[str, int]) -> IdBytes | None:
    """The bytes of ids, if a text is these one behind the other, read as UTF-8; None where it is not.

    What is no UTF-8 becomes U+FFFD: of a run of ids for single bytes all of it, else the bytes that fit nowhere.

    Args:
        decoder: of a tokenizer's JSON.
        vocabulary: piece -> id, added ones included.
    """
    if decoder is None:
        return None
    if decoder["type"] == "ByteLevel":
        return _in_order({token: _of_byte_level(piece) for piece, token in vocabulary.items()}), frozenset()
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    types = [part["type"] for part in parts]
    if types[-2:] != ["ByteFallback", "Fuse"] or set(types[:-2]) - {"Replace"}:
        return None
    found: dict[int, bytes] = {}
    fallbacks = set()
    for piece, token in vocabulary.items():
        for part in parts[:-2]:
            if "String" not in part["pattern"]:
                return None
            piece = piece.replace(part["pattern"]["String"], part["content"])
        byte = _BYTE.fullmatch(piece)
        found[token] = piece.encode() if byte is None else bytes([int(byte[1], 16)])
        if byte is not None:
            fallbacks.add(token)
    return _in_order(found), frozenset(fallbacks)


def _in_order(by_id: Mapping[int, bytes]) -> tuple[bytes, ...]:
    return tuple(by_id.get(token, b"") for token in range(max(by_id) + 1))


def _byte_alphabet() -> dict[str, int]:
    """Characters for bytes: printable ones stand for themselves, those from U+0100 on for the others, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _of_byte_level(piece: str) -> bytes:
    """A piece with any other character is text as it is."""
    codes = [_ALPHABET.get(character, -1) for character in piece]
    return piece.encode() if -1 in codes else bytes(codes)
