"""What the paper left open, answered by the results files, as Markdown: the blocks of docs/findings.md."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from training.reports.markdown import picture, read, read_all, source, table

BLOCKS_OF_TOKENS = (16, 32, 64, 128, 256)
MODELS = {"selfspan-17m": "summarize", "smollm2-135m": "summarize_smollm2-135m"}
LANES = ("span-sparse", "span-dense", "plain-dense")
DRAFTED, SPAN, LOOKUP, PLAIN = "span sparse + drafts", "span sparse", "plain dense + lookup", "plain dense"
MISSING = "Not measured yet.\n"


def findings_models() -> str:
    """The same task by two trained models, and the same texts at the shapes of large ones."""
    rows = []
    for model, name in MODELS.items():
        results = read(f"assets/results/{name}.json")
        lanes = results["sets"]["test_cnndm"]["lanes"] if results else {}
        for lane in LANES:
            if one := lanes.get(lane, {}).get("short"):
                figures = [
                    f"{one['rougeL']:.1f}",
                    f"{one['mean_tokens']:.0f}",
                    f"{one['attended_percent_of_dense']:.0f} %",
                ]
                rows.append([f"{model}, {lane}", *figures])
    if not rows:
        return MISSING
    files = ", ".join(f"[`{name}.json`](assets/results/{name}.json)" for name in MODELS.values())
    trained = table(["short summaries of 300 news articles", "ROUGE-L", "tokens", "KV read"], rows)
    return f"{trained}\nFrom {files}.\n\n{_shapes()}"


def _shapes() -> str:
    """Two texts at every shape that was measured; random weights."""
    cells, sources = _measured()
    rows = [
        [
            f"{shape}, {text}, batch {batch}",
            *(f"{cell['lanes'][lane]['plain_dense_over_this']:.2f}x" for lane in (SPAN, LOOKUP, DRAFTED)),
        ]
        for (shape, text, batch), cell in cells.items()
        if text in ("64 operands", "900-token articles") and batch in (1, 32, 128)
    ]
    header = ["time to the answer, against plain dense", "self-selected", "dense + lookup", "self-selected + drafts"]
    return table(header, rows) + sources if rows else ""


def _measured() -> tuple[dict[tuple[str, str, int], dict], str]:
    """Cells by shape, text and batch, each from the first file that has it, and lines that name the files."""
    found: dict[tuple[str, str, int], dict] = {}
    sources = []
    for path, results in read_all("drafts").items():
        keyed = {(shape, cell["text"], cell["batch"]): cell for shape, cell in _cells(results)}
        new = {key: cell for key, cell in keyed.items() if key not in found}
        found |= new
        sources += [source(results, path)] if new else []
    order = {shape: number for number, shape in enumerate(dict.fromkeys(shape for shape, _, _ in found))}
    return dict(sorted(found.items(), key=lambda one: order[one[0][0]])), "".join(sources)


def _cells(results: dict) -> Iterator[tuple[str, dict]]:
    for shape, parts in results["shapes"].items():
        for cell in parts.get("answers", ()):
            if "lanes" in cell:
                yield shape, cell


def findings_speculation() -> str:
    """What drafts make of declared spans, at the first file's first shape."""
    parts = []
    for path, results in list(read_all("drafts").items())[:1]:
        first = next(iter(results["shapes"]))
        cells = [cell for shape, cell in _cells(results) if shape == first]
        rows = [
            [
                f"{cell['text']}, batch {cell['batch']}",
                *(f"{cell['lanes'][lane]['tokens_per_step']:.1f}" for lane in (LOOKUP, DRAFTED)),
                *(f"{cell['lanes'][lane]['plain_dense_over_this']:.2f}x" for lane in (LOOKUP, SPAN, DRAFTED)),
            ]
            for cell in cells
            if cell["batch"] in (1, 32, 128)
        ]
        best = max(cells, key=lambda cell: cell["lanes"][DRAFTED]["plain_dense_over_this"])
        least = min(cells, key=lambda cell: cell["lanes"][DRAFTED]["lookup_over_this"])
        answer = (
            f"At a {first} shape drafts from declared spans make self-selected attention up to "
            f"{best['lanes'][DRAFTED]['plain_dense_over_this']:.1f} times as fast to the answer as plain dense "
            f"decoding ({_name(best)}). Against the strongest lossless speculation without spans, prompt lookup, it is "
            f"{least['lanes'][DRAFTED]['lookup_over_this']:.2f} ({_name(least)}) to "
            f"{max(cell['lanes'][DRAFTED]['lookup_over_this'] for cell in cells):.2f} times as fast. "
            "Greedy texts stay the same up to near ties of rounding."
        )
        header = [
            "text",
            "tokens a step, lookup",
            "from spans",
            "dense + lookup",
            "self-selected",
            "with drafts",
        ]
        parts.append(f"{answer}\n\n{table(header, rows)}{source(results, path)}\n{picture(path, 'Drafts')}")
    return "\n".join(parts) or MISSING


def _name(cell: dict) -> str:
    return f"{cell['text']}, batch {cell['batch']}"


