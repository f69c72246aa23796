"""A task's controls on the page: one builder for all tasks, with each task's texts from `PageText`. Imports gradio."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from selfspan_core.params import MAX_LOAD, MAX_NEW_TOKENS, MAX_TEMPERATURE, Request, SamplingParams
from selfspan_core.paths import PAGE
from selfspan_core.tasks.base import Learned, Option, Task

COMPARISONS = [
    ("Same adapter, mask off and on: isolates attention", "span"),
    ("Plain adapter against span adapter: time to answer", "plain"),
]
DRAFTS_LABEL = "Drafts"
DRAFTS_INFO = (
    "In both lanes: several likely tokens are checked at once. Less time for the same text (in 16 bits near ties may "
    "fall the other way); drafted text is tinted."
)
LOAD_LABEL = "Load: requests at once"
LOAD_INFO = "In each lane: yours, and random others of its size."
NO_LOAD_INFO = "More than one needs captured steps of this app on a CUDA GPU, which are not in use here."
AS_IS_LABEL = "Use the text as pasted"
AS_IS_INFO = "Otherwise broken lines are joined, and marks of other formats, menus and notices are taken out."
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}
"""Of events of the page. On nothing: else gradio counts seconds in every frame, and copies all that a component holds
for every value that arrives, to show none of it.
"""
ALERT: dict[str, Any] = {
    "html_template": '<p class="ss-alert" role="alert"></p>',
    "js_on_load": (PAGE / "alert.js").read_text(encoding="utf-8"),
    "apply_default_css": False,
    "elem_classes": "ss-alert-box",
}
CLEANING: dict[str, Any] = {
    **ALERT,
    "html_template": (PAGE / "cleaning.html").read_text(encoding="utf-8"),
    "js_on_load": (PAGE / "cleaning.js").read_text(encoding="utf-8"),
}
TOGGLE: dict[str, Any] = {
    **ALERT,
    "html_template": (PAGE / "options.html").read_text(encoding="utf-8"),
    "js_on_load": (PAGE / "options.js").read_text(encoding="utf-8"),
    "elem_classes": "ss-toggle-box",
}
MORE: dict[str, Any] = {
    "html_template": (PAGE / "more.html").read_text(encoding="utf-8"),
    "apply_default_css": False,
    "elem_classes": "ss-more-box",
}
"""Opens the form that a run has made a bar, and closes it again; `assets/app/race/form.js` hears it."""


@dataclass(frozen=True)
class Controls:
    """The controls of a task's part of the page.

    Attributes:
        task: the task.
        box, alert, stop: the input box, the message about a bad input, and the button that ends a run.
        cleaning: what was done to a pasted input.
        begins: events that begin a run.
        fills: events that put an input into the box, behind which a run begins.
        settings: the controls of `request`'s values by name, in order: "adapter", "model" (if several), options,
            "drafts", "load", "max_new_tokens", "temperature", "top_p", "seed", "as_is".
        models: what the adapters of each model that is offered learned, the usual model first.
    """

    task: Task
    box: gr.Textbox
    alert: gr.HTML
    cleaning: gr.HTML
    stop: gr.Button
    begins: list
    fills: list
    settings: dict[str, gr.components.Component]
    models: Mapping[str, Learned]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The controls whose values make a request, the text first."""
        return [self.box, *self.settings.values()]

    @property
    def known(self) -> dict[str, Any]:
        """What the page's script has to know to fill the form: names and labels, no input."""
        page, models = self.task.page, list(self.models)
        return {"task": self.task.name, "box": page.box, "suffix": page.suffix, "run": page.run, "models": models}

    @property
    def drafts(self) -> gr.Checkbox:
        """Whether tokens are drafted."""
        box = self.settings["drafts"]
        assert isinstance(box, gr.Checkbox)
        return box

    @property
    def load(self) -> gr.Slider | None:
        """The slider of simultaneous requests, where the task answers several at once."""
        slider = self.settings.get("load")
        return slider if isinstance(slider, gr.Slider) else None

    def request(self, text: str, values: Sequence[Any]) -> Request:
        """The request, from the values of `inputs`. Raises InputError."""
        given = dict(zip(self.settings, values, strict=True))
        usual = next(iter(self.models), None)
        # The usual model may be replaced where it cannot be had, and then that is said; one that was chosen may not.
        model = given.get("model") if given.get("model") != usual else None
        options = {option.name: given[option.name] for option in self._asked(given.get("model", usual))}
        limit = given.get("max_new_tokens", self.task.page.max_new_tokens)
        return Request(
            self.task.name,
            text,
            options,
            adapter=given["adapter"],
            load=given.get("load", 1),
            sampling=SamplingParams(limit, given["temperature"], given["top_p"], given["seed"] or 0),
            model=model,
            drafts="auto" if given["drafts"] else "off",
            clean=not given.get("as_is", False),
        )

    def _asked(self, model: str | None) -> list[Option]:
        """The options of which there is a choice with a model."""
        options = [option for option in self.task.options if option.name in self.settings]
        learned = self.models.get(model) if model is not None else None
        return [one for one in options if learned is None or len(one.values(learned)) > 1]


