"""Several models side by side: names, folders and hub ids; each with its own tokenizer, weights and adapters."""

import io
import json
import runpy
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from safetensors import safe_open

from selfspan_core.compare.session import Session
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import InputError, ModelError, ModelUnavailable
from selfspan_core.models import hub
from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of
from selfspan_core.models.registry import (
    DEFAULT_MODEL,
    MODELS,
    AdaptersIn,
    Folder,
    HubModel,
    ModelSpec,
    choices,
    resolve_model,
)
from selfspan_core.params import Request
from selfspan_core.serve import cli
from selfspan_core.serve.lazy_session import LazySession, shipped_tasks
from selfspan_core.tasks.registry import TASKS, get_task
from tests.support.asking import compare, request
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT
from tests.support.registered import only_the_default
from tests.support.scripted import right_output
from tests.support.tiny_models import save_tiny

TEXT = "79*36+63"


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, ModelSpec]:
    """Two models whose tokenizers have nothing in common."""
    made = {}
    for name, is_byte_level in (("tiny-pieces", False), ("tiny-bytes", True)):
        base, adapters = save_tiny(tmp_path_factory.mktemp(name), is_byte_level=is_byte_level)
        own = {adapter: adapters / f"arithmetic-{adapter}" for adapter in ("span", "plain")}
        made[name] = ModelSpec(name, Folder(base), {"arithmetic": own})
    return made


@pytest.fixture
def registered(specs, monkeypatch) -> dict[str, ModelSpec]:
    """They are registered beside the one that is always there."""
    only_the_default(monkeypatch)
    for name, spec in specs.items():
        monkeypatch.setitem(MODELS, name, spec)
    return specs


@pytest.fixture
def store(registered) -> ModelStore:
    """Of both; requests that name no model go to the one of pieces."""
    return ModelStore("tiny-pieces", device="cpu")


def outputs(session: Session, **settings) -> list[str]:
    """What the lanes of a run write."""
    *_, end = session.compare(
        Request("arithmetic", TEXT, sampling=request("", "", max_new_tokens=16).sampling, **settings)
    )
    return [lane["output"] for lane in end["lanes"].values()]


# ---- what names mean


def test_the_shipped_model():
    """Would catch a name that promises another size than the weights have, and parts that are not there."""
    spec = MODELS[DEFAULT_MODEL]
    sizes = []
    for file in place_of(spec.source).glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                shape = stored.get_slice(name).get_shape()
                sizes.append(shape[0] * (shape[1] if len(shape) > 1 else 1))
    assert spec.name == DEFAULT_MODEL == f"selfspan-{round(sum(sizes) / 1e6)}m"
    assert spec.card.is_file() and spec.license
    shipped = shipped_tasks()
    assert shipped == tuple(task for task in TASKS if task in spec.adapters) and set(spec.adapters) <= set(TASKS)
    assert {"arithmetic", "summarize"} <= set(shipped) and len(spec.adapters) == len(shipped)


