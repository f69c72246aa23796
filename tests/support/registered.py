"""Registered models as tests need them, whatever ships."""

from dataclasses import replace

import pytest

from selfspan_core.models.registry import DEFAULT_MODEL, MODELS


def only_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other registered models have no adapters, so that only DEFAULT_MODEL is offered and usual."""
    for name, spec in list(MODELS.items()):
        if name != DEFAULT_MODEL:
            monkeypatch.setitem(MODELS, name, replace(spec, adapters={}))
