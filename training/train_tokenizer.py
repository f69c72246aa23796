"""Train the base model's tokenizer and convert it so that transformers loads it.

    python -m training.train_tokenizer --text DIR [--pairs DIR] --out assets/base

The text is the user's: `--text` is a folder of `*.jsonl.xz` files, one JSON object with a `text` (and perhaps a
`title`) per line; `--pairs` one with `article` and `summary`. Nothing is downloaded, and whether the text may be used
is between the user and whoever owns it.

A SentencePiece BPE of 8192 pieces: `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3, the markers (4 to 263) as control
pieces, the newline and the characters of arithmetic as pieces of their own, 256 byte pieces, then what is learned.
Digits never join. Documents are sampled by a hash of their id, so the same folder always gives the same tokenizer.

Three files are written: `tokenizer.model` (SentencePiece's own, the specification that the tests compare with),
`tokenizer.json` and `tokenizer_config.json` (the same vocabulary for transformers). The conversion differs from
SentencePiece in one deliberate way: a space is a space and not U+2581, so that a text with U+2581 in it survives.
"""

import argparse
import hashlib
import io
import json
import lzma
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from selfspan_core.spans.protocol import MARKER_PIECES

VOCAB_SIZE = 8192
CONTEXT = 4096
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
OWN_PIECES = ("\n", *"+-*/()=;:")
REQUIRED_CHARS = "".join(c for c in map(chr, range(33, 127)) if c not in OWN_PIECES) + "“”‘’–—…•£€¥°éèüöäñçáíóú×÷−"
SPACE = "\u2581"  # SentencePiece's symbol for a space

# Where words are cut before pieces are merged. No learned piece crosses such a cut (`check_cuts` makes sure), so it
# changes nothing but speed: words repeat, and the tokenizer caches them.
CUTS = r" ?[\p{L}\p{M}]+| ?[^ \n\p{L}\p{M}\p{N}+\-*/()=;:]+"


def sampled(key: str, fraction: float, salt: str) -> bool:
    """Whether the document with this key is in the sample; always the same answer for the same key and salt."""
    digest = hashlib.blake2b(f"{salt}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def sample_lines(folders: list[Path], fraction: float, seed: int) -> Iterator[str]:
    """Lines of the sampled documents: title, text, article and summary, whichever a document has."""
    files = [file for folder in folders for file in sorted(folder.glob("*.jsonl.xz")) if is_for_training(file)]
    if not files:
        raise FileNotFoundError(f"no *.jsonl.xz files in {', '.join(map(str, folders))}")
    num_bytes, start = 0, time.perf_counter()
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                if not sampled(str(document["id"]), fraction, f"tokenizer-{seed}"):
                    continue
                for key in ("title", "text", "article", "summary"):
                    for text in (document.get(key) or "").split("\n"):
                        num_bytes += len(text.encode("utf-8"))
                        yield text
        print(f"{file.name}: sample now {num_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s", flush=True)


def is_for_training(file: Path) -> bool:
    """Files named dev_* or test_* are kept out of everything that is trained."""
    return not file.name.startswith(("dev_", "test_"))


def train(lines: Iterator[str], vocab_size: int = VOCAB_SIZE) -> bytes:
    """Train on an iterator of lines; returns the serialized SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=PAD,
        bos_piece=BOS,
        eos_piece=EOS,
        unk_piece=UNK,
        control_symbols=list(MARKER_PIECES),
        user_defined_symbols=list(OWN_PIECES),
        required_chars=REQUIRED_CHARS,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        character_coverage=0.9998,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=1,
    )
    return model.getvalue()


def convert(model: bytes) -> Tokenizer:
    """The same vocabulary and merges as a `tokenizers.Tokenizer`, with the control pieces as special tokens."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i).replace(SPACE, " ") for i in range(processor.vocab_size())]
    learned = [i for i in range(len(pieces)) if not processor.is_control(i) and not processor.is_byte(i)]
    learned = [i for i in learned if not processor.is_unknown(i) and pieces[i] not in OWN_PIECES]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges_of([pieces[i] for i in learned], [processor.get_score(i) for i in learned]),
            unk_token=UNK,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(CUTS), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    check_cuts(tokenizer, [pieces[i] for i in learned])
    special = [piece for i, piece in enumerate(pieces) if processor.is_control(i) or processor.is_unknown(i)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    if tokenizer.get_vocab_size() != len(pieces):
        raise ValueError("a control piece was added a second time")
    return tokenizer


def merges_of(pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a piece out of two others, best piece first: SentencePiece merges by the result's score."""
    known = set(pieces)
    merges = []
    for piece, _ in sorted(zip(pieces, scores, strict=True), key=lambda pair: -pair[1]):
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [split for split in splits if split[0] in known and split[1] in known]
    return merges


def check_cuts(tokenizer: Tokenizer, pieces: list[str]) -> None:
    """Make sure that cutting text by `CUTS` first can change no result.

    Raises:
        ValueError: a learned piece crosses a cut.
    """
    for piece in pieces:
        if len(piece) > 1 and len(tokenizer.pre_tokenizer.pre_tokenize_str(piece)) > 1:
            raise ValueError(f"the piece {piece!r} crosses a cut; change CUTS")


def write(model: bytes, out: Path) -> Tokenizer:
    """Write the three files into `out` and return the converted tokenizer."""
    tokenizer = convert(model)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="folder of *.jsonl.xz files with id, title, text")
    parser.add_argument("--pairs", type=Path, help="folder of *.jsonl.xz files with id, article, summary")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer's files")
    parser.add_argument("--fraction", type=float, default=0.25, help="share of the documents to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    folders = [args.text] + ([args.pairs] if args.pairs else [])
    tokenizer = write(train(sample_lines(folders, args.fraction, args.seed)), args.out)
    print(f"{tokenizer.get_vocab_size()} pieces in {args.out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
