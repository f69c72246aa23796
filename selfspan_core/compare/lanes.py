"""What a run compares, and the checks of its settings that need no model. No torch here."""

from dataclasses import dataclass
from typing import Any

from selfspan_core.tasks.base import InputError

MAX_TEMPERATURE = 5.0
MAX_LOAD = 64
"""Most requests that a lane answers at once."""
TITLES = {
    "span": "Same adapter, mask off and on",
    "plain": "Plain adapter, dense, against span adapter, self-selected",
}
LABELS = {"dense": "Dense attention", "sparse": "Self-selected attention"}


class SettingError(InputError):
    """A setting is bad, whatever the input is."""


@dataclass(frozen=True)
class LaneSpec:
    """What one lane runs: `attention` is "dense" or "sparse", `adapter` is "span" or "plain"."""

    id: str
    label: str
    attention: str
    adapter: str

    @property
    def annotated(self) -> bool:
        """Whether this lane's model writes markers."""
        return self.adapter == "span"

    @property
    def sparse(self) -> bool:
        """Whether bodies really read less."""
        return self.attention == "sparse"


def lane_specs(attention: str, adapter: str) -> tuple[LaneSpec, ...]:
    """The lanes of a run: `attention` is "dense", "sparse" or "both", `adapter` "span" or "plain".

    "both" with the plain adapter races it, dense, against the span adapter, sparse.

    Raises:
        InputError: an unknown value, or self-selected attention with an adapter that declares no spans.
    """
    if attention not in ("dense", "sparse", "both"):
        raise InputError(f"The attention is dense, sparse or both, not {brief(attention)}.")
    if adapter not in tuple(TITLES):
        raise InputError(f"The adapter is span or plain, not {brief(adapter)}.")
    if attention == "sparse" and adapter == "plain":
        raise InputError(
            "The plain adapter declares no spans, so there is nothing for self-selected attention to select: "
            "use the span adapter, or dense attention."
        )
    names = ("dense", "sparse") if attention == "both" else (attention,)
    specs = []
    for name in names:
        own = adapter if name == "dense" else "span"
        label = f"{LABELS[name]}, {own} adapter"
        specs.append(LaneSpec(name, label, name, own))
    return tuple(specs)


def brief(value: Any) -> str:
    """What a caller passed, short enough for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 100:
        return "a far larger number"  # Python refuses to write very long ones out
    return repr(value)[:40]


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """A whole number within bounds. Raises SettingError, which says the bounds, on anything else."""
    if isinstance(value, float) and value.is_integer():  # JSON from a browser does not tell 512 from 512.0
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingError(f"{name} is a whole number from {low:,} to {high:,}, not {brief(value)}.")
    return value


def check_load(name: str, value: Any, can_load: bool, device: str) -> int:
    """How many requests each lane answers at once. Raises SettingError on a bad number, or on a device for one only."""
    load = check_int(name, value, 1, MAX_LOAD)
    if load > 1 and not can_load:
        raise SettingError(
            f"Simultaneous requests need a CUDA GPU, whose lanes decode in a captured graph; this runs on {device}: "
            f"{name} is 1 here, not {load}."
        )
    return load


def check_temperature(value: Any) -> float:
    """A temperature. Raises SettingError on anything but a number from 0 to MAX_TEMPERATURE."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_TEMPERATURE:  # a NaN fails the comparison too
        raise SettingError(f"temperature is a number from 0 to {MAX_TEMPERATURE:g}, not {brief(value)}.")
    return float(value)


def check_top_p(name: str, value: Any) -> float:
    """A share of the probability. Raises SettingError on anything but a number above 0 and at most 1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:  # a NaN fails the comparison too
        raise SettingError(f"{name} is a number above 0 and at most 1, not {brief(value)}.")
    return float(value)
