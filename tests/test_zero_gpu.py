"""A Space on ZeroGPU: every run in a forked worker, and none of CUDA outside of one."""

import sys
from collections.abc import Iterator

import pytest

from selfspan_core.errors import InputError, NotReady, TooLongError
from selfspan_core.models.registry import DEFAULT_MODEL
from selfspan_core.params import Request, SamplingParams
from selfspan_core.serve.zero_gpu import MOST_S, ZeroGpuSession, is_zero_gpu, seconds
from selfspan_core.tasks.registry import get_task
from tests.support import rehearse_space

LONGEST = "+".join(["99"] * 64)


def test_where_it_is_used():
    """A Space with a GPU of its own, or a laptop with the package `spaces`, that would fork for every run."""
    assert is_zero_gpu({"SPACES_ZERO_GPU": "true"}) and is_zero_gpu({"SPACES_ZERO_GPU": "1"})
    assert not is_zero_gpu({}) and not is_zero_gpu({"SPACES_ZERO_GPU": "false"})


def test_seconds_of_a_run():
    """A GPU that is taken away in the middle of a run, and one that is asked for longer than it is lent."""
    short, long = seconds(Request("arithmetic", "1+1")), seconds(Request("arithmetic", LONGEST))
    assert 15 <= short < long <= MOST_S
    article = Request("summarize", "word " * 5000)
    assert seconds(article) < long
    few = SamplingParams(max_new_tokens=16)
    assert seconds(Request("arithmetic", LONGEST, sampling=few)) == short


@pytest.mark.parametrize(
    "error", [TooLongError("too long", "the part that fits"), InputError("bad"), NotReady("not here"), OSError("lost")]
)
def test_errors_come_back_as_they_were(error):
    """`spaces` passes on the names of errors alone: the page could not offer the part of an article that fits."""

    class Failing:
        def compare(self, request: Request) -> Iterator[dict]:
            yield {"kind": "start"}
            raise error

    lent = []
    session = ZeroGpuSession(Failing(), lambda duration: lambda task: lent.append(duration) or task)
    ticks = session.compare(Request("arithmetic", "1+1"))
    assert next(ticks) == {"kind": "start"} and lent == [seconds]
    with pytest.raises(RuntimeError if isinstance(error, OSError) else type(error), match=str(error)) as caught:
        next(ticks)
    if isinstance(error, TooLongError):
        assert caught.value.beginning == "the part that fits"
    with pytest.raises(InputError, match="zero"):  # before any GPU is asked for
        session.compare(Request("arithmetic", "1/0"))


def test_a_space_is_rehearsed(tmp_path):
    """An import that touches CUDA, a session that a fork leaves half-locked, workers that outlive their runs, an app
    that waits for a page that no Space has.
    """
    (tmp_path / "home").mkdir()
    log = tmp_path / "log"
    with rehearse_space.space(sys.executable, log, tmp_path / "home", SELFSPAN_MODEL=DEFAULT_MODEL) as url:
        client = rehearse_space.client_of(url)
        end = client.predict("arithmetic", "79*36+63", api_name="/compare")
        assert end["lanes"]["sparse"]["answer"] == "2907"
        left = client.submit("arithmetic", get_task("arithmetic").surprise(7), api_name="/compare")
        while not any(tick["kind"] == "start" for tick in left.outputs()):
            assert not left.done()
        left.cancel()
        # A client of its own: the stream of one whose call was cancelled may end with that call.
        assert '"2907"' in rehearse_space.client_of(url).predict("79*36+63", api_name="/solve")
    written = log.read_text()
    assert written.count("worker ") == 6 and written.count(" ended after ") == 3, written
    assert "Traceback" not in written
