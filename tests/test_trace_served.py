"""Programs where users and evaluations meet them: a session, the command line, tools, training, evaluation, report."""

import io
import json
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from gradio_client import Client

from cuda_kernels.bench.provenance import provenance
from selfspan_core.compare.session import Session
from selfspan_core.models.model import SpanModel
from selfspan_core.serve import cli
from selfspan_core.tasks.registry import get_task
from tests.support.asking import compare
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedEngine, ScriptedStore
from tests.support.tiny_models import save_tiny
from training import report
from training.data.generated import examples
from training.evaluation import problem_evaluate
from training.evaluation.lanes import lanes_of
from training.evaluation.results import results_path
from training.finetune import FinetuneConfig
from training.loop.config import load_config
from training.loop.packing import pack, sample_of
from training.materials import training_material
from training.reports import markdown

TASK, TOKENIZER = get_task("trace"), CharacterTokenizer()
PROGRAM = "total = 2\nfor i in range(2):\n    total += i\nprint(total)"


@pytest.fixture
def session() -> Session:
    """A session whose model runs PROGRAM without an error."""
    rendered = TASK.render(TASK.parse(PROGRAM), TOKENIZER, annotated=True, with_steps=True)
    ids = rendered.ids[rendered.prompt.num_tokens :]
    engine = ScriptedEngine(TOKENIZER, ids, {"dense": 2.0, "sparse": 1.0})
    return Session(ScriptedStore(TOKENIZER, {"span": engine}), FakeClock(0.01))


def test_in_a_session(session):
    """Would catch lines whose names are not those of the prompt, and an answer that is not what is printed."""
    start, *_, end = compare(session, "trace", PROGRAM)
    assert start["view"]["pane"] == "code" and start["view"]["source"] == "The program"
    assert [part["name"] for part in start["prompt"]] == ["a0", "a1", "a2", "a3"]
    assert "".join(part["text"] for part in start["prompt"]) == PROGRAM + "\n"
    lane = end["lanes"]["sparse"]
    assert lane["correct"] and lane["answer"] == lane["expected"] == "3" and "both outputs are right" in end["line"]
    assert [step["reads"] for step in lane["steps"]][:3] == [["a0"], ["a1"], ["a2", "a4", "a5"]]
    assert [step["text"] for step in lane["steps"]][-2:] == [" end", " print:3"]


def test_on_the_command_line(session, monkeypatch, capsys):
    """Would catch a program that is read line by line, or printed as one line."""
    monkeypatch.setattr(cli, "make_session", lambda arguments: session)
    given = SimpleNamespace(buffer=io.BytesIO(PROGRAM.encode()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", given)
    assert cli.main(["run", "--task", "trace"]) == 0
    shown = capsys.readouterr().out
    assert "    a2:     total += i\n" in shown and "a6 from a2, a4, a5: 2+0= total=2" in shown
    given.buffer = io.BytesIO(b"x = 1\nprint(x / 2)\n")
    assert cli.main(["run", "--task", "trace"]) == 2
    assert "Line 2: / gives fractions, which are not supported; use //." in capsys.readouterr().err


def test_as_a_tool(serve):
    """Would catch a tool whose argument is not the program, or an endpoint that has to be told of the task."""
    client = Client(serve(FakeSession(dense=3000, sparse=3000), ("arithmetic", "trace")), verbose=False)
    said = client.predict(program=PROGRAM, api_name="/trace")
    said = json.loads(said) if isinstance(said, str) else said
    assert said["answer"] == "3"


@pytest.mark.parametrize("name", ["span", "plain"])
def test_configs_fit_the_task(name):
    """Would catch a row that is too short for the longest program, or too few intervals for its steps."""
    config = load_config(ROOT / "training" / "configs" / f"trace-{name}.yaml", FinetuneConfig)
    assert config.task == "trace" and config.annotated == (name == "span")
    assert config.loop.row_tokens == TASK.max_tokens
    drawn = islice(examples(TASK, TOKENIZER, config.annotated, 0, 0), 20)
    rows = pack(map(sample_of, drawn), 8192, config.loop.max_intervals, 0)
    assert sum(row.used for row in rows) > 4096


def test_in_training_evaluation_and_report(tmp_path, monkeypatch):
    """Would catch figures of given inputs among the generator's, exact steps that nobody counts, and lost tables."""
    base, adapters = save_tiny(tmp_path, task="trace")
    model = SpanModel.load(base, adapters / "trace-span", "cpu", torch.float32)
    config = load_config(ROOT / "training" / "configs" / "trace-span.yaml", FinetuneConfig)
    config = FinetuneConfig(**{**vars(config), "heldout_operands": (4,), "heldout_problems": 2})
    stream, heldout, _ = training_material(config, model.tokenizer)
    assert len(next(stream(0, 0, 1)).ids) and list(heldout._samples) == ["exact/4", "exact_mask_off/4"]
    inputs = tmp_path / "by_hand.json"
    inputs.write_text(json.dumps([{"text": "print(7)", "expected": "7"}]), encoding="utf-8")
    monkeypatch.setattr(markdown, "ROOT", tmp_path)
    common = ["--base", str(base), "--adapters", str(adapters)]
    lane = lanes_of("trace")[2]
    for words, size in ((["--steps", "4", "--n", "1"], 4), (["--inputs", str(inputs)], "by_hand")):
        arguments = problem_evaluate.parse_arguments("trace", [*words, *common])
        assert arguments.operands == [size]
        arguments.out = tmp_path / results_path("trace", is_given=size == "by_hand")
        figures, wrong, _ = problem_evaluate.run_job(arguments, lane, size, "cpu")
        assert figures["n"] == 1 and figures["exact_percent"] == figures["exact_steps_percent"] == 0
        problem_evaluate.write_results(
            arguments, {size: {lane.name: figures}}, {size: {lane.name: wrong}}, provenance()
        )
    text = report.blocks()["trace"]()
    assert "\n| 4 | – | – | 0.0 % | " in text and "\n| by_hand | – | – | 0.0 % | " in text
    assert "1 programs that were written by hand" in text and "all steps exact" in text
    with pytest.raises(SystemExit):
        problem_evaluate.parse_arguments("trace", ["--inputs", str(tmp_path / "none.json"), *common])


def test_exact_steps_are_counted_by_ids():
    """Would catch a solution taken for exact because its answer is right."""
    decoded = [SimpleNamespace(ids=[1, 2], attended_tokens=1, dense_tokens=2, num_malformed=0)] * 2
    figures = problem_evaluate.summarize(decoded, [True, True], [True, False], 4)
    assert (figures["exact_percent"], figures["exact_steps_percent"]) == (100.0, 50.0)
