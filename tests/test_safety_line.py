"""The shipped models write what they wrote before the code was rearranged, to the last id."""

import pytest

from tests.safety_line.cases import LANES, Case, Ways, cases, digest
from tests.safety_line.record import decode, read

SAMPLED_EXPRESSIONS = (0,)
"""One of 4 operands."""
SAMPLED_ARTICLES = (0,)
"""The shortest one, briefly."""


@pytest.fixture(scope="module")
def line() -> tuple[dict[str, list[int]], dict[str, str], dict]:
    """What was recorded."""
    return read()


@pytest.fixture(scope="module")
def ways() -> Ways:
    """The engines."""
    return Ways()


def sample() -> list[Case]:
    """A few cases of every lane and way."""
    chosen = [case for case in cases("arithmetic") if case.number in SAMPLED_EXPRESSIONS]
    return chosen + [case for case in cases("summarize") if case.number in SAMPLED_ARTICLES]


def hold(line, ways: Ways, chosen: list[Case]) -> None:
    """Decode cases and compare them; a failure says where the ids part."""
    ids, prompts, _ = line
    for case in chosen:
        assert digest(ways.prompt(case).ids) == prompts[case.name], f"{case.name}: another prompt than was recorded"
    for name, written in decode(ways, chosen, lambda done, total: None).items():
        expected = ids[name]
        if written != expected:
            at = next((i for i, pair in enumerate(zip(written, expected, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(written), len(expected)) if at is None else at
            near = slice(max(0, at - 3), at + 3)
            pytest.fail(f"{name}: differs from id {at} on: {written[near]} where {expected[near]} was recorded")


def test_everything_is_recorded(line):
    """Would catch a line that has lost some of its cases."""
    ids, _, about = line
    assert list(ids) == [case.name for case in cases()] and all(ids.values()) and len(ids) == 1440
    assert len(about["commit"]) == 40


def test_ways_agree(line):
    """Would catch a recording in which rows together write otherwise than each by itself, ties of rounding apart."""
    ids, _, _ = line
    pairs = [
        (ids[case.name], ids[case.name.replace("rows together", "token by token")]) for case in cases("arithmetic")
    ]
    assert sum(one == other for one, other in pairs) >= 0.99 * len(pairs)


def test_a_sample_is_as_recorded(line, ways):
    """Would catch a change of any lane, engine, rule or prompt that changes what the shipped models write."""
    hold(line, ways, sample())


@pytest.mark.slow
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("task", ["arithmetic", "summarize"])
def test_all_are_as_recorded(line, ways, task, lane):
    """The same of all of them; half an hour on two cores."""
    hold(line, ways, [case for case in cases(task) if case.lane == lane])
