"""The engine's captured path, on the CPU, where the same code runs uncaptured: its events, and what it keeps."""

import itertools

import pytest
import torch

from selfspan_core.attention import backends as impls
from selfspan_core.attention.impls import IMPLS
from selfspan_core.compare.race import Race
from selfspan_core.engine import batch_pool as captured
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_pool import row_capacity
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Finished, OtherRows, Prefilled, Token
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.prefill import PromptPass
from selfspan_core.errors import ImplUnavailable, ModelError, PromptError
from selfspan_core.models.model import SpanModel
from selfspan_core.spans.render import render
from tests.support.asking import asked, generate, generate_among
from tests.support.attention_problem import needs_cuda
from tests.support.batch_tools import on_cuda, shorn
from tests.support.engine_tools import text_prompt, tiny_hf
from tests.support.span_examples import FIRST_TEXT, MARKERS, worked_example


@pytest.fixture
def forced_on_cpu(monkeypatch):
    """Let the CPU pass for a device that captures."""
    monkeypatch.setattr(impls, "why_no_kernels", lambda impl, device: None)


@pytest.fixture
def engine(forced_on_cpu):
    return Engine(SpanModel(tiny_hf()), MARKERS)


def example(seed, **options):
    rendered = render(worked_example(seed, **options), MARKERS)
    return rendered, rendered.ids[rendered.prompt.num_tokens :]


def batch_engines(engine):
    return engine._batch_engines._engines


# ---- one request


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_the_same_events_as_token_by_token(engine, attention):
    """Would catch a limit, a reason, an id, a figure or a step that only one of the two ways of running reports."""
    for seed, options in enumerate([{}, {"max_new_tokens": 1}, {"max_new_tokens": 9}, {"max_new_tokens": 70}]):
        prompt, forced = example(seed)
        for more in (options, options | {"forced_tokens": forced}, options | {"forced_tokens": forced[:5]}):
            expected = [shorn(event) for event in generate(engine, prompt, attention, "gather", **more)]
            events = list(generate(engine, prompt, attention, "captured", **more))
            assert [shorn(event) for event in events] == expected, (seed, more)
            tokens = [event for event in events if isinstance(event, Token)]
            clock = events[0].seconds + sum(token.step_ms for token in tokens) / 1000
            assert events[-1].seconds == pytest.approx(clock) and all(token.step_ms > 0 for token in tokens[1:])


def test_the_context_ends_a_captured_run():
    """Would catch a row that is longer than the context, or a prompt that fills it going on to the batch engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(impls, "why_no_kernels", lambda impl, device: None)
        small = Engine(SpanModel(tiny_hf(max_position_embeddings=40)), MARKERS)
        *_, finished = generate(small, text_prompt(35), "dense", "captured", forced_tokens=[FIRST_TEXT] * 9)
        assert (finished.reason, finished.num_tokens) == ("length", 5)
        with pytest.raises(PromptError, match="40 tokens, and the model's context holds 40"):
            generate(small, text_prompt(40), "dense", "captured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "both"}, "'dense' or 'sparse'"),
        ({"max_new_tokens": 0}, "1 or more"),
        ({"temperature": -1.0}, "from 0 to 5, not -1.0"),
        ({"temperature": float("inf")}, "temperature is a number"),
        ({"top_p": 0.0}, "top_p is a number above 0 and at most 1"),
        ({"forced_tokens": []}, "empty"),
    ],
)
def test_senseless_arguments_are_refused_at_the_call(engine, options, message):
    """Would catch an option that the captured path takes and forgets, or refuses only at the first event."""
    with pytest.raises(ValueError, match=message):
        generate(engine, example(0)[0], **{"impl": "captured"} | options)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_without_cuda_the_reason_is_given_at_the_call(attention):
    """Would catch a lane that runs uncaptured, in silence, where captured was asked for."""
    engine = Engine(SpanModel(tiny_hf()), MARKERS)
    with pytest.raises(ImplUnavailable, match="impl 'captured': the CUDA kernels need a CUDA device, not 'cpu'"):
        generate(engine, example(0)[0], attention, "captured")
    with pytest.raises(ImplUnavailable, match="captured"):
        generate_among(engine, example(0)[0], iter(()), 2, attention)
    assert not batch_engines(engine)


def test_the_list_of_implementations():
    """Would catch an op called "captured", a device's default that is not in the list, or a name nobody refuses."""
    assert (*IMPLS, "captured") == impls.ENGINE_IMPLS and "captured" not in IMPLS
    assert (
        impls.default_impl(torch.device("cuda")) == "captured" and impls.default_impl(torch.device("cpu")) == "gather"
    )
    assert impls.why_unavailable("gather", "cpu") is None and "CUDA device" in impls.why_unavailable("cuda", "cpu")
    with pytest.raises(ValueError, match=r"'magic'; there are reference, gather, cuda, captured$"):
        impls.require_impl("magic", "cpu")


