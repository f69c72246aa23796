"""The lanes that a run compares. No torch here."""

from dataclasses import dataclass
from typing import Literal

from selfspan_core.errors import SettingError

TITLES = {
    "span": "Same adapter, mask off and on",
    "plain": "Plain adapter, dense, against span adapter, self-selected",
}
LABELS = {"dense": "Dense attention", "sparse": "Self-selected attention"}


@dataclass(frozen=True)
class LaneSpec:
    """Settings of one lane: `attention` is "dense" or "sparse", `adapter` is "span" or "plain", `model` is its name."""

    id: str
    label: str
    attention: Literal["dense", "sparse"]
    adapter: Literal["span", "plain"]
    model: str = ""

    @property
    def annotated(self) -> bool:
        """Whether this lane's model writes markers."""
        return self.adapter == "span"

    @property
    def sparse(self) -> bool:
        """Whether bodies read only the segments that they name."""
        return self.attention == "sparse"


def lane_specs(
    attention: Literal["dense", "sparse", "both"], adapter: Literal["span", "plain"], model: str = ""
) -> tuple[LaneSpec, ...]:
    """The lanes of a request's `attention` and `adapter`, on the model of that name.

    "both" with the plain adapter races it, dense, against the span adapter, sparse.
    """
    names: tuple[Literal["dense", "sparse"], ...] = ("dense", "sparse") if attention == "both" else (attention,)
    specs = []
    for name in names:
        own: Literal["span", "plain"] = adapter if name == "dense" else "span"
        label = f"{LABELS[name]}, {own} adapter"
        specs.append(LaneSpec(name, label, name, own, model))
    return tuple(specs)


def require_load(load: int, can_load: bool, device: str) -> None:
    """Raise SettingError if lanes should answer several requests at once on a device that can answer only one."""
    if load > 1 and not can_load:
        raise SettingError(
            f"Simultaneous requests need a CUDA GPU, whose lanes decode in a captured graph; this runs on {device}: "
            f"load is 1 here, not {load}."
        )
