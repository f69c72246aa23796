"""Whether the tensors of a GGUF file are those of its header, before anything is made of them."""

from collections.abc import Mapping

from selfspan_core.errors import ModelError
from selfspan_core.models.base_config import built_config, expected_shapes
from selfspan_core.models.gguf_file import GgufFile

_SAID_BY = "header"
_LAYER = "model.layers."


def require_fit(file: GgufFile) -> None:
    """Refuse a file whose header describes another model than its tensors are.

    Raises:
        ModelError: a size is out of bounds, sizes do not go together, or a tensor is missing, too many or of another
            shape; one line that names the file.
    """
    content, stored, name = file.config(), file.shapes, str(file.path)
    built = built_config(content, name, _SAID_BY)
    layers = {shape.split(".")[2] for shape in stored if shape.startswith(_LAYER)}
    asked = content["num_hidden_layers"]
    if len(layers) != asked:
        key = f"{file.architecture}.block_count"
        raise ModelError(f"{name}: its {key} is {asked}, and it has tensors of {len(layers)} layers")
    _require_same(file, stored, expected_shapes(built, name, _SAID_BY))


def _require_same(file: GgufFile, stored: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    others = sorted(name for name in stored.keys() & expected.keys() if stored[name] != expected[name])
    if others:
        name = others[0]
        why = f", whose {file.architecture}.feed_forward_length is one of the sizes," if ".mlp." in name else ""
        raise ModelError(
            f"{file.path}: {len(others)} of its tensors do not fit its header, {name} among them, which is "
            f"{list(stored[name])} and by the header{why} would have to be {list(expected[name])}"
        )
    for names, what in ((expected.keys() - stored.keys(), "missing"), (stored.keys() - expected.keys(), "too many")):
        if names:
            raise ModelError(
                f"{file.path}: its tensors do not fit its header: {len(names)} are {what}, {min(names)} among them"
            )