def test_a_model_that_cannot_is_refused():
    """Would catch a traceback from deep inside, where the reason is the model's shape."""
    with pytest.raises(ModelError, match="knows the activation 'silu', not 'gelu'"):
        Engine(SpanModel(tiny_hf(hidden_act="gelu")), MARKERS)


def test_a_device_that_cannot_is_unavailable(engine, monkeypatch):
    """Would catch a traceback from deep inside, where the reason is the device's memory."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SpanModel, "new_cache", full)
    with pytest.raises(ImplUnavailable, match="no memory on the device for the caches of 3 rows of 1,024 tokens"):
        generate_among(engine, example(0)[0], iter(()), 3)
    assert not batch_engines(engine)


def test_an_engine_that_nobody_uses_makes_room(engine, monkeypatch):
    """Would catch a load that no longer fits because the same rows were kept with drafts and without."""
    prompt, cache, kept = example(0)[0], SpanModel.new_cache, batch_engines(engine)
    list(generate(engine, prompt, "sparse", "captured", max_new_tokens=3))
    list(generate(engine, prompt, "dense", "captured", max_new_tokens=3))

    def room_for_one(self, *arguments):
        if any(attention == "dense" for attention, *_ in kept):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cache(self, *arguments)

    monkeypatch.setattr(SpanModel, "new_cache", room_for_one)
    drafter = DeviceDrafts(DraftHints())
    list(generate(engine, prompt, "dense", "captured", max_new_tokens=3, drafter=drafter))
    assert set(kept) == {("sparse", False, "none", False), ("dense", False, "none", True)}


def test_what_fails_in_the_batch_engine_is_raised(engine, monkeypatch):
    """Would catch a failure that ends the run as if the answer were complete."""

    def out_of_memory(self, row, ids):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PromptPass, "__call__", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        list(generate(engine, example(0)[0], "dense", "captured"))


# ---- what is kept


def test_closing_frees_the_row(engine):
    """Would catch a stopped run whose row stays taken, so that the next one fails or gets its late ids."""
    prompt, forced = example(0)
    expected = [shorn(event) for event in generate(engine, prompt, "sparse", "captured", forced_tokens=forced)]
    running = generate(engine, prompt, "sparse", "captured", max_new_tokens=len(forced))
    for _ in range(5):
        next(running)
    second = generate(engine, prompt, "sparse", "captured", forced_tokens=forced)
    with pytest.raises(RuntimeError, match="other requests already"):
        next(second)
    running.close()
    again = generate(engine, prompt, "sparse", "captured", forced_tokens=forced)
    assert [shorn(event) for event in again] == expected
    assert len(batch_engines(engine)) == 1


def test_engines_are_kept_and_made_anew_for_longer_prompts(engine, monkeypatch):
    """Would catch a graph captured per run, rows too short for a later prompt, weights fused twice."""
    made = []
    engine_of = captured.BatchEngine
    monkeypatch.setattr(captured, "BatchEngine", lambda *arguments: made.append(1) or engine_of(*arguments))

    def run(num_prompt, attention="dense", rows=1):
        prompt = text_prompt(num_prompt)
        if rows == 1:
            list(generate(engine, prompt, attention, "captured", max_new_tokens=10))
        else:
            list(generate_among(engine, prompt, itertools.repeat(prompt), rows, attention, max_new_tokens=3))
        return batch_engines(engine)[attention, rows > 1, "none", False]

    first = run(30)
    assert first.capacity == 64 and run(50) is first and run(54) is first
    longer = run(55)
    assert longer.capacity == 128 and run(30) is longer and len(batch_engines(engine)) == 1
    sparse = run(30, "sparse")
    assert sparse.capacity == 64 and run(30) is longer
    loaded = run(30, rows=3)
    assert (loaded.batch, loaded.capacity) == (3, 1024) and run(40, rows=3) is loaded and run(30) is longer
    assert run(30, rows=2).batch == 2 and len(batch_engines(engine)) == 3
    assert len(made) == 5


@pytest.mark.parametrize(
    ("num_positions", "capacity"), [(2, 2), (3, 4), (64, 64), (65, 128), (600, 1000), (1000, 1000)]
)
def test_row_capacity(num_positions, capacity):
    """Would catch a row shorter than its sequence, or longer than the context."""
    assert row_capacity(num_positions, 1000) == capacity


# ---- among others


def others_until_the_first_ends(engine, requests):
    """(ids that steps drew in rows beside the first's, prefills of theirs), counted from the batch engine's events.

    In every step the first row reports first.
    """
    drawn, prefills, running, owed = 0, 0, set(), None
    for number, event in engine.generate(requests):
        if number == 0:
            owed = set(running) if isinstance(event, Finished) else None
        elif isinstance(event, Prefilled):
            prefills += 1
        elif isinstance(event, Finished):
            running.discard(number)
        elif isinstance(event, Token):
            drawn += number in running  # its first id is the prefill's
            running.add(number)
            if owed is not None:
                owed.discard(number)
        if owed is not None and not owed:
            break
    return drawn, prefills


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("rows", [2, 4])
def test_among_others_the_answer_is_the_same_and_all_ids_are_counted(forced_on_cpu, attention, rows):
    """Would catch an answer that the load changes, ids of the last step that get lost, others that are not replaced."""
    engine = Engine(SpanModel(tiny_hf(max_position_embeddings=80)), MARKERS)
    prompt = text_prompt(17)
    lengths = [70, 74, 60, 77]  # each ends at the end of its row, so fresh ones take its place
    others = [text_prompt(length) for length in lengths] * 20
    alone = [shorn(event) for event in generate(engine, prompt, attention, "gather")]
    events = list(generate_among(engine, prompt, iter(others), rows, attention))
    assert [shorn(event) for event in events if not isinstance(event, OtherRows)] == alone
    told = [event for event in events if isinstance(event, OtherRows)]
    requests = [asked(one) for one in [prompt, *others]]
    kept = BatchEngine(engine._batch_engines._weights, MARKERS, BatchShape(rows, 80, attention == "dense"))
    drawn, prefills = others_until_the_first_ends(kept, requests)
    assert sum(event.num_tokens for event in told) == drawn > 30
    assert sum(event.seconds > 0 for event in told) == prefills > rows
    assert all((event.num_tokens > 0) != (event.seconds > 0) and event.num_tokens < rows for event in told)


def test_equal_requests_fill_every_step(engine):
    """Would catch figures that count a step's ids late or twice: every step draws one id per row, to the last one."""
    prompt = text_prompt(17)
    events = list(generate_among(engine, prompt, itertools.repeat(prompt), 5, "dense", max_new_tokens=12))
    num_tokens = events[-1].num_tokens
    assert num_tokens == 12
    assert [event.num_tokens for event in events if isinstance(event, OtherRows) and event.num_tokens] == [4] * 11


def test_a_lanes_clock_advances_once_per_step(engine):
    """Would catch a race that charges a lane for every row of a step, or not for the prefills that it waits for."""
    prompt = text_prompt(20)
    with Race({"lane": generate_among(engine, prompt, itertools.repeat(prompt), 4, max_new_tokens=6)}) as race:
        events = [event for _, event in race]
    steps = sum(event.step_ms for event in events if isinstance(event, Token)) / 1000
    prefills = sum(event.seconds for event in events if isinstance(event, OtherRows))
    assert race.clocks["lane"] == pytest.approx(events[0].seconds + steps + prefills)
    assert sum(isinstance(event, Token) for event in events) == 6 and prefills > 0


def test_a_failing_request_beside_the_shown_one_is_raised(engine):
    """Would catch a load that shrinks in silence."""
    with pytest.raises(PromptError, match="2000 tokens, and a row holds"):
        list(generate_among(engine, text_prompt(20), iter([text_prompt(2000)]), 2, max_new_tokens=5))


def test_sampled_requests_draw_apart(engine):
    """Would catch rows that all draw from one seed, a load of copies, and a seed that overflows."""
    prompt = text_prompt(20)

    def ids(seed):
        settings = {"max_new_tokens": 12, "temperature": 1.5, "seed": seed}
        alone = [e.id for e in generate(engine, prompt, "dense", "captured", **settings) if isinstance(e, Token)]
        among = generate_among(engine, prompt, itertools.repeat(prompt), 3, **settings)
        assert [event.id for event in among if isinstance(event, Token)] == alone
        return alone

    assert ids(1) != ids(2) and len(ids(2**63 - 1)) > 0


@pytest.mark.parametrize("rows", [1, 3])
def test_top_p_reaches_every_request(engine, monkeypatch, rows):
    """Would catch a share that the captured engine or one of its rows forgets: the others would be another load."""
    prompt, asked = text_prompt(20), []
    monkeypatch.setattr(
        captured.BatchEngine,
        "_room",
        lambda self, request, room=captured.BatchEngine._room: asked.append(request) or room(self, request),
    )

    def ids(**settings):
        options = {"max_new_tokens": 12, "seed": 3, **settings}
        if rows == 1:
            events = generate(engine, prompt, "sparse", "captured", **options)
        else:
            events = generate_among(engine, prompt, itertools.repeat(prompt), rows, "sparse", **options)
        return [event.id for event in events if isinstance(event, Token)]

    assert ids(temperature=2.0, top_p=1e-9) == ids()
    asked.clear()
    some = ids(temperature=2.0, top_p=0.6)
    assert len(asked) >= rows and all(request.sampling.top_p == 0.6 for request in asked)
    assert some == ids(temperature=2.0, top_p=0.6) != ids(temperature=2.0)
    assert ids(temperature=2.0, top_p=1.0) == ids(temperature=2.0)


def test_senseless_arguments_among_others_are_refused_at_the_call(engine):
    """Would catch a share that only fails when the first request begins."""
    with pytest.raises(ValueError, match="top_p is a number above 0 and at most 1, not 2"):
        generate_among(engine, example(0)[0], iter(()), 2, top_p=2.0)


# ---- on a GPU


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_gpu_captured_runs_answer_as_token_by_token(attention):
    """Would catch a captured lane whose ids, steps or figures are not those of PyTorch's operations."""
    weights = on_cuda(num_key_value_heads=2)
    engine = Engine(weights.model, MARKERS)
    for seed in range(4):
        prompt, forced = example(seed)
        expected = [shorn(e) for e in generate(engine, prompt, attention, "gather", forced_tokens=forced)]
        assert [shorn(e) for e in generate(engine, prompt, attention, "captured", forced_tokens=forced)] == expected
    among = list(generate_among(engine, prompt, itertools.repeat(prompt), 16, attention, max_new_tokens=20))
    assert sum(event.num_tokens for event in among if isinstance(event, OtherRows)) > 0


@pytest.mark.gpu
@needs_cuda
def test_gpu_a_float32_model_is_unavailable():
    """Would catch a model that the kernels do not take failing with anything but the reason."""
    engine = Engine(SpanModel(tiny_hf(head_dim=64).cuda()), MARKERS)
    with pytest.raises(ImplUnavailable, match="captured graph: dtype"):
        generate(engine, example(0)[0], "dense", "captured")


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_drafts_among_others_change_nothing_but_the_passes(forced_on_cpu, attention):
    """Would catch a load whose other rows are not drafted, or ids of a pass that count for another row."""
    engine = Engine(SpanModel(tiny_hf()), MARKERS)
    prompt, others = text_prompt(17), [text_prompt(length) for length in (20, 31, 26)] * 20
    drafter = DeviceDrafts(DraftHints())
    common = {"max_new_tokens": 60, "annotated": False}  # drafted by lookup, whatever it writes
    plain, drafted = (
        list(generate_among(engine, prompt, iter(others), 3, attention, drafter=one, **common))
        for one in (None, drafter)
    )
    ids = [[event.id for event in run if isinstance(event, Token)] for run in (plain, drafted)]
    assert ids[0] == ids[1] and len(ids[0]) == 60
    last = [event for event in drafted if isinstance(event, Token)][-1]
    assert last.num_drafted > 0 and last.num_passes <= 59
    assert sum(event.num_tokens for event in drafted if isinstance(event, OtherRows)) > 60
    kept = batch_engines(engine)
    assert set(kept) == {(attention, True, "none", False), (attention, True, "none", True)}
