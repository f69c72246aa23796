"""The command line: what it prints, what it refuses, and that it refuses before it loads anything."""

import contextlib
import json
import subprocess
import sys

import pytest

from selfspan_core.compare.session import Session
from selfspan_core.errors import ImplUnavailable
from selfspan_core.serve import cli
from tests.support.cli_tools import FIELDS, TEXT, SolvingEngine, call, python
from tests.support.paths import ROOT
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedStore


@pytest.fixture
def solved(monkeypatch):
    """The command line on scripted lanes."""
    tokenizer = CharacterTokenizer()
    store = ScriptedStore(tokenizer, {name: SolvingEngine(tokenizer, name == "span") for name in ("span", "plain")})
    session = Session(store, FakeClock(0.01))
    monkeypatch.setattr(cli, "make_session", lambda arguments: session)
    return store


# ---- results


def test_an_input_on_the_command_line(solved, capsys):
    """Would catch the first thing that a new user types being refused, or two inputs of which one is ignored."""
    assert cli.main(["run", "79*36+63", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["input"] == "79*36+63"
    assert cli.main(["run", "1+2", "--input", "somewhere.txt"]) == 2
    assert "not both" in capsys.readouterr().err
    assert cli.main(["run", ""]) == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-5+3", "-(3+4)", "- 3*4", "--5+3"])
def test_an_expression_that_begins_with_a_minus(solved, capsys, text):
    """Would catch an expression that is taken for an option, before another option or behind it."""
    for arguments in (["run", text, "--json"], ["run", "--json", text]):
        assert cli.main(arguments) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[0])["input"] == text


def test_json(monkeypatch, capsys, solved):
    """Would catch a field that is missing, renamed or out of order, and objects that share a line."""
    assert call(monkeypatch, "--json", stdin=b"79*36+63\n\n 1 + 2 \r\n") == 0
    captured = capsys.readouterr()
    objects = [json.loads(line) for line in captured.out.splitlines()]
    assert [(o["input"], o["canonical"], o["attention"]) for o in objects] == [
        *(("79*36+63", "79*36+63", "dense"), ("79*36+63", "79*36+63", "sparse")),
        *((" 1 + 2 ", "1+2", "dense"), (" 1 + 2 ", "1+2", "sparse")),
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


@pytest.mark.parametrize(("given", "kept"), [("off", "off"), ("auto", "auto"), ("1", 1), ("15", 15), (None, "auto")])
def test_drafts_arrive(monkeypatch, solved, given, kept):
    """Would catch a setting that is parsed and then forgotten, a number that stays text, another default."""
    given = [] if given is None else ["--drafts", given]
    assert call(monkeypatch, "--json", *given, stdin=TEXT.encode()) == 0
    assert solved.engines["span"].drafts == kept


@pytest.mark.parametrize("given", ["-1", "0", "16", "foo", "3.5"])
@pytest.mark.parametrize("joined", [True, False])
def test_bad_drafts(monkeypatch, capsys, solved, given, joined):
    """Would catch drafts that no step verifies, and a reason in other words by what is wrong with them."""
    arguments = [f"--drafts={given}"] if joined else ["--drafts", given]
    assert call(monkeypatch, *arguments, stdin=TEXT.encode()) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    shown = given if given in ("0", "16") else repr(given)
    assert line == f"error: --drafts is auto, off, or a whole number from 1 to 15, not {shown}." and captured.out == ""
    assert not solved.engines["span"].calls


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


def test_signs_of_another_encoding(monkeypatch, capsys, solved):
    """Expressions out of an editor that saves cp1252, refused for their signs; letters are no signs."""
    assert call(monkeypatch, "--attention", "dense", stdin="7 × 3\n8 – 2".encode("cp1252")) == 0
    assert "read as CP1252" in capsys.readouterr().err
    assert call(monkeypatch, stdin="7 × é".encode("cp1252")) == 2


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
    assert call(monkeypatch, "--max-new-tokens", "4097", stdin=b"1+2") == 2
    assert "from 1 to 4,096, not 4097" in capsys.readouterr().err


def test_options_of_vllm_go_behind_dashes(capsys):
    """Would catch whoever is told what is wrong, and not what would be right."""
    with pytest.raises(SystemExit):
        cli.main(["serve", "--model", "x", "--port", "8000"])
    assert "--port: vLLM's own options go behind --" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run", "--nonsense"], ["run", "--seed", "x"], ["walk"]])
def test_bad_options(capsys, arguments):
    """Would catch options that are swallowed."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err


@pytest.mark.parametrize("option", ["--task", "--length", "--attention", "--model", "--seed", "--no-such-option"])
def test_what_was_typed_is_escaped_in_messages(option, capsys):
    """A terminal that an option's value clears, colours or makes type something."""
    with contextlib.suppress(SystemExit):
        task = ["--task", "summarize"] if option == "--length" else []
        assert cli.main(["run", *task, f"{option}=\x1b[31mred", "1+1"]) == 2
    said = capsys.readouterr().err
    assert "[31mred" in said and "\x1b" not in said


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
        "--drafts off|auto|N",
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
