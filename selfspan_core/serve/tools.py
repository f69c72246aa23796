"""Tools for programs that call one thing and want one answer, MCP clients above all: JSON text, nothing streamed.

One tool for each task, by the name and argument of its `PageText.tool`, and `compare` for both lanes of any task.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from inspect import Parameter, Signature
from typing import Any

import gradio as gr

from selfspan_core.errors import InputError, NotReady, SettingError, brief
from selfspan_core.params import Request
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.lazy_session import public
from selfspan_core.serve.visitors import Listener, visitor
from selfspan_core.tasks.base import Option, Task, Tool
from selfspan_core.tasks.registry import TASKS, task_options

Named = dict[str, tuple[type, Any, str]]
"""Arguments in order: name -> type, default, description."""
FIGURES = (
    *("tokens", "seconds", "tokens_per_second", "attended_tokens", "dense_tokens"),
    *("malformed_steps", "tokens_per_pass", "accepted_share"),
)
COMPARED = ("line", "speedup_ms_per_token", "speedup_time_to_answer", "read_share")
ADAPTER = "span (the same adapter, mask off and on) or plain (the plain adapter against the span adapter)."
CLEAN = "whether a pasted text is cleaned before it is read."


@contextmanager
def told() -> Iterator[None]:
    """Context that converts errors into those that gradio shows to callers."""
    try:
        yield
    except (InputError, NotReady) as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        raise gr.Error(f"The run failed: {public(error)}") from error


def tools(device: SharedDevice, tasks: Sequence[str]) -> Iterator[Callable[..., str]]:
    """The tools of some tasks, and `compare`."""
    for name in tasks:
        task = TASKS[name]
        if task.page.tool is not None:
            yield _task_tool(device, task, task.page.tool)
    yield _compare_tool(device, tasks)


def _task_tool(device: SharedDevice, task: type[Task], tool: Tool) -> Callable[..., str]:
    """A function that answers one input with self-selected attention."""
    named: Named = {tool.argument: (str, Parameter.empty, tool.about_argument)}
    named |= _options([option for option in task.options if not option.is_learned])
    if task.page.cleans:
        named["clean"] = (bool, True, CLEAN)

    def ask(given: Mapping[str, Any]) -> dict[str, Any]:
        check_options(given)
        options = {option.name: given[option.name] for option in task.options if given.get(option.name, "") != ""}
        text, clean = given[tool.argument], given.get("clean", True)
        try:
            request = Request(task.name, text, options, attention="sparse", clean=clean)
        except SettingError as error:
            raise SettingError(error.named(tool.argument)) if error.name == "text" else error from None
        start, end = _whole(device, request)
        return (
            _answer(start, end["lanes"]["sparse"])
            | _said(start)
            | {"read_share": end["read_share"], "line": end["line"]}
        )

    returned = "JSON: the answer, its steps with what each one read, and figures of the run."
    return _function(tool.name, f"{tool.about} {tool.how}", returned, named, ask)


def _compare_tool(device: SharedDevice, tasks: Sequence[str]) -> Callable[..., str]:
    """A function that answers one input in both lanes and says how they compare."""
    named: Named = {
        "task": (str, Parameter.empty, f"{' or '.join(tasks)}."),
        "text": (str, Parameter.empty, about_text(tasks)),
        "adapter": (str, "span", ADAPTER),
        **_options([option for option in task_options() if not option.is_learned]),
        "clean": (bool, True, CLEAN),
    }

    def ask(given: Mapping[str, Any]) -> dict[str, Any]:
        check_task(given["task"], tasks)
        check_options(given)
        task = TASKS.get(given["task"]) if isinstance(given["task"], str) else None
        own = task.options if task else ()
        options = {option.name: given[option.name] for option in own if given.get(option.name, "") != ""}
        request = Request(given["task"], given["text"], options, adapter=given["adapter"], clean=given["clean"])
        start, end = _whole(device, request)
        lanes = {name: _answer(start, result) for name, result in end["lanes"].items()}
        return {name: end[name] for name in COMPARED} | {"lanes": lanes} | _said(start)

    about = "Answer one input with dense and with self-selected attention side by side, and measure both."
    return _function("compare", about, "JSON: how the lanes compare, and each lane's answer and figures.", named, ask)


def about_text(tasks: Sequence[str]) -> str:
    """What the input of some tasks is."""
    inputs = [tool.argument for name in tasks if (tool := TASKS[name].page.tool) is not None]
    worded = " or ".join(f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in inputs)
    return f"the input, for example {worded}." if worded else "the input."


def check_task(name: Any, tasks: Sequence[str]) -> None:
    """Refuse a task that does not exist, and name those that are offered here. Raises InputError.

    One that exists and has no adapters here is let through: its run says how they are made.
    """
    if isinstance(name, str) and name not in TASKS:
        raise InputError(f'There is no task "{name[:40]}"; known tasks: {", ".join(tasks)}.')


def check_options(given: Mapping[str, Any]) -> None:
    """Check the options of all tasks, also those that the asked task has none of: a wrong value is never passed over.

    An empty one is left out. Raises SettingError, which names the option.
    """
    for option in task_options():
        value = given.get(option.name, "")
        if value != "" and (not isinstance(value, str) or value not in option.choices):
            raise SettingError(f"{option.name} is one of {', '.join(option.choices)}, not {brief(value)}.", option.name)


def _options(options: Sequence[Option]) -> Named:
    return {option.name: (str, option.default, option.help) for option in options}


def _function(
    name: str, about: str, returned: str, named: Named, ask: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[..., str]:
    """A documented function with those arguments, in the form that gradio inspects."""
    kind = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [Parameter(one, kind, default=usual, annotation=type_) for one, (type_, usual, _) in named.items()]
    signature = Signature(parameters, return_annotation=str)

    def call(*values: Any) -> str:
        bound = signature.bind(*values)
        bound.apply_defaults()
        with told():
            return json.dumps(ask(bound.arguments), ensure_ascii=False)

    call.__name__ = call.__qualname__ = name
    call.__signature__ = signature
    call.__annotations__ = {one: type_ for one, (type_, *_) in named.items()} | {"return": str}
    described = "\n".join(f"    {one}: {text}" for one, (*_, text) in named.items())
    call.__doc__ = f"{about}\n\nArgs:\n{described}\n\nReturns:\n    {returned}"
    return call


def _whole(device: SharedDevice, request: Request) -> tuple[dict, dict]:
    """The `start` and the `end` of a run."""
    ends: dict[str, dict] = {}
    with closing(device.compare(request, visitor(), Listener(adds=0))) as ticks:
        for tick in ticks:
            ends[tick["kind"]] = tick
    if "end" not in ends:
        raise NotReady("The run was given up: nobody took what it had to say.")
    return ends["start"], ends["end"]


def _answer(start: dict, result: dict) -> dict[str, Any]:
    """A lane's result in words, and its figures."""
    texts = {piece["name"]: piece["text"].strip() for piece in start["prompt"] if piece["name"] is not None}
    steps = []
    for number, step in enumerate(result["steps"], start=1):
        steps.append({"text": step["text"], "read": [texts.get(name, name) for name in step["reads"]]})
        texts[step["name"]] = f"step {number}"
    answer = {name: result[name] for name in ("input", "canonical", "answer", "expected", "correct")}
    figures = {name: result[name] for name in FIGURES if result.get(name) is not None}
    return {**answer, "steps": steps, "figures": figures}


def _said(start: dict) -> dict[str, Any]:
    """What there is to say about the device, the model and the input."""
    said = {name: start[name] for name in ("device", "notice") if name in start}
    said |= {"caution": start["caution"]["text"]} if "caution" in start else {}
    return said | ({"cleaning": start["cleaning"]["done"]} if "cleaning" in start else {})
