"""What is open of the server, without one: requests that are too large, too slow, malformed, or ask for more."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfspan_core.serve.gate import FAILED, NOTHING, Gate
from selfspan_core.serve.lazy_session import public


def asked(gate: Gate, path: str, *messages: dict, method: str = "POST") -> tuple[int, str]:
    """Status and text of what a request's messages get; behind the last one nothing comes."""
    sent: list[dict] = []
    waiting = iter(messages)

    async def receive() -> dict:
        message = next(waiting, None)
        if message is None:
            await asyncio.sleep(10)
        return message

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "root_path": "", "method": method, "headers": []}
    # In a thread of its own: a browser of other tests may have a loop that runs in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(gate(scope, receive, send))).result()
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent).decode()


async def echo(scope, receive, send) -> None:
    """An app that sends back what it gets."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    if body == b"wrong":
        construct_args(None, (), {"secret": 1})
    if body == b"broken":
        raise TypeError("'NoneType' object is not subscriptable: secret")
    if body == b"unknown":
        raise KeyError(f"/{scope['path'].rpartition('/')[2]}")
    if body == b"lost":
        raise KeyError("secret")
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


def part(body: bytes, more: bool = False) -> dict:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/monitoring", "/login"])
def test_what_the_app_does_not_need_is_closed(path):
    """A stranger's file on the server's disk, a file of the server, figures of visitors."""
    assert asked(Gate(echo), path)[0] == 404


def test_bodies_are_whole_and_bounded():
    """A body that comes in parts and loses one; one without an end that fills the server's memory, or never comes."""
    gate = Gate(echo, max_body_bytes=8, body_s=0.05)
    path = "/gradio_api/call/compare"
    assert asked(gate, path, part(b"abc", True), part(b"", True), part(b"def")) == (200, "abcdef")
    status, why = asked(gate, path, *[part(b"abcd", True)] * 100)
    assert status == 413 and json.loads(why)["detail"].startswith("The request is larger than")
    assert asked(gate, path, part(b"abc", True))[0] == 408


def test_slow_bodies_are_bounded_together(monkeypatch):
    """A hundred connections that send eight megabytes and keep back the last byte; small requests that they keep out;
    a sum that grows with each of them, whatever became of it."""
    monkeypatch.setattr("selfspan_core.serve.gate.LARGE_BYTES", 10)
    monkeypatch.setattr("selfspan_core.serve.gate.MOST_COMING_BYTES", 100)
    gate, path, codes = Gate(echo, body_s=0.5), "/gradio_api/call/compare", []

    async def send(message: dict) -> None:
        codes.append(message.get("status"))

    async def sends(*parts: dict, gone: bool = False) -> None:
        waiting = [*parts, *([{"type": "http.disconnect"}] if gone else [])]

        async def receive() -> dict:
            if not waiting:
                await asyncio.sleep(10)
            return waiting.pop(0)

        scope = {"type": "http", "path": path, "root_path": "", "method": "POST", "headers": []}
        await gate(scope, receive, send)

    async def all_of_it() -> None:
        slow = [asyncio.create_task(sends(part(b"x" * 30, True))) for _ in range(3)]
        await asyncio.sleep(0.05)
        await sends(part(b"y" * 30))
        await sends(part(b"abc"))
        assert codes[0] == 503 and codes[2] == 200
        await asyncio.gather(*slow)
        await sends(part(b"z" * 30, True), gone=True)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(all_of_it())).result()
    assert [code for code in codes if code] == [503, 200, 408, 408, 408] and gate._num_coming == 0


def construct_args(infos, args, given):
    """Fails as gradio's function of that name does at arguments of wrong names."""
    raise TypeError("No value provided for required argument: text")


def get_fn(fns: dict, number: int):
    """Fails as gradio's function of that name does at a number that is none."""
    return fns[number]


def test_arguments_by_wrong_names_are_told():
    """Gradio's own failure: status 500 without a word, and a traceback in the log."""
    gate = Gate(echo)
    status, why = asked(gate, "/gradio_api/call/v2/compare", part(b"wrong"))
    assert status == 400 and "argument: text" in why
    status, why = asked(gate, "/gradio_api/call/v2/nothing", part(b"unknown"))
    assert status == 400 and "no endpoint '/nothing'" in why
    status, why = asked(gate, "/gradio_api/call/compare", part(b"wrong"))
    assert status == 400 and json.loads(why) == {"detail": NOTHING}
    with pytest.raises(TypeError):
        asked(gate, "/elsewhere", part(b"wrong"))


def test_functions_that_are_none_are_told():
    """Would catch a page that was open before a restart and is told that the server is broken."""

    async def app(scope, receive, send) -> None:
        get_fn({}, 7)

    status, why = asked(Gate(app), "/gradio_api/queue/join", part(b"{}"))
    assert status == 400 and json.loads(why) == {"detail": NOTHING}


@pytest.mark.parametrize("path", ["call/v2/compare", "call/compare", "queue/join"])
@pytest.mark.parametrize("body", [b"broken", b"lost"])
def test_a_failure_of_the_server_is_not_the_callers(path, body, caplog):
    """Would catch a bug of the server that is answered with 400, as if the caller had to mend the request; an inner
    error's text that is sent to a stranger or logged."""
    status, why = asked(Gate(echo), f"/gradio_api/{path}", part(body))
    assert status == 500 and json.loads(why) == {"detail": FAILED}
    (record,) = (one for one in caplog.records if one.levelname == "ERROR")
    assert "in echo (test_gate.py:" in record.getMessage() and "secret" not in record.getMessage()


def test_messages_have_no_paths_of_the_server():
    """Where somebody's models lie, told to everybody; an address that loses its end."""
    said = public("cannot read '/srv/models/x/base/config.json': see https://example.org/a/b or ~/a/b.py, 7/8/9")
    assert said == "cannot read 'config.json': see https://example.org/a/b or b.py, 7/8/9"


@pytest.mark.parametrize(
    "body", ['{"fn_index": Infinity}', '{"data": NaN}', "[NaN]", "NaN", '{"data": [], "x": {"y": [-Infinity]}}']
)
def test_numbers_that_json_has_not_are_the_callers_fault(body):
    """A refusal that quotes them cannot be written, and the caller is told that the server failed."""
    assert asked(Gate(echo), "/gradio_api/call/compare", part(body.encode())) == (
        400,
        '{"detail":"Numbers have to be finite."}',
    )


@pytest.mark.parametrize("body", ['{"data": [NaN, Infinity]}', '{"data": ["1+1"], "session_hash": "a-b_1"}', "no JSON"])
def test_values_are_the_endpoints_to_refuse(body):
    """What an endpoint refuses in words of its own never reaches it."""
    assert asked(Gate(echo), "/gradio_api/call/compare", part(body.encode())) == (200, body)


@pytest.mark.parametrize("name", ["session_hash", "event_id"])
@pytest.mark.parametrize("value", ['""', '"' + "x" * 65 + '"', "7", '["a"]', '"a b"'])
def test_names_are_short_words(name, value):
    """A session without a name stops gradio's queue for everybody; one with a name of megabytes is kept."""
    status, why = asked(Gate(echo), "/gradio_api/queue/join", part(f'{{"data": [], "{name}": {value}}}'.encode()))
    assert status == 400 and f"{name} has to be" in why
