"""Servers that cannot be an engine, and answers that go wrong: one line each."""

import json
import socket

import pytest

from selfspan_core.engine.request import PromptRequest
from selfspan_core.errors import ModelError, ServerError
from selfspan_core.models.export_record import KEY, ExportRecord, of_config, of_served_name
from selfspan_core.models.learned import Learned
from selfspan_core.models.registry import resolve_model
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.serve.http_engine.served import engines_at
from selfspan_core.serve.http_engine.server import checked_address
from selfspan_core.serve.http_engine.store import ServedStore
from tests.support.fake_vllm import NAME, served
from tests.support.http_tools import engine_at, prompt_of
from tests.support.tiny_models import save_byte_tokenizer

pytest_plugins = ["tests.support.http_fixtures"]

FAULTS = {
    "broken": "ended the connection after 5 tokens",
    "garbage": "no message of a completion after 5 tokens",
    "error": r"gave up \(EngineCore encountered an issue. Its log has the cause.\) after 5 tokens",
    "endless": "sent more than such an answer can be after 5 tokens",
    "abort": "after 5 tokens, and not at its end|ended the connection",
    "prompt": "another prompt",
    "behind": "went on behind the end",
    "lost": "other tokens than the",
    "no such id": "an id that its model does not have",
    "400": r"refused the request \(400\): selfspan: a segment's start is below its end, unlike \[31m\[7, 6, 3\]",
    "404": r"does not have the model any more \(404\): start this anew",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stream_that_goes_wrong_is_one_line(fake, address, tokenizer, fault):
    """A traceback, an answer that is taken for whole, or memory without end, for a server that fails or lies."""
    engine = engine_at(address)
    fake.fault = fault
    events = []
    with pytest.raises(ServerError, match=FAULTS[fault]) as caught:
        events.extend(engine.generate(PromptRequest(prompt_of(tokenizer)), "sparse"))
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_an_end_at_the_limit_is_an_end(fake, address, tokenizer):
    """An answer that came whole, with the last token that was allowed, and counts as cut off or failed."""
    fake.fault = "at the limit"
    *_, finished = engine_at(address).generate(PromptRequest(prompt_of(tokenizer)), "dense")
    assert finished.reason == "eos"


NO_VLLM = {
    "is no vLLM server: start one": {"/version": (200, b"<html>hello</html>")},
    "is no vLLM server: start": {"/version": (302, b"")},
    r"with more than 1,048,576 bytes": {"/version": (200, b" " * (2 << 20))},
    r"asks for a key \(401\)": {"/version": (401, b"{}")},
    r"names no model \(GET /v1/models: 404\)": {"/v1/models": (404, b"{}")},
    "names no model": {"/v1/models": (200, b'{"data": [7, {"id": 7}]}')},
    "does not say how long a text may be": {"/v1/models": (200, b'{"data": [{"id": "a", "max_model_len": "long"}]}')},
    r"does not complete text \(500\): it gave no reason": {"/v1/completions": (500, b"[" * 100_000)},
    r"does not say what its ids are \(POST /detokenize: 404\)": {"/detokenize": (404, b"{}")},
}


@pytest.mark.parametrize("message", NO_VLLM)
def test_what_is_no_vllm_is_one_line(fake, address, message):
    """A traceback, or memory without end, for an address that somebody else answers at."""
    fake.pages = NO_VLLM[message]
    with pytest.raises(ServerError, match=message) as caught:
        engine_at(address)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_visitors_are_not_told_where_the_server_is(fake, tokenizer):
    """An address of the inner network in the message that a page shows once a server has gone."""
    with served(fake) as address:
        engine = engine_at(address)
    with pytest.raises(ServerError, match="the vLLM server does not answer") as caught:
        list(engine.generate(PromptRequest(prompt_of(tokenizer)), "dense"))
    assert "127.0.0.1" not in str(caught.value)


def test_a_silent_server_is_left(fake, address, tokenizer, monkeypatch):
    """A run that waits for a hanging server for ever; comments that keep a connection alive taken for tokens."""
    engine = engine_at(address)
    monkeypatch.setattr(engine._served.server, "_silence_s", 0.3)
    fake.fault = "silent"
    with pytest.raises(ServerError, match=r"said nothing for 0.3 s after 5 tokens"):
        list(engine.generate(PromptRequest(prompt_of(tokenizer)), "dense"))


def test_what_cannot_be_an_engine_is_one_line(fake, address, tmp_path):
    """A server that answers everything with dense attention; a model of other ids; a page of nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ServerError, match=f"no server answers at {nowhere}.*selfspan serve --model DIR"):
            engines_at(nowhere)
    fake.has_plugin = False
    with pytest.raises(ServerError, match="runs without the plugin: start one with `selfspan serve"):
        engines_at(address)
    fake.has_plugin, fake.names = True, ("org/model\x1b[31m",)
    with pytest.raises(ModelError, match=r"serves 'org/model \[31m', and nothing says what that was made of"):
        engines_at(address)
    fake.names = (NAME.replace("/span/", "/plain/"),)
    with pytest.raises(ModelError, match="serves the plain adapter; here one of the span adapter"):
        engines_at(address)
    fake.names = (NAME.replace("arithmetic", "chess"),)
    with pytest.raises(ModelError, match="of the task 'chess'; known tasks: arithmetic"):
        engines_at(address)
    fake.names = (NAME.replace("selfspan-17m", "../../etc"),)
    with pytest.raises(ModelError, match="nothing says what"):
        engines_at(address)
    fake.names = (NAME.replace("selfspan-17m", "unknown"),)
    with pytest.raises(ModelError, match="whose tokenizer is not here"):
        engines_at(address)
    fake.names = (NAME,)
    with pytest.raises(ModelError, match="the model named here is smollm2-135m"):
        engines_at(address, model=resolve_model("smollm2-135m"))
    save_byte_tokenizer(tmp_path)
    fake.tokenizer = SpanTokenizer.load(tmp_path)
    with pytest.raises(ModelError, match="has no markers, or other ones than selfspan-17m"):
        engine_at(address)


@pytest.mark.parametrize(
    "address", ["localhost:8000", "ftp://a", "http://", "http://u:p@a", "http://a/?b=1", "http://a b"]
)
def test_addresses_are_checked(address):
    """A password that ends in messages and logs; an address that is asked with half of it left out."""
    with pytest.raises(ServerError, match="written http://host:port"):
        checked_address(address)
    assert checked_address(" http://a:1/v1/ ") == checked_address("http://a:1") == "http://a:1"


def test_an_exported_folder_says_what_is_served(fake, address, tmp_path, tokenizer):
    """A base that is not registered, whose server nobody could use; a record that changes on its way."""
    record = ExportRecord("arithmetic", "span", None, Learned({"form": ("shorten",)}, 100))
    tokenizer.hf.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({KEY: record.to_config()}))
    assert of_config({KEY: record.to_config()}, "f") == record and record.served_name is None
    for damaged in (7, {"task": "a"}, record.to_config() | {"adapter": "x"}, record.to_config() | {"learned": 7}):
        with pytest.raises(ModelError, match="is damaged"):
            of_config({KEY: damaged}, "f")
    assert of_served_name(NAME) == ExportRecord("arithmetic", "span", "selfspan-17m")
    fake.names = ("/somewhere/else",)
    engines = engines_at(address, model=resolve_model(tmp_path))
    assert (engines.span.name, engines.span.spec.name) == ("/somewhere/else", str(tmp_path))
    assert ServedStore(engines).learned("arithmetic", "span") == record.learned
    fake.names = ("selfspan/summarize/span/selfspan-17m",)
    with pytest.raises(ModelError, match="the model here was made of arithmetic's span adapter"):
        engines_at(address, model=resolve_model(tmp_path))
