"""The engine's figures as Markdown: decoding at full size, and the shipped model on a GPU."""

from training.reports.markdown import origin, picture, read_all, source, table

MISSING = "The engine on a GPU: not measured yet.\n"
LANES = ("plain-dense", "span-dense", "span-sparse")
HEADER = [
    "model shape (random weights)",
    "KV read",
    "dense, ms/step",
    "self-selected, ms/step",
    "self-selected, tokens/s",
    "speedup",
    "predicted from the bytes",
    "speedup to the answer",
]
BRIEF_HEADER = [*HEADER[:4], "speedup per step", "speedup to the answer"]
MOST_BRIEF_ROWS = 3
SHARED_CACHE = (
    "\\* Two or four layers share one cache, because a cache per layer does not fit into memory; the same number of "
    "bytes is read."
)


def engine() -> str:
    """Every GPU that the engine was measured on."""
    return "\n".join(engine_on(results, path) for path, results in read_all("engine").items()) or MISSING


def engine_brief() -> str:
    """A few cells of one GPU's replayed arithmetic."""
    measured = read_all("engine")
    if not measured:
        return MISSING
    path, results = next(iter(measured.items()))
    cells = brief_cells(results)
    note = f" {SHARED_CACHE}" if any(cell["layers_per_cache"] > 1 for _, cell in cells) else ""
    intro = (
        "Decoding at full size, one captured CUDA graph per step: random weights, replayed text of the shipped model. "
        "“To the answer” compares with the plain adapter's shorter text under dense attention, so it includes the cost "
        f"of the names ({origin(results, path)}).{note}\n\n"
    )
    return intro + table(BRIEF_HEADER, [_brief_row(shape, cell) for shape, cell in cells])


def _brief_row(shape: str, cell: dict) -> list[str]:
    times = (cell["lanes"][lane]["ms_per_step"] for lane in ("span-dense", "span-sparse"))
    speedups = (cell["speedup"], cell["time_to_answer_speedup"])
    return [
        f"{shape}, {cell['operands']} operands, batch {cell['batch']}{_mark(cell)}",
        f"{100 * cell['visible_share']:.0f} %",
        *(f"{ms:.2f}" for ms in times),
        *(f"{speedup:.2f}x" for speedup in speedups),
    ]


