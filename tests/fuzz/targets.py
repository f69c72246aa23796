"""What takes inputs from anybody, and what must hold whatever comes."""

import argparse
import atexit
import contextlib
import functools
import inspect
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from selfspan_core.errors import InputError
from selfspan_core.params import Request
from selfspan_core.serve import cli
from selfspan_core.serve.cli_options import build_parser
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.text_files import UnknownEncoding, decoded
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import get_task
from tests.fuzz.gguf_files import DAMAGES, KNOWN, gguf_file
from tests.fuzz.runner import Target
from tests.fuzz.texts import ARTICLES, EXAMPLES, EXPRESSIONS, ODD_VALUES, PROGRAMS
from tests.support.span_examples import FIRST_TEXT, MARKERS, PROMPT, STREAMS, VOCAB

PASTED = 'The mayor said it. "' + "' \" " * 3000
"""Once kept the splitter of sentences busy for a minute."""


def parse(task_name: str, clean: bool) -> Callable[[str], int]:
    """A check of a task's parser: a text is refused in words, or read; an expression's own form is read as that."""

    def check(text: str) -> int:
        task = get_task(task_name)
        try:
            problem, cleaned = read_pasted(task, text, clean)
        except InputError as error:
            assert str(error).strip() and "\n" not in str(error), "a message is one line"
            return 1
        assert problem.display, "a prompt without a piece"
        assert clean or cleaned.text == text
        if task.is_line:
            again = task.parse(problem.text)
            assert (again.text, again.expected) == (problem.text, problem.expected), "its own form means another thing"
        return 1

    return check


def decode_bytes(data: bytes) -> int:
    """Bytes of a file are a text, or their encoding is named."""
    with contextlib.suppress(UnknownEncoding):
        text, encoding = decoded(data)
        assert isinstance(text, str) and encoding
    return 1


# ---- trackers and rules


@functools.cache
def grammar():
    """The device's grammar, whose tracker is compiled for the CPU."""
    from cuda_kernels.tracker import Grammar
    from selfspan_core.spans.tracker import MAX_BODY_TOKENS, MAX_READS

    m = MARKERS
    return Grammar(m.ref, m.go, m.res, m.end, m.eos, m.anchors, VOCAB, MAX_READS, MAX_BODY_TOKENS)


def track(given: tuple[bool, list[int], int]) -> int:
    """Both trackers see the same in any ids: near the grammar, then at random."""
    from cuda_kernels.tracker import HEADER_CLOSED, MALFORMED, PHASES
    from selfspan_core.spans.tracker import Tracker
    from tests.support.tracker_on_cpu import stream

    annotated, ids, number = given
    rng = random.Random(number)
    likely = [*MARKERS.ids, *MARKERS.ids, *range(FIRST_TEXT, VOCAB)]
    ids = [*ids, *(rng.choice(likely) for _ in range(rng.randrange(600))), MARKERS.ref]
    start = grammar().start(PROMPT.num_tokens, PROMPT.scaffold_end, PROMPT.segments, annotated)
    intervals, counts, reports = stream(grammar(), start, ids)
    tracker = Tracker(MARKERS, PROMPT, annotated)
    for at, token in enumerate(ids):
        state = tracker.push(token)
        flags = MALFORMED * state.malformed | HEADER_CLOSED * state.header_closed
        assert reports[at] == PHASES.index(state.phase.value) | flags, f"id {at} of {ids[: at + 1]}"
        assert intervals[at, : counts[at]].tolist() == [list(one) for one in state.visible], f"id {at}"
    return len(ids)


@functools.cache
def shipped_tokenizer():
    """The tokenizer of the model that travels with the project."""
    from selfspan_core.models.places import place_of_base
    from selfspan_core.models.registry import DEFAULT_MODEL
    from selfspan_core.models.tokenizer import SpanTokenizer

    return SpanTokenizer.load(place_of_base(DEFAULT_MODEL))


def follow_rules(given: tuple[str, str, str, bool, int]) -> int:
    """Rules of summaries leave something to write at every step, come to an end, and agree with their forks."""
    text, length, form, annotated, number = given
    tokenizer, task = shipped_tokenizer(), get_task("summarize", length=length, form=form)
    try:
        problem, _ = read_pasted(task, text, True)
        prompt = task.render(problem, tokenizer, annotated)
    except InputError:
        return 0
    rules, rng = task.rules(prompt, tokenizer, annotated), random.Random(number)
    assert rules is not None
    for written in range(1500):
        only, banned = (rules.fork() if written % 7 == 0 else rules).limits()
        choice = set(range(tokenizer.vocab_size) if only is None else only) - set(banned)
        assert choice, f"nothing to write behind {written} ids"
        # Ends are likely, as they are for a model; otherwise a random walk never has one.
        ends = [one for one in (tokenizer.markers.end, tokenizer.markers.eos) if one in choice]
        token = ends[0] if ends and rng.random() < 0.2 else rng.choice(sorted(choice))
        if token == tokenizer.markers.eos:
            return written
        rules.push(token)
    raise AssertionError("no end after 1,500 ids")


