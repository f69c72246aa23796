"""The command line: what it prints, what it refuses, and that it refuses before it loads anything."""

import io
import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from selfspan_core.compare.session import Session
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ImplUnavailable, ModelError
from selfspan_core.serve import cli
from selfspan_core.tasks.registry import get_task
from tests.support.asking import compare
from tests.support.paths import ROOT
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedEngine, ScriptedStore, right_output
from tests.support.tiny_models import save_tiny

FIELDS = (
    *("input", "attention", "adapter", "output", "answer", "expected", "correct", "tokens", "seconds"),
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


@pytest.fixture
def solved(monkeypatch):
    """The command line on scripted lanes."""
    tokenizer = CharacterTokenizer()
    store = ScriptedStore(tokenizer, {name: SolvingEngine(tokenizer, name == "span") for name in ("span", "plain")})
    session = Session(store, FakeClock(0.01))
    monkeypatch.setattr(cli, "make_session", lambda arguments: session)
    return store


def call(monkeypatch, *arguments, stdin=b""):
    """Exit status of `python -m selfspan_core run ...` in this process."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
    return cli.main(["run", *arguments])


# ---- results


def test_json(monkeypatch, capsys, solved):
    """Would catch a field that is missing, renamed or out of order, and objects that share a line."""
    assert call(monkeypatch, "--json", stdin=b"79*36+63\n\n 1 + 2 \r\n") == 0
    captured = capsys.readouterr()
    objects = [json.loads(line) for line in captured.out.splitlines()]
    assert [(o["input"], o["attention"]) for o in objects] == [
        *(("79*36+63", "dense"), ("79*36+63", "sparse")),
        *(("1+2", "dense"), ("1+2", "sparse")),
    ]
    assert all(tuple(o) == FIELDS for o in objects)
    assert all(tuple(step) == ("reads", "name", "text", "intervals") for o in objects for step in o["steps"])
    assert objects[1]["answer"] == "2907" and objects[1]["correct"] is True and objects[1]["adapter"] == "span"
    assert objects[1]["attended_tokens"] < objects[1]["dense_tokens"] == objects[0]["attended_tokens"]
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "lanes"),
    [
        (["--attention", "dense"], [("dense", "span")]),
        (["--attention", "sparse"], [("sparse", "span")]),
        (["--attention", "dense", "--adapter", "plain"], [("dense", "plain")]),
        (["--attention", "both", "--adapter", "plain"], [("dense", "plain"), ("sparse", "span")]),
    ],
)
def test_lanes(monkeypatch, capsys, solved, arguments, lanes):
    """Would catch the wrong adapter in a lane."""
    assert call(monkeypatch, "--json", *arguments, stdin=TEXT.encode()) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(o["attention"], o["adapter"]) for o in objects] == lanes and all(o["correct"] for o in objects)


def test_text(monkeypatch, capsys, solved):
    """Would catch a report without the canonical input, the steps, the verdict or the speed."""
    assert call(monkeypatch, stdin="79 × 36 + 63".encode()) == 0
    out = capsys.readouterr().out
    for expected in (
        "Same adapter, mask off and on (script, float32)",
        "\n79*36+63\n",
        "names: a0:79 * a1:36 + a2:63 =",
        "Dense attention, span adapter",
        "a3 from a0, a1: 79*36=2370+474=2844",
        "a4 from a3, a2: 2844+63=2907",
        "answer: 2907 (right)",
        "first after 21 ms, then 1000.0 tokens/s (1.00 ms/token)",
        "2.00 times as fast per token",
    ):
        assert expected in out
    assert out.count("answer: ") == 2


def test_text_of_a_run_cut_off(monkeypatch, capsys, solved):
    """Would catch an answer made up from half an output."""
    assert call(monkeypatch, "--max-new-tokens", "9", stdin=TEXT.encode()) == 0
    assert "answer: none, cut off after 9 tokens (expected 2907)" in capsys.readouterr().out


def test_sampling_settings_arrive(monkeypatch, solved):
    """Would catch an option that is parsed and then forgotten."""
    arguments = ("--temperature", "0.7", "--top-p", "0.9", "--seed", "5")
    assert call(monkeypatch, "--json", *arguments, stdin=TEXT.encode()) == 0
    calls = solved.engines["span"].calls
    assert calls and all((c["temperature"], c["top_p"], c["seed"]) == (0.7, 0.9, 5) for c in calls)
    calls.clear()
    assert call(monkeypatch, "--json", stdin=TEXT.encode()) == 0
    assert calls and all((c["temperature"], c["top_p"], c["seed"]) == (0.0, 1.0, 0) for c in calls)


def test_load(monkeypatch, capsys, solved):
    """Would catch a load that is parsed and then forgotten, in either output."""
    solved.can_load = True
    assert call(monkeypatch, "--load", "8", stdin=TEXT.encode()) == 0
    out = capsys.readouterr().out
    for expected in (
        "Same adapter, mask off and on, 8 requests at once (script, float32)",
        "    all 8 requests together: 4,000 tokens/s\n",
        "    all 8 requests together: 8,000 tokens/s\n",
        "at 8 requests at once: 4,000 tokens/s dense, 8,000 self-selected, 2.00 times",
    ):
        assert expected in out
    assert call(monkeypatch, "--json", "--load", "8", stdin=TEXT.encode()) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(tuple(o) == (*FIELDS, "load", "total_tokens_per_second") for o in objects)
    assert [(o["load"], round(o["total_tokens_per_second"])) for o in objects] == [(8, 4000), (8, 8000)]


def test_what_the_implementation_cannot_do_is_one_line(monkeypatch, capsys, solved):
    """Would catch a traceback where a model's type or shape, or the memory of so many rows, is too much."""

    def unavailable(*args, **kwargs):
        raise ImplUnavailable("impl 'cuda': dtype: the kernels take 16-bit floats")

    monkeypatch.setattr(SolvingEngine, "generate", unavailable)
    assert call(monkeypatch, stdin=b"\n1+2") == 2
    assert capsys.readouterr().err == "error: line 2: impl 'cuda': dtype: the kernels take 16-bit floats\n"
    monkeypatch.setattr(solved, "engine", unavailable)
    assert call(monkeypatch, stdin=b"1+2\n3+4") == 2
    assert capsys.readouterr().err == "error: impl 'cuda': dtype: the kernels take 16-bit floats\n"


def test_input_file(monkeypatch, capsys, solved, tmp_path):
    """Would catch a byte-order mark or a Windows line end becoming part of the expression."""
    file = tmp_path / "lines.txt"
    file.write_bytes(b"\xef\xbb\xbf1+2\r\n\r\n3*4\r\n")
    assert call(monkeypatch, "--json", "--attention", "sparse", "--input", str(file)) == 0
    assert [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()] == ["3", "12"]


def test_results_come_as_they_are_made(monkeypatch, capsys, solved):
    """Would catch output that waits for the last input: the second run must start after the first is printed."""
    seen = []
    original = SolvingEngine.generate

    def generate(self, *args):
        seen.append(capsys.readouterr().out.count("\n"))
        return original(self, *args)

    monkeypatch.setattr(SolvingEngine, "generate", generate)
    call(monkeypatch, "--json", "--attention", "dense", stdin=b"1+2\n3+4\n")
    assert seen == [0, 1]


def test_failing_lane(monkeypatch, capsys, solved):
    """Would catch a traceback where a lane runs out of memory."""

    def generate(self, *args):
        raise MemoryError("no room")
        yield

    monkeypatch.setattr(SolvingEngine, "generate", generate)
    assert call(monkeypatch, stdin=b"\n1+2") == 1
    assert capsys.readouterr().err == "error: line 2: the dense lane failed: no room\n"


def test_control_characters_are_escaped():
    """Would catch model text that steers the terminal."""
    assert cli.printable("1\x1b[2J+\r\u202e2 é") == "1\\x1b[2J+\\r\\u202e2 é"


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "stdin", "reasons"),
    [
        ([], b"", ["input is empty"]),
        ([], b" \n\t\n\n", ["input is empty"]),
        ([], b"abc", ["line 1: "]),
        ([], b"1+2\n2**9\n\n1/0\n5*5\n7/2", ["line 2: ", "line 4: ", "line 6: "]),
        ([], b"1+2\n\xff\xfe+1\n3", ["line 2: not UTF-8 text (byte 1 of the line)"]),
        ([], b"(1+2", ["line 1: "]),
        ([], b"(" * 500 + b"1" + b")" * 500, ["line 1: "]),
        ([], b"1+" * 50_000, ["line 1: "]),
        ([], b"__import__('os')", ["line 1: "]),
        ([], b"<|ref|>", ["line 1: "]),
        ([], b"1+2\x00", ["line 1: "]),
        ([], b"99*99*99*99", ["line 1: "]),
        ([], b"1+2\n" * 250_000, ["250,000 lines; give at most 10,000 at a time"]),
        ([], b"1+2\n" * 5_000_000, ["more than 4 MB"]),
        (["--input", "no/such/file"], b"", ["cannot read no/such/file: No such file"]),
        (["--input", "."], b"", ["cannot read .: Is a directory"]),
        (["--input", "a\x00b"], b"", ["cannot read a\\x00b: "]),
        (["--task", "poetry"], b"1+2", ["poetry"]),
        (["--attention", "half"], b"1+2", ["dense, sparse or both"]),
        (["--adapter", "fancy"], b"1+2", ["span or plain"]),
        (["--attention", "sparse", "--adapter", "plain"], b"1+2", ["plain adapter declares no spans"]),
        (["--max-new-tokens", "0"], b"1+2", ["--max-new-tokens is a whole number, 1 or more, not 0"]),
        (["--temperature", "-1"], b"1+2", ["temperature"]),
        (["--temperature", "nan"], b"1+2", ["temperature"]),
        (["--top-p", "0"], b"1+2", ["--top-p is a number above 0 and at most 1, not 0.0"]),
        (["--top-p", "1.5"], b"1+2", ["--top-p is a number above 0 and at most 1, not 1.5"]),
        (["--top-p", "nan"], b"1+2", ["--top-p is a number above 0"]),
        (["--seed", "-1"], b"1+2", ["--seed"]),
        (["--load", "0"], b"1+2", ["--load is a whole number from 1 to 64, not 0"]),
        (["--load", "65"], b"1+2", ["--load is a whole number from 1 to 64"]),
        (["--load", "2"], b"1+2\n3+4", ["Simultaneous requests need a CUDA GPU"]),
    ],
)
def test_bad_input(monkeypatch, capsys, solved, arguments, stdin, reasons):
    """Would catch bad input that crashes, runs in part, or is refused without saying where and why."""
    assert call(monkeypatch, "--json", *arguments, stdin=stdin) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == len(reasons) and all(len(line) < 400 for line in lines)
    for line, reason in zip(lines, reasons, strict=True):
        assert line.startswith("error: ") and reason in line
    assert not solved.engines["span"].calls


