"""What a user asks for, as two objects that travel whole from app, command line and API to the row that answers.

Both check themselves when they are made; nobody behind them checks again. The limits stand here and nowhere else. No
torch here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from selfspan_core.errors import InputError, SettingError, brief

MAX_TEMPERATURE = 5.0
MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = 4096
"""The most that an app offers; a model's context is the other limit."""
MAX_LOAD = 64
"""Most requests that a lane answers at once."""
MAX_DRAFTS = 15
"""Most drafts that one forward pass verifies."""
Drafts = Literal["auto", "off"] | int
ATTENTIONS = ("dense", "sparse", "both")
ADAPTERS = ("span", "plain")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and how many at most.

    Attributes:
        max_new_tokens: None: as many as the context holds.
        temperature: 0 is greedy, the likeliest token each time; up to MAX_TEMPERATURE.
        top_p: draw only from the likeliest tokens that hold so much of the probability: above 0, at most 1 (all).
        seed: 0 to MAX_SEED; a run has a random generator of its own.

    Raises:
        SettingError: a value out of its range, or of another type.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None:
            _settle(self, max_new_tokens=whole_number("max_new_tokens", self.max_new_tokens, 1))
        if not _is_number(self.temperature) or not 0 <= self.temperature <= MAX_TEMPERATURE:  # a NaN fails it, too
            raise SettingError(
                f"temperature is a number from 0 to {MAX_TEMPERATURE:g}, not {brief(self.temperature)}.", "temperature"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise SettingError(f"top_p is a number above 0 and at most 1, not {brief(self.top_p)}.", "top_p")
        seed = whole_number("seed", self.seed, 0, MAX_SEED)
        _settle(self, temperature=float(self.temperature), top_p=float(self.top_p), seed=seed)


@dataclass(frozen=True)
class Request:
    """One input and how it is to be answered.

    Attributes:
        task: name of the task.
        text: what the user typed.
        options: of the task, by name; what it has none of is refused where the task is looked up.
        attention: "dense", "sparse" (self-selected), or "both", side by side.
        adapter: "span": every lane runs it, with the mask off or on; "plain": the dense lane runs the plain adapter and
            pays for no annotations.
        load: requests that each lane answers at once: this input, and others of about its size, made up from the seed,
            the same ones in both lanes.
        sampling: how tokens are drawn.
        drafts: tokens that are proposed and verified several at a time, which changes time, and near ties in 16 bits:
            "auto", as many as pay; "off"; or at most so many, 1 to MAX_DRAFTS.
        model: name of the model; None: the default one. Whether there is such a model is asked where models are.
        clean: whether the task cleans the text before it parses it; otherwise the text is used as it was pasted.

    Raises:
        InputError: a value that makes no sense, whatever the task is.
    """

    task: str
    text: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    attention: Literal["dense", "sparse", "both"] = "both"
    adapter: Literal["span", "plain"] = "span"
    load: int = 1
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: str | None = None
    drafts: Drafts = "auto"
    clean: bool = True

    def __post_init__(self) -> None:
        for name, value in (("task", self.task), ("text", self.text)):
            if not isinstance(value, str):
                raise SettingError(f"{name} is a string, not {brief(value)}.", name)
        if self.model is not None and not isinstance(self.model, str):
            raise SettingError(f"model is a name, not {brief(self.model)}.", "model")
        if not isinstance(self.clean, bool):
            raise SettingError(f"clean is true or false, not {brief(self.clean)}.", "clean")
        if self.attention not in ATTENTIONS:
            raise InputError(f"The attention is dense, sparse or both, not {brief(self.attention)}.")
        if self.adapter not in ADAPTERS:
            raise InputError(f"The adapter is span or plain, not {brief(self.adapter)}.")
        if self.attention == "sparse" and self.adapter == "plain":
            raise InputError(
                "The plain adapter declares no spans, so there is nothing for self-selected attention to select: "
                "use the span adapter, or dense attention."
            )
        _settle(self, load=whole_number("load", self.load, 1, MAX_LOAD), drafts=_drafts(self.drafts))


def _drafts(value: Any) -> Drafts:
    """The setting `drafts`, which command lines and the API pass as text. Raises SettingError."""
    if value in ("auto", "off"):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value) if len(value) < 6 else value
    try:
        return whole_number("drafts", value, 1, MAX_DRAFTS)
    except SettingError as error:  # a number is not all that there is to choose from
        message = f"drafts is auto, off, or a whole number from 1 to {MAX_DRAFTS}, not {brief(value)}."
        raise SettingError(message, "drafts") from error


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number within bounds. Raises SettingError, which says the bounds, on anything else."""
    if isinstance(value, float) and value.is_integer():  # JSON from a browser does not tell 512 from 512.0
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        bounds = f", {low:,} or more" if high is None else f" from {low:,} to {high:,}"
        raise SettingError(f"{name} is a whole number{bounds}, not {brief(value)}.", name)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _settle(settings: object, **values: Any) -> None:
    """Put checked values in a frozen object that is being made."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