# ---- command line, API, tools


class NoModel:
    """A session that has no model: it checks what is asked, and answers with nothing."""

    def compare(self, request: Request) -> Iterator[dict]:
        problem, _ = read_pasted(get_task(request.task, **request.options), request.text, request.clean)
        lane = {
            "input": request.text,
            "canonical": problem.text,
            "answer": None,
            "expected": None,
            "correct": None,
            "steps": [],
        }
        lanes = {"dense": lane, "sparse": lane}
        yield {"kind": "start", "prompt": [{"text": text, "name": None} for text, _ in problem.display], "device": "-"}
        yield {"kind": "end", "lanes": lanes, "line": "", "read_share": 1.0} | dict.fromkeys(
            ("speedup_ms_per_token", "speedup_time_to_answer"), 1.0
        )

    def can_load(self) -> bool:
        return False

    def can_pause(self) -> bool:
        return True

    def loads(self) -> Iterator[str]:
        yield "nothing"

    def first_requests(self) -> Iterator[Request]:
        yield from ()


@functools.cache
def _options() -> tuple[str, ...]:
    """The options of the command line."""
    run = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices[
        "run"
    ]
    return tuple(option for action in run._actions for option in action.option_strings)


def command_line(given: tuple[list[str], bytes]) -> int:
    """Any words and any input: checked without a model, or refused with status 2 and a reason."""
    words, data = given
    said, typed = io.StringIO(), io.TextIOWrapper(io.BytesIO(data))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
        mock.patch.object(sys, "stdin", typed),
    ):
        file = Path(folder) / "input"
        file.write_bytes(data)
        try:
            arguments = build_parser().parse_args(["run", *[str(file) if word == "FILE" else word for word in words]])
            cli.checked_requests(arguments)
        except SystemExit as ended:
            assert ended.code in (0, 2) and (ended.code == 0 or said.getvalue().strip())
        except cli.BadInput as error:
            assert error.reasons and all(reason.strip() for reason in error.reasons)
    return 1


def endpoint(values: list[Any]) -> int:
    """Any arguments over HTTP: the stream of a run, or an error in words."""
    import gradio as gr

    from selfspan_core.serve.api import compare_endpoint

    try:
        ticks = list(compare_endpoint(SharedDevice(NoModel()), ("arithmetic", "summarize"))(*values))
    except gr.Error as error:
        _require_ours(error)
    else:
        assert ticks[-1]["kind"] == "end"
    return 1


