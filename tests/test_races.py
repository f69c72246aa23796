"""Races between threads of the kernels, watched on the CPU stand-in by what the memory model says (`races.h`)."""

import subprocess
from pathlib import Path

import pytest

from cuda_kernels.compile import FOLDER
from tests.support.kernel_on_cpu import COMPILER
from tests.support.missing_waits import run_with, sources_without
from tests.support.slow import sampled

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")

PLANS = "tests/test_kernel_plan.py::test_plan_finds_bad_intervals_and_keeps_within_the_cache"
ONE_QUERY = "tests/test_kernel.py::test_odd_lengths[33]"
QUERIES = "tests/test_kernel_queries.py::test_means_the_same_as_one_query_at_a_time"
PAGES = "tests/test_paged.py::test_plan_finds_what_is_wrong_and_keeps_within_the_cache"
DRAFTS = "tests/test_device_drafts.py::test_drafts_end_where_the_row_does"
WAITS = [("plan.cuh", 1, PLANS), ("plan.cuh", 0, PLANS), ("attention.cu", 0, QUERIES), ("attention.cu", 1, ONE_QUERY)]


def watched(test: str, sources: Path) -> subprocess.CompletedProcess:
    """A test, which ends at the first race."""
    return run_with(sources, test, WATCH_RACES="1")


@pytest.mark.parametrize("test", sampled([PLANS, PAGES, ONE_QUERY, QUERIES, DRAFTS], [PLANS, PAGES]))
def test_no_race(test):
    """Would catch a thread that reads what another writes, with nothing but luck between them: on a GPU it goes wrong
    once in a million times, and never in a test."""
    run = watched(test, FOLDER)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(("name", "number", "test"), sampled(WAITS, WAITS[:1]))
def test_every_wait_of_a_warp_is_needed(name, number, test, tmp_path):
    """Would catch a watcher that sees nothing: without one `__syncwarp` there is a race. Answers stay right then, since
    a warp's lanes mostly run in step."""
    run = watched(test, sources_without(tmp_path, name, number))
    assert run.returncode != 0
    assert "race: nothing orders" in run.stderr
