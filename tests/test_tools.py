"""The app's tools, as MCP clients and gradio's client see them."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from selfspan_core.errors import OutOfTime
from selfspan_core.serve.api import compare_endpoint
from selfspan_core.serve.device import SharedDevice
from selfspan_core.tasks.registry import get_task
from tests.support.fake_session import FakeSession

EXPRESSION = "79*36+63"
ARTICLE = get_task("summarize").examples[0]
TASKS = ("arithmetic", "summarize")


@pytest.fixture(scope="module")
def url(serve) -> str:
    """The app with both tasks around a quick session."""
    return serve(FakeSession(dense=2000, sparse=3000), TASKS)


def with_client(url: str, ask):
    """What an MCP client gets."""

    async def run():
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            return await ask(client)

    # In a thread of its own: a browser that another test left open has an event loop running in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(asyncio.wait_for(run(), 60))).result()


def called(url: str, tool: str, **arguments):
    """The result of a tool, and whether it is an error."""
    result = with_client(url, lambda client: client.call_tool(tool, arguments))
    (content,) = result.content
    return (content.text, True) if result.isError else (json.loads(content.text), False)


def test_tools_are_typed_and_documented(url):
    """A stream or a private function of the page offered as a tool, an argument without a type or a word about it."""
    listed = with_client(url, lambda client: client.list_tools()).tools
    assert {tool.name for tool in listed} == {"solve", "summarize", "compare"}
    for tool in listed:
        assert len(tool.description) > 40 and "None" not in tool.description
        for name, argument in tool.inputSchema["properties"].items():
            assert argument["type"] in ("string", "boolean") and argument["description"], (tool.name, name)
    by_name = {tool.name: tool.inputSchema for tool in listed}
    assert by_name["solve"]["required"] == ["expression"] and by_name["summarize"]["required"] == ["article"]
    assert by_name["summarize"]["properties"]["length"]["default"] == "medium"
    assert by_name["compare"]["required"] == ["task", "text"]


def test_only_tasks_that_are_offered_are_named(url):
    """Would catch callers who are sent to a task that no adapters are here for, by a description or an error."""
    listed = {tool.name: tool for tool in with_client(url, lambda client: client.list_tools()).tools}
    told = listed["compare"].inputSchema["properties"]
    assert told["task"]["description"] == "arithmetic or summarize."
    assert told["text"]["description"] == "the input, for example an expression or an article."
    message, is_error = called(url, "compare", task="geometry", text="1+1")
    assert is_error and message.endswith('There is no task "geometry"; known tasks: arithmetic, summarize.')
    client = Client(url, verbose=False)
    with pytest.raises(AppError, match=r"known tasks: arithmetic, summarize\.$"):
        client.predict("geometry", "1+1", api_name="/compare")
    described = client.view_api(return_format="dict")["named_endpoints"]
    described["/compare"].pop("returns")
    for name in ("/compare", "/compare_once"):
        assert "trace" not in str(described[name]) and "program" not in str(described[name])
    endpoint = compare_endpoint(SharedDevice(FakeSession()), TASKS)
    assert "    task: arithmetic or summarize.\n" in endpoint.__doc__ and "trace" not in endpoint.__doc__


def test_solve(url):
    """A result that no program can read, a step without what it read, and figures that were left out."""
    found, is_error = called(url, "solve", expression=EXPRESSION)
    assert not is_error and (found["answer"], found["correct"]) == ("2907", True)
    assert [step["read"] for step in found["steps"]] == [["79", "36"], ["step 1", "63"]]
    assert found["figures"]["tokens"] > 0 and found["read_share"] == 0.31 and found["line"]


def test_summarize_and_its_options(url):
    """A length that is taken and forgotten; sources by names that only the page can resolve."""
    found, is_error = called(url, "summarize", article=ARTICLE, length="short")
    assert not is_error and found["answer"] and found["correct"] is None
    first, *_ = found["steps"]
    assert first["read"][0] in ARTICLE
    message, is_error = called(url, "summarize", article=ARTICLE, length="endless")
    assert is_error and "short, medium" in message


def test_compare_has_both_lanes(url):
    """A comparison without one of its lanes, or without what it is for."""
    found, _ = called(url, "compare", task="arithmetic", text=EXPRESSION, adapter="plain")
    assert set(found["lanes"]) == {"dense", "sparse"} and found["speedup_time_to_answer"] > 0 and found["line"]
    found, _ = called(url, "compare", task="summarize", text=ARTICLE, length="short")
    assert found["lanes"]["dense"]["answer"]


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("solve", {"expression": "1/0"}, "zero"),
        ("solve", {"expression": "two plus two"}, ""),
        ("solve", {}, "expression"),
        ("compare", {"task": "geometry", "text": "1+1"}, "arithmetic"),
        ("compare", {"task": "arithmetic", "text": "1+1", "adapter": "both"}, "plain"),
        ("erase", {}, "erase"),
    ],
)
def test_errors_say_why(url, tool, arguments, word):
    """A tool that fails without a reason, or with the server's stack."""
    message, is_error = called(url, tool, **arguments)
    assert is_error and word in message and 5 < len(message) < 400 and "Traceback" not in message


def test_the_same_over_http(url, serve):
    """An endpoint that streams what is to be one answer; a run out of time that is told as a broken server."""
    client = Client(url, verbose=False)
    job = client.submit(EXPRESSION, api_name="/solve")
    assert json.loads(job.result(timeout=30))["answer"] == "2907" and len(job.outputs()) == 1
    assert json.loads(client.predict("arithmetic", EXPRESSION, api_name="/compare_once"))["lanes"]

    class Endless:
        def can_load(self):
            return False

        def compare(self, request):
            raise OutOfTime(300)

    with pytest.raises(AppError, match="ended after 300 s"):
        Client(serve(Endless()), verbose=False).predict("1+1", api_name="/solve")


def test_many_callers_of_one_server(url):
    """All tools are called by one client inside of the server: taken for one visitor, the ninth would be refused."""

    async def ask(client):
        calls = [client.call_tool("solve", {"expression": f"{number}+1"}) for number in range(12)]
        return await asyncio.gather(*calls)

    results = with_client(url, ask)
    assert [json.loads(result.content[0].text)["answer"] for result in results] == [str(n + 1) for n in range(12)]
