"""Packed summaries: made from small texts, read back, laid out; and what they are measured by."""

import collections
import json
import textwrap
from itertools import islice

import numpy as np
import pytest

from selfspan_core.errors import InputError
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.examples import EXAMPLES
from selfspan_core.tasks.summarize.form import MAX_SEGMENTS
from selfspan_core.tasks.summarize.task import Summarize, SummaryStep, problem_of
from selfspan_core.tasks.summarize.written import WrittenStep
from tests.support.paths import SHIPPED
from tests.support.summary_tools import write_jsonl, write_texts
from training import summary_data
from training.data import summary_workers
from training.data.sources import summary_source
from training.data.summary_documents import DocumentMaker
from training.data.summary_mixture import key_of, parts_of
from training.data.summary_source import (
    Layout,
    MixturePart,
    PackedSummaries,
    Summary,
    among_others,
    summary_examples,
    without_some,
)
from training.evaluation.summary_scores import Item, Written, baselines, check_figures, check_step, has_repetition
from training.loop.packing import pack
from training.loop.summary_heldout import bodies, first_reads
from training.summary_data import EVALUATION, rows_of
from training.text_data import HELDOUT_SHARE, split_of


@pytest.fixture(scope="module")
def tokenizer():
    return SpanTokenizer.load(SHIPPED)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The texts' folders, and what is packed of them in both forms."""
    folder = tmp_path_factory.mktemp("summaries")
    text, pairs = write_texts(folder)
    summary_data.run(text, pairs, str(SHIPPED), folder / "packed", "shorten", workers=1)
    summary_data.run(None, pairs, str(SHIPPED), folder / "rewritten", "rewrite", workers=1)
    return folder


@pytest.fixture(scope="module")
def packed(made, tokenizer):
    return PackedSummaries(made / "packed", tokenizer)


def test_training_reads_texts_as_users_paste_them(tokenizer):
    """Would catch a model that learns from broken lines, or from another cleaning than the one it is used with."""
    first, *_ = EXAMPLES[0].split("\n")
    pasted = textwrap.fill(first, 50) + "[1]\n\nRead more: A bridge\n\nShare this article"
    maker = DocumentMaker(tokenizer, "shorten", frozenset())
    assert maker.sentences(pasted) == list(Summarize().parse(EXAMPLES[0]).sentences)[:3]


def test_articles_come_back_as_text(made, packed, tokenizer):
    """Would catch articles that lose words, and summaries given to another article."""
    rows = {row["id"]: row for row in rows_of(made / "pairs" / "train_cnn_some.jsonl.xz")}
    numbers = packed.of_kind("highlights").tolist()
    assert len(numbers) > 30
    for number in numbers:
        summary = packed.summary(number)
        document = int(packed._arrays["target_documents"][number])
        sentences = [tokenizer.decode(ids.tolist()) for ids in summary.segments]
        row = rows[packed.ids[document]]
        assert "".join(sentences).strip() == row["article"]
        for reads, ids in summary.steps:
            (read,) = reads
            text = tokenizer.decode(ids.tolist()).strip()
            checked = check_step(WrittenStep(text, reads, False, False), sentences)
            assert checked.is_copied and text.endswith(".")
            assert text.split()[2] in row["summary"]
            assert read < 3, "a highlight was taken from another sentence"


def test_what_dev_and_test_hold_is_not_trained_on(made, packed, tokenizer):
    """Would catch training on what is reported."""
    held_out = PackedSummaries(made / "packed", tokenizer, "heldout")
    assert "copy" not in [*packed.ids, *held_out.ids]
    assert not set(packed.ids) & set(held_out.ids)
    counts = json.loads((made / "packed" / "meta.json").read_text())["counts"]
    assert counts["highlights: shares a passage with dev or test"] == 1
    assert counts["highlights: of them unsupported"] == 20
    evaluation = PackedSummaries(made / "packed", tokenizer, EVALUATION)
    assert evaluation.ids[:3] == ["dev_cnndm/d0", "dev_cnndm/d1", "dev_cnndm/d2"]
    assert not len(evaluation.of_kind("highlights")) and evaluation.ids[-1] == "examples/2"


def test_rewriting_keeps_the_references_words(made, tokenizer):
    """Would catch a rewrite adapter that is taught to copy, or taught what its sentences do not hold."""
    rewritten = PackedSummaries(made / "rewritten", tokenizer)
    rows = {row["id"]: row for row in rows_of(made / "pairs" / "train_cnn_some.jsonl.xz")}
    assert len(rewritten.of_kind("highlights")) > 30 and not len(rewritten.of_kind("titles"))
    for number in rewritten.of_kind("highlights").tolist():
        row = rows[rewritten.ids[int(rewritten._arrays["target_documents"][number])]]
        for _, ids in rewritten.summary(number).steps:
            assert tokenizer.decode(ids.tolist()).strip() in row["summary"].split("\n")


