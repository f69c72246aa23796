"""Bodies of requests: long ones are refused or read in time by their length, whatever they are made of."""

import json

import pytest

from selfspan_core.serve.bodies import MOST_PARTS, MOST_QUOTED_BYTES, WrongBody, read
from tests.support.clock import least_s

CALL, BY_NAME, TOOLS, RESET = (f"/gradio_api/{one}" for one in ("call/compare", "call/v2/compare", "mcp/", "reset"))
JSON = "application/json"
LONG = 7_900_000
FILLED = b'{"data":["arithmetic","' + b"%b" + b'"]}'


def refused(body: bytes, path: str = CALL, kind: str = JSON) -> str:
    """Why; empty where a body is read."""
    try:
        read(path, body, kind)
    except WrongBody as wrong:
        return str(wrong)
    return ""


@pytest.mark.parametrize("unit", [b"x", b"\\u00e9", b'\\"', b"\\\\", b"\xc3\xa9", b"[{,:"])
def test_a_long_text_is_read(unit):
    """Would catch an article that is refused for its quotation marks, or a look at each of its characters in Python."""
    body = FILLED.replace(b"%b", unit * (LONG // len(unit)))
    assert least_s(lambda: read(CALL, body, JSON), enough_s=0.5) < 2
    assert len(read(CALL, body, JSON)["data"]) == 2


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[' + b"[]," * (LONG // 3) + b"[]]}",
        b'{"data":["a\\\\",' + b"{}," * (LONG // 3) + b"{}]}",
        b'{"data":["a\\"\\\\",' + b"1," * (LONG // 2) + b"1]}",
        b'{"data":[],"event_data":{' + b'"":0,' * (LONG // 5) + b'"":0}}',
        b"[" * LONG,
        b'"' * LONG,
    ],
    ids=["lists", "objects", "numbers", "keys", "depth", "quotation marks"],
)
@pytest.mark.parametrize("path", [CALL, BY_NAME, TOOLS])
def test_many_parts_are_refused(body, path):
    """2.6 s in which nobody else was answered, and 190 MB for as long as the call waited."""
    assert "1,000 values and keys" in refused(body, path)
    assert least_s(lambda: refused(body, path), enough_s=0.5) < 2


@pytest.mark.parametrize("body", [b" " * LONG, b"1" * LONG, b"\\" * LONG, b'{"data":[1' + b"1" * LONG + b"]}"])
def test_what_is_no_json_is_not_sent_back(body):
    """Eight megabytes that gradio quotes in its refusal."""
    assert refused(body) == "The request is no JSON."


def test_how_many_parts_there_may_be():
    """Would catch a count that a text's own brackets and quotation marks add to, or one that a backslash hides."""
    fits = json.dumps({"data": ["x"] * (MOST_PARTS // 2 - 2)}).encode()
    assert not refused(fits) and refused(fits.replace(b'"x"]', b'"x",1,1,1]'))
    assert not refused(json.dumps({"data": ["arithmetic", '[{,:"' * 9999]}).encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_other_encodings_are_refused(encoding):
    """Python's JSON reads them: what looks like a string there may be a thousand lists."""
    assert "UTF-8" in refused('{"data":["arithmetic","1+1"]}'.encode(encoding))
    assert "UTF-8" in refused(b'{"data":["\xff"]}')


def test_what_is_quoted_is_short():
    """A refusal of eight megabytes, since the request it quotes has them outside of its values."""
    text = "x" * MOST_QUOTED_BYTES
    for said in ({"data": {"a": text}}, {"data": [], "event_data": text}, {text: 1}, [text], text):
        assert "10,000 bytes" in refused(json.dumps(said).encode())
        assert "10,000 bytes" in refused(json.dumps(said).encode(), RESET)
    for path in (RESET, "/gradio_api/cancel"):
        assert "10,000 bytes" in refused(json.dumps({"data": [text]}).encode(), path)
    for said in ({text: 1}, [text], text):
        assert "10,000 bytes" in refused(json.dumps(said).encode(), BY_NAME)
    assert not refused(json.dumps({"data": [text]}).encode())
    assert not refused(json.dumps({"task": "arithmetic", "text": text}).encode(), BY_NAME)
    assert not refused(json.dumps({"params": {"arguments": {"text": text}}}).encode(), TOOLS)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/json-x"]
)
def test_what_gradio_would_not_read_is_not_sent_back(kind):
    """A body of another kind is quoted whole, and never read as what it says."""
    body = FILLED.replace(b"%b", b"x" * MOST_QUOTED_BYTES)
    assert "application/json" in refused(body, kind=kind)
    for usual in ("application/json; charset=utf-8", "application/problem+json", "Application/JSON"):
        assert not refused(body, kind=usual)


@pytest.mark.parametrize("path", [CALL, BY_NAME, TOOLS, RESET])
@pytest.mark.parametrize("levels", [51, 300, 900, 4000])
def test_what_lies_too_deep_is_refused(path, levels):
    """Recursion without end in one of gradio's encoders: status 500, for the server's fault."""
    deep = b"[" * (levels - 2) + b"]" * (levels - 2)
    assert "50 times" in refused(b'{"data":[' + deep + b"]}", path) or "1,000 values" in refused(deep, path)
    assert not refused(b'{"data":' + b"[" * 40 + b"]" * 40 + b"}", CALL)


def test_a_tool_s_request_is_shorter():
    """Forty requests of eight megabytes that are held for as long as their tools' runs wait."""
    assert "2 MB" in refused(json.dumps({"params": {"arguments": {"text": "x" * 2_000_000}}}).encode(), TOOLS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CALL, r'{"data":"\ud800"}'),
        (CALL, r'{"fn_index":"\ud800","data":[]}'),
        (CALL, r'{"\ud800":1}'),
        (BY_NAME, r'{"\ud800":1}'),
        (BY_NAME, r'{"text":{"\udfff":1}}'),
        (TOOLS, r'{"params":[{"\ud800":1}]}'),
        (BY_NAME, r'["\ud800"]'),
        (RESET, r'{"data":["\ud800"]}'),
    ],
)
def test_half_of_a_pair_is_the_callers_fault(path, body):
    """A refusal that cannot be written: "Internal Server Error", and a traceback with the caller's key in the log."""
    assert "half of a pair" in refused(body.encode(), path)
    assert not refused(rb'{"data":["arithmetic","\ud800"]}')  # the task has words for it
