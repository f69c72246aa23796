"""The tokenizer: pinned ids, SentencePiece as its specification, and no way to type a marker."""

import functools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from selfspan_core.models.tokenizer import SpanTokenizer, TextCodec
from selfspan_core.spans.protocol import ANCHORS, MARKER_PIECES
from tests.support.paths import SHIPPED
from tests.support.slow import examples
from training import train_tokenizer

# Text → ids of the shipped tokenizer. The shipped model is worthless with any other ids.
GOLDEN = {
    "Calculate: ": [6267, 3063, 633, 273, 8033],
    "79*36+63=": [8097, 8080, 267, 8091, 8096, 265, 8096, 8091, 271],
    "-5*(3-(-12))/7;": [266, 8089, 267, 269, 8091, 266, 269, 266, 8065, 8074, 270, 270, 268, 8097, 272],
    "\n84/12=7": [264, 8090, 8094, 268, 8065, 8074, 271, 8097],
    "The president’s 1,204 votes.": [693, 958, 8082, 8040, 8033, 8065, 8054, 8074, 8064, 8094, 2936, 8055],
    " a  b\n\n ▁ 😀": [532, 8033, 552, 264, 264, 8033, 500, 424, 403, 8033, 514, 433, 426, 402],
    "<|ref|>": [8156, 8120, 535, 8049, 8120, 8134],
}
TYPED = [*MARKER_PIECES[:6], ANCHORS[255], "<bos>", "<eos>", "</s>", "<s>", "<pad>", "<unk>", "<0x41>", "<0xE2>"]
TYPED += ["<|a0|><|a1|>", "x<|end|>y", "< | ref | >", "<|endoftext|>", "<|begin_of_text|>", "\u2581", "\ufeffx", "\x00"]


@functools.cache
def loaded() -> SpanTokenizer:
    """The shipped tokenizer, loaded once; hypothesis takes no fixtures."""
    return SpanTokenizer.load(SHIPPED)


@pytest.fixture
def base() -> SpanTokenizer:
    return loaded()


def forbidden(tokenizer: SpanTokenizer) -> set:
    return {tokenizer.markers.bos, tokenizer.markers.eos, tokenizer.pad_id, *tokenizer.markers.ids}


def random_texts(count: int, seed: int) -> list[str]:
    """Fragments that are hard on a tokenizer, in random order, and random characters of all planes."""
    rng = random.Random(seed)
    parts = ["The", " quick", " brown fox", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "....", "!!!", "?!"]
    parts += [
        '"',
        "'s",
        "é",
        "e\u0301",
        "中文",
        "日本語",
        "한국어",
        "مرحبا",
        "नमस्ते",
        "😀",
        "👩‍👩‍👧",
        "🇬🇧",
        "\u200b",
        "½",
        "²",
        "٣",
    ]
    parts += [
        "0",
        "7",
        "42",
        "1,000.5",
        *"+-*/()=;:",
        "U.S.",
        "http://a.b/c_d?e=f",
        "don’t",
        "“",
        ".”",
        "aaaa",
        "zzz",
        "—",
    ]
    parts += [typed for typed in TYPED if typed != "\u2581"]
    texts = ["".join(rng.choices(parts, k=rng.randint(1, 15))) for _ in range(count)]
    planes = [(32, 127), (32, 127), (160, 0x250), (0x370, 0x2580), (0x2600, 0xD800), (0xE000, 0x20000)]
    for _ in range(count):
        texts.append("".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randint(1, 25))))
    return texts


def test_golden_ids(base):
    """Catches any change of the vocabulary or of the segmentation, against which the shipped weights were trained."""
    for text, ids in GOLDEN.items():
        assert base.encode(text) == ids, text
        assert base.decode(ids) == text


def test_places_of_special_ids(base):
    """Catches markers at other ids than the ones that base and adapters were trained with."""
    markers = base.markers
    assert (base.vocab_size, base.num_added, base.pad_id) == (8192, 0, 0)
    assert (markers.bos, markers.eos, markers.ref, markers.go, markers.res, markers.end) == (1, 2, 4, 5, 6, 7)
    assert markers.anchors == tuple(range(8, 264))
    assert base.hf.convert_ids_to_tokens(list(markers.ids)) == list(MARKER_PIECES)
    assert base.hf.unk_token_id == 3