def test_ids_of_large_vocabularies_fit(tokenizer):
    """Would catch ids beyond 65,535 that wrap around."""
    document = summary_data.Document("d", ("One.",), (summary_data.Target("titles", (((0,), "One."),)),))
    packed = summary_data.Packed()
    packed.add(document, tokenizer.codec)
    packed.tokens[0] = packed.step_tokens[0] = 151_000
    arrays = packed.arrays(np.dtype(np.uint32))
    assert arrays["tokens"][0] == arrays["step_tokens"][0] == 151_000 and arrays["segment_lengths"].dtype == np.uint16


def test_titles_and_gaps_choose_sentences(packed, tokenizer):
    """Would catch a title drawn from the wrong sentence, or gap sentences out of order or twice."""
    titles = [packed.summary(number) for number in packed.of_kind("titles").tolist()]
    assert len(titles) > 30 and all(summary.length == "short" for summary in titles)
    assert collections.Counter(summary.steps[0][0] for summary in titles).most_common(1)[0][0] == (1,)
    for number in packed.of_kind("gaps").tolist():
        reads = [reads for reads, _ in packed.summary(number).steps]
        assert 2 <= len(reads) <= 4 and reads == sorted(set(reads))


def test_openings_are_a_choice_and_the_beginning(packed):
    """Would catch openings that leave out the chosen sentence, name one twice, or are not in the article's order."""
    openings = [packed.summary(number) for number in packed.of_kind("openings").tolist()]
    assert {summary.length for summary in openings} == {"short", "medium"}
    for summary in openings:
        places = [place for (place,) in (reads for reads, _ in summary.steps)]
        assert len(places) in (2, 3) and places == sorted(set(places))
        # All but one are the first that may be named at all; the made-up articles have nothing else.
        assert places[:-1] == list(range(len(places) - 1))


def test_choices_are_of_two_and_three(packed):
    """Would catch one length alone being taught by choices, and articles that are left without."""
    lengths = collections.Counter(len(packed.summary(number).steps) for number in packed.of_kind("choices").tolist())
    assert set(lengths) == {2, 3}


@pytest.mark.parametrize("annotated", [True, False])
def test_trained_on_is_what_the_task_renders(packed, tokenizer, annotated):
    """Would catch a model that is asked for its summary in another way than it was taught to give one."""
    number = int(packed.of_kind("highlights")[0])
    summary = packed.summary(number)
    decode = lambda ids: tokenizer.decode(ids.tolist()).strip()  # noqa: E731
    steps = [SummaryStep(reads, decode(ids)) for reads, ids in summary.steps]
    problem = problem_of([decode(ids) for ids in summary.segments], summary.length, steps)
    expected = Summarize(summary.length).render(problem, tokenizer, annotated, offset=250, with_steps=True)
    rendered = Layout(tokenizer, annotated).render(summary, offset=250)
    assert (rendered.ids, rendered.runs, rendered.prompt) == (expected.ids, expected.runs, expected.prompt)
    ranges = bodies(rendered, tokenizer.markers, None if annotated else Layout(tokenizer, False).separator)
    texts = [tokenizer.decode(rendered.ids[start:end]).strip() for start, end in ranges]
    assert texts == [step.text for step in steps]
    if annotated:
        assert [rendered.ids[start] for start, _ in first_reads(rendered, tokenizer.markers)] == [
            tokenizer.markers.name(250, step.reads[0]) for step in steps
        ]


def test_stream_is_endless_shuffled_and_shared_out(packed, tokenizer):
    """Would catch workers that see the same summaries, names that always start alike, and lanes that differ."""
    numbers, annotated = packed.of_kind("titles"), MixturePart(packed, "titles", Layout(tokenizer, True))
    shares = [list(islice(summary_examples(annotated, 3, w, 2), len(numbers))) for w in (0, 1)]
    half = len(numbers) // 2
    texts = [{tokenizer.decode(r.ids) for r in share[:half]} for share in shares]
    assert not texts[0] & texts[1]
    assert len({min(r.prompt.segments) for r in shares[0]}) > 10
    plain = next(summary_examples(MixturePart(packed, "titles", Layout(tokenizer, False)), 3, 0, 2))
    assert tokenizer.decode(plain.ids).replace("\n ", " ") == tokenizer.decode(shares[0][0].ids)
    with pytest.raises(ValueError, match="no summaries of kind 'poems'"):
        packed.of_kind("poems")
    part = MixturePart(packed, "gaps", Layout(tokenizer, True))
    rows = pack(summary_source(part, 0.5, 0.2)(0, 0, 1), 2048, 4, 0)
    assert next(iter(rows)).used > 1000


