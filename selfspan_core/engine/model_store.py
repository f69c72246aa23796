"""The loaded models: a base with an adapter is loaded once, when it is first needed, and kept, by (model, adapter).

An explicit object, one per process that wants one: nothing here is global, and nothing is loaded by importing it.
"""

import threading
from pathlib import Path

import torch

from selfspan_core.attention.backends import default_impl, require_impl
from selfspan_core.attention.impls import CAPTURED
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.request import PromptRequest
from selfspan_core.engine.stores import Chosen, Terms
from selfspan_core.errors import ModelError, ModelUnavailable, PromptError, SettingError, brief
from selfspan_core.models.int8_matrix import Int8Store, multiplies_bfloat16
from selfspan_core.models.learned import Learned, learned_of
from selfspan_core.models.loading import require_base
from selfspan_core.models.model import SpanModel
from selfspan_core.models.places import place_of
from selfspan_core.models.registry import DEFAULT_MODEL, MODELS, ModelSpec, resolve_model, usual_models
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.models.weights import DenseStore, Store
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.render import Rendered

DEVICES = ("auto", "cpu", "cuda")
WARM_UP_REPEATS = 16


def pick_device(device: str) -> torch.device:
    """The torch device meant by "auto", "cpu" or "cuda".

    Raises:
        ModelError: there is no such device here.
    """
    if device not in DEVICES:
        raise ModelError(f"the device is one of {', '.join(DEVICES)}, not {device!r}")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ModelError("the device 'cuda' was asked for, and PyTorch finds no CUDA device here")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def pick_dtype(device: torch.device, has_few_bits: bool = False) -> torch.dtype:
    """On CUDA bfloat16 where the hardware computes in it, else float16.

    On a CPU float32, but bfloat16 for weights of few bits where it has instructions for that.
    """
    if device.type == "cpu":
        return torch.bfloat16 if has_few_bits and multiplies_bfloat16() else torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


