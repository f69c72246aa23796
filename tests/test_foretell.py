"""What a language model foretells of sentences: cases, folds, what is read, and the ranker that makes use of it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from selfspan_core.models.tokenizer import SpanTokenizer
from tests.support.paths import SHIPPED
from tests.support.summary_tools import article, reference_of, write_texts
from training import foretell, summary_cases, summary_data
from training.data import summary_ranker
from training.data.summary_documents import allowed_places
from training.data.summary_features import WordCounts
from training.data.summary_foretold import Foretold
from training.data.summary_format import NO_HITS, read
from training.data.summary_ranking import Candidates
from training.foretelling import Fit, ReadArticle, Scale, SentenceModel

pytest_plugins = ["tests.support.training_fixtures"]


def article_of(key: str, lengths: list[int], hits: list[float], most_tokens: int = 100) -> ReadArticle:
    tokens = np.arange(1, sum(lengths) + 1)
    return ReadArticle.of(key, tokens, np.array(lengths), np.array(hits, float), most_tokens)


def test_cases_hold_the_hits_of_what_may_be_said():
    """Would catch hits of another sentence, or a sentence that no summary may be made of and that a model learns."""
    sentences = [*article(random.Random(3), 4), "Read more: http://example.org is here."]
    case = summary_cases.Case.of("a", "highlights", sentences, reference_of(sentences[2]))
    assert max(range(4), key=lambda place: case.hits[place]) == 2
    assert case.hits[4] == NO_HITS and NO_HITS not in case.hits[:4]


def test_packed_cases_come_back():
    """Would catch sentences cut at other tokens than they were written with, and hits of the article before."""
    codec, rng = SpanTokenizer.load(SHIPPED).codec, random.Random(4)
    packed, cases = summary_cases.PackedCases(), []
    for number in range(3):
        sentences = article(rng, 3 + number)
        cases.append(summary_cases.Case.of(f"a{number}", "briefs", sentences, reference_of(sentences[1])))
        packed.add(cases[-1], codec)
    arrays = packed.arrays(np.dtype(np.uint16))
    for case, one in zip(cases, foretell.articles_of(arrays, 10_000), strict=True):
        starts, ends = one.spans
        said = [codec.decode(one.tokens[a:b].tolist()).strip() for a, b in zip(starts, ends, strict=True)]
        assert (one.id, said, one.hits.tolist()) == (case.id, list(case.sentences), [float(hit) for hit in case.hits])


def test_what_is_not_read_is_not_learned():
    """Would catch the last token's score as that of all sentences behind the end of what is read."""
    one = article_of("long", [4, 4, 4, 4], [1, 2, 3, 4], most_tokens=6)
    assert one.hits.tolist()[:2] == [1, 2] and np.isnan(one.hits[2:]).all()
    starts, ends = one.spans
    assert starts.tolist() == [0, 4, 5, 5] and ends.tolist() == [4, 6, 6, 6]


class Echo(nn.Module):
    """A body whose state at a place is the place and the id there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache):
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return SimpleNamespace(last_hidden_state=torch.stack([places, input_ids], -1).float())


def test_the_second_reading_is_read_off():
    """Would catch states of the first reading, which know nothing of what stands behind, or of another row's length."""
    model = SentenceModel(Echo(), 2, 1)
    seen = []
    model.heads[0] = nn.Module()
    model.heads[0].forward = lambda states: seen.append(states) or states[:, :1]
    short, long = article_of("short", [2, 3], [0, 0]), article_of("long", [6, 1], [0, 0])
    model([short, long], 0)
    assert seen[0].tolist() == [[5.5, 1.5, 6, 2], [8, 4, 9, 5]]
    assert seen[1].tolist() == [[9.5, 3.5, 12, 6], [13, 7, 13, 7]]


def test_nobody_is_foretold_by_who_has_seen_the_answer(monkeypatch):
    """Would catch hits that a model has learned by heart, which trees would trust and no new article has."""
    seen: set[str] = set()
    monkeypatch.setattr(
        foretell, "learn", lambda model, work, *rest: seen.update(o.id for _, a in work for o in a) or 0
    )

    def asked(model, articles, scale):
        return {one.id: np.array([0.0, 1.0]) * (one.id in seen) for one in articles}

    def reset(state):
        seen.clear()

    model = SentenceModel(Echo(), 2, 2)
    monkeypatch.setattr(model, "load_state_dict", reset)
    monkeypatch.setattr(foretell, "foretell", asked)
    monkeypatch.setattr(foretell, "correlation", lambda found, articles: 0.0)
    articles = [article_of(f"a{number}", [2, 2], [1, 2]) for number in range(7)]
    folds = foretell.Folds(model, articles, [article_of("b", [2, 2], [0, 1])], num=3, seed=5)
    found = folds.foretell([article_of("new", [2, 2], [np.nan] * 2)], Fit(1, 9.0), Fit(1, 9.0))
    assert sorted(found) == sorted([*(one.id for one in articles), "new"])
    assert all(not hits.any() for hits in found.values())