@functools.cache
def _served():
    """The app around a session without a model, on a port of its own."""
    import app

    demo = app.build_app(NoModel(), ("arithmetic",))
    _, address, _ = app.launch(demo, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    return demo, address.rstrip("/")


def request(given: tuple[str, dict[str, Any]]) -> int:
    """Any body of a request to the queue: answered or refused, and the server goes on."""
    import httpx

    route, body = given
    demo, address = _served()
    content = json.dumps(body).encode(errors="surrogatepass")
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{address}/gradio_api/{route}", content=content, headers=headers, timeout=30)
    assert answer.status_code < 500 or "Queue is full" in answer.text, answer.text
    assert not demo._queue.stopped
    return 1


def tool(given: tuple[int, list[Any]]) -> int:
    """Any arguments to a tool: JSON, or an error in words."""
    import gradio as gr

    from selfspan_core.serve.tools import tools

    number, values = given
    offered = list(tools(SharedDevice(NoModel()), ("arithmetic", "summarize")))
    one = offered[number % len(offered)]
    try:
        json.loads(one(*values[: len(inspect.signature(one).parameters)]))  # gradio passes no more
    except gr.Error as error:
        _require_ours(error)
    return 1


def _require_ours(error: Exception) -> None:
    """Gradio's error for one of ours; "The run failed" is what stands for any other."""
    assert isinstance(error.__cause__, InputError), f"{type(error.__cause__).__name__}: {error.__cause__}"
    assert str(error).strip()


# ---- files


def yaml_file(text: str) -> int:
    """A configuration is read, or refused in one line."""
    from training.finetune import FinetuneConfig
    from training.loop.config import ConfigError, load_config

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            load_config(file, FinetuneConfig)
        except ConfigError as error:
            assert "\n" not in str(error), str(error)
    return 1


@functools.cache
def _models() -> tuple[Path, tuple[Path, Path]]:
    """A folder to work in, and a whole base with its adapters."""
    from tests.support.tiny_models import save_tiny

    folder = Path(tempfile.mkdtemp(prefix="selfspan-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, save_tiny(folder / "good", is_byte_level=True)


def model_folder(number: int) -> int:
    """A damaged base or adapter is loaded as users do, or refused in one line."""
    from tests.support.damaged import load_as_users_do, try_one

    folder, good = _models()
    one = try_one(folder, good, 0, number, load_as_users_do)
    assert one.failure is None, f"{one.what}: {one.failure}"
    return 1


_BYTES = st.one_of(
    st.binary(max_size=400),
    ARTICLES.flatmap(
        lambda text: st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32", "cp1252", "mac-roman"]).map(
            lambda encoding: text.encode(encoding, "replace")
        )
    ),
)
_WORDS = st.one_of(
    st.deferred(lambda: st.sampled_from(_options())),
    st.sampled_from(["FILE", "-", "1+1", "8", "-1", "nan", "1e400", "short", "arithmetic", "summarize", "auto", "cpu"]),
    st.text(max_size=10).filter(lambda word: "\0" not in word),
)
_CONFIG = (Path(__file__).parents[2] / "training" / "configs" / "example.yaml").read_text(encoding="utf-8")


def _broken_lines(made: tuple[int, str, bool]) -> str:
    """The example's configuration with a line, or the end of one, replaced."""
    number, text, whole = made
    lines = _CONFIG.splitlines()
    at = number % len(lines)
    lines[at] = text if whole else f"{lines[at].partition(':')[0]}: {text}"
    return "\n".join(lines)


_YAML_VALUES = st.one_of(
    st.sampled_from(
        ["no", "010", "1:30", "1e-3", ".nan", ".inf", "-1", "0", "[]", "{}", "null", "&a [*a]", "!!python/x"]
    ),
    st.sampled_from(["99999999999999999999", "2001-02-30", "[" * 3000, "{a: " * 2000, "? ", "- - - -", "'", '"\\x']),
    st.text(max_size=30),
)
_FORMS = (st.sampled_from(["short", "medium"]), st.sampled_from(["shorten", "rewrite"]), st.booleans())
_VALUES = st.lists(ODD_VALUES, min_size=2, max_size=12)
ROUTES = ("call/compare", "call/v2/compare", "queue/join", "cancel", "reset")
_NAMED = ODD_VALUES | st.sampled_from(["", "a", "b", "x" * 65])
_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "data": _VALUES | ODD_VALUES | st.just(["arithmetic", "1+1"]),
        "session_hash": _NAMED,
        "event_id": _NAMED,
        "fn_index": ODD_VALUES | st.integers(0, 20),
        "trigger_id": ODD_VALUES,
        "event_data": ODD_VALUES,
    },
)
_ASKED = st.tuples(st.sampled_from(["arithmetic", "summarize"]), EXPRESSIONS | ARTICLES).map(list)

TARGETS = {
    target.name: target
    for target in (
        Target("arithmetic", "parser", EXPRESSIONS, parse("arithmetic", True), ("1+1",)),
        Target("articles", "parser", ARTICLES, parse("summarize", True), (PASTED,)),
        Target("articles as they are", "parser", ARTICLES, parse("summarize", False), (PASTED,)),
        Target("programs", "parser", PROGRAMS, parse("trace", True), ("x = 1\nprint(x)",)),
        Target("bytes of a file", "parser", _BYTES, decode_bytes, (b"1+1",)),
        Target("trackers", "ids", st.tuples(st.booleans(), STREAMS, st.integers(0, 2**32)), track, ((True, [], 0),)),
        Target(
            "rules",
            "ids",
            # Most texts alone are no article; behind one they are read.
            st.tuples(
                ARTICLES | ARTICLES.map(lambda text: f"{EXAMPLES[-1]}\n\n{text}"), *_FORMS, st.integers(0, 2**32)
            ),
            follow_rules,
            tuple((EXAMPLES[-1], "short", form, True, 0) for form in ("rewrite", "shorten")),
        ),
        Target(
            "command line",
            "interface",
            st.tuples(st.lists(_WORDS, max_size=8), _BYTES),
            command_line,
            ((["1+1"], b""),),
        ),
        Target(
            "API",
            "interface",
            _VALUES | st.tuples(_ASKED, st.lists(ODD_VALUES, max_size=10)).map(lambda made: made[0] + made[1]),
            endpoint,
            (["arithmetic", "1+1"],),
        ),
        Target(
            "requests",
            "interface",
            st.tuples(st.sampled_from(ROUTES), _BODIES),
            request,
            tuple((route, {"data": ["arithmetic", "1+1"], "session_hash": ""}) for route in ROUTES),
        ),
        Target("tools", "interface", st.tuples(st.integers(0, 9), _VALUES), tool, ((0, ["1+1"]),)),
        Target(
            "configurations",
            "files",
            st.tuples(st.integers(0, 999), _YAML_VALUES, st.booleans()).map(_broken_lines) | st.text(max_size=60),
            yaml_file,
            (_CONFIG,),
        ),
        Target("GGUF files", "files", DAMAGES, gguf_file, KNOWN),
        Target("models", "files", st.integers(0, 10**9), model_folder, (0,)),
    )
}
"""By name."""
