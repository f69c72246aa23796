"""A vLLM server as the engine: the own engine's events, what a server cannot do, and servers that fail."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from selfspan_core.compare.session import Session
from selfspan_core.engine.events import Finished, Measured, Prefilled, Token, Waiting
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import ImplUnavailable, LaneError, ModelError, PromptError, ServerError, SettingError
from selfspan_core.models.registry import MODELS
from selfspan_core.params import SamplingParams
from selfspan_core.serve.http_engine.served import engines_at
from selfspan_core.serve.http_engine.store import ServedStore
from selfspan_core.serve.lazy_session import LazySession
from selfspan_core.serve.stores import engines_named
from tests.support.asking import compare, request
from tests.support.cli_tools import call
from tests.support.fake_vllm import NAME, FakeVllm, served
from tests.support.http_tools import TASK, TEXT, engine_at, prompt_of
from tests.support.paths import ROOT
from tests.support.scripted import right_output
from tests.support.session_tools import assembled, show
from tests.support.tiny_models import save_tiny

pytest_plugins = ["tests.support.http_fixtures"]

WRITTEN = "an engine's address is written http://host:port"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The own engine, of a tiny model with the shipped tokenizer."""
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"))
    return ModelStore(base, adapters, device="cpu").engine("arithmetic", "span")


def timeless(events):
    """Events without seconds, clocks and passes."""
    kept = []
    for event in events:
        if isinstance(event, Token):
            kept.append(replace(event, step_ms=0.0, num_passes=0))
        elif isinstance(event, Prefilled):
            kept.append(event.num_tokens)
        elif isinstance(event, Finished):
            kept.append(replace(event, seconds=0.0, clock="host"))
        elif not isinstance(event, Measured | Waiting):
            kept.append(event)
    return kept


@pytest.mark.parametrize("pieces", [1, 4, 1000])
@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("kind", ["right", "cut", "malformed"])
def test_events_are_the_own_engines(own, fake, address, tokenizer, attention, pieces, kind):
    """Ids that are lost or counted twice where several come at once; other intervals, steps or ends than here."""
    markers, prompt = tokenizer.markers, prompt_of(tokenizer)
    ids = right_output(tokenizer, TASK.parse(TEXT))
    ids = {"right": ids, "cut": ids[:11], "malformed": [markers.ref, markers.go, *ids]}[kind]
    fake.ids, fake.pieces = (lambda body: ids), pieces
    sampling = SamplingParams(max_new_tokens=len(ids))
    theirs = list(engine_at(address).generate(PromptRequest(prompt, sampling=sampling), attention))
    ours = list(own.generate(PromptRequest(prompt, forced_tokens=ids), attention))
    assert timeless(theirs) == timeless(ours)
    body = fake.asked[-1]
    assert body["prompt"] == prompt.ids[: prompt.prompt.num_tokens] and body["max_tokens"] == len(ids)
    assert json.loads(body["vllm_xargs"]["selfspan"])["attention"] == attention


def test_times_are_the_servers(fake, address, tokenizer):
    """Figures of the network, where the server measured; or the server's, where nobody was told that it did not."""
    asked = PromptRequest(prompt_of(tokenizer))
    events = list(engine_at(address).generate(asked, "sparse"))
    *_, measured, finished = events
    num = len([event for event in events if isinstance(event, Token)])
    assert measured == Measured(0.25, pytest.approx(0.01 * (num - 1)))
    assert finished.clock == "server" and finished.seconds == pytest.approx(0.25 + 0.01 * (num - 1))
    ticks = list(compare(Session(ServedStore(engines_at(address))), "arithmetic", TEXT))
    lane = ticks[-2]["lanes"]["dense"]
    assert (lane["first_token_ms"], lane["ms_per_token"]) == (250.0, pytest.approx(10.0))
    assert ticks[0]["clock"] == "server" and ticks[0]["device"] == "vLLM 0.32.0, timed by its own clock"
    fake.has_times, fake.wait_s = False, 0.01
    store = ServedStore(engines_at(address))
    events = list(store.engine("arithmetic", "span").generate(asked, "sparse"))
    assert not any(isinstance(event, Measured) for event in events) and events[-1].clock == "arrival"
    assert sum(event.step_ms for event in events if isinstance(event, Token)) > 10 * (num - 2)
    assert store.terms.clock == "arrival" and store.device_with("vllm").endswith("timed as its tokens arrive")


