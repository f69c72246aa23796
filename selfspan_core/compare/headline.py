"""The result of a comparison as the page's headline: what was read first, then time, each judged. No torch here."""

from collections.abc import Mapping
from typing import Any

from selfspan_core.compare.verdict import Compared, direction, has_right_answer, plural, read_clause
from selfspan_core.tasks.base import View

MOST_SHOWN = 40
"""Characters of an answer in the headline."""


def headline(compared: Compared, view: View) -> dict[str, Any]:
    """The headline of two lanes.

    Returns:
        `text`: what was read, and how the answers compare; `judged`: of the share that was read and both speed-ups, 1
        where the self-selected lane did better, 0 where no winner is named, -1 where it did worse, None where nothing
        was measured; `differs_at`: the index of the first step that differs, None where the answers are the same.
    """
    speedups = {"answer": compared.speedup_time_to_answer, "token": compared.speedup_ms_per_token}
    judged = {name: direction(speedup) if speedup else None for name, speedup in speedups.items()}
    share = compared.read_share
    return {
        "text": f"{read_clause(compared)}. {answers_clause(compared.results, view)}",
        "judged": {"share": direction(1 / share) if share else 1, **judged},
        "differs_at": first_difference(compared.results),
    }


def answers_clause(results: Mapping[str, Mapping[str, Any]], view: View) -> str:
    """How the answers of both lanes compare, as a sentence."""
    dense, sparse = results["dense"], results["sparse"]
    missing = [name for name, result in (("dense", dense), ("self-selected", sparse)) if result["answer"] is None]
    if len(missing) == 2:
        return f"Neither got to {_a(view.answer)}."
    is_judged, words = has_right_answer(results), {True: "right", False: "wrong"}
    if missing:
        other = sparse if dense["answer"] is None else dense
        rest = f"; the other's is {words[other['correct']]}" if is_judged else ""
        return f"The {missing[0]} lane got to no {view.answer}{rest}."
    if dense["answer"] == sparse["answer"]:
        if not is_judged:
            return f"Same {view.answer}."
        if sparse["correct"]:
            shown = f": {sparse['answer']}" if len(sparse["answer"]) <= MOST_SHOWN else ""
            return f"Same {view.answer}, and it is right{shown}."
        return f"Same {view.answer}, and it is wrong: {sparse['answer']} instead of {sparse['expected']}."
    if not is_judged:
        return f"Different {plural(view.answer)}."
    if dense["correct"] == sparse["correct"]:
        return f"Different {plural(view.answer)}, both {words[sparse['correct']]}."
    said = f"dense is {words[dense['correct']]}, self-selected is {words[sparse['correct']]}"
    return f"Different {plural(view.answer)}: {said}."


def first_difference(results: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Index of the first step whose text differs; None where the answers are the same."""
    dense, sparse = results["dense"], results["sparse"]
    if dense["answer"] == sparse["answer"]:
        return None
    texts = [[step["text"].strip() for step in result["steps"]] for result in (dense, sparse)]
    same = next((index for index, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), None)
    if same is not None:
        return same
    return min(map(len, texts)) if len(texts[0]) != len(texts[1]) else None


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
