"""A vLLM server as far as clients see it: messages as vLLM 0.32.0 sends them, ids from a script, faults on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "selfspan/arithmetic/span/selfspan-17m"


@dataclass
class FakeVllm:
    """What a server serves, how it misbehaves, and what it was asked.

    Attributes:
        tokenizer: of the served model.
        ids: body of a request -> the ids of its answer, `<eos>` included.
        names: of the model.
        has_plugin, has_times: as vLLM was started.
        takes_seeds: as on a GPU.
        pieces: ids of each message.
        fault: None, or what goes wrong: "broken" in the middle, "garbage", "error" as vLLM reports one, "endless",
            "silent", "abort", "prompt" of somebody else, "behind" the end, "lost" ids, an end "at the limit",
            "no such id", "400", "404".
        after: ids before that.
        wait_s: between messages.
        pages: path -> status and body of what is answered in place of vLLM's own.
        asked: bodies of streamed requests about spans.
        num_gone: streams that a client left before their end.
    """

    tokenizer: Any
    ids: Callable[[dict], list[int]]
    names: tuple[str, ...] = ("/models/arithmetic", NAME)
    has_plugin: bool = True
    has_times: bool = True
    takes_seeds: bool = True
    pieces: int = 1
    fault: str | None = None
    after: int = 5
    wait_s: float = 0.0
    max_context: int = 512
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[dict] = field(default_factory=list)
    num_gone: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def get(self, path: str) -> tuple[int, dict]:
        """Answers without a body."""
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/v1/models":
            return 200, {
                "object": "list",
                "data": [{"id": one, "max_model_len": self.max_context} for one in self.names],
            }
        return 404, {}

    def refusal(self, body: dict) -> tuple[int, dict] | None:
        """As vLLM and the plugin refuse."""
        given = json.loads(body.get("vllm_xargs", {}).get("selfspan", '{"attention": "dense"}'))
        status, why = 400, ""
        if body["model"] not in self.names or (self.fault == "404" and "segments" in given):
            status, why = 404, "The model `x` does not exist."
        elif self.has_plugin and given["attention"] not in ("dense", "sparse"):
            why = f"selfspan: the attention is dense or sparse, not {given['attention']!r}."
        elif "seed" in body and not self.takes_seeds:
            why = "selfspan: leave out the seed: on a CPU vLLM ends for everybody."
        elif self.fault == "400" and "segments" in given:
            why = "selfspan: a segment's start is below its end,\nunlike \x1b[31m[7, 6, 3]."
        return (status, {"error": {"message": why, "type": "BadRequestError", "code": status}}) if why else None

    def messages(self, body: dict) -> Iterator[dict | bytes]:
        """Of a stream; bytes are sent as they are."""
        is_probe = "vllm_xargs" not in body
        ids = [self.tokenizer.markers.eos] if is_probe else self.ids(body)[: body["max_tokens"]]
        fault, prompt = (None if is_probe else self.fault), body["prompt"]
        ends = "stop" if ids[-1] in body.get("stop_token_ids", ()) and fault != "at the limit" else "length"
        if fault == "behind":
            ids = [*ids, 300]
        for start in range(0, len(ids), self.pieces):
            some = ids[start : start + self.pieces]
            if fault and start >= self.after:
                yield from self.faulty(fault)
            finish = ends if start + self.pieces >= len(ids) else None
            shown = ([1] if fault == "prompt" else prompt) if start == 0 else None
            yield _message(body, some, finish, shown)
        count = len(ids) + (fault == "lost")
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count}
        metrics = {"time_to_first_token_ms": 250.0, "generation_time_ms": 10.0 * (len(ids) - 1), "queue_time_ms": 9.0}
        yield {"id": "cmpl-1", "choices": [], "usage": usage} | ({"metrics": metrics} if self.has_times else {})

    def faulty(self, fault: str) -> Iterator[dict | bytes]:
        """What is sent in the middle of a stream that goes wrong."""
        if fault == "broken":
            raise ConnectionAbortedError
        if fault == "garbage":
            yield b'data: {"choices": [{"token_ids": "<script>"}]}\n\n'
        elif fault == "error":
            yield {
                "error": {
                    "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                    "code": 500,
                }
            }
        elif fault == "endless":
            while True:
                yield b"data: " + b" " * 60_000
        elif fault == "silent":
            self.is_over.wait(20)
        elif fault == "no such id":
            yield _message({"model": ""}, [10**9], None, None)
        elif fault == "abort":
            yield _message({"model": ""}, [], "abort", None)
            raise ConnectionAbortedError


def _message(body: dict, ids: list[int], finish: str | None, prompt: list[int] | None) -> dict:
    choice = {"index": 0, "text": "<b>", "logprobs": None, "finish_reason": finish, "stop_reason": None}
    choice |= {"prompt_token_ids": prompt, "token_ids": ids}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVllm

    def log_message(self, *_: object) -> None:
        """Nothing of it on standard error."""

    def do_GET(self) -> None:
        if self.path in self.fake.pages:
            return self._send(*self.fake.pages[self.path])
        self._say(*self.fake.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path in self.fake.pages:
            return self._send(*self.fake.pages[self.path])
        if self.path == "/detokenize":
            if max(body["tokens"]) >= self.fake.tokenizer.vocab_size:
                return self._say(400, {"error": {"message": "out of vocabulary"}})
            return self._say(200, {"prompt": self.fake.tokenizer.hf.decode(body["tokens"])})
        refused = self.fake.refusal(body)
        if refused is not None:
            return self._say(*refused)
        if not body.get("stream"):
            return self._say(200, {"choices": [{"text": ""}]})
        if "vllm_xargs" in body:
            self.fake.asked.append(body)
        self._stream(body)

    def _say(self, status: int, said: dict) -> None:
        self._send(status, json.dumps(said).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.close_connection = True
        try:
            for message in self.fake.messages(body):
                data = b": keep-alive\n\ndata: " + json.dumps(message, default=str).encode() + b"\n\n"
                self.wfile.write(message if isinstance(message, bytes) else data)
                self.wfile.flush()
                time.sleep(self.fake.wait_s)
            self.wfile.write(b"data: [DONE]\n\n")
        except ConnectionAbortedError:
            return
        except OSError:
            self.fake.num_gone += 1


@contextmanager
def served(fake: FakeVllm) -> Iterator[str]:
    """The address of such a server, for as long as the context is open."""
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        fake.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