def test_a_session_runs_one_lane_after_the_other(fake, address):
    """Two answers in the same steps of a server, each with the time of both; a step or a figure that is lost."""
    fake.wait_s = 0.002
    ticks = list(compare(Session(ServedStore(engines_at(address))), "arithmetic", TEXT, tick_seconds=0))
    start, end = ticks[0], ticks[-1]
    assert start["in_turn"] and start["drafts"] == "off" and start["bytes_per_token"] is None
    assert start["notice"] == end["notice"] == "vLLM 0.32.0 decodes without drafts."
    lanes = [tick["lanes"] for tick in ticks[1:-1]]
    progress = [(one["dense"]["done"], one["sparse"]["tokens"]) for one in lanes]
    assert all(done or not tokens for done, tokens in progress) and progress[0][0] is False
    # Nothing was run beforehand, and no run finds the pages of another.
    bodies = fake.asked
    assert len(bodies) == 2 and len({body["cache_salt"] for body in bodies}) == 2
    assert [json.loads(body["vllm_xargs"]["selfspan"])["attention"] for body in bodies] == ["dense", "sparse"]
    assert show(assembled(ticks, "sparse")).startswith("[ref][a0][a1][a3][go]79*36=2370+474=[res]2844[end]\n")
    assert end["lanes"]["sparse"]["correct"] and end["lanes"]["sparse"]["steps"][0]["reads"] == ["a0", "a1"]
    assert 0 < end["read_share"] < 1


def test_a_server_on_a_cpu_is_sent_no_seed(fake, address):
    """Would catch seeds of visitors that end vLLM on a CPU for everybody, and runs that cannot be repeated unsaid."""
    fake.takes_seeds = False
    store = ServedStore(engines_at(address))
    ticks = list(compare(Session(store), "arithmetic", TEXT, temperature=0.5, seed=7))
    assert len(fake.asked) == 2 and not any("seed" in body for body in fake.asked)
    assert ticks[0]["notice"].endswith(" and without a seed, so that each run draws other tokens.")
    greedy = list(compare(Session(store), "arithmetic", TEXT, seed=7))
    assert "seed" not in greedy[0]["notice"]


def test_most_tokens_are_as_many_as_the_server_has_room_for(fake, address):
    """Would catch a server with a short context that refuses whatever the page asks with its usual limit."""
    store = ServedStore(engines_at(address))
    ticks = list(compare(Session(store), "arithmetic", TEXT, max_new_tokens=4096))
    assert ticks[-1]["lanes"]["sparse"]["correct"]
    assert {body["max_tokens"] for body in fake.asked} == {fake.max_context - len(fake.asked[0]["prompt"])}


def test_load_is_several_requests_at_once(fake, address):
    """A load that is one request; tokens of others that are not counted, or go on when the lane is done."""
    right = right_output(fake.tokenizer, TASK.parse(TEXT))
    fake.wait_s, fake.ids = 0.005, lambda body: right if body.get("seed", 7) == 7 else [300] * body["max_tokens"]
    store = ServedStore(engines_at(address))
    ticks = list(compare(Session(store), "arithmetic", TEXT, load=3, temperature=0.5, seed=7))
    lanes = ticks[-1]["lanes"]
    assert ticks[0]["load"] == 3 and all(lane["correct"] for lane in lanes.values())
    assert all(lane["total_tokens_per_second"] > lane["tokens_per_second"] for lane in lanes.values())
    seeds = [body["seed"] for body in fake.asked]
    assert len(seeds) >= 6 and seeds.count(7) == 2 and len({body["cache_salt"] for body in fake.asked}) == len(seeds)
    until = time.monotonic() + 20
    while fake.num_gone < 4 and time.monotonic() < until:
        time.sleep(0.02)
    assert fake.num_gone >= 4
    fake.fault = "error"
    with pytest.raises(LaneError, match="the vLLM server gave up"):
        list(compare(Session(store), "arithmetic", TEXT, load=3))


def test_a_request_beside_that_fails_ends_the_run(fake, address, tokenizer):
    """A load of 3 that is one of 1, since the others were refused, with the figures of 3."""
    engine, prompt = engine_at(address), prompt_of(tokenizer)
    fake.fault = "400"
    with pytest.raises(ServerError, match=r"beside this one failed: the vLLM server refused the request \(400\)"):
        list(engine.generate_among(PromptRequest(prompt), itertools.repeat(prompt), 3, "sparse"))


def test_nothing_is_left_to_the_servers_settings(fake, address, tokenizer):
    """A server's own temperature, cut-offs or further ends of text; a seed that does not arrive."""
    engine = engine_at(address)
    list(engine.generate(PromptRequest(prompt_of(tokenizer)), "dense"))
    drawn = SamplingParams(temperature=0.7, top_p=0.9, seed=2**63 - 1)
    list(engine.generate(PromptRequest(prompt_of(tokenizer), sampling=drawn), "dense"))
    greedy, sampled = fake.asked
    fixed = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, "stream": True}
    for body in fake.asked:
        assert body.items() >= (fixed | {"stop_token_ids": [tokenizer.markers.eos], "model": NAME}).items()
    assert (greedy["temperature"], greedy["top_p"], "seed" in greedy) == (0, 1.0, False)
    assert (sampled["temperature"], sampled["top_p"], sampled["seed"]) == (0.7, 0.9, 2**63 - 1)
    room = fake.max_context - len(greedy["prompt"])
    assert greedy["max_tokens"] == room


