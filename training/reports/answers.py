"""Time to whole answers on a CPU, with drafts and without, as Markdown."""

from selfspan_core.models.registry import DEFAULT_MODEL
from selfspan_core.tasks.registry import TASKS, get_task
from training.reports.markdown import origin, read, source, table

PATH = "assets/results/cpu_answers.json"
MISSING = "Time to an answer on a CPU: not measured yet.\n"
PLAIN, LOOKUP, SPAN, DRAFTED = "plain dense", "plain dense + lookup", "span sparse", "span sparse + drafts"
WHAT = (
    "Seconds to an answer, one request at a time, prefill included. The plain adapter writes no "
    "names; with prompt lookup it drafts from earlier text. The span adapter drafts from the segments that its headers "
    "name. Greedily drafts change no text, but for near ties where numbers have 16 bits"
)
BRIEF_HEADER = [
    "input",
    PLAIN,
    "+ lookup",
    "self-selected",
    "+ drafts",
    "against dense",
    "against lookup",
    "tokens a pass",
]
BRIEF_INPUTS = ("64 operands", "642 words, short", "summaries, medium")
HEADER = ["input", "lane", "seconds", "tokens", "tokens a pass", "drafts right", "KV read", "× plain dense", "× lookup"]


def answers() -> str:
    """Every lane's figures."""
    results = read(PATH)
    if results is None:
        return MISSING
    rows = [
        [
            kind,
            lane,
            f"{one['seconds']:.2f}",
            f"{one['tokens']:.0f}",
            f"{one['tokens_per_pass']:.2f}",
            f"{one['drafts_right_percent']:.0f} %" if "drafts_right_percent" in one else "–",
            f"{one['kv_read_percent']:.0f} %",
            f"{one['plain_dense_over_this']:.2f}x",
            f"{one['lookup_over_this']:.2f}x",
        ]
        for kind, lanes in results["answers"].items()
        for lane, one in lanes.items()
    ]
    return f"{WHAT}{_changed(results)}.{_models(results)}\n\n" + table(HEADER, rows) + source(results, PATH)


def answers_brief() -> str:
    """The four lanes that matter, with their origin in front."""
    results = read(PATH)
    if results is None:
        return MISSING
    rows = [
        [
            kind,
            *[f"{lanes[lane]['seconds']:.2f}" for lane in (PLAIN, LOOKUP, SPAN, DRAFTED)],
            f"{lanes[DRAFTED]['plain_dense_over_this']:.2f}x",
            f"{lanes[DRAFTED]['lookup_over_this']:.2f}x",
            f"{lanes[DRAFTED]['tokens_per_pass']:.1f}",
        ]
        for kind, lanes in results["answers"].items()
        if kind in BRIEF_INPUTS
    ]
    return f"{WHAT}{_changed(results)}.{_models(results)} {origin(results, PATH)}:\n\n" + table(BRIEF_HEADER, rows)


def _models(results: dict) -> str:
    """Which model answered what; files that do not say so are of the time when one model answered everything."""
    same = {"model": DEFAULT_MODEL, "numbers": results.get("dtype", "")}
    models = results.get("models") or {task: same for task in TASKS if _has(results, task)}
    of_tasks = (f"{get_task(task).page.tab}: {one['model']} in {one['numbers']}" for task, one in models.items())
    return f" {'; '.join(of_tasks)}."


def _has(results: dict, name: str) -> bool:
    """Whether inputs of a task are among those that were answered."""
    task = TASKS[name]
    word = task.generator.size_name if task.generator else task.answers
    return any(word in kind.replace(",", "").split() for kind in results["answers"])


def _changed(results: dict) -> str:
    """How many answers came out otherwise with drafts than without, by what the model computes in; a repeat of the same
    input is no other answer."""
    counts: dict[str, list[int]] = {}
    for kind, lanes in results["answers"].items():
        for one in lanes.values():
            if "answers_that_drafts_changed" in one:
                numbers = counts.setdefault(_numbers_of(results, kind), [0, 0])
                numbers[0] += round(one["answers_that_drafts_changed"] / results["repeats"])
                numbers[1] += results["inputs"]
    told = (f"{changed} of {drafted:,} drafted answers in {numbers}" for numbers, (changed, drafted) in counts.items())
    return f": {', '.join(told)} differ from the undrafted ones"


def _numbers_of(results: dict, kind: str) -> str:
    """What the model computed in that answered this kind of input."""
    models, words = results.get("models", {}), kind.replace(",", "").split()
    for name, one in models.items():
        generator = TASKS[name].generator
        if generator is None or generator.size_name in words:
            return one["numbers"]
    return results.get("dtype", "")
