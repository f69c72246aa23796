"""The command: `python -m tests.fuzz --seconds 600`. Every target in turn, with new seeds, until the time is over."""

import argparse
import itertools
import sys
import time

from tests.fuzz.runner import Tried, fuzz
from tests.fuzz.targets import TARGETS

ROUND = {"parser": 500, "interface": 100, "ids": 50, "files": 50}
"""Inputs of a target before it is the next one's turn."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="some of them (default: all): " + ", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600, help="time in all (default: 600)")
    parser.add_argument("--seed", type=int, help="of the first round: the same inputs each time, nothing is kept")
    parser.add_argument("--found", default=".fuzz", help="folder that keeps what failed (default: .fuzz)")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
    names = arguments.targets or list(TARGETS)
    ends, sums, failed = time.monotonic() + arguments.seconds, {name: Tried() for name in names}, []
    print(f"targets: {', '.join(names)}", flush=True)
    numbers = itertools.repeat(None) if arguments.seed is None else itertools.count(arguments.seed)
    for number in numbers:
        for name in [name for name in names if name not in failed]:
            if time.monotonic() > ends:
                break
            target, so_far = TARGETS[name], sums[name]
            try:
                tried = fuzz(target, ROUND[target.kind], number, arguments.found)
            except Exception as error:  # of any kind: that is what is looked for
                failed.append(name)
                print(
                    f"\n{name}{'' if number is None else f', seed {number}'}: {type(error).__name__}: {error}",
                    file=sys.stderr,
                )
                print("\n".join(getattr(error, "__notes__", [])), file=sys.stderr, flush=True)
                continue
            so_far.inputs += tried.inputs
            so_far.things += tried.things
            so_far.slowest_s = max(so_far.slowest_s, tried.slowest_s)
            so_far.growth_mb += tried.growth_mb
            left = max(0, ends - time.monotonic())
            print(f"\r{name:12s} {so_far.inputs:9,} inputs, {left:5.0f} s left  ", end="", flush=True)
        if time.monotonic() > ends or len(failed) == len(names):
            break
    print("\n| target | inputs | things tried | slowest, s | memory kept, MB |\n| --- | ---: | ---: | ---: | ---: |")
    for name, one in sums.items():
        state = " (failed)" if name in failed else ""
        print(f"| {name}{state} | {one.inputs:,} | {one.things:,} | {one.slowest_s:.2f} | {one.growth_mb:.0f} |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
