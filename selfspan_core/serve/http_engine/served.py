"""What a vLLM server serves: asked once, before anything is run on it. No torch here."""

import json
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspan_core.errors import ModelError, ServerError
from selfspan_core.models.export_record import ExportRecord, of_config, of_served_name
from selfspan_core.models.json_file import read_object
from selfspan_core.models.learned import learned_of
from selfspan_core.models.registry import MODELS, Folder, ModelSpec
from selfspan_core.serve.http_engine.answer import Part, refusal, words
from selfspan_core.serve.http_engine.server import START, VllmServer
from selfspan_core.serve.vllm_plugin.settings import KEY
from selfspan_core.tasks.registry import TASKS

MOST_MODELS = 64
MOST_CONTEXT = 1 << 24
ANY_ID = 0
"""A prompt for questions whose answers nobody reads."""


@dataclass(frozen=True)
class Served:
    """A server, and the model that it serves.

    Attributes:
        server: to ask.
        version: of vLLM.
        name: what requests call the model.
        max_context: most tokens of prompt and answer together.
        has_times: answers come with times by the server's own clock.
        takes_seeds: requests may have a seed: on a CPU the plugin refuses it.
        record: the task and adapter that were merged.
        spec: where the same tokenizer is here: the registered base, or the exported folder.
    """

    server: VllmServer
    version: str
    name: str
    max_context: int
    has_times: bool
    takes_seeds: bool
    record: ExportRecord
    spec: ModelSpec


def served_by(address: str, model: ModelSpec | None = None) -> Served:
    """What serves at an address.

    Args:
        address: `http://host:port`.
        model: what it is here, by the user's word: an exported folder, or a registered base. None: the server's name
            for the model says it, as `selfspan serve` makes it.

    Raises:
        ServerError: nothing answers there, or not a vLLM with the plugin.
        ModelError: the model is none whose task and tokenizer are known here.
    """
    server = VllmServer(address)
    status, said = server.ask("GET", "/version")
    version = said.get("version")
    if status != 200 or not isinstance(version, str):
        raise ServerError(f"what answers at {server.address} is no vLLM server: {START}")
    names, max_context = _models(server)
    record = next(filter(None, map(of_served_name, names)), None)
    name = names[0] if record is None else record.served_name or names[0]
    _require_plugin(server, name)
    known, spec = _known(record, name, server.address, model)
    has_times, takes_seeds = _has_times(server, name), not _refuses(server, name, seed=1)
    return Served(server, words(version)[:40], name, max_context, has_times, takes_seeds, known, spec)


def _models(server: VllmServer) -> tuple[list[str], int]:
    """The names of the served model, and its context."""
    status, said = server.ask("GET", "/v1/models")
    cards = said.get("data")
    cards = cards[:MOST_MODELS] if status == 200 and isinstance(cards, list) else []
    cards = [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]
    if not cards:
        raise ServerError(f"{server.address} names no model (GET /v1/models: {status}): {START}")
    context = cards[0].get("max_model_len")
    if type(context) is not int or not 0 < context < MOST_CONTEXT:
        raise ServerError(f"{server.address} does not say how long a text may be (max_model_len of GET /v1/models)")
    return [card["id"] for card in cards], context


def _require_plugin(server: VllmServer, name: str) -> None:
    """Ask for what the plugin refuses: a vLLM without it would answer, and read everything in either lane."""
    if not _refuses(server, name, vllm_xargs={KEY: json.dumps({"attention": "none"})}):
        raise ServerError(
            f"the vLLM at {server.address} runs without the plugin: {START}, in an environment with selfspan"
        )


def _refuses(server: VllmServer, name: str, **asked: Any) -> bool:
    """Whether the plugin refuses a request with these settings; raises ServerError where anything else is wrong."""
    body = {"model": name, "prompt": [ANY_ID], "max_tokens": 1, **asked}
    status, said = server.ask("POST", "/v1/completions", body)
    if status == 400 and KEY in refusal(said):
        return True
    if status == 200:
        return False
    raise ServerError(f"{server.address} does not complete text ({status}): {refusal(said) or 'it gave no reason'}")


