"""Token shards and copy tasks, from a small folder of text made up on the spot."""

import json
import lzma
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.clock import least_s
from tests.support.paths import SHIPPED
from training import text_data
from training.data import copying as copy_data
from training.data.copying import CopyMaker, copy_examples
from training.text_data import MAX_TOKENS, TextShards

NUM_DOCUMENTS = 900
HELDOUT = 0.05
WORDS = "the house river stone people said that walked under bridge with a green old story about it"


def prose(rng: random.Random, num_sentences: int) -> str:
    words = WORDS.split()
    sentences = []
    for _ in range(num_sentences):
        sentence = " ".join(rng.choices(words, k=rng.randint(4, 12))).capitalize() + rng.choice(".?!")
        sentences.append(sentence + rng.choice([" ", " ", "\n"]))
    return "".join(sentences).strip()


def write_jsonl(file: Path, documents: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(file, "wt", encoding="utf-8", preset=0) as stream:
        stream.writelines(json.dumps(document) + "\n" for document in documents)


@pytest.fixture(scope="module")
def tokenizer() -> SpanTokenizer:
    return SpanTokenizer.load(SHIPPED)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A text folder of three sources, a pairs folder, and the shards of both."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    documents = [
        {"id": f"d{i}", "title": f"Title {i}", "text": prose(rng, rng.randint(1, 40))} for i in range(NUM_DOCUMENTS)
    ]
    documents[0]["text"] = "A text with <|ref|>, <bos> and \ud83d in it; \u2581 too."
    documents[1]["title"] = None
    write_jsonl(folder / "text" / "wikipedia-0.jsonl.xz", documents[:300])
    write_jsonl(folder / "text" / "wikipedia-1.jsonl.xz", documents[300:600])
    write_jsonl(folder / "text" / "news-0.jsonl.xz", documents[600:])
    pairs = [
        {"id": f"p{i}", "article": prose(rng, 20), "summary": f"Summary {i}.", "event": f"e{i // 3}"} for i in range(60)
    ]
    write_jsonl(folder / "pairs" / "train_some.jsonl.xz", pairs)
    write_jsonl(folder / "pairs" / "test_some.jsonl.xz", [{"id": "t", "article": "TESTARTICLE", "summary": "x"}])
    shards = folder / "shards"
    meta = text_data.run(folder / "text", folder / "pairs", str(SHIPPED), shards, workers=1, heldout_share=HELDOUT)
    return {"folder": folder, "documents": documents, "shards": shards, "meta": meta}


def expected(document: dict) -> str:
    text = document["text"].replace("\ud83d", "\ufffd")
    return f"{document['title']}\n{text}" if document["title"] else text


def all_texts(made, tokenizer, source: str) -> dict[str, list[str]]:
    result = {}
    for split in text_data.SPLITS:
        shards = TextShards(made["shards"], source, split)
        result[split] = [tokenizer.decode(shards.document(i).tolist()) for i in range(len(shards))]
    return result


def test_documents_come_back_as_text(made, tokenizer):
    """Catches lost, repeated or mangled documents, and splits that overlap."""
    texts = all_texts(made, tokenizer, "wikipedia")
    assert sorted(texts["train"] + texts["heldout"]) == sorted(map(expected, made["documents"][:600]))
    assert 10 < len(texts["heldout"]) < 60
    shards = TextShards(made["shards"], "wikipedia")
    assert shards.tokens.dtype == np.uint16
    assert shards.num_tokens == sum(len(shards.document(i)) for i in range(len(shards)))
    first = shards.document(0)
    assert (first[0], first[-1]) == (tokenizer.markers.bos, tokenizer.markers.eos)
    assert set(tokenizer.markers.ids).isdisjoint(np.unique(shards.tokens).tolist())
    with pytest.raises(IndexError):
        shards.document(len(shards))


def test_news_titles_stand_at_the_end_of_about_half(made, tokenizer):
    """Catches titles that are lost or always on the same side: at the end they teach a one-line summary."""
    texts = [text for split in all_texts(made, tokenizer, "news").values() for text in split]
    at_end = [text for text in texts if text_data.TITLE_CUE in text]
    assert 100 < len(at_end) < 200
    assert all("\n" not in text.split(text_data.TITLE_CUE)[1] for text in at_end)


