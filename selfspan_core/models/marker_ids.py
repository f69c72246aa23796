"""Marker ids in the config.json of an exported model, for engines that read no tokenizer. No torch here."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from selfspan_core.errors import ModelError
from selfspan_core.spans.protocol import NUM_ANCHORS, Markers

CONFIG_KEY = "selfspan"
_NAMES = tuple(field.name for field in fields(Markers) if field.init)


def said_in_config(markers: Markers) -> dict[str, Any]:
    """What an exported config.json says under CONFIG_KEY."""
    return {name: getattr(markers, name) for name in _NAMES} | {"anchors": list(markers.anchors)}


def read_from_config(said: Any, model: str) -> Markers:
    """The markers that an exported config.json names.

    Args:
        said: what stands under CONFIG_KEY; None where nothing does.
        model: the model's name, for the message.

    Raises:
        ModelError: nothing is said, or no marker ids.
    """
    if said is None:
        raise ModelError(
            f"the config.json of {model!r} names no marker ids ({CONFIG_KEY!r}): `selfspan export` writes one that does"
        )
    problem = ModelError(f"the config.json of {model!r} is damaged: {CONFIG_KEY!r} holds no marker ids")
    if not isinstance(said, Mapping) or said.keys() != set(_NAMES) or not isinstance(said["anchors"], list | tuple):
        raise problem
    anchors = tuple(said["anchors"])
    single = [said[name] for name in _NAMES if name != "anchors" and not (name == "bos" and said[name] is None)]
    if len(anchors) != NUM_ANCHORS or not all(type(one) is int and one >= 0 for one in (*single, *anchors)):
        raise problem
    try:
        return Markers(**{**said, "anchors": anchors})
    except ValueError:
        raise problem from None
