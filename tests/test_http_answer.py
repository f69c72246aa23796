"""Streamed answers by themselves: many at once, and left at any moment."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from selfspan_core.serve.http_engine.answer import NOTHING
from selfspan_core.serve.http_engine.server import VllmServer

BODY = {"prompt": [1]}
MESSAGES = (
    b'data: {"choices":[{"token_ids":[1],"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)


class Short(BaseHTTPRequestHandler):
    """Answers with one token, and would keep the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(MESSAGES)))
        self.end_headers()
        self.wfile.write(MESSAGES)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Takes as many connections as there come at once."""

    request_queue_size = 256


@contextlib.contextmanager
def short_answers() -> Iterator[VllmServer]:
    """A server of them."""
    with Server(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield VllmServer(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_no_answer_ends_the_connection_of_another():
    """Would catch a connection that goes to the next request while the one before ends it: some failed in seconds."""
    with short_answers() as server:

        def ask(_: int) -> list[int]:
            with server.answer(BODY, 5) as answer:
                return [token for part in answer for token in part.ids]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(600))) == [[1]] * 600


def test_an_answer_is_left_before_the_server_has_said_a_word():
    """Would catch a Stop that waits for a server which took the request and hangs, and a device that nobody gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answer = VllmServer(f"http://127.0.0.1:{listening.getsockname()[1]}").answer(BODY, 5)
        connection, _ = listening.accept()
        with connection:
            assert next(iter(answer)) is NOTHING
            before = time.monotonic()
            answer.close()
            assert time.monotonic() - before < 30  # and not two minutes
            connection.settimeout(30)
            while connection.recv(4096):  # the request, and then the end
                pass
