"""Answers to arithmetic as Markdown."""

from training.reports.markdown import origin, read, source, table

PATH = "assets/results/arithmetic.json"
MISSING = "Arithmetic answers: not measured yet.\n"
LANES = (
    ("plain-dense", "plain adapter, dense"),
    ("span-dense", "span adapter, mask off"),
    ("span-sparse", "span adapter, self-selected"),
)
HEADER = ["operands", *(f"exact: {label}" for _, label in LANES), "KV read", "tokens, plain / span adapter"]


def arithmetic() -> str:
    """Exact answers per operand count and lane."""
    results = read(PATH)
    if results is None:
        return MISSING
    rows = [
        [
            *_cells(operands, lanes),
            f"{lanes.get('span-sparse', {}).get('malformed_percent_of_steps', float('nan')):.3f} %",
        ]
        for operands, lanes in results["operands"].items()
    ]
    intro = f"{_what(results)}:\n\n"
    return intro + table([*HEADER, "malformed steps, self-selected"], rows) + source(results, PATH)


def arithmetic_brief() -> str:
    """The same in a small table."""
    results = read(PATH)
    if results is None:
        return MISSING
    rows = [_cells(operands, lanes) for operands, lanes in results["operands"].items()]
    return f"{_what(results)} ({origin(results, PATH)}):\n\n" + table(HEADER, rows)


def _what(results: dict) -> str:
    n = next(iter(next(iter(results["operands"].values())).values()))["n"]
    return f"Share of exact answers to {n} fresh expressions per row, greedy decoding, {results['dtype']}"


def _cells(operands: str, lanes: dict) -> list[str]:
    exact = [f"{lanes[lane]['exact_percent']:.1f} %" if lane in lanes else "–" for lane, _ in LANES]
    tokens = [f"{lanes[lane]['mean_tokens']:.0f}" for lane in ("plain-dense", "span-sparse") if lane in lanes]
    share = lanes.get("span-sparse", {}).get("attended_percent_of_dense", float("nan"))
    return [operands, *exact, f"{share:.1f} %", " / ".join(tokens)]
