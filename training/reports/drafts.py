"""What drafts bring at full size and in the app on a GPU, and that they change no text, as Markdown."""

from collections import Counter

from selfspan_core.models.registry import DEFAULT_MODEL
from training.reports.markdown import origin, picture, read_all, source, table

MISSING = "Drafts on a GPU: not measured yet.\n"
PLAIN, LOOKUP, SPAN, DRAFTED = "plain dense", "plain dense + lookup", "span sparse", "span sparse + drafts"
WHAT = (
    "Milliseconds to a row's answer, without the prompt: random weights of a published shape, replayed text of the "
    "shipped models, drafts proposed, verified and kept inside the captured step. The plain adapter's text is dense, "
    "with and without prompt lookup; the span adapter's text names what it reads, and drafts are copied from there. "
    "Articles are made of the examples' sentences and replayed without the decoding rules of the app, whose work "
    "is not in these figures; at batch 1 it is one text, the one whose lengths are nearest the means"
)
NOTE = (
    " With \\* several layers share one cache, because a cache per layer does not fit into memory. "
    "“Queries a row” is the size of step that answers soonest, chosen afterwards; ms, share of the floor of bytes "
    "and tokens a step are of the drafted lane. “Rate without drafts” is tokens per second, self-selected against "
    "plain dense. “Auto” is the drafted lane whose sizes are chosen while it decodes, all of its steps "
    "run; against no drafts, the dense lane with lookup stands beside it. Lanes of one size run some 20 steps of a "
    "text whole, and where a file has no time of all steps without drafts, “auto” is compared with those. Answers to "
    "6,000-token articles are those to 1,900-token ones, behind more text. Runs of larger shapes ended before all "
    "cells of their commands were measured. Of a cell in several tables findings and the page have the first table's."
)
HEADER = [
    "shape, text, batch",
    PLAIN,
    "+ lookup",
    "self-selected",
    "+ drafts",
    "against dense",
    "against lookup",
    "tokens a step",
    "tokens, plain / span",
]
FULL_HEADER = [
    *HEADER[:5],
    "queries a row",
    "ms a step",
    "of the floor",
    *HEADER[5:],
    "rate without drafts",
    "auto",
    "auto against no drafts, self-selected / dense",
]
BRIEF_BATCHES = (1, 128)
BRIEF_TEXTS = ("64 operands", "900-token articles")


def drafts() -> str:
    """Every GPU that drafts were measured on."""
    measured = read_all("drafts")
    parts = [f"{WHAT}.{NOTE}\n"] if measured else []
    parts += [_replays(results, path) for path, results in measured.items()]
    parts += [_lossless(results, path) for path, results in read_all("lossless").items()]
    parts += [_app(results, path) for path, results in read_all("app").items() if "drafts" in results]
    return "\n".join(parts) or MISSING


def drafts_brief() -> str:
    """A few cells of one GPU's first shape."""
    measured = read_all("drafts")
    if not measured:
        return MISSING
    path, results = next(iter(measured.items()))
    shape, parts = next(iter(results["shapes"].items()))
    cells = [cell for cell in parts["answers"] if cell["text"] in BRIEF_TEXTS and cell["batch"] in BRIEF_BATCHES]
    rows = [[*_row(shape, cell), _auto_gain(cell)] for cell in cells if "unavailable" not in cell]
    sizes = (
        ". Drafted lanes are those of the size of step that answers soonest, chosen afterwards; “auto” chooses while "
        "it decodes"
    )
    intro = f"{WHAT}{sizes} ({origin(results, path)}).{_changed_brief()}\n\n"
    return intro + table([*HEADER, "auto against dense"], rows)


def _changed_brief() -> str:
    """How many answers of each model drafts changed on GPUs, in a sentence."""
    told = []
    for results in read_all("lossless").values():
        lanes = [one for lanes in results["lanes"].values() for one in lanes.values()]
        if "gpu" in results["machine"]:
            changed, answers = (sum(one[n] for one in lanes) for n in ("answers_that_drafts_changed", "answers"))
            told.append(f"{changed:,} of {answers:,} of {results.get('model', DEFAULT_MODEL)}")
    return (
        f" Of the shipped models' answers in 16 bits drafts change, at near ties, {' and '.join(told)}." if told else ""
    )


def _auto_gain(cell: dict) -> str:
    """Plain dense over the drafted lane whose sizes are chosen while it decodes."""
    if "auto" not in cell:
        return "–"
    return f"{cell['lanes'][PLAIN]['seconds_to_answer'] / cell['auto'][DRAFTED]['seconds_to_answer']:.2f}x"


