"""What an adapter learned, as its training recorded it: values of its task's options, and how long documents were.

`training.finetune` writes it as the key `learned` of the `training.json` beside the weights:

    {"options": {"form": ["shorten", "rewrite"]}, "document_tokens": 7499, "head_tokens": null}

An adapter without it learned the defaults alone. No torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfspan_core.errors import ModelError
from selfspan_core.models.json_file import read_object

RECORD = "training.json"
KEY = "learned"


@dataclass(frozen=True)
class Learned:
    """What one or several adapters learned; see `tasks.base.Learned`.

    Attributes:
        options: option of the task -> the values that it was trained on; an option that is missing: its default alone.
        document_tokens: most tokens of a document in training, names included; None: not recorded.
        head_tokens: what headers saw of each segment, behind its name; None: everything.
    """

    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    document_tokens: int | None = None
    head_tokens: int | None = None


def learned_of(adapter: Path) -> Learned:
    """What the adapter in a folder learned.

    Raises:
        ModelError: its record is there and cannot be read, or is not of the form above.
    """
    file = adapter / RECORD
    if not file.is_file():
        return Learned()
    learned = read_learned(read_object(file).get(KEY, {}))
    if learned is None:
        raise ModelError(f"{file}: '{KEY}' is not of the form that training.finetune writes")
    return learned


def read_learned(found: Any) -> Learned | None:
    """What a record says under KEY; None where it is not of the form above."""
    if not isinstance(found, dict) or not _is_in_order(found):
        return None
    options = {name: tuple(values) for name, values in found.get("options", {}).items()}
    return Learned(options, found.get("document_tokens"), found.get("head_tokens"))


def record_of(learned: Learned) -> dict[str, Any]:
    """The entry of an adapter's record from which `learned_of` reads the same again; none where there is nothing."""
    if learned == Learned():
        return {}
    options = {name: list(values) for name, values in learned.options.items()}
    numbers = {"document_tokens": learned.document_tokens}
    if learned.head_tokens is not None:
        numbers["head_tokens"] = learned.head_tokens
    return {KEY: {"options": options, **numbers}}


def common(several: Iterable[Learned]) -> Learned:
    """What all of several adapters learned: lanes that are compared answer the same request."""
    every = list(several)
    if len(every) < 2:
        return every[0] if every else Learned()
    # An option that one of them does not record has its default alone there, which the task knows.
    names = [name for name in every[0].options if all(name in one.options for one in every)]
    options = {
        name: tuple(value for value in every[0].options[name] if all(value in one.options[name] for one in every))
        for name in names
    }
    tokens = [one.document_tokens for one in every]
    shortest = None if None in tokens else min(number for number in tokens if number is not None)
    # Plain adapters have no headers: what the others learned of them counts.
    heads = {one.head_tokens for one in every if one.head_tokens is not None}
    return Learned({name: values for name, values in options.items() if values}, shortest, max(heads, default=None))


def _is_in_order(found: Mapping[str, Any]) -> bool:
    options, numbers = found.get("options", {}), (found.get("document_tokens"), found.get("head_tokens"))
    are_lists = isinstance(options, dict) and all(isinstance(values, list) and values for values in options.values())
    return (
        are_lists
        and all(isinstance(value, str) for values in options.values() for value in values)
        and all(number is None or (type(number) is int and number > 0) for number in numbers)
    )
