"""A vLLM server as the engine, for real: started as `selfspan serve` starts it, beside the project's own engine."""

import itertools
import os
import subprocess
import time
from contextlib import suppress

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import httpx

from selfspan_core.engine.engine import Engine
from selfspan_core.engine.events import Finished, Measured, Token
from selfspan_core.engine.request import PromptRequest
from selfspan_core.models.export import export_merged
from selfspan_core.models.export_record import ExportRecord
from selfspan_core.models.model import SpanModel
from selfspan_core.params import SamplingParams
from selfspan_core.paths import ADAPTERS
from selfspan_core.serve import cli_engines
from selfspan_core.serve.http_engine.served import engines_at
from selfspan_core.serve.http_engine.store import ServedStore
from selfspan_core.tasks.registry import get_task
from tests.support.rehearse_space import free_port
from tests.support.vllm_tools import ENVIRONMENT, PAGE_SIZE

START_S = 300
TASK = get_task("arithmetic")
TEXTS = ("1+2", "79*36+63-(45-12)*8", "-5*(-3)+(4-(-8))*12-96/8")


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """The address of a server, and the own engine of the same folder, both in float32."""
    folder = tmp_path_factory.mktemp("served") / "arithmetic"
    record = ExportRecord("arithmetic", "span", "selfspan-17m")
    export_merged("selfspan-17m", ADAPTERS / "arithmetic-span", folder, "float32", record)
    model, port = SpanModel.load(folder), free_port()
    options = ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    options += ["--block-size", str(PAGE_SIZE), "--num-gpu-blocks-override", "128"]
    own = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    command = cli_engines.vllm_command(str(folder), options)
    log = (folder.parent / "log").open("w")
    with log, subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log) as process:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5, trust_env=False).status_code == 200:
                    break
            time.sleep(0.5)
        else:
            pytest.fail((folder.parent / "log").read_text()[-4000:])
        yield address, Engine(model, model.tokenizer.markers), model.tokenizer
        process.terminate()


def prompt_of(text, tokenizer):
    return TASK.render(TASK.parse(text), tokenizer, annotated=True)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_a_served_answer_is_the_own_engines(beside, attention):
    """A stream, a handshake or times of another form than the stand-in of the other tests has them."""
    address, own, tokenizer = beside
    store = ServedStore(engines_at(address))
    served = store.engine("arithmetic", "span")
    assert store.terms.clock == "server"
    for text in TEXTS:
        request = PromptRequest(prompt_of(text, tokenizer), sampling=SamplingParams(max_new_tokens=400))
        theirs, ours = (list(engine.generate(request, attention)) for engine in (served, own))
        of_theirs, of_ours = (
            [(event.id, event.visible, event.phase) for event in events if isinstance(event, Token)]
            for events in (theirs, ours)
        )
        assert of_theirs == of_ours
        assert isinstance(theirs[-2], Measured) and isinstance(theirs[-1], Finished)
        assert theirs[-1].attended_tokens == ours[-1].attended_tokens and theirs[-1].reason == "eos"


def test_stop_and_load(beside):
    """A request that the server goes on with when its run is over; a seed that ends a server on a CPU for everybody."""
    address, _, tokenizer = beside
    store = ServedStore(engines_at(address))
    served, prompt = store.engine("arithmetic", "span"), prompt_of(TEXTS[1], tokenizer)
    assert not store.terms.takes_seeds
    long = SamplingParams(max_new_tokens=1500, temperature=2.0, seed=1)
    events = served.generate_among(PromptRequest(prompt, sampling=long), itertools.repeat(prompt), 3, "sparse")
    drawn = [event.id for event in itertools.islice(events, 20) if isinstance(event, Token)]
    events.close()
    until = time.monotonic() + 60
    while _num_running(address) and time.monotonic() < until:
        time.sleep(0.1)
    assert _num_running(address) == 0
    assert drawn
    # Pieces of many prompts in a step, for which a seed would be wrong; and the server is there afterwards.
    loaded = served.generate_among(PromptRequest(prompt, sampling=long), itertools.repeat(prompt), 16, "sparse")
    assert any(isinstance(event, Token) for event in itertools.islice(loaded, 200))
    loaded.close()
    assert httpx.get(f"{address}/health", trust_env=False).status_code == 200


def _num_running(address):
    lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))