def test_arithmetic_is_one_id_per_character(base):
    """Catches digits or operators that merge: the model would see 79 as one symbol here and as two there."""
    text = "-79*(36+63)/(-5)-0=2844;1"
    assert [base.piece(token) for token in base.encode(text)] == list(text)
    assert base.encode(text) == [token for character in text for token in base.encode(character)]


def test_same_ids_as_sentencepiece(base):
    """Catches a conversion that merges in another order than the SentencePiece model that was trained."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED / "tokenizer.model"))
    texts = random_texts(4000, seed=1)
    assert base.encode_batch(texts) == processor.encode(texts)
    assert [processor.id_to_piece(i) for i in range(264)] == base.hf.convert_ids_to_tokens(list(range(264)))


def test_round_trip_and_no_marker_whatever_the_text(base):
    """Catches typed markers that become markers, byte pieces read as bytes, and spaces lost at either end."""
    texts = [*random_texts(2000, seed=2), *TYPED, *(a + b for a in TYPED for b in TYPED), "", " ", " x ", "▁ ▁"]
    for text, ids in zip(texts, base.encode_batch(texts), strict=True):
        assert base.decode(ids) == text
        assert forbidden(base).isdisjoint(ids), text


@settings(max_examples=examples(120, 300), deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from(TYPED)), max_size=6).map("".join))
def test_round_trip_property(text):
    """Catches a character somewhere in Unicode that does not come back."""
    tokenizer = loaded()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert forbidden(tokenizer).isdisjoint(ids)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_plain_transformers_call_does_not_match_markers_either(base):
    """Catches a tokenizer_config that lets hub users' typed text become markers."""
    ids = base.hf("<|ref|> <bos>").input_ids
    assert ids == base.encode("<|ref|> <bos>")


def test_decode_drops_markers_and_survives_cut_characters(base):
    """Catches markers leaking into shown text, and a stream that breaks inside a four-byte character."""
    markers = base.markers
    ids = [
        markers.bos,
        markers.anchors[3],
        *base.encode(" 7"),
        markers.res,
        *base.encode("8"),
        markers.end,
        markers.eos,
    ]
    assert base.decode(ids) == " 78"
    smile = base.encode("a😀")
    assert base.decode(smile[:-1]).startswith("a\ufffd")
    assert base.decode([]) == ""
    assert base.decode([markers.eos, base.vocab_size + 5]) == ""


def test_half_a_surrogate_pair_is_not_fatal(base):
    """Catches a crash on what a browser can send and Python cannot encode."""
    assert base.decode(base.encode("a\ud83d b")) == "a\ufffd b"
    assert base.decode(base.encode("\ud83d\ude00")) == "😀"


def test_marker_kinds_and_pieces(base):
    """Catches chips in the app that show the wrong marker."""
    markers = base.markers
    named = [markers.ref, markers.go, markers.res, markers.end, markers.anchors[7], markers.eos, base.encode("7")[0]]
    assert [base.marker_kind(token) for token in named] == ["ref", "go", "res", "end", "anchor", None, None]
    assert [base.piece(token) for token in named[3:]] == ["<|end|>", "<|a7|>", "<eos>", "7"]


def test_codec_in_another_process(base):
    """Catches a codec that forgets, once written out, that typed markers are text."""
    codec = TextCodec(base.codec.to_json())
    assert [codec.encode(text) for text in TYPED] == [base.encode(text) for text in TYPED]


