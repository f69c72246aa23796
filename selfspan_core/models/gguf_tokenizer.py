"""The tokenizer of a GGUF file, as transformers would have it.

Pieces, scores and merges stand in the file; how text is cut before merging does not, only a name for it does
(`tokenizer.ggml.pre`). The rules by that name are those of llama.cpp (src/llama-vocab.cpp), whose ids the tests compare
with. No normalization: text has to come out as it went in.
"""

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from selfspan_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from selfspan_core.models.gguf_file import GgufFile

CONTROL, USER_DEFINED = 3, 4
"""Types of pieces: never part of a text, and never cut."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
# Name in the file -> expressions by which text is cut, one after the other.
CUTS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
}
WHOLE_PIECES_FIRST = ("llama-bpe", "llama3", "llama-v3")
"""A text that is a piece is taken as it is, whatever its merges."""


def tokenizer_of(file: "GgufFile") -> "PreTrainedTokenizerFast":
    """The file's tokenizer.

    Raises:
        ModelError: of a kind that is not supported, or incomplete.
    """
    from transformers import PreTrainedTokenizerFast

    pieces = _strings(file, "tokenizer.ggml.tokens")
    types = file.field("tokenizer.ggml.token_type", list, [1] * len(pieces))
    if len(types) != len(pieces):
        raise ModelError(f"{file.path}: its tokenizer has {len(pieces)} pieces and {len(types)} types of pieces")
    kind = file.field("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer = _byte_level(file, pieces)
    elif kind == "llama":
        tokenizer = _sentencepiece(file, pieces)
    else:
        raise ModelError(f"{file.path}: tokenizers of type {kind[:40]!r} are not supported; gpt2 and llama are")
    added = [
        AddedToken(piece, special=of_type == CONTROL, normalized=False)
        for piece, of_type in zip(pieces, types, strict=True)
        if of_type in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named(file, pieces))


def _strings(file: "GgufFile", key: str) -> list[str]:
    found = file.field(key, list)
    if not all(isinstance(one, str) for one in found):
        raise ModelError(f"{file.path}: its {key} are no strings")
    return found


def _named(file: "GgufFile", pieces: list[str]) -> dict[str, str]:
    """The special tokens by transformers' names; a file that puts no `<bos>` before a text has none."""
    adds_bos = file.field("tokenizer.ggml.add_bos_token", bool, file.field("tokenizer.ggml.model", str) == "llama")
    names = {"eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    names |= {"bos_token": "bos_token_id"} if adds_bos else {}
    found: dict[str, str] = {}
    for name, key in names.items():
        index = file.field(f"tokenizer.ggml.{key}", int, -1)
        if 0 <= index < len(pieces):
            found[name] = pieces[index]
    return found


def _byte_level(file: "GgufFile", pieces: list[str]) -> Tokenizer:
    cut = file.field("tokenizer.ggml.pre", str, "missing")
    if cut not in CUTS:
        known = ", ".join(CUTS)
        raise ModelError(f"{file.path}: the way {cut[:40]!r} to cut text for its tokenizer is not known; {known} are")
    merges = [tuple(merge.split(" ", 1)) for merge in _strings(file, "tokenizer.ggml.merges")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(_merging(file, vocabulary, _pairs(file, merges), ignore_merges=cut in WHOLE_PIECES_FIRST))
    cuts: list[Any] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in CUTS[cut]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merging(
    file: "GgufFile", vocabulary: dict[str, int], merges: list[tuple[str, str]], **settings: Any
) -> models.BPE:
    try:
        return models.BPE(vocabulary, merges, **settings)
    except Exception as error:  # the library has no type of its own
        raise ModelError(f"{file.path}: its tokenizer cannot be used: {error}") from error


def _pairs(file: "GgufFile", merges: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    if len(pairs) != len(merges):
        raise ModelError(f"{file.path}: a merge of its tokenizer is no pair")
    return pairs


def _sentencepiece(file: "GgufFile", pieces: list[str]) -> Tokenizer:
    """Pieces with scores: the pair that makes the piece of the highest score is merged first."""
    from transformers.convert_slow_tokenizer import generate_merges

    scores = file.field("tokenizer.ggml.scores", list)
    if len(scores) != len(pieces):
        raise ModelError(f"{file.path}: its tokenizer has {len(pieces)} pieces and {len(scores)} scores")
    if not all(isinstance(score, int | float) for score in scores):
        raise ModelError(f"{file.path}: the scores of its tokenizer are no numbers")
    index = file.field("tokenizer.ggml.unknown_token_id", int, 0)
    if not 0 <= index < len(pieces):
        raise ModelError(f"{file.path}: its tokenizer has {len(pieces)} pieces, and {index} is none of them")
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, dict(zip(pieces, scores, strict=True)))
    settings = {"unk_token": pieces[index], "fuse_unk": True, "byte_fallback": True}
    tokenizer = Tokenizer(_merging(file, vocabulary, merges, **settings))
    in_front = file.field("tokenizer.ggml.add_space_prefix", bool, True)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend("▁")] if in_front else []), *spaces])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if in_front else [])])
    return tokenizer
