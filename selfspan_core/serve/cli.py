"""The command line: `python -m selfspan_core run`, the same runs as in the app without a browser.

All checks that need no model come first, for all lines; torch is imported after that.
Standard output holds results only; reasons go to standard error, and on a terminal the bar of a long prompt.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspan_core.errors import ImplUnavailable, InputError, LaneError, ModelError, SettingError
from selfspan_core.models.registry import resolve_model
from selfspan_core.params import Request, SamplingParams
from selfspan_core.serve.cli_options import build_parser, printable
from selfspan_core.serve.lazy_session import silence_libraries
from selfspan_core.serve.prompt_bar import with_bar
from selfspan_core.serve.stores import engines_named, make_store
from selfspan_core.serve.text_files import UnknownEncoding, decoded, decoded_line
from selfspan_core.tasks.base import read_pasted
from selfspan_core.tasks.registry import get_task, task_options

if TYPE_CHECKING:
    from selfspan_core.compare.session import PreparedRun, Session

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
MAX_REASONS = 50
MAX_INPUT_BYTES = 4 * 10**6
MAX_LINES = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (argparse itself exits on a bad option, with 2)."""
    try:
        parser = build_parser()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            hint = ": vLLM's own options go behind --" if arguments.command == "serve" else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets it escaped, not a crash
                stream.reconfigure(errors="backslashreplace")
        return run(arguments) if arguments.command == "run" else run_engines(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe. Python would report that once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def run(arguments: argparse.Namespace) -> int:
    """The `run` command."""
    try:
        requests = checked_requests(arguments)
        session = make_session(arguments)
        runs = prepare_all(session, requests)
    except BadInput as error:
        for reason in error.reasons[:MAX_REASONS]:
            print(f"error: {printable(' '.join(reason.split()))}", file=sys.stderr)
        if len(error.reasons) > MAX_REASONS:
            print(f"error: {len(error.reasons) - MAX_REASONS:,} more lines are bad", file=sys.stderr)
        return EXIT_BAD_INPUT
    for notice in dict.fromkeys(prepared.notice for prepared in runs if prepared.notice):
        print(f"note: {notice}", file=sys.stderr)
    for number, prepared in enumerate(runs):
        try:
            show = print_json if arguments.json else print_text
            with closing(with_bar(session.stream(prepared))) as ticks:
                show(ticks, is_first=number == 0)
        except LaneError as error:
            print(f"error: {place(requests[number][0])}{error}", file=sys.stderr)
            return EXIT_FAILED
        except ImplUnavailable as error:  # that many rows do not fit, which is known only when they are allocated
            print(f"error: {place(requests[number][0])}{error}", file=sys.stderr)
            return EXIT_BAD_INPUT
    return 0


def run_engines(arguments: argparse.Namespace) -> int:
    """The commands `export` and `serve`."""
    from selfspan_core.serve.cli_engines import export, serve

    try:
        if arguments.command == "serve":
            return serve(arguments)
        silence_libraries()
        print(export(arguments))
        return 0
    except ModelError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return EXIT_BAD_INPUT


# ---- input


class BadInput(Exception):
    """The input cannot be run; `reasons` has one entry per problem."""

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons


def asked(arguments: argparse.Namespace) -> Request:
    """The settings shared by all inputs, without their texts.

    Raises:
        BadInput: a setting is bad.
    """
    try:
        sampling = SamplingParams(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)
        options = {option.name: getattr(arguments, option.name) for option in task_options()}
        given = {name: value for name, value in options.items() if value is not None}
        attention, adapter, load = arguments.attention, arguments.adapter, arguments.load
        shared = {"load": load, "sampling": sampling, "drafts": arguments.drafts, "clean": not arguments.as_is}
        return Request(arguments.task, "", given, attention, adapter, **shared)
    except SettingError as error:
        raise BadInput(error.named(f"--{(error.name or '').replace('_', '-')}")) from None
    except InputError as error:
        raise BadInput(str(error)) from None


def checked_requests(arguments: argparse.Namespace) -> list[tuple[int, Request]]:
    """The (line number, request) of every line that is not blank, after all checks that need no model.

    Raises:
        BadInput: a setting or any line is bad; `reasons` has every bad line.
    """
    request = asked(arguments)
    try:
        task = get_task(request.task, **request.options)
    except InputError as error:
        raise BadInput(str(error)) from None
    if arguments.text is None:
        data = read_input(arguments.input, task.page.prompt)
    elif arguments.input is None:
        data = arguments.text.encode(errors="surrogateescape")
    else:
        raise BadInput("give the input itself or --input FILE, not both")
    lines = decoded_lines(data) if task.is_line else [(0, decoded_text(data))]
    reasons, done = [], []
    for number, text in lines:
        try:
            _, cleaned = read_pasted(task, text, request.clean)
        except InputError as error:
            reasons.append(f"{place(number)}{error}")
            continue
        if cleaned.done:
            done.append(f"{place(number)}cleaned: {', '.join(cleaned.done)} (--as-is uses the text as it is)")
    if reasons:
        raise BadInput(*reasons)
    for line in done:
        print(line, file=sys.stderr)
    return [(number, replace(request, text=text)) for number, text in lines]


def place(number: int) -> str:
    """The place of a problem in the input: its line number (from 1), or the whole input (0)."""
    return f"line {number}: " if number else ""


def read_input(path: str | None, prompt: str) -> bytes:
    """The whole content of a file or of standard input; `prompt` is shown to a user who types it.

    Raises:
        BadInput: the content cannot be read, or is larger than any valid input.
    """
    if path is not None and path != "-":
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_INPUT_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(f"cannot read {printable(path)}: {reason}") from None
    elif sys.stdin is None:
        raise BadInput("there is no standard input; use --input FILE")
    else:
        if sys.stdin.isatty():
            print(prompt, file=sys.stderr)
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise BadInput(f"the input has more than {MAX_INPUT_BYTES // 10**6} MB; give it in parts")
    return data


def decoded_text(data: bytes) -> str:
    """All of the input as one text; another encoding than UTF-8 is named. Raises BadInput if it cannot be told."""
    try:
        text, encoding = decoded(data)
    except UnknownEncoding as error:
        raise BadInput(f"{error}; save it as UTF-8") from None
    _tell_encodings({encoding})
    return text


def _tell_encodings(found: set[str]) -> None:
    for encoding in sorted(found - {"utf-8"}):
        print(f"read as {encoding.upper()}; if characters are wrong, save the text as UTF-8", file=sys.stderr)


def decoded_lines(data: bytes) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1. Raises BadInput if there are none, or on bytes not UTF-8."""
    lines, reasons, encodings = [], [], set()
    if b"\0" in data:
        data = decoded_text(data).encode()
    every = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    if len(every) > MAX_LINES:
        raise BadInput(f"the input has {len(every):,} lines; give at most {MAX_LINES:,} at a time")
    for number, line in enumerate(every, start=1):
        try:
            text, encoding = decoded_line(line)
        except UnicodeDecodeError as error:
            reasons.append(f"line {number}: not UTF-8 text (byte {error.start + 1} of the line)")
            continue
        encodings.add(encoding)
        if text.strip():
            lines.append((number, text))
    if reasons:
        raise BadInput(*reasons)
    if not lines:
        raise BadInput("the input is empty: type one expression per line")
    _tell_encodings(encodings)
    return lines


# ---- models


def make_session(arguments: argparse.Namespace) -> "Session":
    """The session on the chosen models and device, or servers. Raises BadInput if they cannot be had."""
    own = {"span": arguments.span_adapter, "plain": arguments.plain_adapter}
    folders = {adapter: folder for adapter, folder in own.items() if folder}
    try:
        model = resolve_model(arguments.model) if arguments.model else None
        engines = engines_named(arguments.engine, arguments.plain_engine, model)
    except ModelError as error:
        raise BadInput(str(error)) from None
    of_models_here = {"--impl": arguments.impl, "--span-adapter": folders.get("span")}
    of_models_here |= {"--plain-adapter": folders.get("plain"), "--device": arguments.device != "auto"}
    given = [name for name, value in of_models_here.items() if value]
    if engines is not None and given:
        raise BadInput(
            f"{given[0]} is of models that are loaded here, and a server decodes (--engine, SELFSPAN_ENGINE)"
        )
    silence_libraries()
    from selfspan_core.compare.session import Session

    try:
        return Session(make_store(engines, model, folders, arguments.device, arguments.impl))
    except (ModelError, ImplUnavailable, ValueError) as error:
        raise BadInput(str(error)) from None


def prepare_all(session: "Session", requests: list[tuple[int, Request]]) -> list["PreparedRun"]:
    """Prepare every line to run and load the models. Raises BadInput, which names every line that cannot run."""
    runs, reasons = [], []
    for number, request in requests:
        try:
            runs.append(session.prepare(request))
        except (SettingError, ModelError, ImplUnavailable) as error:
            raise BadInput(str(error)) from None
        except InputError as error:
            reasons.append(f"{place(number)}{error}")
    if reasons:
        raise BadInput(*reasons)
    return runs


# ---- output


def print_json(ticks: Iterator[dict[str, Any]], is_first: bool) -> None:
    """One line per lane, as soon as the run is over."""
    for tick in ticks:
        if tick["kind"] == "end":
            for result in tick["lanes"].values():
                print(json.dumps(result), flush=True)


def print_text(ticks: Iterator[dict[str, Any]], is_first: bool) -> None:
    """Worked steps, answer and figures for a person."""
    start: dict[str, Any] = {}
    last: dict[str, Any] = {}
    malformed: dict[str, set[int]] = {}
    written: dict[str, str] = {}
    try:
        for tick in ticks:
            if tick["kind"] == "start":
                start = tick
            elif tick["kind"] == "tick":
                last = tick["lanes"]
                for lane, news in last.items():
                    malformed.setdefault(lane, set()).update(one["index"] for one in news["steps"] if one["malformed"])
                    texts = [item["text"] for item in news["items"] if item["kind"] in ("text", "newline")]
                    written[lane] = written.get(lane, "") + "".join(texts)
            else:
                print("\n".join(text_report(start, last, malformed, tick, is_first)), flush=True)
    except LaneError:
        for line in written_before(start, written):
            print(line, flush=True)
        raise


def written_before(start: dict[str, Any], written: dict[str, str]) -> Iterator[str]:
    """Lines for a run that failed: what its lanes wrote before that."""
    for lane in start["lanes"]:
        lines = [line for line in written.get(lane["id"], "").splitlines() if line.strip()]
        if lines:
            yield f"  {lane['label']}, until the run failed"
            yield from (f"    {printable(line.strip())}" for line in lines)


def text_report(
    start: dict[str, Any],
    last: dict[str, Any],
    malformed: dict[str, set[int]],
    end: dict[str, Any],
    is_first: bool,
) -> Iterator[str]:
    """Lines for one finished run: `last` holds the last tick's figures by lane, `malformed` step indices by lane."""
    if is_first:
        load = f", {start['load']} requests at once" if "load" in start else ""
        yield f"{start['title']}{load} ({start['device']})"
        if "rules" in start:
            yield start["rules"]
        if "caution" in start:
            yield start["caution"]["text"]
    yield ""
    view = start["view"]
    if view["pane"] == "document":
        yield from (f"  {part['name']}: {printable(part['text'].strip())}" for part in start["prompt"] if part["name"])
    elif view["pane"] == "code":
        yield from (f"  {part['name']:>4}: {printable(part['text'].rstrip())}" for part in start["prompt"])
    else:
        yield printable(start["canonical"])
    if view["pane"] == "line" and any(lane["adapter"] == "span" for lane in start["lanes"]):
        named = (f"{part['name']}:{part['text']}" if part["name"] else part["text"] for part in start["prompt"])
        yield f"  names: {printable(' '.join(named))}"
    for lane in start["lanes"]:
        result, figures = end["lanes"][lane["id"]], last[lane["id"]]
        yield f"  {lane['label']}"
        for index, step in enumerate(result["steps"]):
            flag = " (malformed)" if index in malformed[lane["id"]] else ""
            head = f"{step['name']} from {', '.join(step['reads']) or 'nothing'}: " if step["name"] else ""
            yield f"    {head}{printable(step['text'].strip())}{flag}"
        yield f"    {answer_line(result, figures, view['answer'])}"
        yield f"    {figures_line(figures)}"
        if figures.get("total_tokens_per_second"):
            yield f"    all {start['load']} requests together: {figures['total_tokens_per_second']:,.0f} tokens/s"
    yield f"  {end['line']}"


def answer_line(result: dict[str, Any], figures: dict[str, Any], word: str) -> str:
    """The answer, called `word`, and whether it is right; some tasks have no right or wrong answers."""
    is_judged = result["correct"] is not None
    if result["answer"] is None:
        why = "" if figures["finish"] == "eos" else f", cut off after {figures['tokens']} tokens"
        return f"{word}: none{why}" + (f" (expected {printable(result['expected'])})" if is_judged else "")
    if not is_judged:
        return f"{word}: {printable(result['answer'])}"
    judged = "right" if result["correct"] else f"wrong, expected {printable(result['expected'])}"
    return f"{word}: {printable(result['answer'])} ({judged})"


def figures_line(figures: dict[str, Any]) -> str:
    """Speed and reads of one lane."""
    drafts = ""
    if figures.get("tokens_per_pass"):
        share = 100 * figures["accepted_share"]
        drafts = f"; {figures['tokens_per_pass']:.1f} tokens per pass, {share:.0f} % of drafts right"
    return (
        f"{figures['tokens']} tokens in {figures['elapsed_s']:.2f} s: first after {figures['first_token_ms']:.0f} ms, "
        f"then {figures['tokens_per_second']:.1f} tokens/s ({figures['ms_per_token']:.2f} ms/token); "
        f"read {100 * figures['share']:.1f} % of dense{drafts}"
    )
