"""Quality of summaries over training tokens, as Markdown."""

from training.reports.markdown import picture, read, source, table

PATH = "assets/results/summary_curve.json"
LANES = (("plain-dense", "plain, dense"), ("span-dense", "mask off"), ("span-sparse", "self-selected"))


def curve() -> str:
    """A row per number of tokens and form."""
    results = read(PATH)
    if results is None:
        return "Summaries over training tokens: not measured yet.\n"
    header = ["tokens, summaries", *(name for _, name in LANES), "self-selected over mask off", "malformed", "KV read"]
    rows = [_row(point, setting) for setting in _settings(results) for point in results["points"]]
    intro = (
        f"ROUGE-L of {results['articles']} articles ({results['set']}) over the tokens that the adapters were trained "
        "on, snapshots of one run each; malformed steps and KV read of the self-selected lane"
    )
    drawn = picture(PATH, "ROUGE-L over training tokens, lane by lane")
    return f"{intro}:\n\n{table(header, rows)}{source(results, PATH)}\n{drawn}"


def _settings(results: dict) -> list[str]:
    return list(results["points"][0]["lanes"]["span-sparse"])


def _row(point: dict, setting: str) -> list[str]:
    lanes = {lane: point["lanes"][lane][setting] for lane, _ in LANES}
    scores = {lane: one["rougeL"] for lane, one in lanes.items()}
    sparse = lanes["span-sparse"]
    return [
        f"{point['tokens'] / 1e6:.0f} M, {setting}",
        *(f"{scores[lane]:.1f}" for lane, _ in LANES),
        f"{scores['span-sparse'] - scores['span-dense']:+.1f}",
        f"{sparse['malformed_steps_percent']:.1f} %",
        f"{sparse['attended_percent_of_dense']:.0f} %",
    ]