def test_what_was_written_stays(fake, address, monkeypatch, capsys):
    """A failed run that takes back the text that was on the screen, or never shows its last tokens."""
    session = Session(ServedStore(engines_at(address)))
    fake.fault, fake.after = "broken", 12
    ticks = []
    with pytest.raises(LaneError, match="the dense lane failed: the vLLM server ended the connection after 12 tokens"):
        for tick in compare(session, "arithmetic", TEXT, tick_seconds=60):
            ticks.append(tick)
    assert ticks[-1]["kind"] == "tick" and ticks[-1]["lanes"]["dense"]["tokens"] == 12
    assert show(assembled(ticks, "dense")).startswith("[ref][a0][a1][a3][go]79*36=")
    assert call(monkeypatch, TEXT, "--engine", address) == 1
    said = capsys.readouterr()
    assert "until the run failed\n    79*36=" in said.out and said.err.count("error: ") == 1


def test_stop_closes_the_stream(fake, address):
    """A request that the server goes on with when its run was stopped."""
    fake.wait_s, fake.max_context = 0.01, 4096
    fake.ids = lambda body: [300] * body["max_tokens"]
    ticks = compare(Session(ServedStore(engines_at(address))), "arithmetic", TEXT, tick_seconds=0)
    while next(ticks)["kind"] != "tick":
        pass
    next(ticks)
    ticks.close()
    until = time.monotonic() + 20
    while fake.num_gone == 0 and time.monotonic() < until:
        time.sleep(0.02)
    assert fake.num_gone == 1 and len(fake.asked) == 1


def test_stop_does_not_wait_for_a_silent_server(fake, address):
    """A Stop that nothing comes of, and a device that nobody else gets, until a hanging server is given up."""
    store = ServedStore(engines_at(address))
    fake.fault = "silent"
    ticks = compare(Session(store), "arithmetic", TEXT, tick_seconds=0)
    tokens = [tick["lanes"]["dense"]["tokens"] for tick in itertools.islice(ticks, 1, 12)]
    assert tokens[-3:] == [5, 5, 5]  # ticks go on, between which a run can be ended
    ticks.close()


def test_stop_does_not_wait_for_requests_beside(fake, address, tokenizer):
    """A run of several requests that nobody can end until all of them have begun, or a hanging server is given up."""
    engine, prompt = engine_at(address), prompt_of(tokenizer)
    fake.fault, fake.after = "silent", 0
    events = engine.generate_among(PromptRequest(prompt), itertools.repeat(prompt), 3, "sparse")
    assert [next(events) for _ in range(3)] == [Waiting()] * 3
    events.close()
    assert len(fake.asked) == 2  # the shown one had not begun


def test_httpx_is_for_who_names_a_server():
    """Every start of the command line that loads a client of HTTP first."""
    code = "import sys, selfspan_core.serve.cli; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_a_server_cannot_do_is_refused(fake, address, tokenizer):
    """Drafts, forced ids, or another model or task that are quietly left out."""
    session = Session(ServedStore(engines_at(address)))
    refused = {
        "drafts is auto or off here, not 4": {"drafts": 4},
        "temperature is at most 2 here": {"temperature": 3.0},
        "SELFSPAN_PLAIN_ENGINE or --plain-engine": {"adapter": "plain"},
        "serves selfspan-17m, and not 'smollm2-135m'": {"model": "smollm2-135m"},
    }
    for message, settings in refused.items():
        with pytest.raises(SettingError, match=message):
            session.prepare(request("arithmetic", TEXT, **settings))
    with pytest.raises(SettingError, match="the adapter of arithmetic merged in, and answers no summarize"):
        session.prepare(request("summarize", "A sentence stands here. Another one follows it. " * 20))
    engine, prompt = engine_at(address), prompt_of(tokenizer)
    for asked in (PromptRequest(prompt, forced_tokens=[5]), PromptRequest(prompt, with_logits=True)):
        with pytest.raises(ImplUnavailable, match="a vLLM server is not asked for"):
            engine.generate(asked, "dense")
    fake.max_context = len(prompt.ids[: prompt.prompt.num_tokens])
    with pytest.raises(PromptError, match="context holds"):
        engine_at(address).generate(PromptRequest(prompt), "dense")
    assert not fake.asked


