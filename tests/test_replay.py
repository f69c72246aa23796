"""Replay of recorded tokens through other models, and what the engine's benchmark makes of it; on the CPU."""

import json

import pytest
import torch

from cuda_kernels.bench.pictures import PictureError, save_picture
from selfspan_core.engine.batch_engine import BatchEngine
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.render import render
from tests.support.asking import asked
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import MARKERS, worked_example
from training import picture_engine
from training.bench import engine_cells, shapes
from training.bench.engine_cells import ReplayedLane, fixed_cell, long_cell, replay_cell
from training.bench.replay import Recording, Replay, record
from training.bench.results import Results
from training.bench.shapes import Machine
from training.reports import engine as report_engine

MACHINE = Machine(torch.device("cpu"), 1e10, 8e9)


@pytest.fixture(scope="module")
def weights():
    return DecodeWeights(SpanModel(tiny_hf()))


def recording(seed, num_steps=3):
    rendered = render(worked_example(seed, num_segments=3, num_steps=num_steps), MARKERS)
    start = rendered.prompt.num_tokens
    return rendered, Recording(rendered.prompt, tuple(rendered.ids[start:]), True, tuple(rendered.ids[:start]))


def test_moving_on_is_decoding_without_the_model(weights):
    """Would catch a replay that reads other tokens than the text declares: then its times are those of another text."""
    rendered, one = recording(1)
    shape = BatchShape(2, 160, False)
    replay = Replay(BatchStep(weights, MARKERS, shape))
    replay.follow(1, one)
    decoded = BatchStep(weights, MARKERS, shape)
    decoded.begin(1, asked(rendered, forced_tokens=one.ids), 90)
    expected = one.num_visible(MARKERS, is_dense=False)
    for number, num_visible in enumerate(expected):
        decoded.launch()
        while decoded.num_outstanding:
            decoded.collect()
        if number % 3 == 2:
            replay.launch()
        else:
            replay.move(1)
        for step in (replay.step, decoded):
            spans = step._rounds.intervals[1, : step._rounds.counts[1]]
            assert (spans[:, 1] - spans[:, 0]).sum() == num_visible
        if number % 3 == 2:
            assert torch.equal(replay.step._rounds.positions, decoded._rounds.positions)
        if number == len(expected) - 2:
            break  # the last id never becomes a query
    assert sum(expected) < sum(one.num_visible(MARKERS, is_dense=True))


def test_recording_writes_down_what_the_engine_writes(weights):
    """Would catch recordings that mix requests up."""
    prompts = [recording(seed)[0] for seed in range(3)]
    engine = BatchEngine(weights, MARKERS, BatchShape(2, 100, False))
    recorded = record(engine, prompts, annotated=True)
    alone = [
        record(BatchEngine(weights, MARKERS, BatchShape(1, 100, False)), [prompt], True).recordings[0]
        for prompt in prompts
    ]
    assert recorded.recordings == alone and recorded.tokens_per_second > 0


def test_the_time_to_an_answer_counts_every_step(weights, monkeypatch):
    """Would catch a sum that leaves the last steps out, or counts a sample for one step only."""
    _, one = recording(1)
    made = shapes.make_cache(weights, MACHINE, 1, 160)[0]
    lane = ReplayedLane(weights, MARKERS, made, [one], is_dense=True)
    seconds = []
    monkeypatch.setattr(lane.replay, "launch", lambda: seconds.append(0.5))
    monkeypatch.setattr(lane.replay, "seconds", lambda: seconds)
    for _ in range(100):
        lane.sample(4)
    figures = lane.figures(MACHINE, 4)
    assert figures["seconds_to_answer"] == pytest.approx(0.5 * (len(one.ids) - 1))
    assert figures["ms_per_step"] == pytest.approx(500) and figures["tokens_per_second"] == pytest.approx(2)
    kv = 2 * 3 * 2 * 8 * 4
    assert figures["floor_ms"] == pytest.approx(1000 * (weights.num_bytes + kv * figures["visible_tokens"]) / 1e10)


