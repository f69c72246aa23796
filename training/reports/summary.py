"""Summaries as Markdown."""

from typing import Any

from selfspan_core.models.registry import DEFAULT_MODEL
from selfspan_core.tasks.base import Task
from training.evaluation.results import results_path
from training.reports.markdown import not_measured, origin, read, source, table

SETTINGS = ("short", "medium")
SETS = (("test_cnndm", "CNN/DailyMail"), ("test_summeval", "SummEval, best of its references"))
LANES = (
    ("plain-dense", "plain adapter, dense"),
    ("span-dense", "span adapter, mask off"),
    ("span-sparse", "span adapter, self-selected"),
)
BASELINES = (
    ("lead-1", "first sentence"),
    ("lead-2", "first two"),
    ("lead-3", "first three"),
    ("random-2", "two random ones"),
    ("oracle", "oracle"),
    ("oracle shortened", "oracle, shortened"),
)
KINDS = (("", "decoding rules"), (" without rules", "no rules"), (" copies only", "rules, words of the source only"))


def summaries(task: type[Task[Any]], model: str = DEFAULT_MODEL) -> str:
    """ROUGE per set, and what can be checked without a reference."""
    path = results_path(task.name, model)
    results = read(path)
    if results is None:
        return not_measured(task)
    texts = [rouge_table(results["sets"][name], label) for name, label in SETS if name in results["sets"]]
    sets = results["sets"]
    return "\n".join([*texts, margins_remark(sets), checks_table(sets), reads_remark(sets)]) + source(results, path)


def summaries_brief(task: type[Task[Any]], model: str = DEFAULT_MODEL) -> str:
    """A few rows of the first set."""
    path = results_path(task.name, model)
    results = read(path)
    if results is None:
        return not_measured(task)
    name, label = next(item for item in SETS if item[0] in results["sets"])
    figures = results["sets"][name]
    lanes = figures["lanes"]
    rows = [[*_rouge_row("first two sentences", figures["baselines"]["lead-2"]), "–", "–"]]
    shown = [(key, lane, "short") for key, lane in (LANES[0], LANES[-1])] + [(*LANES[-1], "medium")]
    rows += [_brief_row(f"{lane}, {length}", lanes[key][length]) for key, lane, length in shown]
    header = [f"{label}, {figures['articles']} articles", "ROUGE-1", "ROUGE-2", "ROUGE-L (95 %)", "words"]
    intro = (
        f"ROUGE F1 of short (two sentences) and medium (three to five) summaries by `{model}`, and the share of their "
        "words that stand in their sources: in the sentences that they name, for the plain adapter in the article "
        f"({origin(results, path)}):\n\n"
    )
    return intro + table([*header, "words found in sources", "KV read"], rows)


def _brief_row(name: str, row: dict) -> list[str]:
    grounded = f"{row['grounded_words_percent']:.2f} %"
    return [*_rouge_row(name, row), grounded, f"{row['attended_percent_of_dense']:.0f} %"]


def rouge_table(figures: dict, label: str) -> str:
    """One set's scores: baselines, then lanes by length."""
    rows = [_rouge_row(name, figures["baselines"][key]) for key, name in BASELINES]
    for key, name in LANES:
        for setting in SETTINGS:
            row = figures.get("lanes", {}).get(key, {}).get(setting)
            if row:
                rows.append(_rouge_row(f"{name}, {setting}", row))
    header = [f"{label}, {figures['articles']} articles", "ROUGE-1", "ROUGE-2", "ROUGE-L (95 %)", "words"]
    return table(header, rows)


def _rouge_row(name: str, row: dict) -> list[str]:
    bounds = row.get("rougeL_interval")
    interval = f" ({bounds[0]:.1f}–{bounds[1]:.1f})" if bounds else ""
    scores = [f"{row[metric]:.1f}" for metric in ("rouge1", "rouge2")]
    return [name, *scores, f"{row['rougeL']:.1f}{interval}", f"{row['mean_words']:.0f}"]


def checks_table(sets: dict) -> str:
    """Grounding, form and reads on the first set, per lane and kind of decoding."""
    name, label = next((item for item in SETS if item[0] in sets), (None, ""))
    rows = []
    for key, lane in LANES:
        for setting in SETTINGS:
            for suffix, kind in KINDS:
                row = sets[name].get("lanes", {}).get(key, {}).get(setting + suffix) if name else None
                if row:
                    rows.append([f"{lane}, {setting}, {kind}", *_check_cells(row)])
    header = [
        f"{label}: share of",
        "words found in sources",
        "sentences with another word",
        "copied or shortened",
        "summaries repeating 4 words",
        "malformed steps",
        "steps without an end",
        "KV read",
        "ROUGE-L",
    ]
    return table(header, rows) if rows else ""


def margins_remark(sets: dict) -> str:
    """Self-selected summaries against the best of the first one to three sentences; repetitions, by set."""
    text = ""
    for name, label in SETS:
        lanes = sets.get(name, {}).get("lanes", {}).get("span-sparse", {})
        for setting in SETTINGS:
            row = lanes.get(setting)
            if not row or "rougeL_over" not in row:
                continue
            lead, over = min(row["rougeL_over"].items(), key=lambda item: item[1]["difference"])
            low, high = over["interval"]
            text += (
                f"* {label}, self-selected, {setting}: {over['difference']:+.1f} ROUGE-L against the article's first "
                f"{_sentences(lead)} (95 % interval over articles: {low:+.1f} to {high:+.1f}); "
                f"{row['summaries_repeating_4_words_percent']:.0f} % of the summaries repeat four words in a row.\n"
            )
    return text


def _sentences(lead: str) -> str:
    """ "lead-2" in words."""
    count = lead.removeprefix("lead-")
    return "sentence" if count == "1" else f"{count} sentences"


def reads_remark(sets: dict) -> str:
    """What self-selected summaries of the first set read: shares of keys by the articles' length, and sentences."""
    name, label = next((item for item in SETS if item[0] in sets), (None, ""))
    lanes = sets[name].get("lanes", {}).get("span-sparse", {}) if name else {}
    text = ""
    for setting in SETTINGS:
        row = lanes.get(setting)
        if not row or not row["first_sentences_read"]:
            continue
        shares = ", ".join(
            f"{share['attended_percent_of_dense']:.0f} % of the keys at {words} words"
            for words, share in row["attended_by_article_words"].items()
        )
        *first, later = row["first_sentences_read"].items()
        places = ", ".join(f"{share:.0f} % read sentence {place}" for place, share in first)
        places += f", {later[1]:.0f} % a later one"
        text += f"* Self-selected, {setting}, {label}: {shares} are read. Of the summaries, {places}.\n"
    return text


def _check_cells(row: dict) -> list[str]:
    keys = (
        "grounded_words_percent",
        "steps_with_ungrounded_word_percent",
        "copied_or_shortened_percent",
        "summaries_repeating_4_words_percent",
        "malformed_steps_percent",
        "cut_sentences_percent",
        "attended_percent_of_dense",
    )
    shares = ["–" if row[key] is None else f"{row[key]:.2f} %" for key in keys]
    return [*shares, f"{row['rougeL']:.1f}"]