def test_rules_are_switched_off_in_words(fake, address):
    """A summary under rules that nobody kept, shown with the sentence that says they were."""
    fake.names, fake.max_context = ("selfspan/summarize/span/selfspan-17m",), 4096
    run = Session(ServedStore(engines_at(address))).prepare(
        request("summarize", "The first sentence stands here. Another one follows it now. " * 10, drafts="off")
    )
    assert run.notice == "vLLM 0.32.0 decodes without the task's rules."
    run = replace(run, request=replace(run.request, drafts="auto"))
    assert "rules" not in Session(ServedStore(engines_at(address)))._start(run)


def test_the_plain_adapter_has_a_server_of_its_own(fake, address, tokenizer):
    """The plain lane on the span adapter's server, or with markers in its prompt."""
    plain = FakeVllm(tokenizer, lambda body: right_output(tokenizer, TASK.parse(TEXT), annotated=False))
    plain.names = (NAME.replace("/span/", "/plain/"),)
    with served(plain) as other:
        engines = engines_named(address, other, None, {})
        ticks = list(compare(Session(ServedStore(engines)), "arithmetic", TEXT, adapter="plain"))
        plain.names = ("selfspan/summarize/plain/selfspan-17m",)
        with pytest.raises(ModelError, match="different tasks"):
            engines_named(None, None, None, {"SELFSPAN_ENGINE": address, "SELFSPAN_PLAIN_ENGINE": other})
    assert ticks[-1]["lanes"]["dense"]["adapter"] == "plain" and ticks[-1]["lanes"]["dense"]["correct"]
    assert len(plain.asked) == len(fake.asked) == 1
    assert set(plain.asked[0]["prompt"]).isdisjoint(tokenizer.markers.ids)
    with pytest.raises(ServerError, match="the span adapter's is the engine"):
        engines_named(None, address, None, {})


def test_the_command_line_takes_an_engine(fake, address, monkeypatch, capsys):
    """An option or a variable that is parsed and then forgotten, while a model is loaded here."""
    assert call(monkeypatch, TEXT, "--json", "--engine", address) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["correct"] for line in said.out.splitlines()] == [True, True]
    assert said.err == "note: vLLM 0.32.0 decodes without drafts.\n"
    monkeypatch.setitem(os.environ, "SELFSPAN_ENGINE", address)
    assert call(monkeypatch, TEXT, "--attention", "sparse", "--drafts", "off") == 0
    said = capsys.readouterr()
    assert "(vLLM 0.32.0, timed by its own clock)" in said.out and said.err == ""
    assert len(fake.asked) == 3
    for option, value in (("--impl", "gather"), ("--device", "cpu"), ("--span-adapter", "x"), ("--plain-adapter", "x")):
        assert call(monkeypatch, TEXT, option, value) == 2
        assert f"{option} is of models that are loaded here" in capsys.readouterr().err


def test_the_apps_session_runs_on_a_server(fake, address):
    """An app that offers tasks which its server cannot answer, warms adapters that nobody serves, or lets a run rest
    while its server goes on with it."""
    fake.max_context = 4096
    session = LazySession(engines=engines_at(address))
    assert session.tasks() == ("arithmetic",)
    assert session.can_load() and not session.can_pause()
    assert list(session.loads()) == ["selfspan-17m"]
    (first,) = session.first_requests()
    assert first.adapter == "span" and first.task == "arithmetic"
    fake.ids = lambda body: right_output(fake.tokenizer, TASK.parse(first.text))
    assert list(session.compare(first))[-1]["lanes"]["sparse"]["correct"]
    assert engines_at(address).span.spec is not MODELS["selfspan-17m"]


def test_the_app_does_not_start_on_nothing(fake, address, monkeypatch, capsys):
    """A page whose every run fails, for an address that was mistyped; a setting of models here that does nothing."""
    import app

    monkeypatch.setenv("SELFSPAN_ENGINE", "localhost:8000")
    with pytest.raises(SystemExit) as ended:
        app.engines_of_environment(None)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said == f"SELFSPAN_ENGINE: {WRITTEN}, not 'localhost:8000'\n"
    monkeypatch.setenv("SELFSPAN_ENGINE", address)
    engines = app.engines_of_environment(None)
    assert app.session_here(None, engines).tasks() == ("arithmetic",)
    monkeypatch.setenv("SELFSPAN_IMPL", "gather")
    with pytest.raises(SystemExit):
        app.session_here(None, engines)
    assert "SELFSPAN_IMPL is of models that are loaded here" in capsys.readouterr().err
    monkeypatch.delenv("SELFSPAN_ENGINE")
    assert app.engines_of_environment(None) is None
