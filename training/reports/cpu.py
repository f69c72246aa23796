"""Decoding speed on a CPU as Markdown."""

from training.reports.markdown import read, source, table

PATH = "assets/results/cpu_engine.json"
MISSING = "Decoding speed on a CPU: not measured yet.\n"
HEADER = ["context, tokens", "dense, ms/token", "self-selected, ms/token", "speedup", "KV read"]
WHAT = "Both lanes decode the same tokens with the shipped model; times are of the last 256 tokens before each length"


def cpu() -> str:
    """Time per token of both lanes by context length."""
    results = read(PATH)
    if results is None:
        return MISSING
    return f"{WHAT}.{_before(results)}\n\n" + table(HEADER, _rows(results)) + source(results, PATH)


def _before(results: dict) -> str:
    """The times of an earlier commit on the same machine, in a sentence."""
    before = results.get("before")
    if before is None:
        return ""
    times = [
        f"{row['context']:,} tokens: {row['dense']['ms_per_token']:.2f} and {row['sparse']['ms_per_token']:.2f}"
        for row in before["contexts"]
    ]
    return f" At commit {before['commit'][:10]}, on the same machine: {'; '.join(times)} ms/token."


def _rows(results: dict) -> list[list[str]]:
    return [
        [
            f"{row['context']:,}",
            f"{row['dense']['ms_per_token']:.2f}",
            f"{row['sparse']['ms_per_token']:.2f}",
            f"{row['dense_over_sparse']:.2f}x",
            f"{100 * row['visible_share']:.0f} %",
        ]
        for row in results["contexts"]
    ]
