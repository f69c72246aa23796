"""Puts faults into captured graphs while the app serves on a GPU: `python -m tests.support.captured_faults`.

As `tests.support.inject_faults` does it on a CPU; who comes next asks for as many answers at once as was failing. Two
faults are real: the device's memory is taken by somebody else, and at the end a kernel reads out of bounds, after which
CUDA serves this process no more. With `--write` the table goes into docs/reliability.md.
"""

import argparse
import contextlib
import functools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from gradio_client import Client

from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.serve.lazy_session import LazySession
from tests.support.crowd import LONG
from tests.support.inject_faults import MOST_NEXT_S, Outcome, conclude, decoding_faults, in_this_process, outcome, told

BEGIN, END = "<!-- captured faults -->", "<!-- /captured faults -->"
LOADS = (1, 16)
MANY = 64
LEFT_BYTES = 16 << 20


@contextlib.contextmanager
def memory_taken() -> Iterator[None]:
    """All of the device's memory but a little is somebody else's, and what PyTorch keeps for later is in use."""
    taken = []
    torch.cuda.empty_cache()
    size = torch.cuda.mem_get_info()[0] - LEFT_BYTES
    while size > LEFT_BYTES:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.empty_cache()


def no_memory(url: str, load: int) -> str:
    """A run of more requests than before, for which there is no memory."""
    with memory_taken():
        said = told(url, load)
    if said == "end":
        raise RuntimeError("there was memory enough")
    return said


@contextlib.contextmanager
def reading_out_of_bounds(after: int) -> Iterator[list[str]]:
    """A kernel before a captured step, behind `after` of these, reads out of bounds; what was done so far."""
    usual, done = BatchStep.launch, []
    left = [after]

    def instead(step: BatchStep) -> int:
        left[0] -= 1
        if left[0] < 0 and not done:
            done.append("a kernel read out of bounds")
            torch.zeros(3, device=step.model.device)[torch.tensor([1 << 20], device=step.model.device)]
        return usual(step)

    with mock.patch.object(BatchStep, "launch", instead):
        yield done


def lost_device(url: str) -> Outcome:
    """The device is lost in the middle of a run: whoever comes next is told so."""
    with reading_out_of_bounds(after=5) as done:
        happened = told(url)
    happened = happened if done else "the fault was never reached"
    client = Client(url, verbose=False)
    began = time.monotonic()
    try:
        said = client.predict("arithmetic", LONG, api_name="/compare")["kind"]
    except Exception as error:
        said = str(error)
    took = time.monotonic() - began
    is_told = bool(done) and "CUDA" in said
    took = took if is_told else float("inf")
    happened = f"{_short(happened)}; so is whoever comes next: {_short(said)}"
    print(f"{'ok ' if took < MOST_NEXT_S else 'BAD'} a lost device: {happened}; {took:.2f} s", flush=True)
    return Outcome("a kernel that reads out of bounds, in the middle of decoding", happened, took, took)


def _short(said: str) -> str:
    """Without what CUDA adds to its first line."""
    return re.split(r"\\n|\n", said)[0]


def all_outcomes() -> Iterator[Outcome]:
    """One after the other, the one that leaves no device last."""
    with in_this_process(LazySession()) as url:
        faults: list[tuple[str, int, Callable[[str], str]]] = []
        for load in LOADS:
            told(url, load)
            for name, inject in decoding_faults(BatchStep, load):
                faults.append((f"{name}{f', {load} rows' if load > 1 else ''}", load, inject))
        faults.append((f"the device's memory taken, {MANY} rows", MANY, functools.partial(no_memory, load=MANY)))
        for name, load, inject in faults:
            yield outcome(name, url, functools.partial(inject, url), load)
        yield lost_device(url)


def main() -> None:
    """Inject, print, and exit with 1 where the next visitor was not served, or told why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: tests.support.inject_faults puts faults into steps on a CPU")
    logging.getLogger("selfspan").setLevel(logging.CRITICAL)
    conclude(list(all_outcomes()), (BEGIN, END) if arguments.write else None)


if __name__ == "__main__":
    main()