def test_a_model_learns_what_can_be_seen(tiny_base):
    """Would catch scores that are scaled one way and back another, and sentences whose scores are their neighbours'."""
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    model = foretell.load(str(tiny_base), "cpu")

    def one(number: int) -> ReadArticle:
        tokens = rng.integers(300, 400, 24)
        tokens[rng.permutation(6)[:3] * 4] = 77  # a sentence that begins so has five hits more
        return ReadArticle.of(f"a{number}", tokens, np.full(6, 4), 5.0 * (tokens[::4] == 77) + 1, 100)

    articles = [one(number) for number in range(48)]
    scale = Scale.of(articles)
    foretell.learn(model, [(0, articles[:40])], scale, Fit(40, 60.0, learning_rate=3e-3), 0)
    found = foretell.foretell(model, articles[40:], scale)
    assert foretell.correlation(found, articles[40:]) > 0.9
    assert abs(np.mean([found[one.id] - one.hits for one in articles[40:]])) < 1


def test_foretold_hits_are_told_by_article(tmp_path):
    """Would catch another article's hits, and those of an article that is now split differently."""
    Foretold({"a": np.array([1.0, 2, 3]), "b": np.array([4.0, np.nan])}).save(tmp_path / "f.npz")
    back = Foretold.load(tmp_path / "f.npz")
    assert back.of("a", 3, (0, 2)).tolist() == [1, 3] and np.isnan(back.of("b", 2, (1,))).all()
    assert np.isnan(back.of("a", 4, (0, 2))).all() and np.isnan(back.of("c", 3, (0, 2))).all()
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.npz is no file of foretold hits"):
        Foretold.load(tmp_path / "bad.npz")


def test_candidates_have_what_is_foretold():
    """Would catch the hits of other sentences than the candidates are."""
    sentences = [*article(random.Random(6), 5)]
    sentences.insert(2, "http://example.org is not said.")
    words = WordCounts()
    words.count(sentences[0], " ".join(sentences))
    foretold = Foretold({"x": np.arange(6.0)})
    made = Candidates.of(sentences, allowed_places(sentences), words.title_words(), foretold, "x")
    assert made.features[:, -1].tolist() == list(map(float, made.places)) and 2 not in made.places


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def test_from_texts_to_better_data(texts, tiny_base, tmp_path, monkeypatch, capsys):
    """Would catch a step whose files the next one does not take, and articles that are foretold under other names."""
    monkeypatch.setattr(summary_ranker, "MIN_HIGHLIGHTED", 20)
    monkeypatch.setattr(summary_ranker, "MIN_TITLED", 20)
    text, pairs = texts
    cases, data, out = tmp_path / "cases.npz.xz", tmp_path / "data", tmp_path / "foretold.npz"
    summary_cases.main(["--pairs", str(pairs), "--tokenizer", str(tiny_base), "--out", str(cases), "--workers", "1"])
    summary_data.run(text, pairs, str(tiny_base), data, "shorten", 1)
    short = ["--folds", "2", "--epochs", "1", "--first-epochs", "1", "--device", "cpu"]
    words = ["--cases", str(cases), "--data", str(data), "--base", str(tiny_base), "--out", str(out)]
    foretell.main([*words, *short])
    told = capsys.readouterr().out
    assert "fold 2/2: loss" in told and "correlation with unseen hits" in told
    meta = summary_data.run(text, pairs, str(tiny_base), tmp_path / "better", "shorten", 1, out)
    assert meta["counts"]["foretold: articles"] > 50 and "foretold: nothing" not in meta["counts"]
    kinds = read(cases)["kinds"]
    assert len(set(kinds.tolist())) >= 2
    with pytest.raises(SystemExit, match="are too few for 99 folds"):
        foretell.main([*words, *short, "--folds", "99"])
