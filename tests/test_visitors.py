"""Visitors of a running app, as the benchmark sends them: everybody's words, waits and answers are counted."""

import os

import pytest

from cuda_kernels.bench.provenance import provenance
from tests.support.crowd import LONG
from tests.support.fake_session import FakeSession
from training.bench import visitors
from training.bench.visitors import Visit, crowd, expressions, first_request, loads, summed, together, visit
from training.reports import visitors as report


@pytest.fixture(scope="module")
def address(serve):
    """Of an app whose runs take a fraction of a second."""
    return serve(FakeSession(dense=4000, sparse=6000)).rstrip("/")


def test_a_visit_is_seen_to_its_end(address):
    """Would catch a wait that counts from the wrong object, and an answer that is not looked at."""
    seen = visit(address, "79*36+63")
    assert seen.is_right and seen.end["lanes"]["sparse"]["answer"] == "2907" and not seen.error
    assert 0 < seen.word_s <= seen.waited_s < seen.seconds
    article = visit(address, "A sentence of five words stands here and goes on. " * 8, task="summarize")
    assert article.is_right or article.error


def test_a_refusal_is_an_error_and_no_answer(address):
    """Would catch errors that count as answers."""
    refused = visit(address, "1/0")
    assert refused.error and not refused.end and not refused.is_right
    found = summed([refused, visit(address, "1+1")], 1.0)
    assert (found["requests"], found["answered"], found["right"]) == (2, 1, 1) and found["errors"] == [refused.error]


def test_who_waits_without_a_word_is_counted():
    """Would catch a table that shows visitors as served who looked at nothing for seconds."""
    heard = Visit(end={"lanes": {"sparse": {"correct": True}}}, was_told=True, word_s=0.2, waited_s=60.0)
    silent = Visit(end=heard.end, word_s=60.0, waited_s=60.0)
    nothing, wrong = Visit(), Visit(end={"lanes": {"sparse": {"correct": False}}}, waited_s=1.0)
    found = summed([heard, silent, nothing, wrong], 60.0)
    assert (found["unheard"], found["told_their_place"], found["answered"], found["right"]) == (2, 1, 3, 2)
    assert found["median_wait_s"] == found["longest_wait_s"] == 60.0


def test_expressions_are_the_same_every_time():
    """Would catch figures of other inputs under the same seed."""
    assert expressions(10, (2, 4), 3) == expressions(10, (2, 4), 3) != expressions(10, (2, 4), 4)


def test_all_parts_of_the_benchmark(address, monkeypatch):
    """Would catch a part that fails after minutes on a machine with a GPU, and a crowd that goes on beyond its time."""
    monkeypatch.setattr(visitors, "NUM_TOGETHER", 3)
    monkeypatch.setattr(visitors, "LONGEST", 12)
    results = {
        "first_request": first_request(address, 1),
        "loads": loads(address, 1, repeats=1, most=1),
        "together": together(address, 1),
    }
    assert results["first_request"]["is_right"] and set(results["loads"]) == {"1"}
    assert 0 < results["first_request"]["first_word_s"] <= results["first_request"]["seconds"]
    assert results["together"]["answered"] == 3
    found = crowd(address, os.getpid(), load=1, num=6, most_s=60, seed=1, num_clients=4)
    assert (found["requests"], found["answered"], found["unheard"], found["clients"]) == (6, 6, 0, 4)
    assert found["memory_mb"]["before"]["resident"] > 10
    assert found["fairness"]["short_waited_s"] <= found["fairness"]["short_whole_s"]
    assert crowd(address, os.getpid(), load=1, num=6, most_s=0, seed=1)["requests"] == 0
    results |= {"crowds": {"1": found}, "leaving": {"left": 5, "stayed": 4, "answered": 4}, **provenance()}
    monkeypatch.setattr(report, "read_all", lambda name: {"a.json": results} if name == "app" else {})
    told = report.visitors()
    assert "| 1 | 4 | 6 | 6 | 6 |" in told and "heard the first word after" in told and "4 of 4 that stayed" in told


def test_a_load_that_the_device_cannot_carry(address):
    """Would catch a crash of the benchmark where a visitor is only refused."""
    refused = visit(address, LONG, load=16)
    assert "CUDA" in refused.error