def _has_times(server: VllmServer, name: str) -> bool:
    """Whether answers come with the server's times; and that they come with ids at all.

    Raises:
        ServerError: they do not.
    """
    body: dict[str, Any] = {"model": name, "prompt": [ANY_ID], "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    body |= {"return_token_ids": True, "stream": True, "stream_options": {"include_usage": True}}
    with closing(server.answer(body | {"cache_salt": uuid.uuid4().hex}, 1)) as answer:
        parts: list[Part] = list(answer)
    return any(part.times for part in parts)


def _known(
    record: ExportRecord | None, name: str, where: str, model: ModelSpec | None
) -> tuple[ExportRecord, ModelSpec]:
    """Task and adapter of the served model, and where its tokenizer is here."""
    own = None if model is None else _record_of_folder(model)
    known, serves = own or record, f"{where} serves {words(name)!r}"
    if known is None:
        raise ModelError(
            f"{serves}, and nothing says what that was made of: {START}, or name that folder as the model here"
        )
    if own is None and model is not None and known.model != model.name:
        raise ModelError(f"{serves}, and the model named here is {model.name}: leave that out, or name what is served")
    if record is not None and (known.task, known.adapter) != (record.task, record.adapter):
        raise ModelError(f"{serves}, and the model here was made of {known.task}'s {known.adapter} adapter")
    if known.task not in TASKS:
        raise ModelError(f"{serves}, of the task {words(known.task)!r}; known tasks: {', '.join(TASKS)}")
    if own is not None and model is not None:
        return known, replace(model, adapters={})
    spec = MODELS.get(known.model or "")
    if spec is None:
        raise ModelError(f"{serves}, whose tokenizer is not here: name its exported folder as the model")
    learned = learned_of(spec.adapter_folder(known.task, known.adapter))
    # Not the registered object itself: others are offered beside that one, and the server has this one only.
    return replace(known, learned=learned), replace(spec)


def _record_of_folder(model: ModelSpec) -> ExportRecord | None:
    """What an exported folder says; None of any other model."""
    if not isinstance(model.source, Folder):
        return None
    file = Path(model.source.path) / "config.json"
    return of_config(read_object(file), str(model.source.path)) if file.is_file() else None


@dataclass(frozen=True)
class Engines:
    """The servers that lanes run on, by adapter; the span adapter has one, the plain one may.

    Attributes:
        by_adapter: adapter -> its server.
    """

    by_adapter: Mapping[str, Served]

    @property
    def span(self) -> Served:
        """The server of the span adapter."""
        return self.by_adapter["span"]


def engines_at(address: str, plain_address: str | None = None, model: ModelSpec | None = None) -> Engines:
    """The servers at one or two addresses.

    Args:
        address: of a server of a task's span adapter.
        plain_address: of a server of the same task's plain adapter; None: there is none.
        model: see `served_by`; of both.

    Raises:
        ServerError, ModelError: see `served_by`; or one serves another adapter, or another task than the other.
    """
    span = _serving(served_by(address, model), "span")
    if plain_address is None:
        return Engines({"span": span})
    # An exported folder is one adapter's: the other server has to say by its name what it serves.
    plain = _serving(served_by(plain_address, None if span.spec.adapters == {} else model), "plain")
    if (plain.record.task, plain.spec.name) != (span.record.task, span.spec.name):
        both = f"{span.record.task} on {span.spec.name}, and {plain.record.task} on {plain.spec.name}"
        raise ModelError(f"the two servers answer different tasks, or are of different models: {both}")
    return Engines({"span": span, "plain": plain})


def _serving(served: Served, adapter: str) -> Served:
    if served.record.adapter != adapter:
        other = served.record.adapter
        raise ModelError(
            f"{served.server.address} serves the {other} adapter; here one of the {adapter} adapter is asked for"
        )
    return served
