"""The HTTP API's stream: its arguments are the settings of a request and the options of all tasks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from inspect import Parameter, Signature
from typing import Any

from selfspan_core.errors import SettingError
from selfspan_core.models.registry import ModelSpec, choices, offered
from selfspan_core.params import MAX_DRAFTS, MAX_NEW_TOKENS, Request, SamplingParams
from selfspan_core.serve.device import SharedDevice
from selfspan_core.serve.tools import about_text, check_options, check_task, told
from selfspan_core.serve.visitors import Listener, visitor
from selfspan_core.tasks.base import Option
from selfspan_core.tasks.registry import TASKS, task_options

SETTINGS: dict[str, tuple[type, Any]] = {
    "task": (str, Parameter.empty),
    "text": (str, Parameter.empty),
    "adapter": (str, "span"),
    "max_new_tokens": (int, MAX_NEW_TOKENS),
    "load": (int, 1),
    "temperature": (float, 0.0),
    "top_p": (float, 1.0),
    "seed": (int, 0),
}
"""The endpoint's first arguments in order: type and default of each. The options of the tasks follow, then DRAFTS, then
the name of a model where there are several, then `clean`, then the options that only some models learned, where one of
these is offered. The newest are last: what stood before keeps its place."""
DRAFTS = Option(
    "drafts",
    {},
    "auto",
    "Drafts",
    f"auto (as many as pay), off, or at most so many, 1 to {MAX_DRAFTS}; time changes, and in 16 bits near ties.",
)


def compare_endpoint(
    device: SharedDevice, tasks: Sequence[str], own: ModelSpec | None = None
) -> Callable[..., Iterator[dict]]:
    """The function behind the endpoint `compare`.

    Args:
        device: runs the requests.
        tasks: that are offered, those of the page.
        own: the default model, None: of each task its usual one; if other models can run a task, too, the endpoint
            has an argument `model`.
    """
    options = [*(option for option in task_options() if not option.is_learned), DRAFTS, *_model_option(tasks, own)]
    learned = _learned_options(own)
    signature = _signature(options, learned)

    def compare(*values: Any) -> Iterator[dict]:
        with told(), closing(device.compare(_request(signature, values, tasks), visitor(), Listener())) as ticks:
            yield from ticks

    compare.__signature__ = signature
    compare.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    compare.__doc__ = _documentation(tasks, options, learned)
    # A stream is no tool: gradio would offer its last object, as Python writes it, under the name of the tool.
    compare.__name__, compare._mcp_type = "compare_stream", "stream"
    return compare


def _model_option(tasks: Sequence[str], own: ModelSpec | None) -> list[Option]:
    """The argument that names a model, if there is a choice; behind the others, whose places stay."""
    if all(len(choices(task, own)) < 2 for task in TASKS):
        return []
    models = list(dict.fromkeys(name for task in TASKS for name in choices(task, own)))
    usual = {task: choices(task, own)[0] for task in tasks}
    named = " and ".join(f"{name} for {task}" for task, name in usual.items())
    empty = models[0] if len(set(usual.values())) == 1 else named
    return [Option("model", {name: name for name in models}, "", "Model", f"{' or '.join(models)}; empty: {empty}.")]


def _learned_options(own: ModelSpec | None) -> list[Option]:
    """The options that have to be learned, of which a model that is offered learned more than one value."""
    return [
        option
        for name, task in TASKS.items()
        for option in task.options
        if option.is_learned and any(len(option.values(learned)) > 1 for learned in offered(name, own).values())
    ]


def _signature(options: Sequence[Option], learned: Sequence[Option]) -> Signature:
    """The settings of a request and the options of the tasks, in the form that gradio inspects.

    An option that a model may not have learned is empty where it is not given: a model knows its own usual value.
    """
    given = {**SETTINGS, **{option.name: (str, option.default) for option in options}, "clean": (bool, True)}
    given |= {option.name: (str, "") for option in learned}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    named = [Parameter(name, kind, default=default, annotation=type_) for name, (type_, default) in given.items()]
    return Signature(named, return_annotation=Iterator[dict])


def _request(signature: Signature, values: Sequence[Any], tasks: Sequence[str]) -> Request:
    """The request. Options of other tasks, which every caller passes, are left out. Raises InputError."""
    bound = signature.bind(*values)
    bound.apply_defaults()
    given = bound.arguments
    check_task(given["task"], tasks)
    check_options(given)
    if given["max_new_tokens"] is None:
        raise SettingError("max_new_tokens is a whole number, 1 or more, not None.", "max_new_tokens")
    task = TASKS.get(given["task"]) if isinstance(given["task"], str) else None
    own = {option.name for option in task.options} if task else set()
    options = {name: value for name, value in given.items() if name in own and value != ""}
    drawn = ("max_new_tokens", "temperature", "top_p", "seed")
    sampling = SamplingParams(**{name: given[name] for name in drawn})
    name, text, adapter, load = (given[setting] for setting in ("task", "text", "adapter", "load"))
    model = given.get("model", "")
    return Request(
        name,
        text,
        options,
        adapter=adapter,
        load=load,
        sampling=sampling,
        model=None if model in ("", None) else model,
        drafts=given["drafts"],
        clean=given["clean"],
    )


def _documentation(tasks: Sequence[str], options: Sequence[Option], learned: Sequence[Option]) -> str:
    lines = [f"    {option.name}: {option.help}" for option in options]
    last = [f"    {option.name}: {option.help}" for option in learned]
    first = _DOCUMENTATION.format(tasks=" or ".join(tasks), text=about_text(tasks))
    return "\n".join([first, *lines, _CLEAN, *last])


_CLEAN = "    clean: whether a pasted article is cleaned before it is read; the result's `cleaning` says what was done."
_DOCUMENTATION = """Answer one input in both lanes. Streams one object per tick and ends with how they compare.

Args:
    task: {tasks}.
    text: {text}
    adapter: span (the same adapter, mask off and on) or plain (the plain adapter against the span adapter).
    max_new_tokens: the most tokens that a lane may write.
    load: requests that each lane answers at once, 1 to 64; more than 1 needs a CUDA GPU.
    temperature: 0 is greedy, above it tokens are sampled.
    top_p: sample only from the likeliest tokens that hold this share of the probability, above 0, at most 1.
    seed: of the sampling."""
