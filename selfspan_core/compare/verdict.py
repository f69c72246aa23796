"""The result of a finished run in one sentence that claims no more than was measured. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfspan_core.tasks.base import View

NAMES = {"dense": "dense", "sparse": "self-selected"}
EQUAL_WITHIN = 0.02
"""Two runs with the same settings differ by about this much: below it, no winner is named."""


def ratio(slow: float | None, fast: float | None) -> float | None:
    """How many times as fast the second lane is; None if either was not measured."""
    return slow / fast if slow and fast else None


def direction(speedup: float) -> int:
    """1 for faster, -1 for slower, 0 where no winner is named."""
    if abs(speedup - 1) < EQUAL_WITHIN:
        return 0
    return 1 if speedup > 1 else -1


def speed_phrase(speedup: float) -> str:
    """A speed-up in words: a slow-down is called one."""
    equal, faster = "equally fast", f"{speedup:.2f} times as fast"
    return {0: equal, 1: faster, -1: f"slower ({speedup:.2f} times the speed)"}[direction(speedup)]


def percent(share: float) -> str:
    """A share in percent; a small share is never rounded to 0 % nor a share below one to 100 %."""
    value = 100 * share
    if 0 < value < 1 or 99 < value < 100:
        return f"{value:.1f} %"
    return f"{value:.0f} %"


def has_right_answer(results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether answers can be right or wrong; those of a summary task cannot."""
    return all(result["correct"] is not None for result in results.values())


def length_of(result: Mapping[str, Any], view: View) -> str:
    """How long an answer is, in steps; "none" where there is none."""
    if result["answer"] is None:
        return "none"
    count = len(result["steps"])
    return f"{count} {view.step}{'s' * (count != 1)}"


def plural(word: str) -> str:
    """Of an English noun, summaries and answers alike."""
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def lengths(results: Mapping[str, Mapping[str, Any]], view: View) -> str:
    """The lengths of lanes' answers, for tasks without a right answer."""
    by_lane = {lane: length_of(result, view) for lane, result in results.items()}
    if len(by_lane) == 1:
        return f"the {view.answer}: {next(iter(by_lane.values()))}"
    if len({result["answer"] for result in results.values()}) == 1:
        return f"both {plural(view.answer)} are the same: {next(iter(by_lane.values()))}"
    return "; ".join(f"the {NAMES[lane]} {view.answer}: {length}" for lane, length in by_lane.items())


def lane_verdict(result: Mapping[str, Any]) -> str:
    """Whether a lane's answer is right or wrong, and what was wrong."""
    if result["correct"]:
        return "right"
    if result["answer"] is None:
        return f"missing (expected {result['expected']})"
    return f"wrong ({result['answer']}, expected {result['expected']})"


def verdict(results: Mapping[str, Mapping[str, Any]], view: View) -> str:
    """The answers of all lanes in words."""
    if not has_right_answer(results):
        return lengths(results, view)
    verdicts = {lane: lane_verdict(result) for lane, result in results.items()}
    if len(verdicts) == 1:
        return f"the {view.answer} is {next(iter(verdicts.values()))}"
    if len(set(verdicts.values())) == 1:
        return f"both {plural(view.answer)} are {next(iter(verdicts.values()))}"
    return ", ".join(f"the {NAMES[lane]} {view.answer} is {words}" for lane, words in verdicts.items())


