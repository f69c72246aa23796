"""A store whose engines are vLLM servers; see `engine.stores.EngineStore`. It loads tokenizers, and no weights."""

import threading

from selfspan_core.engine.events import Clock
from selfspan_core.engine.stores import Chosen, Terms
from selfspan_core.errors import ModelError, ServerError, SettingError, brief
from selfspan_core.models.learned import Learned
from selfspan_core.models.places import place_of
from selfspan_core.models.registry import ModelSpec
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.serve.http_engine.engine import IMPL, ServedEngine
from selfspan_core.serve.http_engine.served import Engines, Served

MOST_TEMPERATURE = 2.0
"""vLLM refuses more."""
NUM_PROBED = 64
"""Ordinary ids whose text is compared, besides all markers."""


class ServedStore:
    """Engines of one task and model, on one server for each adapter.

    Args:
        engines: the servers.

    Attributes:
        default: the model.
    """

    def __init__(self, engines: Engines) -> None:
        self._servers = engines.by_adapter
        self._task, self.default = engines.span.record.task, engines.span.spec
        self._version = engines.span.version
        # Of lanes that are compared, both or none: two clocks would say nothing of either.
        self._clock: Clock = "server" if all(one.has_times for one in self._servers.values()) else "arrival"
        self._engines: dict[str, ServedEngine] = {}
        self._lock = threading.Lock()

    @property
    def impl(self) -> str:
        """How engines run."""
        return IMPL

    @property
    def terms(self) -> Terms:
        """What comparing its lanes depends on."""
        return Terms(
            self._clock,
            tuple(self._servers),
            in_turn=True,
            keeps_rules=False,
            has_drafts=False,
            takes_seeds=all(one.takes_seeds for one in self._servers.values()),
            most_temperature=MOST_TEMPERATURE,
        )

    @property
    def can_load(self) -> bool:
        """A server answers several requests in the same steps."""
        return True

    @property
    def device_name(self) -> str:
        """What decodes; without its address, which is not every visitor's business."""
        return f"vLLM {self._version}"

    def device_with(self, impl: str, model: str | None = None) -> str:
        """The same, and whose times are shown."""
        whose = "by its own clock" if self._clock == "server" else "as its tokens arrive"
        return f"{self.device_name}, timed {whose}"

    def usual(self, task: str) -> ModelSpec:
        """The served model, of any task."""
        return self.default

    def choose(self, task: str, model: str | None = None) -> Chosen:
        """The served model.

        Raises:
            SettingError: the task or the model is not what is served.
        """
        if task != self._task:
            raise SettingError(f"The vLLM server has the adapter of {self._task} merged in, and answers no {task}.")
        if model is not None and model != self.default.name:
            raise SettingError(f"The vLLM server serves {self.default.name}, and not {brief(model)}.")
        return Chosen(self.default)

    def learned(self, task: str, adapter: str, model: str | None = None) -> Learned:
        """What the merged adapter learned; errors as for `engine`."""
        return self._server(adapter).record.learned

    def engine(self, task: str, adapter: str, model: str | None = None) -> ServedEngine:
        """The engine of an adapter's server, once its ids are known to mean the same here.

        Raises:
            SettingError: see `choose`; or no server has that adapter.
            ModelError: the tokenizer is not here, or not that of the served model.
        """
        self.choose(task, model)
        served = self._server(adapter)
        with self._lock:
            if adapter not in self._engines:
                tokenizer = _tokenizer_of(self.default)
                require_same_ids(served, tokenizer)
                self._engines[adapter] = ServedEngine(served, tokenizer, self._clock)
            return self._engines[adapter]

    def _server(self, adapter: str) -> Served:
        if adapter not in self._servers:
            raise SettingError(
                f"No vLLM server with the {adapter} adapter was named: serve an export of it, too, and name that "
                f"server in SELFSPAN_{adapter.upper()}_ENGINE or --{adapter}-engine."
            )
        return self._servers[adapter]


def _tokenizer_of(spec: ModelSpec) -> SpanTokenizer:
    place = place_of(spec.tokenizer or spec.source)
    try:
        return SpanTokenizer.load(place)
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {str(place)!r}: {error}") from error


def require_same_ids(served: Served, tokenizer: SpanTokenizer) -> None:
    """Compare what the server makes of markers and of some other ids with what they are here.

    Raises:
        ModelError: the served model has no markers, other ones, or another vocabulary.
        ServerError: the server does not say.
    """
    markers = tokenizer.markers
    if _text(served, [*markers.ids, markers.eos]) != tokenizer.hf.decode([*markers.ids, markers.eos]):
        raise ModelError(
            f"the model at {served.server.address} has no markers, or other ones than {served.spec.name}: serve a "
            "folder that `selfspan export` wrote, and name that folder as the model here if its base is not registered"
        )
    reserved = {*markers.ids, markers.eos, markers.bos}
    step = max(1, tokenizer.vocab_size // NUM_PROBED)
    probed = [token for token in range(0, tokenizer.vocab_size, step) if token not in reserved]
    if _text(served, probed) != tokenizer.hf.decode(probed):
        raise ModelError(
            f"the model at {served.server.address} has another vocabulary than {served.spec.name}, which is here"
        )


def _text(served: Served, ids: list[int]) -> str:
    status, said = served.server.ask("POST", "/detokenize", {"model": served.name, "tokens": ids})
    text = said.get("prompt")
    if status == 200 and isinstance(text, str):
        return text
    if status == 400:  # ids that its vocabulary does not have
        return ""
    raise ServerError(f"{served.server.address} does not say what its ids are (POST /detokenize: {status})")
