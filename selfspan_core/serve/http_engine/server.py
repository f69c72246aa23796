"""A vLLM server over HTTP: small requests with whole answers, and completions that are streamed. No torch here.

Nothing that comes back is trusted: sizes and times are bounded, and text is only ever shown, on one line.
"""

import json
from typing import Any
from urllib.parse import urlsplit

import httpx

from selfspan_core.errors import ServerError, brief
from selfspan_core.serve.http_engine.answer import MOST_WORDS, Answer, Trace, refusal, words

CONNECT_S = 5.0
MOST_SILENCE_S = 120.0
"""Between two tokens, and before the first: a long prompt takes that on a busy CPU."""
MOST_BYTES = 1 << 20
START = "start one with `selfspan serve --model DIR`, DIR being a folder that `selfspan export` wrote"
Json = dict[str, Any]


def checked_address(address: str) -> str:
    """An address as requests begin: without a slash at its end, or the `/v1` that clients of OpenAI's API put there.

    Raises:
        ServerError: it is no address of a server, or has a user's name, a password or a query in it.
    """
    text = address.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(text)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_plain = not (parts.username or parts.password or parts.query or parts.fragment) and text.isprintable()
    except ValueError:
        is_right = is_plain = False
    if not is_right or not is_plain or " " in text or len(text) > MOST_WORDS:
        raise ServerError(f"an engine's address is written http://host:port, not {brief(address)}")
    return text


class VllmServer:
    """One server. Each request has a connection of its own; several threads may ask.

    Args:
        address: of the server, `http://host:port`.
        silence_s: the longest wait for the next thing that it says.

    Raises:
        ServerError: see `checked_address`.
    """

    def __init__(self, address: str, silence_s: float = MOST_SILENCE_S) -> None:
        self.address = checked_address(address)
        self._silence_s = silence_s
        # The environment's proxies are for the web, and this is a machine that somebody named.
        self._client = httpx.Client(
            base_url=self.address,
            timeout=httpx.Timeout(silence_s, connect=min(CONNECT_S, silence_s)),
            # A connection that is used again could be ended by who leaves the answer before. (The pool's own limit of
            # connections that are kept does not do: a request of another thread may take one first.)
            headers={"accept-encoding": "identity", "connection": "close"},
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """The status and the JSON object of a request's answer; an empty object where it is none.

        Raises:
            ServerError: the server cannot be reached, or says too much.
        """
        try:
            with self._client.stream(method, path, json=body) as response:
                data = bytearray()
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise ServerError(f"{self.address} answers {path} with more than {MOST_BYTES:,} bytes")
                status = response.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if status in (401, 403):
            raise ServerError(f"{self.address} asks for a key ({status}), which is not supported: start vLLM without")
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            return status, {}
        return status, said if isinstance(said, dict) else {}

    def answer(self, body: Json, most_tokens: int) -> Answer:
        """Begin a streamed completion; close it, or the server goes on with it.

        Args:
            body: of the request; see `vllm_plugin.client.Asked.to_stream_json`.
            most_tokens: that it asks for; more are not taken.

        Returns:
            At once. While it is iterated it raises ServerError where the server cannot be reached, or refuses; the
            message has its reason.
        """

        def ask(trace: Trace) -> httpx.Response:
            request = self._client.build_request("POST", "/v1/completions", json=body, extensions={"trace": trace})
            try:
                response = self._client.send(request, stream=True)
            except httpx.HTTPError as error:
                # Without the address: by then it was asked before, and any visitor of a page may read this.
                why = words(error) or type(error).__name__
                raise ServerError(f"the vLLM server does not answer ({why}): run again once it does") from error
            if response.status_code != 200:
                raise ServerError(self._refused(response))
            return response

        # A message of one token has some 300 bytes; the first one repeats the prompt.
        most_bytes = 4096 * (most_tokens + 16) + 16 * len(body["prompt"])
        return Answer(ask, most_tokens, min(most_bytes, 1 << 30), self._silence_s)

    def _refused(self, response: httpx.Response) -> str:
        """Why the server did not begin an answer, in words."""
        data = bytearray()
        try:
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MOST_BYTES:
                    break
            reason = refusal(json.loads(data))
        except (httpx.HTTPError, ValueError, RecursionError):
            reason = ""
        finally:
            response.close()
        status = response.status_code
        if status == 404:
            return f"the vLLM server does not have the model any more ({status}): start this anew, too"
        return f"the vLLM server refused the request ({status}): {reason or 'it gave no reason'}"

    def _unreachable(self, error: Exception) -> ServerError:
        why = words(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ServerError(f"no server answers at {self.address} ({why}): {START}, or correct the address")
        if isinstance(error, httpx.TimeoutException):
            return ServerError(f"{self.address} said nothing for {self._silence_s:g} s: is the server overloaded?")
        return ServerError(f"{self.address} does not answer as a vLLM server does ({why})")
