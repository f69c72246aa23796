"""Rules for what may be written: how they narrow a choice, in the engine and in a session."""

import pytest
import torch

from selfspan_core.compare.session import Session
from selfspan_core.engine.device_rules import DeviceRules
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.engine.rules import Limits
from selfspan_core.engine.sampling import narrow
from selfspan_core.errors import InputError
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.rules import SummaryRules
from tests.support.asking import compare, generate, prepare
from tests.support.tiny_models import save_tiny

ARTICLE = get_task("summarize").examples[0]


def test_narrow():
    """Would catch an id that is allowed and banned at once, and logits of a model that are changed for good."""
    logits = torch.tensor([1.0, 5.0, 3.0, 4.0])
    kept = logits.clone()
    infinity = float("inf")
    assert narrow(logits, Limits(None, ())) is logits
    assert narrow(logits, Limits(None, (1,))).tolist() == [1.0, -infinity, 3.0, 4.0]
    assert narrow(logits, Limits((1, 2), (1,))).tolist() == [-infinity, -infinity, 3.0, -infinity]
    assert torch.equal(logits, kept)
    with pytest.raises(ValueError, match="nothing to write"):
        narrow(logits, Limits((1,), (1,)))


class Countdown:
    """Allows one id after the other."""

    def __init__(self, ids):
        self.ids, self.pushed = list(ids), []

    def limits(self):
        return Limits((self.ids[len(self.pushed)],), ())

    def push(self, token):
        self.pushed.append(token)

    def fork(self):
        other = Countdown(self.ids)
        other.pushed += self.pushed
        return other


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base with adapters for summaries, random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder, max_context=4096, task="summarize")
    return folder


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_an_engine_writes_what_the_rules_leave(folders, attention):
    """Would catch rules that are asked once, or not told what was drawn."""
    tokenizer = SpanTokenizer.load(folders / "base")
    model = SpanModel.load(folders / "base", folders / "adapters" / "summarize-span", "cpu", torch.float32, tokenizer)
    task = get_task("summarize")
    prompt = task.render(task.parse(ARTICLE), tokenizer, True)
    ids = [*tokenizer.encode(" some words."), tokenizer.markers.eos]
    rules = Countdown(ids)
    engine = Engine(model, tokenizer.markers)
    events = list(generate(engine, prompt, attention, rules=rules))
    assert [event.id for event in events if hasattr(event, "step_ms")] == ids == rules.pushed


@pytest.mark.parametrize("length", ["short", "medium"])
@pytest.mark.parametrize("adapter", ["span", "plain"])
def test_a_session_summarizes(folders, length, adapter):
    """Would catch lanes without rules: a model that knows nothing still writes whole steps of free names, and ends."""
    session = Session(ModelStore(folders / "base", folders / "adapters", device="cpu"))
    *_, end = compare(session, "summarize", ARTICLE, adapter, length=length, max_new_tokens=1500)
    fewest, most = {"short": (2, 2), "medium": (3, 5)}[length]
    for result in end["lanes"].values():
        assert result["correct"] is None and result["expected"] is None
        assert result["malformed_steps"] == 0
        assert result["answer"] is not None and fewest <= len(result["steps"]) <= most
    sparse = end["lanes"]["sparse"]["steps"]
    names = [f"a{number}" for number in range(len(get_task("summarize").parse(ARTICLE).segments))]
    assert all(1 <= len(step["reads"]) <= 2 and set(step["reads"]) <= set(names) for step in sparse)
    assert "summar" in end["line"] and end["read_share"] < 1


def test_settings_of_other_tasks(folders):
    """Would catch a length for a sum, a length that nobody knows, and many summaries at once, which rules forbid."""
    session = Session(ModelStore(folders / "base", folders / "adapters", device="cpu"))
    with pytest.raises(InputError, match="length is for summaries"):
        compare(session, "arithmetic", "1+2", length="short")
    with pytest.raises(InputError, match="short, medium"):
        compare(session, "summarize", ARTICLE, length="long")


def test_rules_whatever_the_implementation(folders):
    """Would catch an implementation that was asked for by name and silently replaced where a task has rules."""
    store = ModelStore(folders / "base", folders / "adapters", device="cpu")
    session = Session(store)
    asked = []
    engine = store.engine("summarize", "span")
    engine.generate = lambda request, attention, impl: asked.append((impl, request.rules)) or iter(())
    for impl in ("gather", "reference", "captured"):
        store.impl = impl
        run = prepare(session, "summarize", ARTICLE, "sparse", max_new_tokens=5)
        session._events(run, run.lanes[0])
        is_captured = impl == "captured"
        assert asked[-1][0] == impl and isinstance(asked[-1][1], DeviceRules if is_captured else SummaryRules)
        start = next(session.stream(run))
        assert ("captured" in start["device"]) == is_captured
        assert start["lanes"][0].get("rules_on") == ("device" if is_captured else None)
        assert start["rules"] == get_task("summarize").rules_text


def test_longer_than_learned(folders):
    """Would catch an article that the model is lost in being summarized without a word about it."""
    session = Session(ModelStore(folders / "base", folders / "adapters", device="cpu"))
    sentences = [f"In the year {year} the town of Ellmoor had {year * 7} inhabitants." for year in range(1800, 1900)]
    assert "caution" not in next(session.stream(prepare(session, "summarize", " ".join(sentences[:20]), "sparse")))
    start = next(session.stream(prepare(session, "summarize", " ".join(sentences), "sparse")))
    caution = start["caution"]
    assert "longer than those that the adapters learned from" in caution["text"]
    assert sentences[50] in caution["beginning"] and sentences[-1] not in caution["beginning"]
    assert "caution" not in next(session.stream(prepare(session, "summarize", caution["beginning"], "sparse")))
