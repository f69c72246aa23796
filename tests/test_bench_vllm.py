"""The benchmark of spans in vLLM, as far as it runs without it."""

import json
from types import SimpleNamespace

import pytest

from selfspan_core.models.marker_ids import CONFIG_KEY, read_from_config
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.paths import BASE
from selfspan_core.spans.render import render
from tests.support.span_examples import MARKERS, worked_example
from training import bench_vllm
from training.bench.replay import Recording
from training.bench.shapes import SHAPES, parameters
from training.bench.texts import Text
from training.reports import vllm


def recording(seed, num_steps=8):
    rendered = render(worked_example(seed, num_steps=num_steps), MARKERS)
    n = rendered.prompt.num_tokens
    return Recording(rendered.prompt, tuple(rendered.ids[n:]), True, tuple(rendered.ids[:n]))


def test_reads_are_those_of_steps_in_which_all_are_decoded():
    """Would catch the last id counted as a query, or a request that has ended."""
    pair = [recording(1), recording(2, num_steps=3)]
    shortest = min(len(one.ids) for one in pair) - 1
    for is_dense in (True, False):
        expected = sum(sum(one.num_visible(MARKERS, is_dense)[:shortest]) for one in pair) / shortest
        assert bench_vllm.reads(pair, MARKERS, is_dense) == expected
    assert bench_vllm.reads(pair, MARKERS, False) < bench_vllm.reads(pair, MARKERS, True)


def test_a_cell_s_figures():
    """Would catch a ratio upside down, bytes of another shape, or a lane that is compared with the wrong one."""
    text = Text("3 operands", [recording(1), recording(2)], [recording(3)], None)
    cell = bench_vllm.Cell(text, 3)
    assert [len(one.ids) for one in cell.recordings(True)] == [len(text.span[i].ids) for i in (0, 1, 0)]
    lane = lambda ms, s: {"ms_per_step": ms, "seconds_to_answer": s}  # noqa: E731
    lanes = {
        "plain dense": lane(9, 4.0),
        "span dense": lane(10, 6.0),
        "span sparse": lane(5, 2.0),
        "plain dense, vLLM alone": lane(9, 4.0),
        "span dense, vLLM alone": lane(9.8, 5.9),
    }
    found = bench_vllm.figures(cell, lanes, "7B", MARKERS)
    assert (found["speedup"], found["to_answer"]) == (2, 2)
    assert found["dense_over_vllm_alone"] == pytest.approx(10 / 9.8)
    weights = 2 * (parameters("7B") - SHAPES["7B"][-1] * SHAPES["7B"][0])
    dense, sparse = (bench_vllm.reads(cell.recordings(True), MARKERS, one) for one in (True, False))
    bytes_say = (weights + 2**19 * dense) / (weights + 2**19 * sparse)
    assert found["speedup_predicted_by_bytes"] == pytest.approx(bytes_say)
    assert found["share_of_predicted"] == pytest.approx(2 / bytes_say)


def test_a_model_without_weights_names_its_markers():
    """Would catch a folder that vLLM's plugin refuses, after minutes on a GPU."""
    markers = SpanTokenizer.load(BASE).markers
    folder = bench_vllm.write_model("Llama-3-8B", markers, 2048)
    content = json.loads((folder / "config.json").read_text())
    assert read_from_config(content[CONFIG_KEY], "x") == markers
    assert content["num_key_value_heads"] == 8 and content["max_position_embeddings"] == 2048


def test_it_says_that_it_needs_a_gpu(capsys):
    """Would catch a traceback out of vLLM where there is none."""
    with pytest.raises(SystemExit):
        bench_vllm.main(["--device", "cpu"])
    assert "measured on a GPU" in capsys.readouterr().err


def test_the_report_says_what_a_cell_holds(monkeypatch):
    """Would catch self-selected steps that are compared with the wrong lane, and a share of the wrong ratio."""
    lanes = {name: {"ms_per_step": ms} for name, ms in ((vllm.ALONE, 12.0), (vllm.DENSE, 10.0), (vllm.SPARSE, 8.0))}
    told = {"speedup": 1.25, "speedup_predicted_by_bytes": 1.5, "share_of_predicted": 0.833, "to_answer": 1.1}
    cell = {"text": "64 operands", "batch": 32, "lanes": lanes, **told}
    head = {"commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x", "versions": {"vllm": "0.26.0"}}
    results = {**head, "shapes": {"7B": {"decoding": [cell]}}}
    found = {"vllm": {"assets/results/vllm_g.json": results}}
    monkeypatch.setattr(vllm, "read_all", lambda name: found.get(name, {}))
    row = "| 7B, 64 operands, 32 | 12.00 | 10.00 | 8.00 | 1.25x | 1.50x | 83 % | 1.50x | 1.10x |"
    assert row in vllm.vllm()
    assert "| 64 operands, 32 | 12.00 | 10.00 | 8.00 | 1.25x | 1.50x | 1.10x |" in vllm.vllm_brief()


def test_answers_beside_the_own_engine_s_are_told(monkeypatch):
    """Would catch an answer of another length that is hidden among near ties; a run that is taken for one of speed."""
    one = {"answers": 60, "equal": 56, "gaps": [-0.25, 0.125], "others": ["3: 9 ids, not 8"], "read": 0.234}
    head = {"commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x", "versions": {"vllm": "0.26.0"}}
    files = {"vllm": {"f.json": head}, "vllm_answers": {"f.json": {**head, "summarize": {"sparse": one}, "rows": 64}}}
    files["vllm_answers"]["f.json"]["graphs"] = True
    monkeypatch.setattr(vllm, "read_all", lambda name: files.get(name, {}))
    told = vllm.vllm()
    assert "| summarize, sparse | 60 | 56 | 0.125, 0.25 | 1 | 23 % |" in told and "in bfloat16 out of" in told
    files["vllm_answers"]["f.json"]["dtype"] = "float32"
    assert "in float32 out of" in vllm.vllm()


def test_a_run_of_faults_is_told(monkeypatch):
    """Would catch a run of faults that is taken for one of speed, and memory told from its first moment."""
    results = {
        "machine": {"cpu": "some CPU", "cores": 2},
        "commit": "abc",
        "dirty": False,
        "command": "python -m x",
        "versions": {"vllm": "0.1"},
        "load": {
            "requests": 1000,
            "clients": 4,
            "seen": {"refused": 10, "answered": 990},
            "memory_mb": [1.0, 200.0, 201.0],
            "still_running": 0,
        },
        "killed": {"client_heard_after_s": 0.5},
    }
    files = {"vllm": {"f.json": results}, "vllm_faults": {"f.json": results}}
    monkeypatch.setattr(vllm, "read_all", lambda name: files.get(name, {}))
    told = vllm.vllm()
    assert "| answered | 990 |\n| refused | 10 |" in told and "held 200 MB" in told and "201 MB after the last" in told
    assert told.count("From ") == 1


def test_operands_of_a_batch_are_those_asked_for_else_what_fits():
    """A large model's cache would be asked to hold the longest expressions, whatever the command says."""
    asked, default = SimpleNamespace(operands=24), SimpleNamespace(operands=None)
    assert [bench_vllm.operands_of(batch, asked) for batch in (8, 128)] == [24, 24]
    assert [bench_vllm.operands_of(batch, default) for batch in (8, 64, 128)] == [64, 64, 48]