def malformed_clause(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A remark on steps that broke the grammar, or nothing."""
    counts = {lane: result["malformed_steps"] for lane, result in results.items() if result["malformed_steps"]}
    where = {lane: f" in the {NAMES[lane]} lane" if len(results) > 1 else "" for lane in counts}
    return "".join(f"; {count} malformed step{'s' * (count > 1)}{where[lane]}" for lane, count in counts.items())


def round_speed(tokens_per_second: float) -> str:
    """Tokens per second to three digits: the next ones differ from run to run."""
    return f"{float(f'{tokens_per_second:.3g}'):,.0f}"


def load_clause(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The total speed of lanes that answer several requests at once; empty where they answer one.

    All results are of lanes with the same load; see `LaneView.result`.
    """
    first = next(iter(results.values()))
    load = first.get("load", 1)
    named = ((lane, result.get("total_tokens_per_second")) for lane, result in results.items())
    totals = {lane: total for lane, total in named if total}
    if load == 1 or len(totals) < len(results):
        return ""
    if len(totals) == 1:
        return f"; at {load} requests at once {round_speed(*totals.values())} tokens/s in all"
    speedup = ratio(totals["sparse"], totals["dense"])
    return (
        f"; at {load} requests at once: {round_speed(totals['dense'])} tokens/s dense, "
        f"{round_speed(totals['sparse'])} self-selected, {speedup:.2f} times"
    )


def draft_clause(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The effect of drafts in each lane that had any; empty where none had."""
    drafted = {lane: result for lane, result in results.items() if result.get("tokens_per_pass")}
    words = [
        f"{result['tokens_per_pass']:.1f} tokens per pass{f' {NAMES[lane]}' if len(results) > 1 else ''} "
        f"({percent(result['accepted_share'])} of drafts right)"
        for lane, result in drafted.items()
    ]
    return f"; with drafts {', '.join(words)}" if words else ""


@dataclass(frozen=True)
class Compared:
    """The outcome of a comparison of a dense and a sparse lane.

    Attributes:
        results: of the lanes; see `LaneView.result`.
        speedup_ms_per_token, speedup_time_to_answer: how many times as fast the sparse lane was; None: not measured.
        read_share: share of keys that the sparse lane read.
        is_paid_for: the share is relative to the keys that the dense lane read for its own, shorter text.
    """

    results: Mapping[str, Mapping[str, Any]]
    speedup_ms_per_token: float | None
    speedup_time_to_answer: float | None
    read_share: float
    is_paid_for: bool


def read_clause(compared: Compared) -> str:
    """What the sparse lane read, in percent and in cached tokens."""
    dense, sparse = compared.results["dense"], compared.results["sparse"]
    if compared.is_paid_for:
        whole, of_what = dense["attended_tokens"], "what the plain adapter's lane read"
    else:
        whole = sparse["dense_tokens"]
        of_what = (
            "what dense read" if whole == dense["attended_tokens"] else "what dense attention reads for the same tokens"
        )
    read = f"{sparse['attended_tokens']:,} instead of {whole:,} cached tokens"
    return f"Read {percent(compared.read_share)} of {of_what}: {read}"


def speed_clause(compared: Compared) -> str:
    """How fast the sparse lane was. A speed-up to an answer is claimed only where both lanes have one."""
    per_token, to_answer = compared.speedup_ms_per_token, compared.speedup_time_to_answer
    if per_token is None:
        return "too few tokens to compare speed"
    if to_answer is None:
        return f"{speed_phrase(per_token)} per token"
    joint = "and" if direction(to_answer) == direction(per_token) else "but"
    return f"{speed_phrase(to_answer)} to the answer {joint} {speed_phrase(per_token)} per token"


def compare_line(compared: Compared, view: View) -> str:
    """How a dense and a sparse lane compare: what was read, the time to the answer, the time per token, the answers."""
    results = compared.results
    clauses = f"{load_clause(results)}{draft_clause(results)}; {verdict(results, view)}{malformed_clause(results)}"
    return f"{read_clause(compared)}; {speed_clause(compared)}{clauses}."


def lane_line(result: Mapping[str, Any], read_share: float, view: View) -> str:
    """The outcome of a single lane."""
    read = "" if result["attention"] == "dense" else f"; it read {percent(read_share)} of what dense attention reads"
    name = "Dense" if result["attention"] == "dense" else "Self-selected"
    return (
        f"{name} attention wrote {result['tokens']} tokens in {result['seconds']:.2f} s "
        f"({result['tokens_per_second']:.0f} tokens/s after the first){read}{load_clause({'lane': result})}"
        f"{draft_clause({'lane': result})}; "
        f"{verdict({'lane': result}, view)}"
        f"{malformed_clause({'lane': result})}."
    )