def test_many_bad_lines_are_counted(monkeypatch, capsys, solved):
    """Would catch megabytes of complaints about a file of another kind."""
    assert call(monkeypatch, stdin=b"x\n" * 3000) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == cli.MAX_REASONS + 1 and lines[-1] == f"error: {3000 - cli.MAX_REASONS:,} more lines are bad"


def test_bad_for_the_model(monkeypatch, capsys, solved):
    """Would catch limits that only the model knows being found after some lines have run."""
    solved.engines["span"].model.max_context = 20
    assert call(monkeypatch, "--json", stdin=b"1+2\n1+2+3+4+5\n6*7+8*9\n") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and [line.split(":")[1] for line in captured.err.splitlines()] == [" line 2", " line 3"]
    assert call(monkeypatch, "--max-new-tokens", "21", stdin=b"1+2") == 2
    assert "from 1 to 20, not 21" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run", "--nonsense"], ["run", "--seed", "x"], ["walk"]])
def test_bad_options(capsys, arguments):
    """Would catch options that are swallowed."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err


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


def test_bad_input_is_refused_without_torch():
    """Would catch a start-up that loads torch and a model only to say that the input is bad."""
    code = (
        "import sys; from selfspan_core.serve.cli import main; "
        "status = main(['run']); print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"2**9", capture_output=True, cwd=ROOT, timeout=60)
    assert done.stdout == b"2 False\n" and done.stderr.startswith(b"error: line 1: ")


def test_help():
    """Would catch a help text that fails to print or leaves an option unexplained."""
    done = python("run", "--help")
    out = done.stdout.decode()
    assert done.returncode == 0 and "examples:" in out and "exit status" in out
    for option in (
        "--task",
        "--attention",
        "--adapter",
        "--json",
        "--input",
        "--model",
        "--device",
        "--impl",
        "--load",
        "--temperature",
        "--top-p",
        "--seed",
    ):
        assert option in out


def test_interrupt_is_quiet(monkeypatch, capsys, solved):
    """Would catch a traceback on Ctrl-C."""

    def generate(self, *args):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(SolvingEngine, "generate", generate)
    assert call(monkeypatch, stdin=b"1+2") == 130
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# ---- real files, tiny models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def options(tiny):
    base, adapters = tiny
    own = {adapter: str(adapters / f"arithmetic-{adapter}") for adapter in ("span", "plain")}
    return ["--model", str(base), "--span-adapter", own["span"], "--plain-adapter", own["plain"], "--device", "cpu"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_real_process(tiny, offline):
    """Would catch noise of the libraries on either stream, and a need for the network."""
    arguments = ["--json", "--max-new-tokens", "12", "--adapter", "plain", *options(tiny)]
    # A proxy that refuses connections: whatever asks the network fails loudly.
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
    done = python("run", *arguments, stdin=b"12+34\n5*6-7\n", HF_HUB_OFFLINE=offline, OMP_NUM_THREADS="1", **nowhere)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(o) for o in objects] == [FIELDS] * 4
    assert all(o["tokens"] <= 12 and o["seconds"] > 0 for o in objects)


def test_broken_pipe_is_quiet(tiny):
    """Would catch a traceback when the reader has seen enough (`| head -1`)."""
    command = [sys.executable, "-m", "selfspan_core", "run", "--json", "--max-new-tokens", "4", *options(tiny)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdin.write(b"1+2\n" * 100)
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
    assert error == b"" and process.returncode == 141


def test_local_folders_never_touch_the_network(tiny, monkeypatch):
    """Would catch a library that asks the hub about a model that lies in a folder."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    base, adapters = tiny
    session = Session(ModelStore(base, adapters, device="cpu"))
    *_, end = compare(session, "arithmetic", "12+34", max_new_tokens=5)
    assert set(end["lanes"]) == {"dense", "sparse"}


