"""The command line in this process, on engines that solve what they are asked, and in one of its own."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

from selfspan_core.serve import cli
from selfspan_core.tasks.registry import get_task
from tests.support.paths import ROOT
from tests.support.scripted import ScriptedEngine, right_output

FIELDS = (
    *("input", "canonical", "attention", "adapter", "output", "answer", "expected", "correct", "tokens", "seconds"),
    *("tokens_per_second", "attended_tokens", "dense_tokens", "malformed_steps", "steps"),
)
TEXT = "79*36+63"


class SolvingEngine(ScriptedEngine):
    """Writes the right steps of whatever it is asked."""

    def __init__(self, tokenizer, annotated):
        super().__init__(tokenizer, [], {"dense": 2.0, "sparse": 1.0})
        self._annotated = annotated

    def generate(self, request, *args):
        written = self.tokenizer.decode([i for i in request.prompt.ids if self.tokenizer.marker_kind(i) is None])
        expression = written.split(": ")[1].rstrip("=")
        self.ids = right_output(self.tokenizer, get_task("arithmetic").parse(expression), self._annotated)
        return super().generate(request, *args)


def call(monkeypatch, *arguments, stdin=b""):
    """Exit status of `python -m selfspan_core run ...` in this process."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
    return cli.main(["run", *arguments])


def python(*arguments, stdin=b"", **environment):
    """Run `python -m selfspan_core ...` for real."""
    return subprocess.run(
        [sys.executable, "-m", "selfspan_core", *arguments],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=300,
    )
