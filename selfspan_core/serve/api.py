"""The HTTP API: one endpoint, whose arguments are the settings of a request and the options of all tasks."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing

import gradio as gr

from selfspan_core.errors import InputError, NotReady
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS, ModelSpec, choices
from selfspan_core.params import MAX_NEW_TOKENS, Request, SamplingParams
from selfspan_core.serve.lazy_session import SharedDevice, public, without_lists
from selfspan_core.tasks.base import Option
from selfspan_core.tasks.registry import TASKS, task_options


def compare_endpoint(device: SharedDevice, own: ModelSpec = MODELS[DEFAULT_MODEL]) -> Callable[..., Iterator[dict]]:
    """The function behind the endpoint `compare`.

    Args:
        own: the model of requests that name none; where others can run a task, too, there is an argument `model`.
    """
    models = list(dict.fromkeys(name for task in TASKS for name in choices(task, own)))
    is_choice = any(len(choices(task, own)) > 1 for task in TASKS)
    added = [*task_options(), *([_model_option(models)] if is_choice else [])]

    def compare(
        task: str,
        text: str,
        adapter: str = "span",
        max_new_tokens: int = MAX_NEW_TOKENS,
        load: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        *options: str,
    ) -> Iterator[dict]:
        named = dict(zip([option.name for option in added], options, strict=False))
        model = (named.pop("model", None) or None) if is_choice else None
        try:
            own = {option.name for option in TASKS[task].options} if task in TASKS else set()
            sampling = SamplingParams(max_new_tokens, temperature, top_p, seed)
            given = {name: value for name, value in named.items() if name in own}
            request = Request(task, text, given, adapter=adapter, load=load, sampling=sampling, model=model)
            with closing(device.compare(request)) as ticks:
                yield from map(without_lists, ticks)
        except (InputError, NotReady) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            raise gr.Error(f"The run failed: {public(error)}") from error

    return _with_options(compare, added)


def _model_option(models: list[str]) -> Option:
    """The argument that names a model; it comes last, so that calls which give values in order mean what they meant."""
    names = {name: name for name in models}
    return Option("model", names, "", "Model", f"{' or '.join(models)}; empty: {models[0]}.")


def _with_options(compare: Callable[..., Iterator[dict]], options: list[Option]) -> Callable[..., Iterator[dict]]:
    """The function with an argument for every option, and its documentation."""
    signature = inspect.signature(compare)
    fixed = [one for one in signature.parameters.values() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    added = [
        inspect.Parameter(option.name, fixed[0].kind, default=option.default, annotation=str) for option in options
    ]
    compare.__signature__ = signature.replace(parameters=[*fixed, *added])
    compare.__annotations__ |= dict.fromkeys((option.name for option in options), str)
    lines = [f"    {option.name}: {option.help}" for option in options]
    compare.__doc__ = "\n".join([_DOCUMENTATION.format(tasks=" or ".join(TASKS)), *lines])
    return compare


_DOCUMENTATION = """Answer one input in both lanes. Streams one object per tick and ends with how they compare.

Args:
    task: {tasks}.
    text: the input, for example an expression or an article.
    adapter: span (the same adapter, mask off and on) or plain (the plain adapter against the span adapter).
    max_new_tokens: the most tokens that a lane may write.
    load: requests that each lane answers at once, 1 to 64; more than 1 needs a CUDA GPU.
    temperature: 0 is greedy, above it tokens are sampled.
    top_p: sample only from the likeliest tokens that hold this share of the probability, above 0, at most 1.
    seed: of the sampling."""