def test_a_hub_that_cannot_be_asked_is_told_at_once(monkeypatch, tmp_path):
    """Two minutes of a library's retries, each with a line of its own, and a model that was fetched left unused."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="the hub cannot be asked") as error:
        place_of(HubModel("some-one/some-model"))
    assert time.monotonic() - began < 15 and "\n" not in str(error.value)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert place_of(HubModel("some-one/some-model")) == tmp_path


def test_what_a_name_means(registered, tmp_path, monkeypatch):
    """Would catch a registered name that is looked up on the hub, and a folder that hides a registered name."""
    assert resolve_model("tiny-bytes") is registered["tiny-bytes"] is resolve_model(registered["tiny-bytes"])
    assert resolve_model("some-one/some-model").source == HubModel("some-one/some-model")
    monkeypatch.setattr(hub, "why_unreachable", lambda: "")
    assert place_of(HubModel("some-one/some-model")) == "some-one/some-model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-bytes").mkdir()
    assert resolve_model("tiny-bytes") is registered["tiny-bytes"]
    for folder in ("./tiny-bytes", Path("tiny-bytes")):
        spec = resolve_model(folder)
        assert spec.source == Folder(Path("tiny-bytes")) and spec.name == "./tiny-bytes"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/tiny-bytes").source == Folder(tmp_path / "tiny-bytes")
    own = resolve_model("tiny-bytes", adapters=tmp_path)
    assert own.source == registered["tiny-bytes"].source and own.adapters == AdaptersIn(tmp_path)


@pytest.mark.parametrize("name", ["nope", "no/such/folder", "./nope", "/no/such/folder", Path("nope")])
def test_a_name_that_means_nothing(registered, name):
    """Would catch a question to the hub about a typing error, and an error that leaves open what could be typed."""
    with pytest.raises(ModelError) as caught:
        resolve_model(name)
    message = str(caught.value)
    assert message.startswith("there is no model folder") and "\n" not in message
    assert "known models: selfspan-17m, smollm2-135m, tiny-pieces, tiny-bytes;" in message
    assert "as its path" in message and "owner/name" in message


def test_adapters_of_a_folder_are_those_that_are_there(tmp_path):
    """Would catch half a pair that is offered as a whole one, and an adapter that is made later and never seen."""
    found = AdaptersIn(tmp_path)
    spec = ModelSpec("one", Folder(tmp_path), found)
    (tmp_path / "two-words-span").mkdir()
    (tmp_path / "notes-about").mkdir()
    assert list(found) == ["two-words"] and found["two-words"] == {"span": tmp_path / "two-words-span"}
    assert not spec.has_both_adapters("two-words")
    (tmp_path / "two-words-plain").mkdir()
    assert spec.has_both_adapters("two-words") and not spec.has_both_adapters("other")
    with pytest.raises(ModelError, match=r"other-span'; make it with: .*training/configs/other-span\.yaml"):
        spec.adapter_folder("other", "span")
    trained_otherwise = replace(spec, adapters=AdaptersIn(tmp_path, made_by=None))
    with pytest.raises(ModelError, match=r"other-span'; docs/training.md says how"):
        trained_otherwise.adapter_folder("other", "span")
    listed = replace(spec, adapters={"other": {"span": tmp_path / "gone"}})
    with pytest.raises(ModelError, match=r"no adapter folder '.*gone'"):
        listed.adapter_folder("other", "span")
    with pytest.raises(ModelError, match="the model 'one' has no plain adapter for the task other"):
        listed.adapter_folder("other", "plain")


# ---- side by side


def test_two_models_answer_in_one_session(store, specs):
    """Would catch one store-wide tokenizer: ids of one model read by the other, and its text in the other's words."""
    session = Session(store)
    together = {name: outputs(session, model=name) for name in (*specs, *specs)}
    alone = {name: outputs(Session(ModelStore(spec, device="cpu"))) for name, spec in specs.items()}
    assert together == alone and together["tiny-pieces"] != together["tiny-bytes"]
    assert outputs(session) == together["tiny-pieces"]


@pytest.mark.parametrize("name", ["tiny-pieces", "tiny-bytes"])
@pytest.mark.parametrize("adapter", ["span", "plain"])
def test_each_model_has_its_own_ids_and_text(store, name, adapter, monkeypatch):
    """Would catch a prompt or an answer that goes through another model's tokenizer: then no answer would be right."""
    for one in ("span", "plain"):  # warmed up before the patch: warming up has forced tokens of its own
        store.engine("arithmetic", one, name)
    original, seen = Engine.generate, []

    def generate(self, asked, *args):
        tokenizer = self.model.tokenizer
        seen.append((self, asked.prompt.ids))
        text = tokenizer.decode(asked.prompt.ids).removeprefix("Calculate: ").removesuffix("=")
        ids = right_output(tokenizer, get_task("arithmetic").parse(text), asked.annotated)
        return original(self, replace(asked, forced_tokens=ids), *args)

    monkeypatch.setattr(Engine, "generate", generate)
    start, *_, end = Session(store).compare(Request("arithmetic", TEXT, adapter=adapter, model=name))
    assert [lane["answer"] for lane in end["lanes"].values()] == ["2907"] * 2
    assert all("79*36=2370+474=2844" in lane["output"] for lane in end["lanes"].values())
    own = [store.engine("arithmetic", one, name) for one in dict.fromkeys((adapter, "span"))]
    assert {id(engine) for engine, _ in seen} == {id(engine) for engine in own}
    assert max(max(ids) for _, ids in seen) < own[0].model.vocab_size
    named = {} if name == "tiny-pieces" else {"model": name}
    usual = ("id", "label", "attention", "adapter", "prompt_tokens", "segments")
    assert all(lane == {key: lane[key] for key in usual} | named for lane in start["lanes"])


