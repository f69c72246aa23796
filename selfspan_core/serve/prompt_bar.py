"""A bar on the terminal while long prompts are processed, which on a CPU takes seconds to minutes."""

import sys
from collections.abc import Iterator
from typing import Any

OF_TERMINALS = {"disable": None, "leave": False}
"""Settings of tqdm for a bar that is shown on a terminal only, and is gone when it is full."""


def with_bar(ticks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The objects of a run, as they are. Meanwhile a bar with the time left, on standard error, if that is a terminal.

    Args:
        ticks: of `compare.session.Session.compare`; closed with this iterator.
    """
    from tqdm import tqdm

    bar, sizes, is_open = None, {}, sys.stderr is not None
    try:
        for tick in ticks:
            if tick["kind"] == "start":
                sizes = {lane["id"]: lane["prompt_tokens"] for lane in tick["lanes"]}
            lanes = tick["lanes"] if tick["kind"] == "tick" else {}
            if is_open and any("prompt_done" in lane for lane in lanes.values()):
                done = sum(_num_done(lane, sizes[name]) for name, lane in lanes.items())
                if bar is None:  # how fast it is shows from here on: what is done took its time before
                    shown = {"desc": "reading the prompt", "unit": "token", "initial": done}
                    bar = tqdm(total=sum(sizes.values()), **shown, **OF_TERMINALS)
                bar.update(done - bar.n)
            elif bar is not None:
                bar.close()
            yield tick
    finally:
        if bar is not None:
            bar.close()
        if hasattr(ticks, "close"):
            ticks.close()


def _num_done(lane: dict[str, Any], num_tokens: int) -> int:
    """Tokens of a lane's prompt that are processed, given its entry in a tick and how many they are."""
    return lane.get("prompt_done", 0) if lane["phase"] == "prefill" else num_tokens