@torch.inference_mode()
def test_cells_and_the_report_that_is_made_of_them(weights, tmp_path):
    """Would catch a cell that fails at the end of a long run, or a report that does not know what it finds."""
    recordings = {"span": [recording(seed)[1] for seed in range(3)], "plain": [recording(9)[1]]}
    written = Results(tmp_path / "x" / "engine.json", {"read_stream_tb_per_s": 3.0})
    cell = replay_cell(weights, MARKERS, MACHINE, recordings, 2, 5)
    assert cell["speedup_predicted_by_bytes"] > 1 and 0 < cell["visible_share"] < 1
    # Figures of time are set where they decide what is said.
    written.add_cell("tiny", "replay", {"operands": 3} | cell | {"time_to_answer_speedup": 0.9})
    written.add_cell("tiny", "replay", {"batch": 9, "unavailable": "does not fit"})
    written.add_cell("tiny", "replay", {"operands": 3} | cell | {"batch": 4, "time_to_answer_speedup": 1.1})
    shares = {"weights": 0.75, "tracker, planning, sampling": 0.004}
    host = {"steps": 8, "calls": {"cudaGraphLaunch": 8}}
    written.add_cell("tiny", "profile", {"operands": 3, "batch": 2, "share": shares, "host_calls": host})
    written.add_cell("tiny", "fixed", fixed_cell(weights, MARKERS, MACHINE, 2, 30))
    written.add_cell("tiny", "long", long_cell(weights, MARKERS, MACHINE, 2, 200))
    lanes = {lane: {"right": 1, "n": 2, "tokens_per_second": 3.0} for lane in report_engine.LANES}
    written.add("answers", {"batch": 2, "operands": {"24": lanes}})
    way = {"tokens": 10, "other": 1, "largest_gap": 0.25, "gaps": [0.25]}
    written.add("same_tokens", {"n": 5, "same_text_alone": 4, "mixed batch": way, "alone": way})
    written.add("shipped", {"speed": [{"batch": 1, "rounds": 3} | dict.fromkeys(report_engine.LANES, 4000.0)]})
    origin = {"machine": {"gpu": "some GPU"}, "commit": "abc", "dirty": False, "command": "python -m x"}
    written = json.loads((tmp_path / "x" / "engine.json").read_text()) | origin
    text = report_engine.engine_on(written, "x.json")
    assert "| tiny, 3 operands, batch 2 |" in text and "| tiny, 200 tokens x 2 |" in text
    save_picture(picture_engine.draw(written), tmp_path / "picture.png", {})
    assert (tmp_path / "picture.png").stat().st_size > 5000
    with pytest.raises(PictureError, match="no replayed text"):
        picture_engine.cells_of({"shapes": {}, "machine": {"gpu": "x"}})
    assert "tiny, 3 operands: between 2 and 4." in text
    assert "| tiny, 3 operands, batch 2 | 75.0 % | 0.4 % |" in text and "cudaGraphLaunch 8x" in text
    assert "Of 20 tokens" in text and "24 operands: 50.0 % / 50.0 % / 50.0 %" in text and "| 1 | 4,000 |" in text


def test_a_kernel_that_begins_early_only_waits():
    """Would catch time that is counted for two kernels at once: then a step takes longer than it does."""
    spans = [("a", 0, 10), ("b", 2, 12), ("a", 12, 15), ("c", 3, 11)]
    assert engine_cells.exclusive_micros(spans) == {"a": 13, "b": 2, "c": 0}


def test_a_cache_that_does_not_fit_is_shared_by_layers(weights):
    """Would catch a benchmark that dies for want of memory, or that hides that layers share a cache."""
    rest = weights.num_bytes + shapes.ROOM_FOR_THE_REST
    whole = shapes.kv_bytes(weights) * 4 * 1000
    model = weights.model
    for factor, shared in ((1.1, 1), (0.6, None)):
        made = shapes.make_cache(weights, Machine(torch.device("cpu"), 1e10, rest + factor * whole), 4, 1000)
        # Three layers cannot be halved: rounded down, a layer would be without a cache.
        assert (made is None) if shared is None else (made[1] == shared and len(made[0].keys) == model.num_layers)
