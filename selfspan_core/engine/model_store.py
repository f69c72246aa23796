"""Which models there are and where: loads a base with an adapter once, when it is first needed, and keeps it.

An explicit object, one per process that wants one: nothing here is global, and nothing is loaded by importing it.
"""

import threading
from pathlib import Path

import torch

from selfspan_core.attention.backends import CAPTURED, default_impl, require_impl
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import ImplUnavailable, ModelError
from selfspan_core.models.model import SpanModel
from selfspan_core.models.model_names import why_not_found
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.spans.protocol import PromptLayout
from selfspan_core.spans.render import Rendered

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_BASE = ROOT / "assets" / "base"
DEFAULT_ADAPTERS = ROOT / "assets" / "adapters"
ADAPTERS = ("span", "plain")
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


def pick_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; on CUDA bfloat16 where the hardware computes in it, else float16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


class ModelStore:
    """Engines by task and adapter, on one device.

    Args:
        base: folder or hub id of the base model.
        adapters: folder that holds an adapter `<task>-<adapter>` for each.
        folders: adapter ("span" or "plain") -> its folder, where it is not that one.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        dtype: None picks by device and its capability.
        impl: how engines run, one of `backends.ENGINE_IMPLS`; None: by device, captured on CUDA and gather on a CPU.

    Raises:
        ModelError: the device is not there.
        ValueError, ImplUnavailable: the implementation is unknown, or cannot run on the device.
    """

    def __init__(
        self,
        base: str | Path = DEFAULT_BASE,
        adapters: str | Path = DEFAULT_ADAPTERS,
        folders: dict[str, str | Path] | None = None,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        impl: str | None = None,
    ) -> None:
        self.base = base
        self.device = pick_device(device)
        self.dtype = dtype or pick_dtype(self.device)
        self.impl = default_impl(self.device) if impl is None else impl
        self._is_impl_named = impl is not None
        require_impl(self.impl, self.device)
        self._adapters = Path(adapters)
        self._folders = dict(folders or {})
        self._tokenizer: SpanTokenizer | None = None
        self._engines: dict[Path, Engine] = {}
        # Two requests that want the same model at once must not load it twice.
        self._lock = threading.Lock()

    @property
    def device_name(self) -> str:
        """The device in words, the number format, and how a step runs unless as on any CPU: "CPU, float32"."""
        return self.device_with(self.impl)

    def device_with(self, impl: str) -> str:
        """The same for an implementation that is not the store's own."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        how = "captured graph" if impl == CAPTURED else f"impl {impl}"
        is_usual = self.device.type == "cpu" and impl == default_impl(self.device)
        return f"{name}, {str(self.dtype).removeprefix('torch.')}" + ("" if is_usual else f", {how}")

    def impl_under_rules(self) -> str:
        """How runs decode that are held to rules: the host has to see every id before the next, so no graph can wait.

        Raises:
            ImplUnavailable: "captured" was asked for by name.
        """
        if self.impl != CAPTURED:
            return self.impl
        if self._is_impl_named:
            raise ImplUnavailable(
                f"impl '{CAPTURED}': a task that is held to rules cannot run in a captured graph, since the host keeps "
                "the rules, id by id; use impl 'cuda', or name none"
            )
        return "cuda"

    @property
    def can_load(self) -> bool:
        """Whether lanes can answer several requests at once."""
        return self.impl == CAPTURED

    def adapter_folder(self, task: str, adapter: str) -> Path:
        """Where a task's adapter lies.

        Raises:
            ModelError: it is not there; the message says which command makes it.
        """
        if adapter not in ADAPTERS:
            raise ModelError(f"there is no adapter {adapter!r}; there are {', '.join(ADAPTERS)}")
        own = self._folders.get(adapter)
        folder = Path(own) if own is not None else self._adapters / f"{task}-{adapter}"
        if not folder.is_dir():
            how = (
                ""
                if own is not None
                else f"; make it with: python -m training.finetune --config training/configs/{task}-{adapter}.yaml"
            )
            raise ModelError(f"there is no adapter folder {str(folder)!r}{how}")
        return folder

    def engine(self, task: str, adapter: str) -> Engine:
        """The engine of the base with a task's adapter, ready to be timed. Loads it the first time.

        Raises:
            ModelError: base or adapter is missing or cannot be used.
            ImplUnavailable: the implementation does not take this model.
        """
        folder = self.adapter_folder(task, adapter)
        with self._lock:
            if folder not in self._engines:
                tokenizer = self._load_tokenizer()
                model = SpanModel.load(self.base, folder, str(self.device), self.dtype, tokenizer)
                engine = Engine(model, tokenizer.markers)
                self._warm_up(engine, tokenizer)
                self._engines[folder] = engine
            return self._engines[folder]

    @property
    def tokenizer(self) -> SpanTokenizer:
        """The base's tokenizer.

        Raises:
            ModelError: the base is missing or has none.
        """
        with self._lock:
            return self._load_tokenizer()

    def _load_tokenizer(self) -> SpanTokenizer:
        if self._tokenizer is None:
            reason = why_not_found(self.base)
            if reason is not None:
                raise ModelError(reason)
            try:
                self._tokenizer = SpanTokenizer.load(self.base)
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot load the tokenizer of {str(self.base)!r}: {error}") from error
        return self._tokenizer

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
        forced = [markers.ref, name, new_name, markers.go, *text, markers.res, *text, markers.end, markers.eos]
        for attention in ("dense", "sparse"):
            for _ in engine.generate(PromptRequest(prompt, forced_tokens=forced), attention, self.impl):
                pass
