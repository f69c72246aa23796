"""Many visitors at once on one device: everybody is served or told their place, and who leaves disturbs nobody."""

import random
import time

import pytest

from selfspan_core.tasks.arithmetic.task import random_problem
from selfspan_core.tasks.registry import get_task
from tests.support.crowd import LONG, Stay, all_at_once, kinds
from tests.support.fake_session import FakeSession


def right(text: str) -> str:
    return get_task("arithmetic").parse(text).expected


def check(texts: list[str], visits: list[Stay]) -> None:
    """Nobody got an error, a wrong answer, or a wait of seconds without a word."""
    assert [visit.error for visit in visits] == [""] * len(visits)
    assert [visit.answer for visit in visits] == [right(text) for text in texts]
    for visit in visits:
        assert visit.places or visit.waited_s < 5, visit


def test_a_crowd_is_served(serve):
    """Twelve who are refused, are mixed up or hear nothing; eight who leave and whose runs go on without them."""
    session = FakeSession(dense=400, sparse=600)
    url = serve(session)
    staying = [f"{number}*12+7" for number in range(12, 24)]
    check(staying, all_at_once(url, staying, [LONG] * 8, leave_after_s=0.3))
    ends = time.monotonic() + 5
    while session.running and time.monotonic() < ends:
        time.sleep(0.01)
    assert session.running == 0 and kinds(url, "1+1")[-1] == "end"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_at_once_on_the_shipped_model(serve):
    """The same with the real model: fifty of all sizes, and twenty who leave in the middle of theirs."""
    url = serve()
    rng = random.Random(7)
    texts = [random_problem(rng, operands, held_out=True).text for operands in [3, 4, 6, 8, 12] * 10]
    assert kinds(url, "1+2")[-1] == "end"
    visits = all_at_once(url, texts, [LONG] * 20)
    assert [visit.error for visit in visits] == [""] * 50
    assert sum(visit.answer == right(text) for text, visit in zip(texts, visits, strict=True)) >= 45
    assert all(visit.places or visit.waited_s < 5 for visit in visits)
    waits = sorted(visit.waited_s for visit in visits)
    print(f"waited: median {waits[25]:.1f} s, longest {waits[-1]:.1f} s; all: {max(v.seconds for v in visits):.1f} s")
    assert kinds(url, "1+2")[-1] == "end"
