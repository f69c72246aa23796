"""Attention of several queries per row as Markdown."""

from training.reports.markdown import origin, read_all, source, table

BRIEF_QUERIES = 8


def queries() -> str:
    """Every GPU that it was measured on."""
    texts = [queries_on(results, path) for path, results in read_all("queries").items()]
    return "\n".join(texts) or "Attention of several queries per row: not measured yet.\n"


def queries_brief() -> str:
    """What BRIEF_QUERIES queries of a row take, by the grouping of heads, in a sentence; empty if it is not known."""
    for path, results in read_all("queries").items():
        ratios: dict[str, list[float]] = {}
        for measured in results["shapes"]:
            heads = f"{measured['shape']['num_heads']}/{measured['shape']['num_kv_heads']}"
            cases = (line["ours"] for line in measured["measured"] if line["num_queries"] == BRIEF_QUERIES)
            ratios.setdefault(heads, []).extend(one["times_one_query"] for one in cases if "times_one_query" in one)
        told = [f"with {heads} heads {min(one):.2f} to {max(one):.2f} times" for heads, one in ratios.items() if one]
        where = origin(results, path)
        return f" {BRIEF_QUERIES} queries of a row cost {', '.join(told)} what one costs ({where})."
    return ""


def queries_on(results: dict, path: str) -> str:
    """One GPU's table: the time by the number of queries, and what it is to that of one."""
    rows = []
    for measured in results["shapes"]:
        for pattern in dict.fromkeys(line["pattern"] for line in measured["measured"]):
            lines = [line for line in measured["measured"] if line["pattern"] == pattern]
            rows.append([f"{measured['shape']['name']}, {pattern}", *map(_cell, lines)])
    header = ["heads/kv, batch x context, tokens", *_numbers(results)]
    intro = (
        "Microseconds of one launch for so many queries per row, whose tokens are read once, and in parentheses the "
        "ratio to one query. “Dense” is the whole context, causal; “shared” a quarter of it in 32 spans that all "
        "queries see, “mixed” the same spans, each seen by half of the queries.\n\n"
    )
    return intro + table(header, rows) + source(results, path)


def _numbers(results: dict) -> list[str]:
    cases = results["shapes"][0]["measured"]
    return [
        f"{number} quer{'y' if number == 1 else 'ies'}" for number in dict.fromkeys(c["num_queries"] for c in cases)
    ]


def _cell(line: dict) -> str:
    ours = line["ours"]
    if "us" not in ours:
        return "–"
    ratio = f" ({ours['times_one_query']:.2f}x)" if line["num_queries"] > 1 and "times_one_query" in ours else ""
    return f"{ours['us']:.1f}{ratio}"
