"""How far the page is behind its server while a fast run streams, as Markdown."""

from statistics import median

from training.reports.markdown import read, source, table

PATH = "assets/results/stream_cpu.json"
MISSING = "The page while a run streams: not measured yet.\n"
HEADER = [
    "stream, tokens/s of each lane",
    "window",
    "runs",
    "behind, ms",
    "longest gap on the screen, ms",
    "longest gap of the server, ms",
    "waited for a core, ms",
]


def stream() -> str:
    """A row for each rate: the median over the runs, and the most of any."""
    results = read(PATH)
    if results is None:
        return MISSING
    what = (
        "Each run's most milliseconds, as the median over the runs and the most of any. Behind is the time from a tick "
        "of the server to the first frame that shows it; a gap is the time between two changes, or two ticks, which "
        "are at least 67 ms apart. Server and browser share the machine, whose load was "
        f"{results['load_average_before']:.1f} before.\n\n"
    )
    return what + table(HEADER, [_row(case) for case in results["cases"].values()]) + source(results, PATH)


def _row(case: dict) -> list[str]:
    runs = case["runs"]
    slow = f", {case['slowdown']} times slower" if case["slowdown"] > 1 else ""
    return [
        f"{case['rate']:,}",
        f"{case['size'][0]} x {case['size'][1]}{slow}",
        str(len(runs)),
        *(
            f"{median(run[name] for run in runs):,.0f} / {max(run[name] for run in runs):,.0f}"
            for name in ("behind_ms_most", "gap_ms_most", "gap_of_server_ms_most", "waited_for_a_core_ms")
        ),
    ]