def test_missing_folder_is_named(tmp_path):
    """Catches a mistyped path that is looked up on the network instead."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SpanTokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SpanTokenizer.load(str(tmp_path / "nowhere"))


# Tokenizers of other families, trained here on a few words.

WORDS = ["the quick brown fox jumps over 12 lazy dogs, twice: 79*36+63=2907\n"] * 20


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[])
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer


def llama3_like() -> tuple[Tokenizer, dict]:
    tokenizer = byte_level(["<|begin_of_text|>", "<|end_of_text|>"])
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer, {"bos_token": bos[0], "eos_token": "<|end_of_text|>"}


def qwen_like() -> tuple[Tokenizer, dict]:
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>"])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def llama2_like() -> tuple[Tokenizer, dict]:
    """With byte pieces and a space put before every text, the way Llama 2 and early Mistral do it."""
    special = ["<unk>", "<s>", "</s>"]
    letters = sorted(set("".join(WORDS).replace(" ", "▁") + "▁"))
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def save(folder: Path, tokenizer: Tokenizer, config: dict) -> Path:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", [llama3_like, qwen_like, llama2_like])
def test_other_families_get_the_markers(family, tmp_path):
    """Catches typed markers matched as special tokens, added beginnings, and lost spaces with hub tokenizers."""
    tokenizer = SpanTokenizer.load(save(tmp_path / "hub", *family()))
    assert tokenizer.num_added == len(MARKER_PIECES)
    assert (tokenizer.markers.bos is None) == (family is qwen_like)
    assert max(tokenizer.markers.ids) < tokenizer.vocab_size == len(tokenizer.hf)
    not_normal = {"e\u0301", "\u2581"}  # what NFC and Llama 2 themselves change
    texts = [text for text in TYPED + random_texts(300, seed=3) if not any(part in text for part in not_normal)]
    if family is qwen_like:
        texts = [text for text in texts if normalizers.NFC().normalize_str(text) == text]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert forbidden(tokenizer).isdisjoint(ids), text
        assert "".join(map(tokenizer.decode, map(tokenizer.encode, [text, " the", "the"]))) == text + " thethe"
    assert [tokenizer.marker_kind(token) for token in tokenizer.markers.ids[3:5]] == ["end", "anchor"]


def test_markers_are_added_once(tmp_path):
    """Catches a saved hub tokenizer that grows by another 260 ids each time it is loaded."""
    first = SpanTokenizer.load(save(tmp_path / "hub", *llama3_like()))
    first.hf.save_pretrained(tmp_path / "saved")
    second = SpanTokenizer.load(tmp_path / "saved")
    assert (second.num_added, second.vocab_size, second.markers) == (0, first.vocab_size, first.markers)
    assert second.encode("<|a3|> the fox") == first.encode("<|a3|> the fox")


def test_unusable_tokenizers_are_refused(tmp_path):
    """Catches a tokenizer without an end, or with a marker as its end, failing only in the middle of training."""
    tokenizer, config = llama3_like()
    with pytest.raises(ValueError, match="end-of-sequence"):
        SpanTokenizer.load(save(tmp_path / "endless", tokenizer, {"bos_token": config["bos_token"]}))
    tokenizer.add_special_tokens(["<|end|>"])
    with pytest.raises(ValueError, match="marker's name"):
        SpanTokenizer.load(save(tmp_path / "clash", tokenizer, config | {"eos_token": "<|end|>"}))


def lines(seed: int) -> list[str]:
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=12)) + f". It’s {rng.randint(0, 999)}-fold!" for _ in range(500)]


def test_training_is_deterministic_and_converts(tmp_path):
    """Catches a tokenizer that cannot be reproduced, or one whose conversion differs from it."""
    models_ = [train_tokenizer.train(iter(lines(0)), vocab_size=900) for _ in range(2)]
    assert models_[0] == models_[1]
    train_tokenizer.write(models_[0], tmp_path)
    tokenizer = SpanTokenizer.load(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=models_[0])
    texts = [*lines(1)[:50], *random_texts(300, seed=4)]
    assert tokenizer.encode_batch(texts) == processor.encode(texts)
    assert tokenizer.vocab_size == 900


def test_a_piece_across_a_cut_is_refused():
    """Catches a cut that would keep a learned piece from ever being used."""
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    with pytest.raises(ValueError, match="crosses a cut"):
        train_tokenizer.check_cuts(tokenizer, ["the", "the cat"])
