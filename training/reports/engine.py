"""The engine's figures as Markdown: decoding at full size, and the shipped model on a GPU."""

from pathlib import Path

from training.reports.markdown import ROOT, read, source, table

LANES = ("plain-dense", "span-dense", "span-sparse")


def engine() -> str:
    """Every GPU that the engine was measured on."""
    paths = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "assets/results").glob("engine_*.json"))
    texts = [engine_on(results, path) for path in paths if (results := read(path))]
    return "\n".join(texts) or "The engine on a GPU: not measured yet.\n"


def engine_on(results: dict, path: str) -> str:
    """One GPU's tables."""
    parts = [replayed(results), break_even(results), long_contexts(results), dense(results), kinds(results)]
    parts += [transformers(results), shipped(results)]
    picture = Path(path).with_suffix(".png")
    shown = f"\n![How many times as fast, over the batch]({picture})\n" if (ROOT / picture).exists() else ""
    return "\n".join(part for part in parts if part) + shown + source(results, path)


def replayed(results: dict) -> str:
    """Self-selected against dense on replayed arithmetic."""
    rows, shared = [], False
    for shape, parts in results["shapes"].items():
        for cell in parts.get("replay", ()):
            if "lanes" not in cell:
                continue
            lanes = cell["lanes"]
            shared |= cell["layers_per_cache"] > 1
            rows.append(
                [
                    f"{shape}, {cell['operands']} operands, batch {cell['batch']}{_mark(cell)}",
                    f"{100 * cell['visible_share']:.0f} %",
                    f"{lanes['span-dense']['ms_per_step']:.2f} ({1 / lanes['span-dense']['share_of_floor']:.2f}x)",
                    f"{lanes['span-sparse']['ms_per_step']:.2f} ({1 / lanes['span-sparse']['share_of_floor']:.2f}x)",
                    f"{lanes['span-sparse']['tokens_per_second']:,.0f}",
                    f"{cell['speedup']:.2f}x",
                    f"{cell['speedup_predicted_by_bytes']:.2f}x",
                    f"{cell['time_to_answer_speedup']:.2f}x",
                ]
            )
    if not rows:
        return ""
    header = ["random weights, text of the shipped model", "KV read", "dense, ms/step", "self-selected, ms/step"]
    header += ["self-selected, tokens/s", "faster", "bytes say", "faster to the answer"]
    note = "\\* pairs of layers (or four) share one cache, which does not fit otherwise: the same bytes are read.\n"
    return (
        "Decoding at full size, one captured graph per step. What the shipped model wrote is replayed: shapes, "
        "lengths, visibility and timing are real, the weights are random. The last column is against the plain "
        "adapter's shorter text with dense attention, annotations paid for. In parentheses: times the floor of the "
        "bytes.\n\n" + table(header, rows) + ("\n" + note if shared else "")
    )


def break_even(results: dict) -> str:
    """From how many rows on self-selected is ahead, annotations paid for."""
    cells: dict[str, list] = {}
    for shape, parts in results["shapes"].items():
        for cell in parts.get("replay", ()):
            if "lanes" in cell:
                name = f"{shape}, {cell['operands']} operands"
                cells.setdefault(name, []).append((cell["batch"], cell["time_to_answer_speedup"]))
    texts = [f"{name}: {_first_ahead(sorted(one))}" for name, one in cells.items() if len(one) > 1]
    return f"To the answer self-selected is ahead from so many rows on: {'; '.join(texts)}.\n" if texts else ""


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
        "Where the time of a step goes.\n\n"
        + table(["self-selected steps", *names], rows)
        + f"\nWhat the host calls from the first of {calls['steps']} steps to the last ({profiles[0][0]}): {listed}.\n"
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
    return "Bodies that read a part of a long context; in parentheses what the bytes say.\n\n" + table(header, rows)


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
    header = ["dense steps", "floor of the bytes, ms", "this kernel, ms", "cuDNN, ms", "flash, ms", "best over floor"]
    return "The same step with dense attention by three kernels.\n\n" + table(header, rows)


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
        "transformers' own `generate` on the same weights; eager, the host is the limit, and varies between runs.\n\n"
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
        text = f"Medians of {speed[0]['rounds']}, prompts included; among many requests the host is the limit.\n\n"
        text += table(header, rows) + "\n"
    same = results["same_tokens"]
    ways = [same[name] for name in ("mixed batch", "alone")]
    tokens, other = (sum(way[key] for way in ways) for key in ("tokens", "other"))
    gap = max(way["largest_gap"] for way in ways)
    rounding = f" (rounding: they differ by at most {gap:.3g} in their logits)" if other else ""
    text += (
        f"Of {tokens:,} tokens that the captured engine wrote greedily in 16 bits for {same['n']} expressions, in a "
        f"mixed batch and one at a time, {other} are not what the model's own forward pass prefers{rounding}; "
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
