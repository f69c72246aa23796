"""Summaries on the command line: all of the input is one article. Tiny models, random weights."""

import io
import json
import re
import sys
import textwrap
from types import SimpleNamespace

import pytest

from selfspan_core.serve import cli
from selfspan_core.tasks.registry import get_task
from tests.support.tiny_models import save_tiny

ARTICLE = get_task("summarize").examples[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"), max_context=4096, task="summarize")
    own = [f"--{name}-adapter={adapters / f'summarize-{name}'}" for name in ("span", "plain")]
    return ["run", "--task", "summarize", "--device", "cpu", f"--model={base}", *own]


def call(monkeypatch, arguments, stdin=b""):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
    return cli.main(arguments)


def test_json(monkeypatch, capsys, models):
    """Would catch an article that is taken line by line, and a summary without its sources."""
    assert call(monkeypatch, [*models, "--json", "--length", "short"], ARTICLE.encode()) == 0
    dense, sparse = map(json.loads, capsys.readouterr().out.splitlines())
    assert (dense["attention"], sparse["attention"]) == ("dense", "sparse")
    assert sparse["correct"] is None and sparse["answer"] and len(sparse["steps"]) == 2
    assert all(step["reads"] and step["text"].strip() for step in sparse["steps"])
    assert (
        " ".join(get_task("summarize").parse(ARTICLE).sentences) == sparse["canonical"] and sparse["input"] == ARTICLE
    )


def test_text_and_a_file(monkeypatch, capsys, models, tmp_path):
    """Would catch sentences without names, and rules that are not said."""
    file = tmp_path / "article.txt"
    file.write_text(ARTICLE, encoding="utf-8")
    assert call(monkeypatch, [*models, "--attention", "sparse", "--input", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    sentences = get_task("summarize").parse(ARTICLE).segments
    assert all(f"  a{number}: {text}" in lines for number, text in enumerate(sentences))
    assert get_task("summarize").rules_text in lines
    assert any(line.startswith("    summary: ") for line in lines)
    assert sum(" from a" in line for line in lines) in (3, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"", "error: The input is empty. Paste an article"),
        ((), b"Two words.", "error: The text has 2 words"),
        ((), b"\xff" * 50, "error: neither UTF-8 nor cp1252 text (byte 1); save it as UTF-8"),
        ((), "It is é – so.".encode() + b"\xe9" + ARTICLE.encode(), "error: neither UTF-8 nor cp1252 text (byte 17)"),
        ((), b"\xff\xfea", "error: not UTF-16-LE text"),
        (("--length", "long"), ARTICLE.encode(), "error: The length is one of short, medium"),
        (("--task", "arithmetic", "--length", "short"), b"1+2", "error: The length is for summaries"),
        ((), ("The mayor said that the plan was good. " * 3000).encode(), "characters long"),
        ((), ("The mayor said that the plan was good. " * 900).encode(), "Shorten it, or summarize its beginning"),
    ],
)
def test_bad_input(monkeypatch, capsys, models, arguments, stdin, message):
    """Would catch a traceback, a line number where there are no lines, and an article that is cut silently."""
    assert call(monkeypatch, [*models, *arguments], stdin) == cli.EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert message in captured.err and "line" not in captured.err and captured.out == ""


def test_a_pasted_article_is_cleaned_and_that_can_be_undone(monkeypatch, capsys, models):
    """Would catch a cleaning that is not told, told among the results, or done although nobody wants it."""
    pasted = textwrap.fill(ARTICLE.split("\n")[0], 60) + "[1]\n\n" + ARTICLE.split("\n", 1)[1]
    given = [*models, "--json", "--attention", "sparse", "--length", "short"]
    assert call(monkeypatch, given, pasted.encode()) == 0
    captured = capsys.readouterr()
    assert re.match(r"cleaned: 1 reference mark taken off, \d line breaks joined \(--as-is ", captured.err)
    assert json.loads(captured.out)["canonical"] == " ".join(get_task("summarize").parse(ARTICLE).sentences)
    assert call(monkeypatch, [*given, "--as-is"], pasted.encode()) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "[1]" in json.loads(captured.out)["canonical"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_encodings_of_files(monkeypatch, capsys, models, encoding):
    """Would catch a traceback, or wrong characters, for a file as other programs save it."""
    text = f"The café’s owner said “no” – twice – on Monday. {ARTICLE}"
    given = [*models, "--json", "--attention", "sparse", "--length", "short"]
    assert call(monkeypatch, given, text.encode(encoding)) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["canonical"].startswith("The café’s owner said “no” – twice – on Monday. The town")
    assert ("read as " in captured.err) == (not encoding.startswith("utf-8"))