def brief_cells(results: dict) -> list[tuple[str, dict]]:
    """(shape, cell) at the most operands, at most MOST_BRIEF_ROWS.

    Of the first shape the smallest, the middle and the largest batch; of the others the largest one.
    """
    chosen = []
    for shape, parts in results["shapes"].items():
        cells = [cell for cell in parts.get("replay", ()) if "lanes" in cell]
        most = max((cell["operands"] for cell in cells), default=0)
        cells = sorted((cell for cell in cells if cell["operands"] == most), key=lambda cell: cell["batch"])
        is_first = len(cells) > 2 and not chosen
        shown = [cells[0], cells[len(cells) // 2], cells[-1]] if is_first else cells[-1:]
        chosen += [(shape, cell) for cell in shown]
    return chosen[:MOST_BRIEF_ROWS]


def engine_on(results: dict, path: str) -> str:
    """One GPU's tables."""
    parts = [replayed(results), break_even(results), long_contexts(results), dense(results), kinds(results)]
    parts += [transformers(results), shipped(results), picture(path, "Speedup by batch size")]
    return "\n".join(part for part in parts if part) + source(results, path)


def replayed(results: dict) -> str:
    """Self-selected against dense on replayed arithmetic."""
    cells = [
        (shape, cell)
        for shape, parts in results["shapes"].items()
        for cell in parts.get("replay", ())
        if "lanes" in cell
    ]
    if not cells:
        return ""
    intro = (
        "Decoding at full size, one captured CUDA graph per step. Text that the shipped model wrote is replayed: "
        "shapes, lengths, visibility and times are real, the weights are random. In parentheses: the time divided by "
        "the time that the bytes to be read take at the measured memory bandwidth. “Predicted from the bytes” is the "
        "speedup that the bytes alone would give. The last column compares with the plain adapter's shorter text under "
        "dense attention, so it includes the cost of the names.\n\n"
    )
    note = f"\n{SHARED_CACHE}\n" if any(cell["layers_per_cache"] > 1 for _, cell in cells) else ""
    return intro + table(HEADER, [_replay_row(shape, cell) for shape, cell in cells]) + note


def _replay_row(shape: str, cell: dict) -> list[str]:
    dense, sparse = cell["lanes"]["span-dense"], cell["lanes"]["span-sparse"]
    return [
        f"{shape}, {cell['operands']} operands, batch {cell['batch']}{_mark(cell)}",
        f"{100 * cell['visible_share']:.0f} %",
        f"{dense['ms_per_step']:.2f} ({1 / dense['share_of_floor']:.2f}x)",
        f"{sparse['ms_per_step']:.2f} ({1 / sparse['share_of_floor']:.2f}x)",
        f"{sparse['tokens_per_second']:,.0f}",
        f"{cell['speedup']:.2f}x",
        f"{cell['speedup_predicted_by_bytes']:.2f}x",
        f"{cell['time_to_answer_speedup']:.2f}x",
    ]


def break_even(results: dict) -> str:
    """From how many rows on self-selected is ahead, annotations paid for."""
    cells: dict[str, list] = {}
    for shape, parts in results["shapes"].items():
        for cell in parts.get("replay", ()):
            if "lanes" in cell:
                name = f"{shape}, {cell['operands']} operands"
                cells.setdefault(name, []).append((cell["batch"], cell["time_to_answer_speedup"]))
    texts = [f"{name}: {_first_ahead(sorted(one))}" for name, one in cells.items() if len(one) > 1]
    return (
        f"Batch size from which self-selected attention reaches the answer sooner: {'; '.join(texts)}.\n"
        if texts
        else ""
    )


def _first_ahead(speedups: list[tuple[int, float]]) -> str:
    behind = 0
    for batch, speedup in speedups:
        if speedup >= 1:
            return f"between {behind} and {batch}" if behind else str(batch)
        behind = batch
    return f"more than {behind}"


def kinds(results: dict) -> str:
    """Where the time of a step goes, and what the host does for it."""
    profiles = [
        (f"{shape}, {cell['operands']} operands, batch {cell['batch']}", cell)
        for shape, parts in results["shapes"].items()
        for cell in parts.get("profile", ())
        if "share" in cell
    ]
    if not profiles:
        return ""
    # The parts of most of the time first, the same for all.
    names = sorted(profiles[0][1]["share"], key=profiles[0][1]["share"].get, reverse=True)
    rows = [[name, *(f"{100 * cell['share'].get(kind, 0):.1f} %" for kind in names)] for name, cell in profiles]
    calls = profiles[0][1]["host_calls"]
    listed = ", ".join(f"{name} {number}x" for name, number in calls["calls"].items())
    return (
        "Shares of a step's time.\n\n"
        + table(["self-selected steps", *names], rows)
        + f"\nCUDA calls of the host during {calls['steps']} steps ({profiles[0][0]}): {listed}.\n"
    )


def long_contexts(results: dict) -> str:
    """Bodies that read a part of a long context."""
    rows, densities = [], []
    for shape, parts in results["shapes"].items():
        for cell in parts.get("long", ()):
            if "lanes" not in cell:
                continue
            densities = [name for name in cell["lanes"] if name != "dense"]
            cells = [cell["lanes"][name] for name in densities]
            rows.append(
                [
                    f"{shape}, {cell['context']:,} tokens x {cell['batch']}{_mark(cell)}",
                    f"{cell['lanes']['dense']['ms_per_step']:.2f}",
                    *(f"{one['speedup']:.2f}x ({one['speedup_predicted_by_bytes']:.2f}x)" for one in cells),
                ]
            )
    if not rows:
        return ""
    header = ["long contexts", "dense, ms/step", *(f"{100 * float(name):.0f} % visible" for name in densities)]
    return (
        "Step bodies that read a part of a long context: speedup, and in parentheses the one predicted from the "
        "bytes.\n\n" + table(header, rows)
    )


def dense(results: dict) -> str:
    """How near dense steps come to the bytes' floor."""
    rows = []
    for shape, parts in results["shapes"].items():
        for cell in parts.get("fixed", ()):
            if "ms_per_step" not in cell:
                continue
            times = [cell["ms_per_step"].get(name) for name in ("this kernel", "cudnn", "flash")]
            rows.append(
                [
                    f"{shape}, batch {cell['batch']}, context {cell['context']:,}{_mark(cell)}",
                    f"{cell['floor_ms']:.2f}",
                    *(f"{ms:.2f}" if isinstance(ms, float) else "–" for ms in times),
                    f"{cell['best_over_floor']:.2f}x",
                ]
            )
    if not rows:
        return ""
    header = [
        "dense steps",
        "time of the bytes, ms",
        "this kernel, ms",
        "cuDNN, ms",
        "flash, ms",
        "best / time of the bytes",
    ]
    return "The same dense step with three attention kernels.\n\n" + table(header, rows)


def transformers(results: dict) -> str:
    """What `generate` takes per token on the same weights."""
    rows = []
    for shape, parts in results["shapes"].items():
        for cell in parts.get("transformers", ()):
            if "ms_per_step" in cell:
                how = "static cache, compiled" if cell["static_cache_compiled"] else "eager"
                rows.append(
                    [
                        f"{shape}, batch {cell['batch']}, context {cell['context']:,}, {how}",
                        f"{cell['ms_per_step']:.1f}",
                    ]
                )
    if not rows:
        return ""
    intro = (
        "`generate` of transformers on the same weights. Eager decoding is limited by the host, and varies between "
        "runs.\n\n"
    )
    return intro + table(["transformers", "ms/token"], rows)


def shipped(results: dict) -> str:
    """The shipped model's own speed, and whether it writes the same as the reference."""
    if "shipped" not in results:
        return ""
    speed = results["shipped"].get("speed", ())
    header = ["the shipped model, simultaneous requests", *(f"{lane}, tokens/s" for lane in LANES)]
    rows = [[str(row["batch"]), *(f"{row[lane]:,.0f}" for lane in LANES)] for row in speed]
    text = ""
    if rows:
        text = (
            f"Medians of {speed[0]['rounds']} runs, prompts included. With many simultaneous requests the host is the "
            "limit.\n\n"
        )
        text += table(header, rows) + "\n"
    same = results["same_tokens"]
    ways = [same[name] for name in ("mixed batch", "alone")]
    tokens, other = (sum(way[key] for way in ways) for key in ("tokens", "other"))
    gap = max(way["largest_gap"] for way in ways)
    rounding = f" (rounding: they differ by at most {gap:.3g} in their logits)" if other else ""
    text += (
        f"Of {tokens:,} tokens that the captured engine wrote greedily in 16 bits for {same['n']} expressions, in a "
        f"mixed batch and one at a time, {other} differ from the choice of the model's own forward pass{rounding}; "
        f"{same['same_text_alone']} texts are the same both ways. "
    )
    answers = results["answers"]["operands"]
    parts = [
        f"{operands} operands: " + " / ".join(f"{100 * one[lane]['right'] / one[lane]['n']:.1f} %" for lane in LANES)
        for operands, one in answers.items()
    ]
    return text + f"Right answers ({' / '.join(LANES)}): {'; '.join(parts)}.\n"


def _mark(cell: dict) -> str:
    return "\\*" if cell["layers_per_cache"] > 1 else ""