def test_each_model_is_loaded_once(store, monkeypatch):
    """Would catch a model that is loaded again for a request, and an engine of one model given out as another's."""
    loads, original = [], SpanModel.load

    def load(*args):
        loads.append(args[:2])
        return original(*args)

    monkeypatch.setattr(SpanModel, "load", load)
    found, barrier = [], threading.Barrier(6)

    def ask(name):
        barrier.wait()
        found.append((name, store.engine("arithmetic", "span", name)))

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("tiny-pieces", "tiny-bytes", None) * 2]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(loads) == 2 and len({id(engine) for _, engine in found}) == 2
    by_name = dict(found)
    assert by_name[None] is by_name["tiny-pieces"] is not by_name["tiny-bytes"]
    assert by_name["tiny-pieces"].model.tokenizer is store.tokenizer is not by_name["tiny-bytes"].model.tokenizer


def test_adapters_given_by_hand_are_the_default_models(store, specs):
    """Would catch another model that is merged with an adapter which was given for the default one."""
    own = specs["tiny-pieces"].adapters["arithmetic"]["plain"]
    given = ModelStore("tiny-pieces", folders={"span": own}, device="cpu")
    assert given.adapter_folder("arithmetic", "span") == own
    assert (
        given.adapter_folder("arithmetic", "span", "tiny-bytes") == specs["tiny-bytes"].adapters["arithmetic"]["span"]
    )


@pytest.mark.parametrize("model", ["nope", "", "some-one/some-model", "./tests", "x" * 5000])
def test_a_request_for_an_unknown_model(store, model):
    """Would catch a visitor who makes the server load a folder of its disk or download a model of the hub."""
    with pytest.raises(InputError) as caught:
        Session(store).compare(Request("arithmetic", TEXT, model=model))
    message = str(caught.value)
    assert "known models: tiny-pieces, selfspan-17m, smollm2-135m, tiny-bytes." in message and len(message) < 200
    with pytest.raises(InputError, match="model is a name, not 3"):
        Request("arithmetic", TEXT, model=3)


def test_a_model_without_a_tasks_adapters(store):
    """Would catch the adapters of another model in its place."""
    article = get_task("summarize").examples[0]
    with pytest.raises(ModelError, match="the model 'tiny-bytes' has no span adapter for the task summarize"):
        compare(Session(store), "summarize", article, model="tiny-bytes")


def test_a_tokenizer_that_lies_elsewhere(specs, tmp_path):
    """Would catch a tokenizer that is always looked for beside the weights."""
    whole = specs["tiny-bytes"]
    for file in whole.source.path.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    apart = ModelSpec("apart", Folder(tmp_path), whole.adapters, tokenizer=whole.source)
    assert outputs(Session(ModelStore(apart, device="cpu"))) == outputs(Session(ModelStore(whole, device="cpu")))


# ---- command line, environment, page, API


@pytest.mark.parametrize("how", ["name", "folder"])
def test_the_command_line_takes_a_name_or_a_folder(registered, monkeypatch, capsys, how):
    """Would catch a registered name that is taken for a folder, and its adapters for the shipped ones."""
    spec, made, original = registered["tiny-bytes"], [], cli.make_session

    def make_session(arguments):
        made.append(original(arguments))
        return made[-1]

    monkeypatch.setattr(cli, "make_session", make_session)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode()), isatty=lambda: False))
    words = ["--model", "tiny-bytes"]
    if how == "folder":
        words = ["--model", str(spec.source.path)]
        for adapter, folder in spec.adapters["arithmetic"].items():
            words += [f"--{adapter}-adapter", str(folder)]
    assert cli.main(["run", "--device", "cpu", "--json", "--max-new-tokens", "16", *words]) == 0
    written = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert written == outputs(Session(ModelStore(spec, device="cpu"))) and len(made) == 1