def _row(shape: str, cell: dict) -> list[str]:
    lanes, mark = cell["lanes"], "\\*" if cell["layers_per_cache"] > 1 else ""
    drafted = lanes[DRAFTED]
    return [
        f"{shape}, {cell['text']}, batch {cell['batch']}{mark}",
        *(f"{1000 * lanes[lane]['seconds_to_answer']:,.0f}" for lane in (PLAIN, LOOKUP, SPAN, DRAFTED)),
        f"{drafted['plain_dense_over_this']:.2f}x",
        f"{drafted['lookup_over_this']:.2f}x",
        f"{drafted['tokens_per_step']:.1f}",
        f"{lanes[PLAIN]['tokens']:.0f} / {lanes[SPAN]['tokens']:.0f}",
    ]


def _full_row(shape: str, cell: dict) -> list[str]:
    row, drafted = _row(shape, cell), cell["lanes"][DRAFTED]
    size = f"{drafted['queries_per_row']}"
    figures = [size, f"{drafted['ms_per_step']:.2f}", f"{100 * drafted['share_of_floor']:.0f} %"]
    rates = [cell["lanes"][lane]["tokens_per_second_per_row"] for lane in (SPAN, PLAIN)]
    auto = cell.get("auto")
    chosen = ["–", "–"]
    if auto is not None:
        milliseconds, gains = (
            [auto[lane][key] for lane in (DRAFTED, LOOKUP)] for key in ("seconds_to_answer", "undrafted_over_this")
        )
        chosen = [f"{1000 * milliseconds[0]:,.0f}", " / ".join(f"{gain:.2f}x" for gain in gains)]
    return [*row[:5], *figures, *row[5:], f"{rates[0] / rates[1]:.2f}x", *chosen]


def _replays(results: dict, path: str) -> str:
    cells = [(shape, cell) for shape, parts in results["shapes"].items() for cell in parts.get("answers", ())]
    rows = [_full_row(shape, cell) for shape, cell in cells if "unavailable" not in cell]
    missing = [f"{shape}, {cell['text']}, {cell['batch']}" for shape, cell in cells if "unavailable" in cell]
    left_out = f"\nDo not fit: {'; '.join(missing)}.\n" if missing else ""
    drawn = picture(path, "Tokens per step by its size, and time to the answer over the batch")
    return f"{table(FULL_HEADER, rows)}{left_out}{source(results, path)}\n{drawn}"


def _lossless(results: dict, path: str) -> str:
    rows = [
        [
            f"{kind}, {lane}",
            f"{one['answers']:,}",
            f"{one['tokens']:,}",
            f"{one['drafts_kept']:,}",
            str(one["answers_that_drafts_changed"]),
            ", ".join(f"{gap:g} ({num})" for gap, num in sorted(Counter(map(abs, one["ties"])).items())) or "–",
            f"{one['rounding_moved']:g}" if one.get("rounding_moved") else "–",
        ]
        for kind, lanes in results["lanes"].items()
        for lane, one in lanes.items()
    ]
    where = results["machine"].get("gpu") or "a CPU"
    model = results.get("model", DEFAULT_MODEL)
    intro = f"The same answers of {model} with drafts and without, greedily, on {where} in {results['dtype']}"
    header = [
        "inputs, lane",
        "answers",
        "tokens",
        "drafts kept",
        "answers changed",
        "gaps of the logits there (how many)",
    ]
    header.append("what rounding alone moved")
    return f"{intro}:\n\n{table(header, rows)}{source(results, path)}"


def _app(results: dict, path: str) -> str:
    rows = []
    for drafts, kinds in results["drafts"].items():
        for kind, one in kinds.items():
            dense, sparse = one["lanes"]["dense"], one["lanes"]["sparse"]
            rows.append(
                [
                    f"{kind}, drafts {drafts}",
                    *(f"{lane['tokens_per_second']:,.0f}" for lane in (dense, sparse)),
                    *(f"{1000 * lane['seconds_to_answer']:,.0f}" for lane in (dense, sparse)),
                    f"{one['to_answer']:.2f}x",
                    f"{one['self_selected_behind']} of {one['answers']}",
                ]
            )
    where = results["machine"].get("gpu") or "a CPU"
    header = [
        "inputs",
        "dense, tokens/s",
        "self-selected, tokens/s",
        "dense, ms to the answer",
        "self-selected, ms",
        "to the answer",
        "self-selected behind",
    ]
    intro = f"The app on {where}, asked through its API: the plain adapter dense beside the span adapter self-selected"
    clock = "Whole calls, both lanes in turns and the feed included, are in the file as `wall_seconds`"
    return (
        f"{intro}, prefill included in the time to the answer. {clock}:\n\n{table(header, rows)}{source(results, path)}"
    )
