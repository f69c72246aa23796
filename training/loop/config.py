"""YAML into dataclasses, strictly: an unknown, repeated or mistyped key is an error that names it."""

import dataclasses
import difflib
import re
import reprlib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration is wrong; the message names file, key and what is expected."""


MOST_CHARACTERS = 1 << 20
MOST_ALIASES, MOST_LEVELS = 20, 20
"""More than any configuration needs; each alias may repeat all that stands before it."""
_OTHER_BASE = re.compile(r"[+-]?0(_*[0-9][0-9_]*|[bx].*)|.*:.*")
"""010 is 8 to YAML 1.1, 0x10 is 16, 0b11 is 3, and 1:30 is 90."""


class _Refused(yaml.YAMLError):
    """YAML that would be read in another way than it was meant, or would take for ever; one line."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a repeated key; YAML's own rule is that the last one wins, silently.

    It also refuses numbers that YAML 1.1 reads to another base, and documents that grow without bound.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = self._aliases = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """The next node. Aliases and levels are counted here, since both can make a small file a large one."""
        line = f"line {self.peek_event().start_mark.line + 1}"
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MOST_ALIASES:
                raise _Refused(f"{line}: more than {MOST_ALIASES} aliases (*name)")
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _Refused(f"{line}: more than {MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as nodes. Checked here, before merge keys (`<<`) copy keys from other mappings."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, value in node.value:
            _require_base_10(value, key.value if isinstance(key, yaml.ScalarNode) else "")
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise _Refused(f"line {key.start_mark.line + 1}: the key '{key.value}' is given a second time")
            seen.add((key.tag, key.value))
        return node


def _require_base_10(node: yaml.Node, key: str) -> None:
    """Refuse a key's number, or one in its list, that not everybody reads alike."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_base_10(item, key)
    is_number = isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in ("int", "float")
    if is_number and _OTHER_BASE.fullmatch(node.value):
        raise _Refused(
            f"line {node.start_mark.line + 1}: {key[:60]}: YAML reads {node.value[:40]} to another base than 10: "
            "write the number in plain digits, without a leading 0, letters or colons"
        )


def load_config(path: str | Path, kind: type[T]) -> T:
    """Read a YAML file into the dataclass `kind`.

    Raises:
        ConfigError: the file is missing or no YAML mapping, or a key is unknown, repeated, missing, of the wrong type
            or out of its range. The message is one line.
    """
    path = Path(path)
    try:
        # The loader builds nothing but plain values, as yaml.safe_load does.
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise _Refused("it is far too long for a configuration")
        data = yaml.load(text, _StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except _Refused as error:
        raise ConfigError(f"{path}: {error}") from error
    # ValueError: no UTF-8, or a date that does not exist. RecursionError: a mapping that is merged into itself.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return build(data, kind, where=str(path))


def build(data: Any, kind: type[T], where: str) -> T:
    """Make the dataclass `kind` out of a mapping; `where` is named in errors."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping with the keys of {kind.__name__}, got {reprlib.repr(data)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key)[:60], fields, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"{where}: unknown key '{str(key)[:60]}'{hint}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(data[name], hints[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key '{name}' is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert_to_one_of(value: Any, hints: tuple, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    choices = [hint for hint in hints if hint is not type(None)]
    fitting = [hint for hint in choices if isinstance(value, typing.get_origin(hint) or hint)]
    if not fitting and len(choices) > 1:
        wanted = " or ".join(getattr(hint, "__name__", str(hint)) for hint in choices)
        raise ConfigError(f"{where}: expected {wanted}, got {reprlib.repr(value)} ({type(value).__name__})")
    return _convert(value, (fitting or choices)[0], where)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(value, hint, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_to_one_of(value, args, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(item, args[0], where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {_convert(k, args[0], where): _convert(v, args[1], where) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 takes 2e-3 for a word; only 2.0e-3 is a number to it.
    if hint is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    if hint is str and isinstance(value, bool):
        raise ConfigError(
            f"{where}: YAML takes the bare words yes, no, on, off, true and false for truth values: put it in quotes"
        )
    wanted = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{where}: expected {wanted}, got {reprlib.repr(value)} ({type(value).__name__})")
