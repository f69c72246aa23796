"""A Space on ZeroGPU, rehearsed: `python -m tests.support.rehearse_space` (`make rehearse-space`).

A clean environment from requirements.txt alone, an empty home, the app as a Space starts it, a stand-in for the package
`spaces` that forks a worker for every run (`space/spaces.py`), and then the API and the tools as visitors use them.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("space")
START_S = 120
EXPRESSION = "79*36+63"


def install(python: str, folder: Path, torch: str | None) -> Path:
    """A virtual environment with what requirements.txt names, and its Python."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    own = folder / "bin" / "python"
    pinned = [f"torch=={torch}"] if torch else []
    subprocess.run([own, "-m", "pip", "install", "--quiet", "-r", ROOT / "requirements.txt", *pinned], check=True)
    return own


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(python: Path | str, log: Path, **environment: str) -> Iterator[tuple[str, int]]:
    """The app in a process of its own; its address and its process id, once the port is open.

    Raises:
        RuntimeError: it does not start; with what it wrote.
    """
    port = free_port()
    with log.open("w") as written:
        own = (environment or dict(os.environ)) | {"PORT": str(port)}
        app = subprocess.Popen([python, "app.py"], cwd=ROOT, env=own, stdout=written, stderr=written)
    try:
        ends = time.monotonic() + START_S
        while app.poll() is None and time.monotonic() < ends:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the app did not start:\n{log.read_text()}")
        yield f"http://127.0.0.1:{port}", app.pid
    finally:
        app.terminate()
        app.wait(10)


@contextlib.contextmanager
def space(python: Path | str, log: Path, home: Path, **settings: str) -> Iterator[str]:
    """The app as a Space on ZeroGPU runs it, with settings of its owner, in an empty home; its address."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    own = {"HOME": str(home), "PYTHONPATH": str(STAND_IN), "SPACES_ZERO_GPU": "true", **settings}
    with serving(python, log, **kept, **own) as (url, _):
        yield url


def client_of(url: str):
    """Gradio's client, once the app answers: its port opens a moment earlier."""
    import httpx
    from gradio_client import Client

    for _ in range(START_S):
        with contextlib.suppress(httpx.HTTPError, ValueError):
            return Client(url, verbose=False)
        time.sleep(1)
    raise RuntimeError(f"the app does not answer at {url}")


def ask(url: str) -> list[dict]:
    """What visitors get, and how long it takes: two expressions, an article, bad input, a tool, a run left early."""
    from gradio_client.exceptions import AppError

    from selfspan_core.tasks.registry import TASKS, get_task

    client, found = client_of(url), []

    def timed(name: str, work) -> None:
        began = time.monotonic()
        try:
            answer = work()
        except AppError as error:
            answer = f"error: {error}"
        found.append({"asked": name, "answer": str(answer), "seconds": round(time.monotonic() - began, 2)})

    def compared(task: str, text: str, **settings):
        return client.predict(task, text, api_name="/compare", **settings)["lanes"]["sparse"]["answer"]

    long = next(get_task("arithmetic").similar(get_task("arithmetic").parse("+".join(["1"] * 64)), 1)).text
    timed(EXPRESSION, lambda: compared("arithmetic", EXPRESSION))
    timed("64 operands", lambda: compared("arithmetic", long))
    if "summarize" in TASKS:
        longest = max(get_task("summarize").examples, key=len)
        timed("the longest article", lambda: compared("summarize", longest, length="medium"))
    timed("1/0", lambda: compared("arithmetic", "1/0"))
    left = client.submit("arithmetic", long, api_name="/compare")
    while not left.outputs():
        time.sleep(0.05)
    left.cancel()
    timed("solve", lambda: json.loads(client.predict(EXPRESSION, api_name="/solve"))["answer"])
    return found


def check(found: list[dict], log: str) -> list[str]:
    """What is wrong."""
    by_name = {one["asked"]: one["answer"] for one in found}
    wrong = [f"{name}: {by_name[name]}" for name in (EXPRESSION, "solve") if by_name[name] != "2907"]
    wrong += [f"{name}: {answer}" for name, answer in by_name.items() if name != "1/0" and answer.startswith("error")]
    wrong += [] if "zero" in by_name["1/0"] else [f"1/0: {by_name['1/0']}"]
    begun, ended = log.count("worker ") - log.count(" ended after "), log.count(" ended after ")
    # All runs but the bad input had a worker of their own, and all of these have ended.
    wrong += [] if begun == ended == len(found) else [f"{begun} workers began, {ended} ended, for {len(found)} runs"]
    return wrong + (["a traceback in the server's log"] if "Traceback" in log else [])


def main() -> None:
    """Install, start, ask, check; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the Space's version")
    parser.add_argument("--torch", help="the version that the Space has; default: the newest that requirements take")
    parser.add_argument("--installed", type=Path, help="use this interpreter, and install nothing")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        print(json.dumps(ask(arguments.ask)))
        return
    folder = Path(tempfile.mkdtemp(prefix="space-"))
    try:
        began = time.monotonic()
        own = arguments.installed or install(arguments.python, folder / "venv", arguments.torch)
        print(f"installed in {time.monotonic() - began:.0f} s", flush=True)
        log, home = folder / "log", folder / "home"
        home.mkdir()
        with space(own, log, home) as url:
            command = [own, "-m", "tests.support.rehearse_space", "--ask", url]
            asked = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            time.sleep(1)
        found = json.loads(asked.stdout.splitlines()[-1])
        for one in found:
            print(f"{one['seconds']:7.2f} s  {one['asked']}: {one['answer'][:90]}")
        print(log.read_text())
        if wrong := check(found, log.read_text()):
            sys.exit("\n".join(wrong))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