def test_store_loads_once_and_keeps_adapters_apart(tiny):
    """Would catch a model loaded per request, and adapters that share weights."""
    base, adapters = tiny
    store = ModelStore(base, adapters, device="cpu")
    span, plain = store.engine("arithmetic", "span"), store.engine("arithmetic", "plain")
    assert span is store.engine("arithmetic", "span") and span.model is not plain.model
    assert store.tokenizer is span.model.tokenizer and store.device_name == "CPU, float32"


def test_real_ticks_are_json_and_both_lanes_agree(tiny):
    """Would catch a tensor in a tick; and with greedy decoding and text outside steps, lanes that differ."""
    base, adapters = tiny
    session = Session(ModelStore(base, adapters, device="cpu"))
    ticks = list(compare(session, "arithmetic", TEXT, max_new_tokens=40, tick_seconds=0))
    json.dumps(ticks, allow_nan=False)
    dense, sparse = ticks[-1]["lanes"]["dense"], ticks[-1]["lanes"]["sparse"]
    if sparse["attended_tokens"] == sparse["dense_tokens"]:
        assert dense["output"] == sparse["output"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--span-adapter": "/no/such/folder"}, "no adapter folder '/no/such/folder'"),
        ({"--model": "/no/such/base"}, "no model folder '/no/such/base'"),
        ({"--device": "tpu"}, "auto, cpu, cuda"),
        ({"--impl": "magic"}, "magic"),
        ({"--impl": "cuda"}, "need a CUDA device"),
        ({"--impl": "captured"}, "impl 'captured': the CUDA kernels need a CUDA device"),
        ({"--load": "2"}, "Simultaneous requests need a CUDA GPU"),
    ],
)
def test_missing_things_are_named(monkeypatch, capsys, tiny, change, message):
    """Would catch a traceback, or a silent fallback, where a folder, device or implementation is not there."""
    pairs = options(tiny)
    settings = dict(zip(pairs[::2], pairs[1::2], strict=True)) | change
    flat = [part for pair in settings.items() for part in pair]
    assert call(monkeypatch, *flat, stdin=b"1+2") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1


def test_missing_shipped_adapter_says_how_to_make_it(tiny, tmp_path):
    """Would catch an error that leaves the user without the next step."""
    store = ModelStore(tiny[0], tmp_path, device="cpu")
    with pytest.raises(ModelError, match=r"training/configs/arithmetic-span\.yaml"):
        store.engine("arithmetic", "span")
