"""The files of docs/serving: services start what the command line takes, and what the Dockerfile copies is there."""

import configparser
import json
import shlex
from pathlib import Path

import pytest
import yaml

from selfspan_core.serve.cli_options import build_parser
from selfspan_core.serve.stores import ENGINE_VARIABLE, PLAIN_ENGINE_VARIABLE
from selfspan_core.serve.vllm_plugin.support import VERSIONS

ROOT = Path(__file__).resolve().parents[1]
SERVING = ROOT / "docs/serving"


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest), one for each line."""
    text = (SERVING / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#"))
    return [(instruction, rest) for instruction, rest in lines]


def said_by_default(argument: str) -> str:
    """The value of a build's argument where nobody names one."""
    return next(rest for name, rest in dockerfile() if name == "ARG" and rest.startswith(argument)).split("=")[1]


def started(words: list[str]):
    """What the command line makes of a command."""
    assert Path(words[0]).name == "selfspan"
    return build_parser().parse_args(words[1:])


def test_systemd_starts_what_the_command_line_takes():
    """Would catch an option that was renamed, a port open to everybody, and a server that stays down after a death."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(SERVING / "selfspan-vllm.service", encoding="utf-8")
    service = unit["Service"]
    asked = started(shlex.split(service["ExecStart"]))
    assert asked.engine == "vllm" and Path(asked.model).is_absolute()
    assert asked.options[asked.options.index("--host") + 1] == "127.0.0.1"
    assert service["Restart"] == "always"


def test_the_image_starts_what_it_exported():
    """Would catch an image of a vLLM that the plugin refuses, and one that serves another folder than it wrote."""
    instructions = dockerfile()
    said = dict(instructions)
    version = next(rest for name, rest in instructions if name == "ARG").removeprefix("VLLM=v")
    assert version in VERSIONS
    asked = started(json.loads(said["ENTRYPOINT"]) + json.loads(said["CMD"]))
    export = next(rest for name, rest in instructions if name == "RUN" and rest.startswith("selfspan export"))
    wrote = started(
        shlex.split(export.replace("${TASK}", "arithmetic").replace("${ADAPTER}", said_by_default("ADAPTER")))
    )
    assert asked.model == wrote.out and wrote.adapter == "span"


def composed() -> dict:
    return yaml.safe_load((SERVING / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("service", ["vllm", "vllm-plain", "app"])
def test_compose_builds_from_files_that_are_there(service):
    """Would catch a context that a moved file left, an engine at an address that nobody serves, and an open port."""
    services = composed()
    build = services[service]["build"]
    build = {"context": build} if isinstance(build, str) else build
    context = (SERVING / build["context"]).resolve()
    assert context == ROOT and (context / build.get("dockerfile", "Dockerfile")).is_file()
    assert services["app"]["ports"] == ["127.0.0.1:7860:7860"]
    if service != "app":
        assert "ports" not in services[service] and services["app"]["depends_on"][service]
        started(json.loads(dict(dockerfile())["ENTRYPOINT"]) + services[service]["command"])


def test_each_engine_of_the_app_serves_the_adapter_that_it_is_asked_for():
    """Would catch a plain pane that is served by the span adapter, and two servers that both want the whole GPU."""
    services = composed()
    for variable, service, adapter in (
        (ENGINE_VARIABLE, "vllm", "span"),
        (PLAIN_ENGINE_VARIABLE, "vllm-plain", "plain"),
    ):
        assert services["app"]["environment"][variable] == f"http://{service}:8000"
        arguments = services[service]["build"].get("args", {})
        assert arguments.get("ADAPTER", said_by_default("ADAPTER")) == adapter
        command = services[service]["command"]
        assert float(command[command.index("--gpu-memory-utilization") + 1]) < 0.5