def test_sentences_that_are_read_stay():
    """Would catch steps that point at another sentence once some are left out."""
    segments = [np.full(3, value) for value in range(40)]
    summary = Summary(segments, [((5,), np.array([5])), ((7, 30), np.array([7, 30]))])
    thinner = without_some(summary, 0.5, np.random.default_rng(0))
    assert 10 < len(thinner.segments) < 32
    for reads, body in thinner.steps:
        assert [int(thinner.segments[read][0]) for read in reads] == body.tolist()
    assert without_some(summary, 0.0, np.random.default_rng(0)).steps == summary.steps


def test_an_article_among_pieces_of_others_is_read_where_it_stands(packed, tokenizer):
    """Would catch steps that read a piece of another article, and articles that always stand at one place."""
    number, places = int(packed.of_kind("highlights")[0]), set()
    alone = packed.summary(number)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        summary = among_others(alone, number, packed, 1500, rng)
        num_tokens = sum(len(ids) + 1 for ids in summary.segments)
        assert 1000 < num_tokens <= 1500 and len(summary.segments) <= MAX_SEGMENTS
        shift = summary.steps[0][0][0] - alone.steps[0][0][0]
        places.add(round(3 * shift / len(summary.segments)))
        for place, ids in enumerate(alone.segments):
            assert (summary.segments[shift + place] == ids).all()
        assert [reads for reads, _ in summary.steps] == [(read + shift,) for (read,), _ in alone.steps]
    assert len(places) >= 3
    assert among_others(alone, number, packed, 10, np.random.default_rng(0)).steps == alone.steps
    spanned, plain = (
        next(summary_examples(MixturePart(packed, "highlights", Layout(tokenizer, annotated), among=True), 0))
        for annotated in (True, False)
    )
    assert len(spanned.ids) > 1500
    assert tokenizer.decode(spanned.ids) == tokenizer.decode(plain.ids).replace("\n ", " ")


def test_articles_of_an_event_are_one_document(made, tokenizer):
    """Would catch an event's articles that are not joined, and one of an event alone that is there twice."""
    rows = [row for row in rows_of(made / "pairs" / "train_allsides_some.jsonl.xz") if row["event"] == "e0"]
    for folder in ("packed", "rewritten"):
        packed = PackedSummaries(made / folder, tokenizer)
        numbers = packed.of_kind("events").tolist()
        assert {packed.ids[packed.document_of(number)] for number in numbers} == {"event-e0", "event-e1"}
        summary = packed.summary(numbers[0])
        text = "".join(tokenizer.decode(ids.tolist()) for ids in summary.segments)
        assert len(rows) == 3 and all(row["article"] in text for row in rows)
    assert len(packed.of_kind("roundups")) == 7


def test_the_prompt_names_the_form_where_both_are_learned(made, tokenizer):
    """Would catch two forms asked for alike, and a shipped adapter that is asked in another way than before."""
    both = {"short": str(made / "packed"), "own": str(made / "rewritten")}
    mixture = {"short/highlights": 1.0, "own/highlights": 1.0}
    asked = {}
    for data, keys in ((both, mixture), (both["own"], {"highlights": 1.0})):
        for key, part in parts_of(data, keys, tokenizer, annotated=False).items():
            summary = part.packed.summary(int(part.packed.of_kind(part.kind)[0]))
            asked[key] = tokenizer.decode(part.layout.render(summary, length="medium").ids)
    assert asked["short/highlights"].startswith("Summarize: ")
    assert asked["highlights"].startswith("Summarize: ")
    assert asked["own/highlights"].startswith("Summarize in your own words: ")
    decode = lambda ids: tokenizer.decode(ids.tolist()).strip()  # noqa: E731
    task = Summarize("short", form="rewrite")
    problem = problem_of([decode(ids) for ids in summary.segments], "short")
    part = parts_of(both, mixture, tokenizer, annotated=True)["own/highlights"]
    expected = part.layout.render(Summary(summary.segments, []), length="short")
    assert task.render(problem, tokenizer, annotated=True).ids == expected.ids
    with pytest.raises(InputError, match="The form is one of shorten, rewrite, not sing"):
        Summarize(form="sing")


@pytest.mark.parametrize(
    ("key", "data", "message"),
    [
        ("a/gaps", "folder", "names 'a/gaps'; its keys are KIND"),
        ("gaps", {"a": "folder"}, "names 'gaps'; its keys are NAME/KIND"),
        ("among", "folder", "names 'among'; kinds"),
        ("b/gaps", {"a": "folder"}, "data has no 'b'; it has: a"),
        ("a/gaps/long", {"a": "folder"}, "names 'a/gaps/long'; its keys are"),
        ("a/poems/among", {"a": "folder"}, "names 'a/poems/among'; kinds"),
    ],
)
def test_keys_of_a_mixture_are_checked(key, data, message):
    """Would catch a part of a mixture that is silently not trained on."""
    with pytest.raises(ValueError, match=message):
        key_of(key, data)
    assert key_of("a/gaps/among", {"a": "folder"}).among and not key_of("gaps", "folder").among


