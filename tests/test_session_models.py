"""Sessions around a real engine and tokenizer, and a random model."""

from dataclasses import replace

import pytest
import torch

from selfspan_core.attention import backends as impls
from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.session import Session
from selfspan_core.compare.text_stream import TextStream
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ImplUnavailable
from tests.support.asking import compare, generate, prepare
from tests.support.scripted import right_output
from tests.support.session_tools import TASK, TEXT, assembled, last_lane, show
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory):
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=2048)
    return ModelStore(base, adapters, device="cpu")


@pytest.fixture
def forced_session(tiny_store, monkeypatch):
    """A session whose tiny real models are made to write the right steps: real forwards, caches, clocks and tracker."""
    original = Engine.generate

    def generate(self, request, *args):
        tokenizer = tiny_store.tokenizer
        text = tokenizer.decode(request.prompt.ids).removeprefix("Calculate: ").removesuffix("=")
        ids = right_output(tokenizer, TASK.parse(text), request.annotated)
        return original(self, replace(request, forced_tokens=ids), *args)

    for adapter in ("span", "plain"):  # warmed up before the patch: warming up has forced tokens of its own
        tiny_store.engine("arithmetic", adapter)
    monkeypatch.setattr(Engine, "generate", generate)
    return Session(tiny_store)


@pytest.mark.parametrize("adapter", ["span", "plain"])
@pytest.mark.parametrize("text", ["1+2", TEXT, "-(5-99*98)*7/(3-10)", "-5*(-3)+(4-(-8))*12-96/8"])
def test_real_engine_end_to_end(forced_session, adapter, text):
    """Would catch engine, tokenizer, task and session disagreeing about ids, names, intervals or figures."""
    ticks = list(compare(forced_session, "arithmetic", text, adapter=adapter, tick_seconds=0))
    problem, end = TASK.parse(text), ticks[-1]
    for lane in ("dense", "sparse"):
        result, last = end["lanes"][lane], last_lane(ticks, lane)
        assert result["answer"] == problem.expected and result["correct"] and result["malformed_steps"] == 0
        assert [s["text"] for s in result["steps"]] == [r.work + r.result for r in problem.reductions]
        assert show([i for i in assembled(ticks, lane) if i["kind"] in ("text", "newline")]).strip() == result["output"]
        assert last["elapsed_s"] == pytest.approx(result["seconds"]) and last["ms_per_token"] > 0
        if lane == "sparse" or adapter == "span":
            assert [s["reads"] for s in result["steps"]] == [[f"a{n}" for n in r.reads] for r in problem.reductions]
    sparse = end["lanes"]["sparse"]
    assert 0 < sparse["attended_tokens"] < sparse["dense_tokens"]
    assert end["line"].endswith("both answers are right.")


def test_figures_are_the_engines(forced_session):
    """Would catch running sums that drift from what the engine itself reports at the end."""
    *_, tick, _ = compare(forced_session, "arithmetic", TEXT, tick_seconds=1e9)
    run = prepare(forced_session, "arithmetic", TEXT, "sparse")
    events = list(generate(run.lanes[0].engine, run.lanes[0].prompt, attention="sparse"))
    lane = tick["lanes"]["sparse"]
    assert (lane["tokens"], lane["attended_tokens"], lane["dense_tokens"]) == (
        events[-1].num_tokens,
        events[-1].attended_tokens,
        events[-1].dense_tokens,
    )
    view = LaneView(run.lanes[0].spec, run.lanes[0].engine.model.tokenizer, 24)
    for event in events[:-1]:
        view.apply(event)
    assert (view.attended_tokens, view.dense_tokens) == (events[-1].attended_tokens, events[-1].dense_tokens)
    assert view.seconds == pytest.approx(events[-1].seconds)


@pytest.mark.parametrize("text", ["Grüße, 東京 – 😀!", "  two  spaces ", "a\n\nb"])
def test_shipped_tokenizer_streams_whole_characters(tiny_store, text):
    """Would catch lost spaces and half characters with the tokenizer that users run."""
    stream = TextStream(tiny_store.tokenizer)
    pieces = [stream.push(token) for token in tiny_store.tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text and not any("\ufffd" in piece for piece in pieces)


def test_sampling_is_reproducible(tiny_store):
    """Would catch a seed that is ignored, or two lanes that draw from one generator."""
    session = Session(tiny_store)

    def output(seed, temperature=1.5, **settings):
        settings |= {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
        *_, end = compare(session, "arithmetic", TEXT, **settings)
        return [lane["output"] for lane in end["lanes"].values()]

    assert output(1) == output(1) != output(2)
    assert output(1, top_p=0.5) == output(1, top_p=0.5) != output(1)
    assert output(1, top_p=1e-9) == output(1, temperature=0)


@pytest.fixture(scope="module")
def captured_store(tmp_path_factory):
    """A store whose engines run captured, uncaptured: the CPU passes for a device that captures."""
    base, adapters = save_tiny(tmp_path_factory.mktemp("captured"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(impls, "why_no_kernels", lambda impl, device: None)
        yield ModelStore(base, adapters, device="cpu", impl="captured")


def test_a_real_captured_session_says_what_a_plain_one_says(captured_store, tiny_store):
    """Would catch lanes that the batch engine answers otherwise, or a device whose name hides how it runs."""
    start, *_, end = compare(Session(captured_store), "arithmetic", TEXT, max_new_tokens=24)
    *_, plain = compare(Session(tiny_store), "arithmetic", TEXT, max_new_tokens=24)
    assert start["device"] == "CPU, float32, captured graph" and tiny_store.device_name == "CPU, float32"
    for lane in ("dense", "sparse"):
        for figure in ("output", "tokens", "attended_tokens", "dense_tokens", "malformed_steps", "steps"):
            assert end["lanes"][lane][figure] == plain["lanes"][lane][figure]


@pytest.mark.parametrize("adapter", ["span", "plain"])
def test_a_real_load(captured_store, adapter):
    """Would catch an answer that the load changes, and rows that nobody keeps busy."""
    session = Session(captured_store)
    assert session.can_load
    *ticks, end = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3)
    *_, alone = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12)
    for lane in ("dense", "sparse"):
        assert end["lanes"][lane]["output"] == alone["lanes"][lane]["output"]
        figures = last_lane(ticks, lane)
        assert figures["total_tokens_per_second"] > 1.5 * figures["tokens_per_second"] > 0
    assert end["speedup_total"] > 0 and "at 3 requests at once" in end["line"]
    running = compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3, tick_seconds=0)
    for _ in range(4):
        next(running)
    running.close()
    assert list(compare(session, "arithmetic", TEXT, adapter, max_new_tokens=12, load=3))[-1]["kind"] == "end"


def test_the_stores_default_is_the_devices(tiny_store, monkeypatch):
    """Would catch a GPU that decodes token by token, or a CPU that is asked for a graph."""
    assert tiny_store.impl == "gather" and not tiny_store.can_load
    monkeypatch.setattr(impls, "why_no_kernels", lambda impl, device: f"impl 'captured': not on this {device.type}")
    monkeypatch.setattr("selfspan_core.engine.model_store.pick_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr("selfspan_core.engine.model_store.pick_dtype", lambda device: torch.bfloat16)
    with pytest.raises(ImplUnavailable, match="'captured': not on this cuda"):
        ModelStore(device="auto")
    assert not ModelStore(device="auto", impl="gather").can_load