def controls(task: Task, models: Mapping[str, Learned] | None = None) -> Controls:
    """The controls of a task; inside a gradio context.

    Args:
        models: names of the models that can run the task, the usual one first, and what their adapters learned; the
            page offers a choice of several.
    """
    models = models or {}
    page, suffix = task.page, task.page.suffix
    with gr.Column(elem_id=f"ask{suffix}", elem_classes="ss-ask"):
        box = gr.Textbox(
            value=task.examples[len(task.examples) // 2],
            label=page.label,
            placeholder=page.placeholder,
            info=page.info,
            lines=page.lines,
            max_lines=page.max_lines,
            elem_id=page.box,
            elem_classes=[] if task.view.pane == "document" else ["ss-mono"],
        )
        alert = gr.HTML(**ALERT, elem_id=f"alert{suffix}")
        cleaning = gr.HTML(**CLEANING, elem_id=f"cleaning{suffix}")
        with gr.Row(elem_classes="ss-actions"):
            with gr.Row(elem_classes="ss-buttons"):
                run = gr.Button(page.run, variant="primary", elem_id=f"run{suffix}", min_width=90)
                stop = gr.Button("Stop", elem_id=f"stop{suffix}", elem_classes="ss-stop", min_width=80)
                fills = [_surprise(task, box)] if page.can_surprise else []
            with gr.Column(min_width=320, elem_classes="ss-examples"):
                fills.append(_stories(task, box))
        with gr.Column(elem_classes="ss-options-box"):
            gr.HTML(**TOGGLE)
            with gr.Row(elem_classes="ss-options"):
                settings = _settings(task, models)
        gr.HTML(**MORE)
    begins = [run.click, box.submit] if task.is_line else [run.click]
    return Controls(task, box, alert, cleaning, stop, begins, fills, settings, models)


def _surprise(task: Task, box: gr.Textbox) -> Any:
    """The button that makes up an input; the event that puts it into the box."""
    button = gr.Button("Surprise me", elem_id=f"surprise{task.page.suffix}", min_width=120)
    return button.click(lambda: task.surprise(random.randrange(2**31)), None, box, queue=False, **HIDDEN)


def _stories(task: Task, box: gr.Textbox) -> Any:
    """The examples by their names and lengths; the event that puts one into the box."""
    page = task.page
    labelled = {f"{name}, {page.example(text)}": text for name, text in page.stories.items()}
    labelled = labelled or {page.example(text): text for text in task.examples}
    examples = gr.Examples(
        [[text] for text in labelled.values()],
        [box],
        label="Examples: a click runs one",
        example_labels=list(labelled),
        api_visibility="private",
    )
    return examples.load_input_event


def _settings(task: Task, models: Mapping[str, Learned]) -> dict[str, gr.components.Component]:
    """Controls of everything but the text."""
    settings: dict[str, gr.components.Component] = {
        "adapter": gr.Radio(
            COMPARISONS, value="span", label="What is compared", elem_id=f"compare{task.page.suffix}", scale=4
        )
    }
    if len(models) > 1:
        settings["model"] = gr.Radio(
            list(models), value=next(iter(models)), label="Model", elem_id=f"model{task.page.suffix}", scale=2
        )
    settings |= _options(task, models, settings.get("model"))
    settings["drafts"] = gr.Checkbox(
        True, label=DRAFTS_LABEL, info=DRAFTS_INFO, elem_id=f"drafts{task.page.suffix}", scale=2, min_width=200
    )
    if not task.rules_text:
        settings["load"] = gr.Slider(
            1,
            MAX_LOAD,
            1,
            step=1,
            label=LOAD_LABEL,
            info=NO_LOAD_INFO,
            interactive=False,
            elem_id=f"load{task.page.suffix}",
            scale=2,
            min_width=260,
        )
    if task.page.max_new_tokens == MAX_NEW_TOKENS:
        settings["max_new_tokens"] = gr.Slider(
            16, MAX_NEW_TOKENS, MAX_NEW_TOKENS, step=1, label="Max new tokens per lane", scale=2, min_width=260
        )
    settings |= _sampling()
    if task.page.cleans:
        settings["as_is"] = gr.Checkbox(
            False, label=AS_IS_LABEL, info=AS_IS_INFO, elem_classes="ss-as-is", scale=2, min_width=200
        )
    return settings


def _sampling() -> dict[str, gr.components.Component]:
    """Controls of how tokens are drawn."""
    return {
        "temperature": gr.Slider(
            0, MAX_TEMPERATURE, 0, step=0.05, label="Temperature", info="0: the likeliest.", scale=2, min_width=200
        ),
        "top_p": gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1: all tokens.", scale=2, min_width=200),
        "seed": gr.Number(0, label="Seed", info="Of temperatures above 0.", precision=0, scale=1, min_width=140),
    }


def _options(
    task: Task, models: Mapping[str, Learned], model: gr.components.Component | None
) -> dict[str, gr.components.Component]:
    """Controls of the task's options; one that has to be learned is there for models that learned several values."""
    made: dict[str, gr.components.Component] = {}
    for option in task.options:
        usual = {name: option.values(learned) for name, learned in models.items()}
        if option.is_learned and all(len(values) < 2 for values in usual.values()):
            continue
        first = next(iter(usual.values()), tuple(option.choices))
        shown = gr.Radio(
            [(option.choices[value], value) for value in first],
            value=option.default if option.default in first else first[0],
            label=option.label,
            visible=len(first) > 1,
            elem_id=f"{option.name}{task.page.suffix}",
            scale=2,
        )
        made[option.name] = shown
        if option.is_learned and isinstance(model, gr.Radio):
            model.change(_offering(option, models), model, shown, queue=False, **HIDDEN)
    return made


def _offering(option: Option, models: Mapping[str, Learned]) -> Callable[[str], Any]:
    """A function that makes the control of an option fit the chosen model."""

    def offer(name: str) -> Any:
        values = option.values(models[name])
        choices = [(option.choices[value], value) for value in values]
        return gr.update(choices=choices, value=values[0], visible=len(values) > 1)

    return offer
