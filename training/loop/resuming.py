"""Which settings may change when a run goes on from a checkpoint: those that change no meaning of what was trained."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

MAY_CHANGE = frozenset(
    (
        *("learning_rate", "matrix_lr", "other_lr", "output", "run", "shard_megabytes", "fold_lora"),
        *("heldout_operands", "heldout_problems"),
        *(f"loop.{name}" for name in ("steps", "warmup_steps", "decay_from", "max_seconds", "workers", "snapshots")),
        *(f"loop.{name}" for name in ("log_every", "evaluate_every", "checkpoint_every", "micro_rows", "compile")),
    )
)
"""Settings by their dotted names; they are taken from the configuration at every start. `micro_rows` shares a step
out in other portions, `fold_lora` and `compile` compute the same in another way."""
_NOT_GIVEN = "not given"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples are lists."""
    return json.loads(json.dumps(settings))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What changed between two configurations of one run: dotted name -> the value before, the value now.

    Raises:
        ValueError: something changed that may not; one line that names the setting and both values.
    """
    old, new = dict(_leaves(plain(before))), dict(_leaves(plain(now)))
    found = {}
    for name in sorted(old.keys() | new.keys()):
        values = (old.get(name, _NOT_GIVEN), new.get(name, _NOT_GIVEN))
        if values[0] == values[1]:
            continue
        if name not in MAY_CHANGE:
            raise ValueError(
                f"{name} is {_brief(values[1])}, and the run to go on with has {_brief(values[0])}: put it back, "
                "or name another folder as 'run' to start from the beginning"
            )
        found[name] = values
    return found


def _brief(value: Any) -> str:
    text = value if value == _NOT_GIVEN else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
