"""What decodes for a process, chosen in one place: models loaded here or vLLM servers. No torch or httpx at import."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from selfspan_core.engine.stores import EngineStore
from selfspan_core.errors import ServerError
from selfspan_core.models.registry import ModelSpec

if TYPE_CHECKING:
    from selfspan_core.serve.http_engine.served import Engines

ENGINE_VARIABLE, PLAIN_ENGINE_VARIABLE = "SELFSPAN_ENGINE", "SELFSPAN_PLAIN_ENGINE"


def engines_named(
    address: str | None, plain_address: str | None, model: ModelSpec | None, environment: Mapping[str, str] = os.environ
) -> "Engines | None":
    """The servers that a user named, by arguments or in the environment; None where none was.

    Args:
        address, plain_address: arguments, which come first; None: not given.
        model: what is served, where the server does not say it: see `http_engine.served.served_by`.
        environment: of the process.

    Raises:
        ServerError, ModelError: one cannot be used; or only that of the plain adapter was named.
    """
    address = address or environment.get(ENGINE_VARIABLE)
    plain_address = plain_address or environment.get(PLAIN_ENGINE_VARIABLE)
    if address:
        from selfspan_core.serve.http_engine.served import engines_at

        return engines_at(address, plain_address or None, model)
    if plain_address:
        raise ServerError(
            "a server of the plain adapter alone was named: the span adapter's is the engine (--engine URL)"
        )
    return None


def make_store(
    engines: "Engines | None",
    model: ModelSpec | None = None,
    folders: dict[str, str | Path] | None = None,
    device: str = "auto",
    impl: str | None = None,
) -> EngineStore:
    """The store of a session.

    Args:
        engines: servers to ask; None: models are loaded here.
        model, folders, device, impl: of models that are loaded here; see `engine.model_store.ModelStore`.

    Raises:
        ModelError, ValueError, ImplUnavailable: see `ModelStore`.
    """
    if engines is not None:
        from selfspan_core.serve.http_engine.store import ServedStore

        return ServedStore(engines)
    from selfspan_core.engine.model_store import ModelStore

    return ModelStore(base=model, folders=folders, device=device, impl=impl)
