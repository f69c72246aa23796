"""The random states of a process as JSON: Python's, numpy's and torch's."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MT19937 = 624
"""Words of the state of numpy's generator."""


def random_states(device: torch.device) -> dict[str, Any]:
    """The random states of this process."""
    name, key, *rest = np.random.get_state(legacy=True)
    states = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(key).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device).tolist()} if device.type == "cuda" else {})


def set_random_states(file: Path, device: torch.device) -> None:
    """Set the random states of this process to those in a file.

    Raises:
        ValueError: the file cannot be read, or holds other things than states; the message names it.
    """
    try:
        _set(json.loads(file.read_text(encoding="utf-8")), device)
    # RuntimeError is torch's, for a state of another length or what is no byte; it may be of several lines.
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file.name}: {type(error).__name__}: {reason}") from error


def _set(states: Mapping[str, Any], device: torch.device) -> None:
    version, internal, gauss = states["python"]
    if gauss is not None and not isinstance(gauss, float):
        raise ValueError(f"Python's state has {str(gauss)[:20]} as its next number")
    random.setstate((version, tuple(internal), gauss))
    name, key, position, *rest = states["numpy"]
    # numpy itself takes any position and a longer key.
    if len(key) != _MT19937 or not 0 <= position <= _MT19937:
        raise ValueError(f"numpy's state has {len(key)} words and the position {position}")
    np.random.set_state((name, np.array(key, dtype=np.uint32), position, *rest))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