def test_summaries_keep_events_together_and_leave_test_files_alone(made, tokenizer):
    """Catches training on test articles, and a held-out summary that was seen with another article."""
    texts = all_texts(made, tokenizer, text_data.SUMMARIES)
    assert not any("TESTARTICLE" in text for split in texts.values() for text in split)
    assert len(texts["train"]) + len(texts["heldout"]) == 60
    sides = {split: {int(t.split("Summary: Summary ")[1][:-1]) // 3 for t in some} for split, some in texts.items()}
    assert sides["train"].isdisjoint(sides["heldout"])


def test_same_shards_from_any_number_of_processes(made, tmp_path, monkeypatch):
    """Catches an order of documents that depends on which process is done first."""
    monkeypatch.setattr(text_data, "CHUNK_BYTES", 20_000)
    folders = made["folder"] / "text", made["folder"] / "pairs"
    meta = text_data.run(*folders, str(SHIPPED), tmp_path / "out", workers=2, heldout_share=HELDOUT)
    assert meta == made["meta"]
    for file in made["shards"].iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("length", [0, 1, MAX_TOKENS - 2, MAX_TOKENS - 1, MAX_TOKENS, 3 * MAX_TOKENS + 17])
def test_long_documents_are_cut_without_loss(length):
    """Catches pieces beyond the context, tokens lost at a cut, and an end where a text goes on."""
    body = (np.arange(length) % 500 + 300).astype(np.uint16)
    pieces = text_data.pieces_of(body, body[:0], [1], 2, "wikipedia")
    assert all(len(piece) <= MAX_TOKENS and piece[0] == 1 and piece.dtype == np.uint16 for piece in pieces)
    assert [piece[-1] == 2 for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert np.array_equal(np.concatenate([piece[1:] for piece in pieces])[:-1], body)


def test_a_long_article_loses_its_end_and_not_its_summary():
    """Catches articles whose summary is cut away: that would teach the opposite of summarizing."""
    body, ending = np.full(9000, 700, np.uint16), np.arange(300, 340, dtype=np.uint16)
    (piece,) = text_data.pieces_of(body, ending, [1], 2, text_data.SUMMARIES)
    assert len(piece) == MAX_TOKENS
    assert np.array_equal(piece[-41:-1], ending)


def test_stream_is_endless_shuffled_and_shared_out(made):
    """Catches workers that read the same documents, and epochs that leave some out or come in one order."""
    shards = TextShards(made["shards"], "wikipedia")
    n = len(shards)
    shares = [list(islice(shards.indices(5, worker, 3), n)) for worker in range(3)]
    sizes = [len(range(worker, n, 3)) for worker in range(3)]
    epoch = [i for share, size in zip(shares, sizes, strict=True) for i in share[:size]]
    assert sorted(epoch) == list(range(n))
    first, second = shares[0][: sizes[0]], shares[0][sizes[0] : 2 * sizes[0]]
    assert first != sorted(first) and set(first) != set(second)
    assert shares[0] == list(islice(shards.indices(5, 0, 3), n))
    assert shares[0] != list(islice(shards.indices(6, 0, 3), n))
    assert np.array_equal(next(shards.stream(5, 0, 3)), shards.document(first[0]))


def test_what_is_missing_is_named(made, tmp_path, tokenizer):
    """Catches errors that do not say what is wrong with the user's own text."""
    with pytest.raises(FileNotFoundError, match="no token shards"):
        TextShards(tmp_path, "wikipedia")
    with pytest.raises(FileNotFoundError, match="no token shards"):
        next(copy_examples(tmp_path, tokenizer, 0))
    with pytest.raises(ValueError, match="sources: news, summaries, wikipedia"):
        TextShards(made["shards"], "poems")
    with pytest.raises(ValueError, match="'dev'"):
        TextShards(made["shards"], "news", "dev")
    with pytest.raises(ValueError, match="worker 3 of 3"):
        next(TextShards(made["shards"], "news").stream(0, 3, 3))
    with pytest.raises(FileNotFoundError, match=r"no \*.jsonl.xz"):
        text_data.source_files(tmp_path, None)
    with pytest.raises(ValueError, match="has no 'text'"):
        text_data.document_of(b'{"id": 1}', "wikipedia")
    with pytest.raises(ValueError, match="no source"):
        next(copy_examples(made["shards"], tokenizer, 0, 0, 10_000))


def test_a_bad_document_stops_the_run(tmp_path, monkeypatch):
    """Catches a run that hangs, or goes on without saying so, when one document has no text."""
    monkeypatch.setattr(text_data, "CHUNK_BYTES", 200)
    documents = [{"id": 0, "title": "No text"}] + [{"id": i, "text": "Some words. " * 20} for i in range(1, 200)]
    write_jsonl(tmp_path / "mine-0.jsonl.xz", documents)
    with pytest.raises(ValueError, match="source 'mine' has no 'text'"):
        text_data.run(tmp_path, None, str(SHIPPED), tmp_path / "out", workers=1)


# Copy tasks.


def examples(made, tokenizer, count: int, **options) -> list[copy_data.CopyExample]:
    return list(islice(copy_examples(made["shards"], tokenizer, **({"seed": 3} | options)), count))


def parse(example, tokenizer) -> tuple[dict[int, list[int]], list[tuple[list[int], list[int]]]]:
    """Segments of the passage by name, and (request, answer) pairs, read off the ids alone."""
    newline, colon = tokenizer.encode("\n")[0], tokenizer.encode(":")[0]
    ids, names = example.ids.tolist(), tokenizer.markers.anchor_index
    assert (ids[0], ids[-1]) == (tokenizer.markers.bos, tokenizer.markers.eos)
    passage_end = ids.index(newline)
    at = [i for i in range(passage_end) if ids[i] in names]
    segments = {ids[i]: ids[i + 1 : j] for i, j in zip(at, [*at[1:], passage_end], strict=True)}
    assert len(segments) == len(at)
    requests, start = [], passage_end
    for first, end in example.answers:
        assert ids[start] == newline and ids[first - 1] == colon
        assert ids[end - 1] == (tokenizer.markers.eos if end == len(ids) else newline)
        requests.append((ids[start + 1 : first - 1], ids[first : end - 1]))
        start = end - 1
    assert end == len(ids)
    return segments, requests


def test_answers_are_word_for_word(made, tokenizer):
    """Catches answers that are off by an id, name the wrong segment, or ask for a name that is not there."""
    seen = dict.fromkeys(copy_data.VARIANTS, 0)
    names = tokenizer.markers.anchor_index
    for example in examples(made, tokenizer, 300):
        segments, requests = parse(example, tokenizer)
        seen[example.variant] += len(requests)
        for request, answer in requests:
            asked = [token for token in request if token in names]
            if example.variant == "find":
                beginning = request[len(tokenizer.encode("Find:")) :]
                alike = [name for name, ids in segments.items() if ids[: len(beginning)] == beginning]
                assert not asked and alike == answer
            elif example.variant == "numbers":
                text = tokenizer.decode(answer)
                assert str(int(text)) == text and segments[asked[0]][: len(answer)] == answer
                assert tokenizer.decode(segments[asked[0]][len(answer) :]).rstrip("(") in {
                    "",
                    ")",
                    *"+-*/",
                    *(f"){o}" for o in "+-*/"),
                }
            else:
                assert len(asked) == {"repeat": 1, "repeat_two": 2}[example.variant]
                assert answer == [token for name in asked for token in segments[name]]
    assert all(seen.values()), seen


def test_names_are_consecutive_and_wrap(made, tokenizer):
    """Catches names that mean a position, and an anchor that is never trained."""
    markers, used, wrapped = tokenizer.markers, set(), 0
    for example in examples(made, tokenizer, 400):
        names = [markers.anchor_index[name] for name in parse(example, tokenizer)[0]]
        assert names == [(names[0] + i) % 256 for i in range(len(names))]
        assert copy_data.MIN_SEGMENTS <= len(names) <= copy_data.MAX_SEGMENTS
        used.update(names)
        wrapped += names[-1] < names[0]
    assert len(used) == 256 and wrapped


def test_loss_mask_marks_what_can_be_known(made, tokenizer):
    """Catches loss on random requests and numbers, which would teach noise, and answers without loss."""
    for example in examples(made, tokenizer, 100):
        answer = np.zeros(len(example.ids), bool)
        for start, end in example.answers:
            answer[start:end] = True
        assert example.loss_mask[answer].all()
        first = example.answers[0][0]
        assert not example.loss_mask[first:][~answer[first:]].any()
        assert example.loss_mask[:first].any()
        assert example.ids.dtype == np.int32 and example.ids.shape == example.loss_mask.shape
        assert len(example.ids) <= copy_data.MAX_TOKENS
    for example in examples(made, tokenizer, 20, passage_loss=False):
        assert not example.loss_mask[: example.answers[0][0]].any()


def test_copy_examples_are_reproducible_and_differ_between_workers(made, tokenizer):
    """Catches workers that all train on the same examples, and resumed runs that see others."""
    streams = [examples(made, tokenizer, 20, worker=worker, num_workers=2) for worker in (0, 0, 1)]
    as_bytes = [[example.ids.tobytes() for example in stream] for stream in streams]
    assert as_bytes[0] == as_bytes[1]
    assert not set(as_bytes[0]) & set(as_bytes[2])


def test_copy_passages_of_the_held_out_split_are_held_out(made, tokenizer):
    """Catches an exact-copy rate that is measured on text seen in training."""
    heldout = all_texts(made, tokenizer, "wikipedia")["heldout"] + all_texts(made, tokenizer, "news")["heldout"]
    together = " ".join(" ".join(heldout).split())
    for example in examples(made, tokenizer, 60, split="heldout"):
        if example.variant != "numbers":
            segments, _ = parse(example, tokenizer)
            assert all(" ".join(tokenizer.decode(ids).split()) in together for ids in segments.values())


def test_a_sentence_that_others_begin_with_is_not_searched_for(tokenizer):
    """Catches a search with two right answers: a whole short sentence that is also how a longer one begins."""
    maker = CopyMaker(tokenizer, np.random.default_rng(0))
    short, long, other = ([300, 301, 302], [300, 301, 302, 303, 304, 305], [310, 311, 312, 313])
    sentences = [np.array(ids, np.int32) for ids in (short, long, other)]
    for _ in range(20):
        assert maker._beginning(sentences, 0) is None
        assert len(maker._beginning(sentences, 1)) > 3
        assert 3 <= len(maker._beginning(sentences, 2)) <= 4


def test_where_sentences_end(tokenizer):
    """Catches sentences cut inside numbers and abbreviations, or glued over a line break."""
    maker = CopyMaker(tokenizer, np.random.default_rng(0))
    text = 'He paid 3.5 dollars to Mr. J. Smith. "Why not now?" she asked him. (No one knew.) A long list'
    text += "\nNext line here! “It is so.” The rest"
    found = [tokenizer.decode(ids.tolist()) for ids in maker.sentences(np.array(tokenizer.encode(text), np.int32))]
    assert found == [
        "He paid 3.5 dollars to Mr. J. Smith.",
        ' "Why not now?"',
        " she asked him.",
        " (No one knew.)",
        " A long list",
        "Next line here!",
        " “It is so.”",
    ]
    long = np.array(tokenizer.encode("word " * 250 + "end. Then"), np.int32)
    lengths = [len(sentence) for sentence in maker.sentences(long)]
    assert max(lengths) == copy_data.MAX_SENTENCE and len(lengths) == 3


def test_copy_examples_are_fast_enough(made, tokenizer):
    """Catches a slow path that would starve the GPU; the bound is a tenth of what a core does."""
    stream = copy_examples(made["shards"], tokenizer, 0)
    next(stream)
    num_tokens = []

    def read() -> None:
        num_tokens.append(sum(len(example.ids) for example in islice(stream, 300)))

    assert least_s(read, enough_s=1) * 100_000 < min(num_tokens)
