"""Attention over a paged cache as Markdown."""

from training.reports.markdown import read_all, source, table

MISSING = "Attention over a paged cache: not measured yet.\n"


def paged() -> str:
    """Every GPU that it was measured on."""
    return "\n".join(paged_on(results, path) for path, results in read_all("paged").items()) or MISSING


def paged_on(results: dict, path: str) -> str:
    """One GPU's table: microseconds by cache, and the share of the roofline."""
    lines = [(measured["shape"]["name"], line) for measured in results["shapes"] for line in measured["measured"]]
    names = list(lines[0][1]["caches"])
    rows = [
        [
            f"{shape}, {line['selection']}, {100 * line['density']:.0f} %",
            *(_cell(line["caches"][name]) for name in names),
        ]
        for shape, line in lines
    ]
    intro = (
        "Microseconds of one launch over the same intervals, and in parentheses the share of the roofline; the plan is "
        "not in them. Pages lie in random order, keys and values of a token side by side, as vLLM has them; either "
        "a page holds head after head, or token after token.\n\n"
    )
    return intro + table(["heads/kv, batch x context, tokens", *names], rows) + source(results, path)


def _cell(one: dict) -> str:
    return f"{one['us']:.1f} ({100 * one['share_of_limit']:.0f} %)" if "us" in one else "–"
