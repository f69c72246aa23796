"""The server's settings from its environment, and its end: one line for whoever starts it wrongly. No torch here."""

import gc
import os
import socket
import sys
import threading
from typing import NoReturn

from selfspan_core.attention.impls import ENGINE_IMPLS
from selfspan_core.errors import brief

USUAL_PORT = 7860
EXIT_BAD_SETTING = 2
EXIT_INTERRUPTED = 130


def refuse(why: str) -> NoReturn:
    """End the process with a line that says what to do."""
    print(why, file=sys.stderr)
    raise SystemExit(EXIT_BAD_SETTING)


def port_of_environment() -> int:
    """PORT, or the usual one where it is not set; ends the process where it is no port that can be had."""
    given = os.environ.get("PORT", str(USUAL_PORT))
    port = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else 0
    if not 1 <= port <= 65_535:
        refuse(
            f"PORT is a number from 1 to 65535, not {brief(given)}: PORT={USUAL_PORT + 220} python app.py, for example."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            why = "is not for ordinary users" if isinstance(error, PermissionError) else "is taken by another program"
            refuse(f"Port {port} {why}. Choose another one: PORT={USUAL_PORT + 220} python app.py, for example.")
    return port


def impl_of_environment() -> str | None:
    """SELFSPAN_IMPL; None where it is not set; ends the process where no implementation has that name."""
    given = os.environ.get("SELFSPAN_IMPL") or None
    if given is not None and given not in ENGINE_IMPLS:
        refuse(f"SELFSPAN_IMPL is one of {', '.join(ENGINE_IMPLS)}, not {brief(given)}.")
    return given


def seconds_of_environment(usual: float) -> float:
    """Seconds of the device that a run may have: SELFSPAN_RUN_SECONDS; ends the process where that is no number."""
    given = os.environ.get("SELFSPAN_RUN_SECONDS", str(usual))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        refuse(f"SELFSPAN_RUN_SECONDS is a number of seconds above 0, not {brief(given)}.")
    return seconds


def reach_itself() -> None:
    """Keep this process's requests to its own address off a proxy; gradio makes one before it counts as started.

    Where a network has a proxy, machines often name it in their environment without an exception for themselves.
    """
    for name in ("no_proxy", "NO_PROXY"):
        others = os.environ.get(name, "")
        os.environ[name] = ",".join([*([others] if others else []), "localhost", "127.0.0.1", "0.0.0.0"])


def settle() -> None:
    """Leave what this process holds now out of Python's searches for garbage, until `gc.unfreeze`.

    A full search stops every thread while it looks at all objects: 240,000 of imports and the page take 0.3 s, 600,000
    with torch 0.7 s, and a fast run makes enough new ones for a search in its midst. All that is there once the server
    stands stays for as long as it does, so there is nothing to find among it.
    """
    gc.freeze()


def wait_for_interrupt() -> NoReturn:
    """Until Ctrl-C; then the process ends at once.

    Without Python's own end of a process, which aborts where a thread is in the middle of a computation, and waits for
    those that serve visitors.
    """
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nStopped.", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
