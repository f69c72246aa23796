"""What a new task costs: its own file and a line in the registry. Everywhere else it shows up by itself."""

import io
import json
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from gradio_client import Client

from selfspan_core.compare.session import Session
from selfspan_core.errors import InputError
from selfspan_core.models.model import SpanModel
from selfspan_core.serve import cli
from selfspan_core.tasks.registry import TASKS, get_task
from tests.support.asking import compare
from tests.support.fake_session import FakeSession
from tests.support.paths import ROOT
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedEngine, ScriptedStore
from tests.support.tiny_models import save_tiny
from tests.support.toy.reverse import Reverse
from training import evaluate
from training.data.generated import evaluation_set, examples, problems
from training.finetune import FinetuneConfig
from training.loop.trainer import LoopConfig
from training.materials import training_material

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
    assert "known tasks: arithmetic, summarize, reverse" in capsys.readouterr().err


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


def test_in_training_and_evaluation(tmp_path, monkeypatch):
    """Would catch training data, held-out figures or an evaluation that only arithmetic has."""
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
    stream, heldout = training_material(config, model.tokenizer)
    assert len(next(stream(0, 0, 1)).ids) and list(heldout._samples) == ["exact/2"]
    out = tmp_path / "reverse.json"
    words = ["--task", "reverse", "--words", "2", "--n", "2", "--base", str(base), "--adapters", str(adapters)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words, "--out", str(out), "--device", "cpu"])
    arguments = evaluate.parse_arguments()
    figures, _, _ = evaluate.run_job(arguments, evaluate.lanes_of("reverse")[2], 2, "cpu")
    assert figures["n"] == 2 and figures["exact_percent"] == 0


def test_nothing_else_knows_the_task():
    """Would catch a file that has to be changed for a new task."""
    named = [
        path
        for folder in ("selfspan_core", "training")
        for path in (ROOT / folder).rglob("*.py")
        if "tasks" not in path.parts and '"arithmetic"' in path.read_text(encoding="utf-8")
    ]
    # Measurements and the base's own training are of arithmetic by choice.
    assert {path.name for path in named} <= {"bench_cpu.py", "pretrain.py", "engine_shipped.py", "report.py"}, named
