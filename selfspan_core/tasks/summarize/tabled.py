"""A summary's rules as tables, for steps that keep them on the device; see `engine.device_rules`. No torch here.

Only the form *shorten*, whose bodies hold any words. Which segments repeat four words of a summary is decided on text:
the device reads the bytes of a body's ids, cuts them into words as `own_words` does, and compares them with the words
of the article's segments, letter by letter. Two characters are the same letter if one is the other made small. That is
what `str.lower` says of every letter but the capital sigma, which becomes another small letter at the end of a word: an
article with a sigma in it stays with the host. A summary's sigma then stands in no word of the article.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from selfspan_core.engine.device_rules import (
    BYTE,
    CLOSES,
    CODE_BITS,
    ENDS,
    JOINT,
    LETTER,
    NUM_CHARACTERS,
    UNFIT,
    IdTables,
)
from selfspan_core.tasks.base import Tokenizer
from selfspan_core.tasks.summarize.own_words import found_words

SIGMAS = frozenset("Σσς")
_JOINTS = {"-": "-", "'": "'", "’": "'", ".": "."}


@functools.cache
def characters() -> np.ndarray:
    """`IdTables.characters`: letters, digits and underscores made small, and the marks that join them."""
    table = np.zeros(NUM_CHARACTERS, dtype=np.int32)
    for code in range(NUM_CHARACTERS):
        character = chr(code)
        if character.isalnum() or character == "_":
            small = character.lower()
            # One capital letter has two small characters, of which the second stands in no other word.
            is_one = len(small) == 1 and character not in SIGMAS
            table[code] = LETTER | (ord(small) if is_one else code)
    for joint, code_of in _JOINTS.items():
        table[ord(joint)] = JOINT | ord(code_of)
    table.setflags(write=False)
    return table


def id_tables(
    tokenizer: Tokenizer, ends: frozenset[int], closes: frozenset[int], unfit: Sequence[int]
) -> IdTables | None:
    """A tokenizer's tables; None if its text is not the bytes of its ids one behind the other."""
    found = tokenizer.id_bytes()
    if found is None:
        return None
    pieces, bytes_alone = found
    classes = np.zeros(len(pieces), dtype=np.uint8)
    for ids, bit in ((ends, ENDS), (closes, CLOSES), (unfit, UNFIT), (bytes_alone, BYTE)):
        classes[list(ids)] |= bit
    starts = np.zeros(len(pieces) + 1, dtype=np.int32)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    return IdTables(classes, np.frombuffer(b"".join(pieces), dtype=np.uint8), starts, characters())


def words_by_name(texts: Mapping[int, str]) -> dict[int, list[tuple[int, ...]]] | None:
    """Of the text of every segment, its words as codes; None of a text with a sigma."""
    if any(not SIGMAS.isdisjoint(text) for text in texts.values()):
        return None
    codes = characters()
    of_word = functools.cache(lambda word: tuple(int(codes[ord(c)]) & CODE_BITS for c in word))
    return {name: [of_word(word) for word in found_words(text)] for name, text in texts.items()}
