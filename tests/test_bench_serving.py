"""The benchmark of vLLM's HTTP server, against a server that answers what it is asked to; without vLLM."""

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfspan_core.serve.vllm_plugin.settings import SpanSettings
from selfspan_core.spans.protocol import PromptLayout
from training import bench_serving
from training.bench.replay import Recording
from training.reports import vllm

ONE = Recording(PromptLayout(4, 2, {7: (2, 4)}), (5, 6, 7), True, (1, 2, 3, 4))
TWO = Recording(PromptLayout(3, 2, {}), (8, 9), True, (1, 2, 3))


@pytest.fixture
def server():
    """Answers with the forced ids; its attribute `asked` holds the bodies, `changes` what is done to ids."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            ids = server.changes(body["vllm_xargs"]["forced"])
            answer = json.dumps({"choices": [{"token_ids": ids}]}).encode()
            self.send_response(200 if ids else 400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.changes = [], lambda ids: ids
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def crowd(server, num, each):
    address = f"http://127.0.0.1:{server.server_port}"
    return asyncio.run(bench_serving.crowd(address, [ONE, TWO], "sparse", num, each))


def test_every_client_is_answered_with_what_was_recorded(server):
    """Would catch clients that ask for less than is counted, and a request whose spans the server does not learn."""
    found = crowd(server, 3, 2)
    assert len(server.asked) == 6 and found["requests_per_second"] == pytest.approx(6 / found["seconds"])
    assert found["tokens_per_second"] == pytest.approx(15 / found["seconds"])
    assert found["seconds_to_answer"] <= found["slowest_answer_s"] <= found["seconds"]
    body = next(body for body in server.asked if body["prompt"] == [1, 2, 3, 4])
    assert (body["max_tokens"], body["ignore_eos"]) == (3, True)
    assert SpanSettings.read(body["vllm_xargs"]) == SpanSettings.of_prompt("sparse", ONE.layout)


@pytest.mark.parametrize(
    ("changes", "said"), [(lambda ids: ids[:-1], "something else"), (lambda ids: [], "status 400")]
)
def test_another_answer_is_no_figure(server, changes, said):
    """Would catch a rate of requests that were refused, or of a model that is not forced."""
    server.changes = changes
    with pytest.raises(ExceptionGroup) as found:
        crowd(server, 1, 1)
    assert said in str(found.value.exceptions[0])


def test_a_server_that_ends_says_why(tmp_path):
    """Would catch minutes of waiting for a server that is gone, and its words lost."""
    command = [sys.executable, "-c", "import sys; sys.exit('no weights')"]
    with pytest.raises(RuntimeError, match="no weights"), bench_serving.serving(command, 9, tmp_path / "log"):
        raise AssertionError("it cannot be up")


def test_the_report_shows_all_lanes():
    """Would catch a column under another lane's name."""
    rates = {"plain dense": 2.0, "span dense": 1.5, "span sparse": 3.0}
    lanes = {lane: {"requests_per_second": rate, "seconds_to_answer": 10 / rate} for lane, rate in rates.items()}
    cell = bench_serving.figures("24 operands", 16, lanes)
    origin = {"commit": "c" * 40, "dirty": False, "machine": {"gpu": "G"}, "command": "x"}
    results = {**origin, "requests_of_a_client": 2, "shapes": {"7B": {"serving": [cell]}}}
    row = "| 7B, 24 operands, 16 | 2.00 | 1.50 | 3.00 | 5.0 | 6.7 | 3.3 | 2.00x | 1.50x |"
    assert row in vllm._server(results, "assets/results/serving_g.json")
