"""The three ways in which an evaluation answers: which adapter, with markers or without, under the mask or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cuda_kernels.bench.provenance import weights_digest
from selfspan_core.models.places import place_of_base


@dataclass(frozen=True)
class EvaluationLane:
    """One way to answer.

    Attributes:
        name: in results and on command lines.
        adapter: name of its folder.
        annotated: whether the adapter writes markers.
        sparse: whether bodies see only what their headers name.
    """

    name: str
    adapter: str
    annotated: bool
    sparse: bool


def lanes_of(task: str) -> tuple[EvaluationLane, ...]:
    """A task's lanes: the plain adapter, the span adapter with the mask off, and with the mask on."""
    return (
        EvaluationLane("plain-dense", f"{task}-plain", annotated=False, sparse=False),
        EvaluationLane("span-dense", f"{task}-span", annotated=True, sparse=False),
        EvaluationLane("span-sparse", f"{task}-span", annotated=True, sparse=True),
    )


def weights_of(base: str, adapters: str, lanes: Sequence[EvaluationLane]) -> dict[str, str]:
    """SHA-256 of the weights that some lanes answer with: of the base and of their adapters, by the names given.

    A base of the hub, which is not at hand as a folder, has none.

    Raises:
        FileNotFoundError: a folder holds no weights.
    """
    place = place_of_base(base)
    digests = {base: weights_digest(place)} if isinstance(place, Path) else {}
    folders = dict.fromkeys(f"{adapters}/{lane.adapter}" for lane in lanes)
    return digests | {folder: weights_digest(folder) for folder in folders}