class ModelStore:
    """Engines by model, task and adapter, on one device.

    Args:
        base: the model of whoever names none: a registered name, a folder, a GGUF file or a hub id (see
            `registry.resolve_model`), or a ModelSpec. None: the usual one of each task (`registry.usual_models`).
        adapters: folder that holds an adapter `<task>-<adapter>` of that model for each; None: see `resolve_model`.
        folders: adapter ("span" or "plain") -> its folder, where that model has another one for every task. Where
            adapters are given and no base, that model is DEFAULT_MODEL.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        dtype: None picks by model, device and its capability.
        impl: how engines run, one of `backends.ENGINE_IMPLS`; None: by device, captured on CUDA and gather on a CPU.

    Attributes:
        default: the model of whoever names neither a model nor a task.

    Raises:
        ModelError: there is no such model, or the device is not there.
        ValueError, ImplUnavailable: the implementation is unknown, or cannot run on the device.
    """

    def __init__(
        self,
        base: str | Path | ModelSpec | None = DEFAULT_MODEL,
        adapters: str | Path | None = None,
        folders: dict[str, str | Path] | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        impl: str | None = None,
    ) -> None:
        self.default = resolve_model(DEFAULT_MODEL if base is None else base, adapters)
        self._is_by_task = base is None and adapters is None and not folders
        self._not_here: dict[str, str] = {}
        self.device = pick_device(device)
        self._dtype = dtype
        self.impl = default_impl(self.device) if impl is None else impl
        require_impl(self.impl, self.device)
        self._folders = {adapter: Path(folder) for adapter, folder in (folders or {}).items()}
        self._tokenizers: dict[str, SpanTokenizer] = {}
        self._engines: dict[tuple[str, Path], Engine] = {}
        # Two requests that want the same model at once must not load it twice.
        self._lock = threading.Lock()

    @property
    def device_name(self) -> str:
        """The device in words, the number format, and how a step runs unless as on any CPU: "CPU, float32"."""
        return self.device_with(self.impl)

    def numbers_of(self, spec: ModelSpec) -> tuple[torch.dtype, Store]:
        """In what a model computes here, and how its decode steps store matrices."""
        dtype = self._dtype or pick_dtype(self.device, spec.has_few_bits)
        keeps_few_bits = self._dtype is None and dtype is torch.bfloat16 and self.device.type == "cpu"
        return dtype, Int8Store() if keeps_few_bits else DenseStore()

    def device_with(self, impl: str, model: str | None = None) -> str:
        """The same for an implementation that is not the store's own, and another model."""
        dtype, store = self.numbers_of(self.spec(model))
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        how = "captured graph" if impl == CAPTURED else f"impl {impl}"
        is_usual = self.device.type == "cpu" and impl == default_impl(self.device)
        of_weights = "" if isinstance(store, DenseStore) else " with weights of 8 bits"
        numbers = str(dtype).removeprefix("torch.") + of_weights
        return f"{name}, {numbers}" + ("" if is_usual else f", {how}")

    @property
    def terms(self) -> Terms:
        """What comparing its lanes depends on."""
        return Terms("device" if self.impl == CAPTURED else "host")

    @property
    def can_load(self) -> bool:
        """Whether lanes can answer several requests at once."""
        return self.impl == CAPTURED

    def spec(self, model: str | None = None) -> ModelSpec:
        """The model that a request names; None: the default.

        Raises:
            SettingError: neither the default nor a registered model is called so. A folder or a hub id will not do:
                requests come from anybody.
        """
        if model is None or model == self.default.name:
            return self.default
        if model not in MODELS:
            known = ", ".join(dict.fromkeys((self.default.name, *MODELS)))
            raise SettingError(f"There is no model {brief(model)}; known models: {known}.")
        return MODELS[model]

    def usual(self, task: str) -> ModelSpec:
        """The model of a task's requests that name none, whether its files can be had or not."""
        return usual_models(task)[0] if self._is_by_task else self.default

    def choose(self, task: str, model: str | None = None) -> Chosen:
        """The model that answers a request of a task: the one that it names, or the first usual one that can be had.

        May ask the hub, and convert a file, the first time. What is not here then is not looked for again.

        Raises:
            SettingError: there is no such model.
            ModelError: the usual model is here and cannot be used.
        """
        if model is not None or not self._is_by_task:
            return Chosen(self.spec(model))
        *preferred, last = usual_models(task)
        notices: list[str] = []
        for spec in preferred:
            if spec.name not in self._not_here:
                try:
                    place_of(spec.source)
                except ModelUnavailable as error:
                    self._not_here[spec.name] = str(error)
                else:
                    return Chosen(spec, " ".join(notices))
            notices.append(f"{spec.name}, the usual model for this, is not here: {self._not_here[spec.name]}.")
        if notices:
            notices.append(f"{last.name} answers until then.")
        return Chosen(last, " ".join(notices))

    def learned(self, task: str, adapter: str, model: str | None = None) -> Learned:
        """What a task's adapter for a model learned; errors as for `adapter_folder`, or its record cannot be read."""
        return learned_of(self.adapter_folder(task, adapter, model))

    def adapter_folder(self, task: str, adapter: str, model: str | None = None) -> Path:
        """Where a task's adapter for a model lies.

        Raises:
            SettingError: there is no such model.
            ModelError: the adapter is not there; the message says which command makes it.
        """
        spec = self.choose(task, model).spec
        own = self._folders.get(adapter) if spec is self.default else None
        if own is None:
            return spec.adapter_folder(task, adapter)
        if not own.is_dir():
            raise ModelError(f"there is no adapter folder {str(own)!r}")
        return own

    def engine(self, task: str, adapter: str, model: str | None = None) -> Engine:
        """The engine of a model with a task's adapter, ready to be timed. Loads it the first time.

        Raises:
            SettingError: there is no such model.
            ModelError: base or adapter is missing or cannot be used.
            ImplUnavailable: the implementation does not take this model.
        """
        spec = self.choose(task, model).spec
        folder = self.adapter_folder(task, adapter, spec.name)
        with self._lock:
            key = (spec.name, folder)
            if key not in self._engines:
                tokenizer = self._tokenizer_of(spec)
                dtype, store = self.numbers_of(spec)
                loaded = SpanModel.load(place_of(spec.source), folder, str(self.device), dtype, tokenizer, store)
                engine = Engine(loaded, tokenizer.markers)
                try:
                    self._warm_up(engine, tokenizer)
                except PromptError as error:
                    raise ModelError(
                        f"{spec.name} cannot be used: its config.json (max_position_embeddings, sliding_window) allows "
                        f"{loaded.max_context} tokens, which is too few for a short prompt and its answer: {error}"
                    ) from error
                self._engines[key] = engine
            return self._engines[key]

    @property
    def tokenizer(self) -> SpanTokenizer:
        """The default model's tokenizer.

        Raises:
            ModelError: the base is missing or has none.
        """
        with self._lock:
            return self._tokenizer_of(self.default)

    def _tokenizer_of(self, spec: ModelSpec) -> SpanTokenizer:
        """A model's tokenizer, loaded once; with the lock held."""
        if spec.name not in self._tokenizers:
            place = place_of(spec.tokenizer or spec.source)
            require_base(place)
            try:
                self._tokenizers[spec.name] = SpanTokenizer.load(place)
            except ModelError:
                raise
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot load the tokenizer of {str(place)!r}: {error}") from error
        return self._tokenizers[spec.name]

    def _warm_up(self, engine: Engine, tokenizer: SpanTokenizer) -> None:
        """Run a few tokens in each attention.

        What a process does only once (threads, libraries, picking kernels) would otherwise be paid by the lane that
        happens to go first, and lose it the race.
        """
        markers, text = tokenizer.markers, tokenizer.encode("12+34=")
        name, new_name = markers.anchors[:2]
        prompt_ids = [markers.eos, name, *(WARM_UP_REPEATS * text)]
        layout = PromptLayout(len(prompt_ids), 1, {name: (1, 2 + len(text))})
        prompt = Rendered(prompt_ids, layout, loss_mask=[], runs=[])
        forced = [markers.ref, name, new_name, markers.go, *text[:1], markers.res, *text[:1], markers.end, markers.eos]
        for attention in ("dense", "sparse"):
            for _ in engine.generate(PromptRequest(prompt, forced_tokens=forced), attention, self.impl):
                pass
