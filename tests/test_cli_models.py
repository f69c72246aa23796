"""The command line with real files: a process of its own, local folders, missing weights."""

import json
import os
import socket
import subprocess
import sys

import pytest

from selfspan_core.compare.session import Session
from selfspan_core.engine.model_store import ModelStore
from selfspan_core.errors import ModelError
from tests.support.asking import compare
from tests.support.cli_tools import FIELDS, TEXT, call, python
from tests.support.paths import ROOT
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def options(tiny):
    base, adapters = tiny
    own = {adapter: str(adapters / f"arithmetic-{adapter}") for adapter in ("span", "plain")}
    return ["--model", str(base), "--span-adapter", own["span"], "--plain-adapter", own["plain"], "--device", "cpu"]


# A proxy that refuses connections: whatever asks the network fails loudly.
NOWHERE = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}


def test_real_process(tiny):
    """Would catch noise of the libraries on either stream, and a need for the network."""
    arguments = ["--json", "--max-new-tokens", "12", "--adapter", "plain", *options(tiny)]
    done = python("run", *arguments, stdin=b"12+34\n5*6-7\n", HF_HUB_OFFLINE="0", OMP_NUM_THREADS="1", **NOWHERE)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    drafted = ("tokens_per_pass", "accepted_share")  # of lanes in which anything was drafted
    assert [tuple(name for name in o if name not in drafted) for o in objects] == [FIELDS] * 4
    assert all(o["tokens"] <= 12 and o["seconds"] > 0 for o in objects)


def test_broken_pipe_is_quiet(tiny):
    """Would catch a traceback when the reader has seen enough (`| head -1`); and noise or a need for the network where
    transformers is told that there is none."""
    command = [sys.executable, "-m", "selfspan_core", "run", "--json", "--max-new-tokens", "4", *options(tiny)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **NOWHERE}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        process.stdin.write(b"1+2\n" * 100)
        process.stdin.close()
        assert tuple(json.loads(process.stdout.readline()))[: len(FIELDS)] == FIELDS
        process.stdout.close()
        error = process.stderr.read()
    assert error == b"" and process.returncode == 141


def test_local_folders_never_touch_the_network(tiny, monkeypatch):
    """Would catch a library that asks the hub about a model that lies in a folder."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network access: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    base, adapters = tiny
    session = Session(ModelStore(base, adapters, device="cpu"))
    *_, end = compare(session, "arithmetic", "12+34", max_new_tokens=5)
    assert set(end["lanes"]) == {"dense", "sparse"}


def test_store_loads_once_and_keeps_adapters_apart(tiny):
    """Would catch a model loaded per request, and adapters that share weights."""
    base, adapters = tiny
    store = ModelStore(base, adapters, device="cpu")
    span, plain = store.engine("arithmetic", "span"), store.engine("arithmetic", "plain")
    assert span is store.engine("arithmetic", "span") and span.model is not plain.model
    assert store.tokenizer is span.model.tokenizer and store.device_name == "CPU, float32"


def test_real_ticks_are_json_and_both_lanes_agree(tiny):
    """Would catch a tensor in a tick; and with greedy decoding and text outside steps, lanes that differ."""
    base, adapters = tiny
    session = Session(ModelStore(base, adapters, device="cpu"))
    ticks = list(compare(session, "arithmetic", TEXT, max_new_tokens=40, tick_seconds=0))
    json.dumps(ticks, allow_nan=False)
    dense, sparse = ticks[-1]["lanes"]["dense"], ticks[-1]["lanes"]["sparse"]
    if sparse["attended_tokens"] == sparse["dense_tokens"]:
        assert dense["output"] == sparse["output"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--span-adapter": "/no/such/folder"}, "no adapter folder '/no/such/folder'"),
        ({"--model": "/no/such/base"}, "no model folder '/no/such/base'"),
        ({"--device": "tpu"}, "auto, cpu, cuda"),
        ({"--impl": "magic"}, "magic"),
        ({"--impl": "cuda"}, "need a CUDA device"),
        ({"--impl": "captured"}, "impl 'captured': the CUDA kernels need a CUDA device"),
        ({"--load": "2"}, "Simultaneous requests need a CUDA GPU"),
    ],
)
def test_missing_things_are_named(monkeypatch, capsys, tiny, change, message):
    """Would catch a traceback, or a silent fallback, where a folder, device or implementation is not there."""
    pairs = options(tiny)
    settings = dict(zip(pairs[::2], pairs[1::2], strict=True)) | change
    flat = [part for pair in settings.items() for part in pair]
    assert call(monkeypatch, *flat, stdin=b"1+2") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1


def test_missing_shipped_adapter_says_how_to_make_it(tiny, tmp_path):
    """Would catch an error that leaves the user without the next step."""
    store = ModelStore(tiny[0], tmp_path, device="cpu")
    with pytest.raises(ModelError, match=r"training/configs/arithmetic-span\.yaml"):
        store.engine("arithmetic", "span")