def test_the_command_line_refuses_an_unknown_model_before_it_loads_torch():
    """Would catch seconds of imports, or a traceback, before a typing error is named."""
    code = (
        "import sys; from selfspan_core.serve.cli import main; "
        "status = main(['run', '--model', 'nope']); print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"1+2", capture_output=True, cwd=ROOT, timeout=60)
    assert done.stdout == b"2 False\n" and done.stderr.count(b"\n") == 1
    assert b"error: there is no model folder 'nope'; known models: selfspan-17m, smollm2-135m;" in done.stderr


def test_the_environment_names_the_apps_model(registered, monkeypatch, capsys):
    """Would catch a setting that is read and forgotten, and a server that starts without a model."""

    def start(model):
        monkeypatch.setenv("SELFSPAN_MODEL", str(model))
        return runpy.run_path(str(ROOT / "app.py"))

    own = registered["tiny-bytes"].source.path
    started = start(own)
    assert started["own_model"].source == Folder(own)
    assert started["session"]._load()._models.default.source == Folder(own)
    with pytest.raises(SystemExit) as caught:
        start("nope")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    assert said.startswith("SELFSPAN_MODEL: there is no model folder 'nope'; known")


def test_the_lazy_session_runs_the_model_that_it_was_given(registered):
    """Would catch an app that loads the shipped model whatever it was told."""
    session = LazySession("gather", registered["tiny-bytes"])
    assert list(session.loads()) == ["tiny-bytes"] * 2
    expected = outputs(Session(ModelStore("tiny-bytes", device="cpu")))
    asked = request("arithmetic", TEXT, max_new_tokens=16)
    *_, end = session.compare(asked)
    assert [lane["output"] for lane in end["lanes"].values()] == expected
    assert set(session._models._engines) == {
        ("tiny-bytes", folder) for folder in registered["tiny-bytes"].adapters["arithmetic"].values()
    }


def test_what_is_offered(registered, tmp_path):
    """Would catch a model offered without the adapters of the task, and the shipped ones beside a folder's model."""
    shipped = MODELS[DEFAULT_MODEL]
    assert choices("arithmetic", shipped) == [DEFAULT_MODEL, "tiny-pieces", "tiny-bytes"]
    assert choices("arithmetic", registered["tiny-bytes"]) == ["tiny-bytes", DEFAULT_MODEL, "tiny-pieces"]
    assert choices("summarize", shipped) == [DEFAULT_MODEL]
    assert choices("arithmetic", resolve_model(tmp_path)) == [str(tmp_path)]
    assert shipped_tasks(registered["tiny-bytes"]) == ("arithmetic",)


@pytest.mark.browser
def test_the_page_offers_the_models_of_a_task(registered, serve, open_tab):
    """Would catch a choice that is shown and not asked for, and a tab of a task that has no choice with one."""
    session = FakeSession(dense=2000, sparse=2000)
    tab = open_tab(serve(session, ("arithmetic", "summarize")))
    tab.open_options()
    choice = tab.page.locator("#model")
    assert [label.strip() for label in choice.locator("label").all_text_contents()] == [
        DEFAULT_MODEL,
        "tiny-pieces",
        "tiny-bytes",
    ]
    tab.run("1+2")
    tab.wait("done")
    assert session.model is None  # the usual one, which says so where it cannot be had
    tab.page.click("#expression textarea")  # the form is a bar since the run
    choice.get_by_label("tiny-bytes").check()
    tab.run("3+4")
    tab.page.wait_for_function("() => document.querySelector('#race').textContent.includes('3+4=')")
    tab.wait("done")
    assert session.model == "tiny-bytes"
    tab.turn("Articles")
    tab.page.wait_for_selector("#run-article")
    assert tab.page.locator("#model-article").count() == 0


@pytest.mark.browser
def test_one_model_is_no_choice(serve, open_tab, monkeypatch):
    """Would catch a control with nothing to choose."""
    only_the_default(monkeypatch)
    session = FakeSession(dense=2000, sparse=2000)
    tab = open_tab(serve(session))
    assert tab.page.locator("#model").count() == 0
    tab.run("1+2")
    tab.wait("done")
    assert session.model is None


def test_the_api_takes_a_model_where_there_are_several(registered, serve):
    """Would catch an argument that is taken and forgotten, and one that moves those before it."""
    session = FakeSession(dense=2000, sparse=2000)
    client = Client(serve(session), verbose=False)
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/compare"]["parameters"]
    assert [one["parameter_name"] for one in parameters][-5:] == ["seed", "length", "drafts", "model", "clean"]
    client.predict("arithmetic", "1+1", api_name="/compare")
    assert session.model is None
    client.predict("arithmetic", "1+1", model="tiny-bytes", api_name="/compare")
    assert session.model == "tiny-bytes"


def test_the_api_refuses_an_unknown_model(registered, serve):
    """Would catch an error without its reason, of the real session."""
    client = Client(serve(LazySession("gather", registered["tiny-bytes"])), verbose=False)
    with pytest.raises(
        AppError, match="There is no model 'nope'; known models: tiny-bytes, selfspan-17m, smollm2-135m, tiny-pieces"
    ):
        client.predict("arithmetic", "1+1", model="nope", api_name="/compare")
