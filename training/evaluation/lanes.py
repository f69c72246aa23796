"""The three ways in which an evaluation answers: which adapter, with markers or without, under the mask or not."""

from dataclasses import dataclass


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
