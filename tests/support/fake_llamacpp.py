"""A package that looks like `xllamacpp`: its server answers every prompt with the same ids and times."""

from pathlib import Path

SOURCE = """
import json, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

BUILD_INFO = {"build_number": 1}
print("a line of a library on the standard output")


def get_system_info():
    return " CPU : AVX2 = 1 | "


def CommonParams():
    return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["cache_prompt"] is False
        times = {"prompt_n": len(asked["prompt"]) - REMEMBERED, "prompt_ms": 100.0, "predicted_ms": 30.0}
        body = json.dumps({"tokens": [7, 8, 9, 10], "timings": times}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


class Server:
    def __init__(self, settings):
        assert settings.cpuparams.n_threads == settings.cpuparams_batch.n_threads == 1
        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.listening_address = "http://127.0.0.1:%d" % server.server_port
"""


def write(folder: Path, num_remembered: int = 0) -> None:
    """Write the package into a folder.

    Args:
        num_remembered: tokens of every prompt that the server says it did not compute.
    """
    (folder / "xllamacpp.py").write_text(f"REMEMBERED = {num_remembered}\n{SOURCE}", encoding="utf-8")
