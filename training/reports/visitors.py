"""What visitors of a running app meet: the first one, many requests at once, crowds. As Markdown."""

from training.reports.markdown import read_all, source, table

MISSING = "Visitors of the app: not measured yet.\n"
LOADS_HEADER = ["requests of a visitor at once", "dense, tokens/s", "self-selected, tokens/s", "whole call, s"]
CROWDS_HEADER = [
    "requests of a visitor at once",
    "clients",
    "visits",
    "answered",
    "right",
    "told their place",
    "heard nothing for 5 s",
    "wait, median / longest, s",
    "memory after two visits each / at the end, MB",
    "4 operands beside 64: waited, s",
    "64 operands alone, s",
]


def visitors() -> str:
    """Every machine that visitors were sent to."""
    found = newest_crowds({**read_all("app"), **read_all("load")})
    parts = [machine_table(results, path) for path, results in found.items() if {"crowds", "together"} & results.keys()]
    return "\n".join(parts) or MISSING


def newest_crowds(found: dict[str, dict]) -> dict[str, dict]:
    """Results by path, without crowds of which there are newer ones of as many requests from such a machine.

    Of one day those of a run that had crowds alone are the newer ones.
    """
    age = lambda results: (results["date"], "together" not in results)  # noqa: E731
    newest: dict[tuple[str, str], tuple[str, bool]] = {}
    for results in found.values():
        for load in results.get("crowds", {}):
            key = place_of(results), load
            newest[key] = max(newest.get(key, age(results)), age(results))
    kept = {}
    for path, results in found.items():
        crowds = results.get("crowds", {}).items()
        crowds = {load: crowd for load, crowd in crowds if newest[place_of(results), load] == age(results)}
        others = {name: value for name, value in results.items() if name != "crowds"}
        kept[path] = others | ({"crowds": crowds} if crowds else {})
    return kept


def place_of(results: dict) -> str:
    """The machine that visitors were sent to, in words."""
    return results["machine"].get("gpu") or f"{results['machine']['cpu']}, {results['machine']['cores']} cores"


def machine_table(results: dict, path: str) -> str:
    """What visitors of one machine met, as far as it was measured."""
    parts = [f"On {place_of(results)}"]
    if "crowds" in results:
        parts.append(", clients that ask one thing after the other, most of them short:\n\n")
        parts.append(table(CROWDS_HEADER, [_crowd(load, crowd) for load, crowd in results["crowds"].items()]))
    else:
        parts.append(":\n")
    parts.append(_others(results))
    if "leaving" in results:
        left = results["leaving"]
        parts.append(
            f"\nWhile {left['left']} clients left in the middle, {left['answered']} of {left['stayed']} that stayed "
            "were answered.\n"
        )
    return "".join(parts) + source(results, path)


def _others(results: dict) -> str:
    """The first visitor, several at once, and how many requests of one visitor go together, as far as measured."""
    said = []
    if "first_request" in results:
        first = results["first_request"]
        said.append(
            f"Who asked the moment that the port was open, while models were loaded, heard the first word after "
            f"{first['first_word_s']:.1f} s and had the {'right' if first['is_right'] else 'WRONG'} answer after "
            f"{first['seconds']:.0f} s."
        )
    if "together" in results:
        together = results["together"]
        said.append(
            f"Of {together['requests']} clients at once, a third of them with articles, {together['answered']} were "
            f"answered within {together['seconds']:.0f} s, {together['right']} of them not wrongly."
        )
    text = f"\n{' '.join(said)}\n" if said else ""
    return text + (_loads(results["loads"]) if "loads" in results else "")


def _loads(loads: dict) -> str:
    rows = [
        [
            load,
            *(f"{one['tokens_per_second'][lane]:,.0f}" for lane in ("dense", "sparse")),
            f"{one['wall_seconds']:.2f}",
        ]
        for load, one in loads.items()
    ]
    return "\n" + table(LOADS_HEADER, rows)


def _crowd(load: str, crowd: dict) -> list[str]:
    fair = crowd["fairness"]
    memory = [crowd["memory_mb"][when]["resident"] for when in ("before", "after")]
    return [
        load,
        *(f"{crowd[name]:,}" for name in ("clients", "requests", "answered", "right", "told_their_place", "unheard")),
        f"{crowd['median_wait_s']:.0f} / {crowd['longest_wait_s']:.0f}",
        f"{memory[0]:,.0f} / {memory[1]:,.0f}",
        f"{fair['short_waited_s']:.1f}",
        f"{fair['long_alone_s']:.1f}",
    ]
