"""What a new task costs: its own file and a line in the registry. Everywhere else it shows up by itself."""

import inspect
import io
import json
import sys
from itertools import islice
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from gradio_client import Client

from cuda_kernels.bench.provenance import provenance
from selfspan_core.compare.session import Session
from selfspan_core.errors import InputError
from selfspan_core.models.learned import Learned
from selfspan_core.models.model import SpanModel
from selfspan_core.serve import cli
from selfspan_core.tasks.base import EvaluationKind
from selfspan_core.tasks.registry import TASKS, get_task
from selfspan_core.tasks.summarize.task import Summarize
from tests.support.asking import compare
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedEngine, ScriptedStore
from tests.support.tiny_models import save_tiny
from tests.support.toy.reverse import Reverse
from training import evaluate, report
from training.data.generated import evaluation_set, examples, problems
from training.evaluation import problem_evaluate, summary_evaluate
from training.evaluation.lanes import lanes_of
from training.evaluation.results import results_path
from training.finetune import FinetuneConfig
from training.loop.trainer import LoopConfig
from training.materials import training_material
from training.reports import markdown

TOKENIZER = CharacterTokenizer()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The one line."""
    monkeypatch.setitem(TASKS, "reverse", Reverse)


def right_ids(text: str) -> list[int]:
    """What a perfect model writes."""
    rendered = Reverse().render(Reverse().parse(text), TOKENIZER, annotated=True, with_steps=True)
    return rendered.ids[rendered.prompt.num_tokens :]


@pytest.fixture
def session() -> Session:
    """A session whose model reverses `ant bee cat`."""
    engine = ScriptedEngine(TOKENIZER, right_ids("ant bee cat"), {"dense": 2.0, "sparse": 1.0})
    return Session(ScriptedStore(TOKENIZER, {"span": engine}), FakeClock(0.01))


def test_in_a_session(session):
    """Would catch a session that knows its tasks by name, or words of another task in the verdict."""
    start, *_, end = compare(session, "reverse", "ant bee cat")
    assert start["view"]["answer"] == "reversal" and [part["name"] for part in start["prompt"][:3]] == [
        "a0",
        "a1",
        "a2",
    ]
    assert end["lanes"]["sparse"]["correct"] and end["lanes"]["sparse"]["answer"] == "cat bee ant"
    assert "both reversals are right" in end["line"]
    with pytest.raises(InputError, match="length is for summaries: the task reverse has none"):
        compare(session, "reverse", "ant bee", length="short")


def test_on_the_command_line(session, monkeypatch, capsys):
    """Would catch a command line with a list of tasks of its own."""
    monkeypatch.setattr(cli, "make_session", lambda arguments: session)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"ant bee cat\n"), isatty=lambda: False))
    assert cli.main(["run", "--task", "reverse", "--json"]) == 0
    assert [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()] == ["cat bee ant"] * 2
    assert cli.main(["run", "--task", "revers"]) == 2
    assert "known tasks: arithmetic, summarize, trace, reverse" in capsys.readouterr().err


def test_in_the_api_and_in_a_tab_of_the_page(serve, open_tab):
    """Would catch a page or an API that has to be told of a task."""
    url = serve(FakeSession(dense=2000, sparse=2000), ("arithmetic", "reverse"))
    end = Client(url, verbose=False).predict("reverse", "ant bee cat dog", api_name="/compare")
    assert end["expected"] == "dog cat bee ant"
    tab = open_tab(url)
    tab.page.get_by_role("tab", name="Reverse").click()
    tab.page.fill("#words textarea", "ant bee")
    tab.page.click("#run-reverse")
    tab.wait("done")
    assert [line.strip() for line in tab.lines("sparse")] == ["bee", "ant"]
    assert "Reversal" in tab.text(tab.pane("sparse") + " .ss-answer-label")
    tab.page.fill("#words textarea", "1 2 3")
    tab.page.click("#run-reverse")
    tab.page.get_by_text("Type 2 to 8 words.").wait_for()


def test_in_training_evaluation_and_report(tmp_path, monkeypatch):
    """Would catch training data, held-out figures, an evaluation or a table that only arithmetic has."""
    base, adapters = save_tiny(tmp_path, task="reverse")
    model = SpanModel.load(base, adapters / "reverse-span", "cpu", torch.float32)
    task = get_task("reverse")
    drawn = list(islice(examples(task, model.tokenizer, True, seed=1, worker=0), 5))
    assert all(rendered.ids[-1] == model.tokenizer.markers.eos for rendered in drawn)
    trained = {problem.text for problem in islice(problems(task, seed=0), 300)}
    assert trained.isdisjoint(problem.text for problem in evaluation_set(task, 3, 20, seed=0))
    loop = LoopConfig(row_tokens=512, max_intervals=8, steps=1, rows_per_step=1, micro_rows=1)
    held_out = {"heldout_operands": (2,), "heldout_problems": 2}
    config = FinetuneConfig(str(base), "reverse", True, "out", "run", loop, 1e-3, **held_out)
    stream, heldout, learned = training_material(config, model.tokenizer)
    assert len(next(stream(0, 0, 1)).ids) and list(heldout._samples) == ["exact/2"]
    assert learned == Learned()
    monkeypatch.setattr(markdown, "ROOT", tmp_path)
    assert report.blocks()["reverse"]() == "Reversals of the task reverse: not measured yet.\n"
    out = tmp_path / results_path("reverse")
    words = ["--task", "reverse", "--words", "2", "--n", "2", "--base", str(base), "--adapters", str(adapters)]
    asked: list[tuple] = []
    monkeypatch.setitem(evaluate.EVALUATIONS, "problems", lambda *given: asked.append(given))
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(out), "--device", "cpu"])
    evaluate.main()  # itself it would decode in processes of its own, where nobody has registered the task
    arguments = problem_evaluate.parse_arguments(*asked[0])
    lane = lanes_of("reverse")[2]
    figures, wrong, _ = problem_evaluate.run_job(arguments, lane, 2, "cpu")
    assert figures["n"] == 2 and figures["exact_percent"] == 0
    problem_evaluate.write_results(arguments, {2: {lane.name: figures}}, {2: {lane.name: wrong}}, provenance())
    made = {name: block() for name, block in report.blocks().items() if name in ("reverse", "reverse_brief")}
    for text in made.values():
        assert text.startswith("Share of exact answers to 2 fresh lists per row") and "\n| words | exact: " in text
        assert "\n| 2 | – | – | 0.0 % | " in text
    assert "malformed" in made["reverse"] and "malformed" not in made["reverse_brief"]


def test_every_kind_of_evaluation_has_all_that_it_needs():
    """Would catch a kind that nothing evaluates or reports, and a task measured by problems that nothing generates."""
    kinds = set(get_args(EvaluationKind))
    assert set(evaluate.EVALUATIONS) == set(report.TASK_BLOCKS) == kinds
    for name, task in TASKS.items():
        assert task.evaluation in kinds and (task.evaluation != "problems" or task.generator), name


def test_summaries_of_another_task_have_lanes_and_results_of_their_own(monkeypatch):
    """Would catch an evaluation of summaries that measures the shipped task's adapters, or overwrites its results."""
    monkeypatch.setitem(TASKS, "headlines", Summarize)
    arguments = summary_evaluate.parse_arguments(
        "headlines", ["--task", "headlines", "--baselines-only", "--pairs", "x"]
    )
    assert arguments.out.as_posix() == results_path("headlines") == "assets/results/headlines.json"
    adapters = [lane.adapter for lane in summary_evaluate.asked_lanes(arguments)]
    assert adapters == ["headlines-plain", "headlines-span", "headlines-span"]


def test_nothing_else_knows_the_task():
    """Would catch a file that has to be changed for a new task."""
    named = [
        path
        for folder in ("selfspan_core", "training")
        for path in (ROOT / folder).rglob("*.py")
        if "tasks" not in path.parts and '"arithmetic"' in path.read_text(encoding="utf-8")
    ]
    # Measurements and the base's own training are of arithmetic by choice.
    measurements = {
        "bench_answers.py",
        "bench_cpu.py",
        "bench_app.py",
        "check_drafts.py",
        "engine_shipped.py",
        "texts.py",
        "header_cost.py",
        "visitors.py",
        "quantization.py",
        "variants.py",  # of anchors
    }
    assert {path.name for path in named} <= {*measurements, "pretrain.py"}, named
    for module in (evaluate, report, problem_evaluate, summary_evaluate):
        text = inspect.getsource(module)
        assert not [name for name in TASKS if f'"{name}"' in text or f'"{name}_brief"' in text], module.__name__