def test_data_of_another_tokenizer_is_refused(made, tokenizer, tmp_path):
    """Would catch ids that mean something else, and a stack trace where data is missing."""
    with pytest.raises(FileNotFoundError, match=r"python -m training\.summary_data"):
        PackedSummaries(tmp_path, tokenizer)
    for file in (made / "packed").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"vocab_size": 99}))
    with pytest.raises(ValueError, match="have 99 ids, the tokenizer has 8192"):
        PackedSummaries(tmp_path, tokenizer)


# --------------------------------------------------------------------------------------------------------------- scores

SENTENCES = ("The dog bit the man on Monday, police said.", "The man was 25.", "It rained.", "Nobody came to see it.")


@pytest.mark.parametrize(
    ("text", "reads", "expected"),
    [
        ("The dog bit the man.", (0,), (5, 5, True, False)),
        ("The dog bit the man on Monday, police said.", (0,), (9, 9, True, True)),
        ("The cat bit the man.", (0,), (5, 4, False, False)),
        ("The man bit the dog.", (0,), (5, 5, False, False)),
        ("The dog bit the man. The man was 25.", (1, 0), (9, 9, True, False)),
        ("It rained.", (), (2, 2, True, True)),
        ("It rained Monday.", (), (3, 2, False, False)),
    ],
)
def test_steps_are_checked_against_what_they_read(text, reads, expected):
    """Would catch an invented word that counts as found, and words out of order that count as copied."""
    checked = check_step(WrittenStep(text, reads, False, False), SENTENCES)
    assert (checked.num_words, checked.num_found, checked.is_copied, checked.is_whole) == expected


def test_figures_of_a_lane():
    """Would catch shares of the wrong whole."""
    items = [
        Item("s/1", SENTENCES, ("A dog bit a man on Monday.",)),
        Item("s/2", SENTENCES[::-1], ("A man of 25 was bitten by the dog.",)),
    ]
    figures = baselines(items)
    assert figures["oracle shortened"]["rouge1"] >= figures["oracle"]["rouge1"] > figures["lead-1"]["rouge1"]
    assert figures["oracle"]["rouge1"] > figures["random-2"]["rouge1"]
    assert figures["lead-3"]["mean_words"] > figures["lead-2"]["mean_words"] > figures["lead-1"]["mean_words"]


def test_where_the_first_read_lies():
    """Would catch a tenth of the words or of all reads, long articles among short ones, summaries that read nothing."""
    sentences = tuple(f"Sentence {number} is here." for number in range(40))
    items = [Item("s/1", sentences, ()), Item("s/2", sentences, ()), Item("s/3", sentences * 10, ())]
    reads = [((3,), (30,)), ((4,), (0,)), ((39,),)]
    written = [
        Written(tuple(WrittenStep("It is here.", read, False, False) for read in each), 9, 1, 1, True) for each in reads
    ]
    figures = check_figures(items, written)["first_read_beyond_a_tenth"]
    assert figures == {"0 to 599": {"articles": 2, "percent": 50}, "1400 and more": {"articles": 1, "percent": 0}}
    nothing = [Written((), 1, 1, 1, True)] * 3
    assert check_figures(items, nothing)["first_read_beyond_a_tenth"] == {}


def test_long_articles_are_held_out_news(tmp_path, monkeypatch):
    """Would catch articles that training sees, of other sources, or of other lengths than asked for."""
    monkeypatch.setattr(summary_workers, "NUM_LONG", 2)
    news = [{"id": f"n{i}", "title": "A title", "text": "word " * (590 + i)} for i in range(2000)]
    write_jsonl(tmp_path / "news-0.jsonl.xz", news)
    write_jsonl(tmp_path / "wikipedia-0.jsonl.xz", news)
    found = summary_workers.long_articles([(name, tmp_path / f"{name}.jsonl.xz") for name in ("wikipedia-0", "news-0")])
    held_out = [row["id"] for row in news[10:] if split_of(row, HELDOUT_SHARE) == "heldout"]
    assert [row["id"] for row in found] == held_out[-2:] and len(held_out) > 2


def test_repetition():
    """Would catch loops that go unnoticed."""
    assert has_repetition("The dog bit the man. Then the dog bit the man again.")
    assert not has_repetition("The dog bit the man. The man bit the dog.")
