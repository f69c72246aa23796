"""The README's commands on fresh machines: `python -m tests.support.rehearse_machines` (`make rehearse-machines`).

For each Python: a clean clone, `make app`, and then the app and the command line as root and as an ordinary user
without sudo, whose home cannot be written, with a proxy that leads nowhere, and on a taken port; at last `make quick`,
or `make test`. Each works, or says in one line what to do. It needs git, make, setpriv and, for everything but one's
own user, root.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.rehearse_space import EXPRESSION, free_port

ROOT = Path(__file__).resolve().parents[2]
ANSWER = "2907"
NOBODY = 65534
START_S = 180
NOWHERE = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
"""A proxy that nobody is at: what asks the network fails at once."""
ARTICLE = (
    "The mayor spoke on Monday about the old bridge over the river. It will close in May for two years, since its "
    "piers are older than the town hall. Trams will run until midnight while the work goes on. Shops near the bridge "
    "will get money from the town."
)
ASK = """
import json, sys
from tests.support.rehearse_space import client_of
print(json.loads(client_of(sys.argv[1]).predict(sys.argv[2], api_name="/solve"))["answer"])
"""


@dataclass(frozen=True)
class Machine:
    """A clean clone with its own environment, and who uses it.

    Attributes:
        name: in words.
        folder: of the clone.
        python: of its environment.
        prefix: words before each command, which make it another user's.
        environment: of its commands.
    """

    name: str
    folder: Path
    python: Path
    prefix: tuple[str, ...]
    environment: dict[str, str]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess:
        """A command in the clone."""
        command = [*self.prefix, *map(str, words)]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def can_start(self) -> bool:
        """Whether its Python starts for its user."""
        try:
            return self.run(self.python, "-c", "").returncode == 0
        except OSError:
            return False

    @contextlib.contextmanager
    def app(self, port: int) -> Iterator[None]:
        """The app while it listens.

        Raises:
            RuntimeError: it ended, or its port stays closed; with what it wrote.
        """
        with tempfile.TemporaryFile("w+") as log:
            own = self.environment | {"PORT": str(port)}
            command = [*self.prefix, str(self.python), "app.py"]
            process = subprocess.Popen(command, cwd=self.folder, env=own, stdout=log, stderr=log)
            try:
                ends = time.monotonic() + START_S
                while process.poll() is None and time.monotonic() < ends and not is_open(port):
                    time.sleep(0.2)
                if process.poll() is not None or not is_open(port):
                    log.seek(0)
                    raise RuntimeError(log.read()[-2000:])
                yield
            finally:
                process.terminate()
                process.wait(20)


def is_open(port: int) -> bool:
    """Whether anybody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def users(folder: Path, python: Path) -> list[Machine]:
    """Who uses the clone: whoever runs this, and, if that is root, somebody who may nothing."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    home = folder.parent / "home"
    home.mkdir()
    mine = Machine("own user", folder, python, (), {**kept, **NOWHERE, "HOME": str(home)})
    if os.getuid() != 0:
        return [mine]
    # setpriv may still start what its user may not: an interpreter in another's home, with a library found elsewhere.
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env")
    elsewhere = {**kept, **NOWHERE, "HOME": "/nonexistent"}
    return [replace(mine, name="root"), Machine("user without rights", folder, python, nobody, elsewhere)]


def lent(machine: Machine, place: Path) -> Machine:
    """The same with a copy of its interpreter, which its user may run although the interpreter lies in another's home.

    Args:
        place: a new folder for the copy.
    """
    ask = "import sys, sysconfig; print(sys.base_prefix, sysconfig.get_path('purelib'), sep='\\n')"
    asked = subprocess.run([machine.python, "-c", ask], capture_output=True, text=True, check=True)
    home, packages = asked.stdout.splitlines()
    copied = place / machine.python.resolve().relative_to(Path(home).resolve())
    shutil.copytree(home, place, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__"))
    libraries = os.pathsep.join(filter(None, [str(place / "lib"), machine.environment.get("LD_LIBRARY_PATH")]))
    own = {"PYTHONPATH": packages, "LD_LIBRARY_PATH": libraries}
    return replace(machine, python=copied, environment=machine.environment | own)


def checks(machine: Machine) -> Iterator[tuple[str, str]]:
    """What was tried, and what was wrong with it; empty where it works."""
    done = machine.run(machine.python, "-m", "selfspan_core", "run", "--json", EXPRESSION)
    answers = [json.loads(line)["answer"] for line in done.stdout.splitlines()] if done.returncode == 0 else []
    yield "command line", "" if answers == [ANSWER] * 2 else f"{answers} {done.stderr[-500:]}"
    done = machine.run(machine.python, "-m", "selfspan_core", "run", "--task", "summarize", "--json", ARTICLE)
    said = done.stderr.strip()
    written = [json.loads(line)["answer"] for line in done.stdout.splitlines()] if done.returncode == 0 else []
    # The language model is converted into a cache, which somebody without a home has not.
    is_told = machine.prefix and done.returncode == 2 and said.startswith("error: ") and "SELFSPAN_CACHE" in said
    yield "summary", "" if all(written) and (written or is_told) else said[-500:]
    port = free_port()
    try:
        with machine.app(port):
            here = f"http://127.0.0.1:{port}"
            asked = machine.run("env", "NO_PROXY=127.0.0.1", machine.python, "-c", ASK, here, EXPRESSION)
            right = asked.stdout.strip().endswith(ANSWER)
            yield "app", "" if right else asked.stdout + asked.stderr[-500:]
            yield "port taken", port_taken(machine, port)
    except RuntimeError as error:
        yield "app", str(error)


def port_taken(machine: Machine, port: int) -> str:
    """What is wrong with how a second app on a taken port ends; empty if it says what to do."""
    second = replace(machine, environment=machine.environment | {"PORT": str(port)})
    done = second.run(machine.python, "app.py")
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    if done.returncode and said and "PORT" in said[-1] and "Traceback" not in done.stderr:
        return ""
    return f"status {done.returncode}: {' '.join(said)[-300:]}"


def rehearse(python: str, is_whole: bool) -> Iterator[tuple[str, str, str]]:
    """Who, what, and what is wrong, for one Python."""
    with tempfile.TemporaryDirectory(prefix="selfspan-") as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "selfspan"
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        made = subprocess.run(
            ["make", ".venv/.app", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True, check=False
        )
        yield "own user", "make app: installation", "" if made.returncode == 0 else made.stderr[-1000:]
        if made.returncode:
            return
        for machine in users(folder, folder / ".venv" / "bin" / "python"):
            if machine.prefix and not machine.can_start():
                machine = lent(machine, Path(place) / "python")
                print(f"{python}, {machine.name}: lies where they may not read; a copy of it is used", flush=True)
            if not machine.can_start():
                yield machine.name, "start", "cannot start this Python, nor a copy of it: name one of the system's"
                continue
            for what, wrong in checks(machine):
                yield machine.name, what, wrong
        command = ["make", "test" if is_whole else "quick", f"PYTHON={python}"]
        tested = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        yield "own user", " ".join(command[:2]), "" if tested.returncode == 0 else tested.stdout[-1500:]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters (default: this one)")
    parser.add_argument("--whole", action="store_true", help="make test in place of make quick")
    arguments = parser.parse_args(argv)
    failed = False
    for python in arguments.pythons:
        if shutil.which(python) is None:
            parser.error(f"there is no {python}")
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
        for who, what, wrong in rehearse(python, arguments.whole):
            failed |= bool(wrong)
            print(f"{version}, {who}, {what}: {wrong or 'works'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
