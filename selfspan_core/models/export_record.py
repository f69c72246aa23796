"""What an exported folder was made of: base, task and adapter, for whoever serves it and whoever asks it. No torch.

`models.export` writes it into config.json, beside the marker ids:

    "selfspan_export": {"model": "selfspan-17m", "task": TASK, "adapter": "span", "learned": {…}}

A server's name for the model says the same: `selfspan/TASK/span/selfspan-17m`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfspan_core.errors import ModelError
from selfspan_core.models.learned import KEY as LEARNED
from selfspan_core.models.learned import Learned, read_learned, record_of
from selfspan_core.params import ADAPTERS

KEY = "selfspan_export"
_PREFIX = "selfspan"


@dataclass(frozen=True)
class ExportRecord:
    """What was merged.

    Attributes:
        task, adapter: whose adapter it is, and which of the two.
        model: name of the registered base whose shipped adapter it is; None of any other base or adapter.
        learned: what the adapter learned.
    """

    task: str
    adapter: str
    model: str | None = None
    learned: Learned = field(default_factory=Learned)

    @property
    def served_name(self) -> str | None:
        """A server's name for it, from which `of_served_name` tells what it is; None where no name would say that."""
        return None if self.model is None else f"{_PREFIX}/{self.task}/{self.adapter}/{self.model}"

    def to_config(self) -> dict[str, Any]:
        """What config.json says under KEY."""
        return {"model": self.model, "task": self.task, "adapter": self.adapter, **record_of(self.learned)}


def of_config(config: Mapping[str, Any], folder: str) -> ExportRecord | None:
    """The record in an exported config.json; None where there is none, as in folders of other tools.

    Raises:
        ModelError: it is there and not of the form above.
    """
    said = config.get(KEY)
    if said is None:
        return None
    problem = ModelError(f"the config.json of {folder!r} is damaged: {KEY!r} is not what `selfspan export` writes")
    if not isinstance(said, Mapping) or not all(isinstance(said.get(name), str) for name in ("task", "adapter")):
        raise problem
    model = said.get("model")
    if said["adapter"] not in ADAPTERS or not (model is None or isinstance(model, str)):
        raise problem
    learned = read_learned(said.get(LEARNED, {}))
    if learned is None:
        raise problem
    return ExportRecord(said["task"], said["adapter"], model, learned)


def of_served_name(name: str) -> ExportRecord | None:
    """What a server's name for a model says, without what the adapter learned; None of any other name."""
    prefix, *parts = name.split("/")
    if prefix != _PREFIX or len(parts) != 3 or not all(parts) or parts[1] not in ADAPTERS:
        return None
    task, adapter, model = parts
    return ExportRecord(task, adapter, model)
