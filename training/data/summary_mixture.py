"""The mixture of a configuration: which kinds of which folders of packed summaries, and how each is laid out.

A key of a mixture is `kind` where `data` is one folder, and `name/kind` where `data` names several. With `/among`
behind it, it is the same summaries with the article somewhere among pieces of others (`summary_source.among_others`).
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

from selfspan_core.models.learned import Learned
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.summarize.form import FORMS
from training.data.summary_source import Layout, MixturePart, PackedSummaries
from training.summary_data import KINDS

AMONG = "among"

Data = str | dict[str, str]
"""A folder that `training.summary_data` wrote, or several by name."""


@dataclass(frozen=True)
class MixtureKey:
    """A key of a mixture, taken apart: the folder's name ("" where there is one folder), the kind, whether among."""

    folder: str
    kind: str
    among: bool


def key_of(key: str, data: Data) -> MixtureKey:
    """A key of a mixture, taken apart.

    Raises:
        ValueError: it names a folder or a kind that there is not, or is not of this form; the message names the key.
    """
    words = key.split("/")
    among = len(words) > 1 and words[-1] == AMONG
    if among:
        words.pop()
    is_one = isinstance(data, str)
    if len(words) != (1 if is_one else 2):
        form = "KIND" if is_one else "NAME/KIND, NAME being one of data's"
        raise ValueError(f"the mixture names '{key}'; its keys are {form}, perhaps with /{AMONG} behind it")
    folder = "" if is_one else words[0]
    if not is_one and folder not in data:
        raise ValueError(f"the mixture names '{key}', but data has no '{folder}'; it has: {', '.join(data)}")
    if words[-1] not in KINDS:
        raise ValueError(f"the mixture names '{key}'; kinds of summaries: {', '.join(KINDS)}")
    return MixtureKey(folder, words[-1], among)


def check(data: Data, mixture: dict[str, float]) -> None:
    """Whether every key of a mixture, and every folder, is in order.

    Raises:
        ValueError: see `key_of`; or a folder's name is not usable in keys, or no key of the mixture is of it.
    """
    used = {key_of(key, data).folder for key in mixture}
    for name in () if isinstance(data, str) else data:
        if not name or PurePosixPath(name).name != name:
            raise ValueError(f"data names a folder '{name}': names are words without a slash")
        if name not in used:
            raise ValueError(f"data has '{name}', but no key of the mixture is of it")


def parts_of(
    data: Data, mixture: dict[str, float], tokenizer: SpanTokenizer, annotated: bool, split: str = "train"
) -> dict[str, MixturePart]:
    """The parts of a mixture by their keys; each folder is read once.

    The prompt names the form where the folders are of both forms: an adapter of one form is asked plainly.

    Raises:
        OSError, ValueError: see `key_of` and `PackedSummaries`.
    """
    folders = {"": data} if isinstance(data, str) else data
    packed = {name: PackedSummaries(folder, tokenizer, split) for name, folder in folders.items()}
    has_both = len({one.form for one in packed.values()}) > 1
    layouts = {name: Layout(tokenizer, annotated, one.form if has_both else "shorten") for name, one in packed.items()}
    parts = {}
    for key in mixture:
        place = key_of(key, data)
        parts[key] = MixturePart(packed[place.folder], place.kind, layouts[place.folder], place.among)
    return parts


def learned_from(parts: dict[str, MixturePart], row_tokens: int) -> Learned:
    """What an adapter learns from a mixture, for serving: the forms, and how long documents are.

    Args:
        parts: of the mixture.
        row_tokens: of a row of training, which is longer than any document in it.
    """
    forms = {part.packed.form for part in parts.values()}
    longest = max(part.longest_document for part in parts.values())
    return Learned({"form": tuple(form for form in FORMS if form in forms)}, min(longest, row_tokens))