def findings_clustered() -> str:
    """The same number of blocks, side by side or scattered."""
    parts = []
    for path, results in read_all("kernel").items():
        ratios = _ratios(results)
        every = [ratio for some in ratios.values() for ratio in some]
        answer = (
            f"No: over {len(every)} pairs of the same shape, block and share kept, the kernel takes "
            f"{min(every):.2f} to {max(every):.2f} times as long for clustered blocks as for scattered ones, "
            f"{statistics.median(every):.3f} times in the median. Small blocks cost hardly more than large ones: 16 "
            f"tokens take {_small_blocks(results):.3f} times as long as 256, in the median. "
            "What counts is how many are read."
        )
        rows = [
            [f"{block}", f"{len(some)}", *(f"{x:.3f}" for x in (statistics.median(some), min(some), max(some)))]
            for block, some in ratios.items()
        ]
        drawn = table(["tokens a block", "pairs", "clustered / scattered, median", "least", "most"], rows)
        parts.append(f"{answer}\n\n{drawn}{source(results, path)}\n{picture(path, 'Attention by the share kept')}")
    return "\n".join(parts) or MISSING


def _small_blocks(results: dict) -> float:
    """Time with scattered blocks of 16 tokens over that with blocks of 256; the median."""
    found = []
    for measured in results["shapes"]:
        us = {(case["selection"], case["density"]): case["ours"]["us"] for case in measured["cases"]}
        found += [
            us[name, d] / us["random 256", d] for name, d in us if name == "random 16" and ("random 256", d) in us
        ]
    return statistics.median(found)


def _ratios(results: dict) -> dict[int, list[float]]:
    """Per block size, time with clustered blocks over time with scattered ones."""
    found: dict[int, list[float]] = {block: [] for block in BLOCKS_OF_TOKENS}
    for measured in results["shapes"]:
        us = {(case["selection"], case["density"]): case["ours"]["us"] for case in measured["cases"]}
        for block, some in found.items():
            for (selection, density), clustered in us.items():
                if selection == f"clustered {block}" and (f"random {block}", density) in us:
                    some.append(clustered / us[f"random {block}", density])
    return {block: some for block, some in found.items() if some}


def findings_overhead() -> str:
    """What names cost: tokens, reads, the tracker's time."""
    results = read("assets/results/headers.json")
    if results is None:
        return MISSING
    rows = [_overhead(one) for one in results["texts"]]
    header = [
        "answers",
        "tokens, plain",
        "with names",
        "of them in headers",
        "KV read, of dense",
        "of that, by headers",
        "reads against plain dense",
        "tracker, us a token",
    ]
    return f"{table(header, rows)}{source(results, 'assets/results/headers.json')}\n{_device_share()}"


def _overhead(one: dict[str, Any]) -> list[str]:
    tokens, reads = one["tokens"], one["reads"]
    num, read_all_parts = sum(tokens.values()), sum(reads.values())
    return [
        f"{one['task']}, {one['size']}",
        f"{one['plain_tokens']:,.0f}",
        f"{num:,.0f}",
        f"{100 * tokens['header'] / num:.0f} %",
        f"{100 * read_all_parts / one['dense_reads']:.0f} %",
        f"{100 * reads['header'] / read_all_parts:.0f} %",
        f"{100 * read_all_parts / one['plain_reads']:.0f} %",
        f"{one['tracker_us_per_token']:.1f}",
    ]


def _device_share() -> str:
    """The share of a GPU's step that tracker, plan and sampler take."""
    parts = []
    for path, results in read_all("engine").items():
        rows = [
            [
                f"{shape}, {cell['operands']} operands, batch {cell['batch']}",
                f"{cell['microseconds_per_step'][SMALL_PARTS]:,.0f}",
                f"{100 * cell['share'][SMALL_PARTS]:.1f} %",
            ]
            for shape, some in results["shapes"].items()
            for cell in some.get("profile", ())
            if SMALL_PARTS in cell.get("share", {})
        ]
        if rows:
            drawn = table(["captured step", "tracker, plan and sampler, us", "of the step"], rows)
            parts.append(f"{drawn}{source(results, path)}")
    return "\n".join(parts)


SMALL_PARTS = "tracker, planning, sampling"


def findings_break_even() -> str:
    """From which share kept, and which context, reading less is faster; and from which batch names pay."""
    parts = []
    for path, results in read_all("kernel").items():
        per_shape: dict[str, list[float]] = {}
        for one in results["break_even"]:
            if one["density"] is not None:
                per_shape.setdefault(one["shape"], []).append(one["density"])
        rows = [[shape, f"{100 * min(some):.0f} %", f"{100 * max(some):.0f} %"] for shape, some in per_shape.items()]
        drawn = table(
            ["attention of one step is faster than cuDNN's dense below a share kept of", "least", "most"], rows
        )
        parts.append(f"{drawn}{source(results, path)}")
    cells, sources = _measured()
    if cells:
        parts.append(_batches_that_pay(cells) + sources)
    return "\n".join(parts) or MISSING


def _batches_that_pay(measured: Mapping[tuple[str, str, int], dict]) -> str:
    """Per shape and text, the batches at which the longer text is sooner at its end."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for (shape, text, _), cell in measured.items():
        cells.setdefault((shape, text), []).append(cell)
    rows = [
        [
            f"{shape}, {text}",
            *(_batches(cell for cell in some if is_sooner(cell, lane)) for lane in (SPAN, DRAFTED)),
            _batches(some),
        ]
        for (shape, text), some in cells.items()
    ]
    return table(
        ["sooner at the answer than plain dense at the batches", "without drafts", "with drafts", "measured"], rows
    )


def is_sooner(cell: dict, lane: str) -> bool:
    """Whether a lane is at its end before plain dense is."""
    return cell["lanes"][lane]["plain_dense_over_this"] > 1


def _batches(cells: Iterable[dict]) -> str:
    return ", ".join(str(batch) for batch in sorted(cell["batch"] for cell in cells)) or "–"
