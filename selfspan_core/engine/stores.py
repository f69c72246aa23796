"""What a session needs of engines and of a store of them, whoever decodes: this process, or a server elsewhere.

`model_store.ModelStore` loads models here; `serve.http_engine` asks a vLLM. No torch here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.device_rules import KeptRules
from selfspan_core.engine.drafts import Drafter
from selfspan_core.engine.events import Clock, Event
from selfspan_core.engine.hints import DraftHints
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.rules import Rules
from selfspan_core.models.learned import Learned
from selfspan_core.models.registry import ModelSpec
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.params import ADAPTERS, MAX_TEMPERATURE, Drafts
from selfspan_core.spans.render import Rendered

Attention = Literal["dense", "sparse"]


@dataclass(frozen=True)
class Chosen:
    """The model that answers a request.

    Attributes:
        spec: the model.
        notice: why it is not the usual one of the task, and how that one is to be had; empty if it is, or was named.
    """

    spec: ModelSpec
    notice: str = ""


@dataclass(frozen=True)
class Terms:
    """How a store's engines run, as far as lanes that are compared depend on it.

    Attributes:
        clock: of all seconds in events.
        adapters: which there can be engines of.
        in_turn: lanes run one after the other, since together they would share their steps; and nothing is run once
            beforehand, for the same reason.
        keeps_rules: a task's rules can be kept while decoding.
        has_drafts: tokens can be proposed and verified several at a time.
        takes_seeds: the same seed draws the same tokens again.
        most_temperature: of sampling.
    """

    clock: Clock = "host"
    adapters: tuple[str, ...] = ADAPTERS
    in_turn: bool = False
    keeps_rules: bool = True
    has_drafts: bool = True
    takes_seeds: bool = True
    most_temperature: float = MAX_TEMPERATURE


class LaneModel(Protocol):
    """What a session needs of a model."""

    @property
    def tokenizer(self) -> SpanTokenizer | None:
        """Its tokenizer; None where it was made without one."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def bytes_per_token(self) -> int | None:
        """Of keys and values, over all layers; None where a server does not say."""
        ...


class LaneEngine(Protocol):
    """What generates a lane's events: see `engine.Engine`, whose methods these are."""

    @property
    def model(self) -> LaneModel:
        """The model."""
        ...

    def rules(self, rules: Rules | None, impl: str = ...) -> KeptRules:
        """A run's rules in the form in which `impl` keeps them."""
        ...

    def drafter(
        self, request: PromptRequest, hints: DraftHints, drafts: Drafts, attention: Attention = ..., impl: str = ...
    ) -> Drafter | DeviceDrafts | None:
        """What drafts one run."""
        ...

    def generate(self, request: PromptRequest, attention: Attention = ..., impl: str = ...) -> Iterator[Event]:
        """Answer a prompt, one event at a time."""
        ...

    def generate_among(
        self, request: PromptRequest, others: Iterable[Rendered], num_rows: int, attention: Attention = ...
    ) -> Iterator[Event]:
        """Answer a prompt among others."""
        ...


class EngineStore(Protocol):
    """Engines by model, task and adapter: see `model_store.ModelStore`, whose methods these are."""

    @property
    def impl(self) -> str:
        """How engines run."""
        ...

    @property
    def terms(self) -> Terms:
        """What comparing its lanes depends on."""
        ...

    @property
    def device_name(self) -> str:
        """Where engines run, in words."""
        ...

    @property
    def can_load(self) -> bool:
        """Whether lanes can answer several requests at once."""
        ...

    def device_with(self, impl: str, model: str | None = None) -> str:
        """The same for an implementation and a model."""
        ...

    def usual(self, task: str) -> ModelSpec:
        """The model of a task's requests that name none."""
        ...

    def choose(self, task: str, model: str | None = None) -> Chosen:
        """The model that answers a request."""
        ...

    def learned(self, task: str, adapter: str, model: str | None = None) -> Learned:
        """What a task's adapter learned."""
        ...

    def engine(self, task: str, adapter: str, model: str | None = None) -> LaneEngine:
        """The engine of a model with a task's adapter, ready to be timed."""
        ...
