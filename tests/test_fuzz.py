"""A fixed minute of `make fuzz`, and that it finds what it looks for."""

import time

import pytest
from hypothesis import strategies as st

from tests.fuzz import runner
from tests.fuzz.runner import Target, TooSlow, fuzz
from tests.fuzz.targets import TARGETS
from tests.support import damaged
from tests.support.kernel_on_cpu import COMPILER

INPUTS = {
    **{"arithmetic": 1000, "articles": 600, "articles as they are": 600, "programs": 600, "bytes of a file": 1000},
    **{"trackers": 150, "rules": 20, "command line": 400, "API": 200, "requests": 200, "tools": 200},
    **{"configurations": 30, "GGUF files": 120, "models": 4},
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_fixed_sample(name, monkeypatch):
    """Would catch an input that ends in a traceback, takes many seconds, or is refused without a word."""
    # The two seconds are `make fuzz`'s: here tests run side by side, on machines of any speed.
    for clock in (runner, damaged):
        monkeypatch.setattr(clock, "MOST_S", 10.0)
    if name == "trackers" and COMPILER is None:
        pytest.skip("needs g++ to compile the tracker for the CPU")
    tried = fuzz(TARGETS[name], INPUTS[name], number=7)
    assert tried.inputs >= INPUTS[name]


def _fail_on_some(text: str) -> int:
    if "x" in text:
        raise KeyError(text)
    return 1


def _rest_on_some(text: str) -> int:
    ends = time.process_time() + (0.2 if text else 0)
    while time.process_time() < ends:
        pass
    return 1


def test_faults_are_found(tmp_path, monkeypatch):
    """Would catch a fuzzer that swallows what targets raise, does not look at its clock, or forgets what it found."""
    failing = Target("failing", "parser", st.text(alphabet="abx", max_size=9), _fail_on_some, ("a",))
    with pytest.raises(KeyError, match="x"):
        fuzz(failing, 200, number=None, found=str(tmp_path))
    assert any(file.is_file() for file in tmp_path.rglob("*"))
    monkeypatch.setattr(runner, "MOST_S", 0.1)
    with pytest.raises(TooSlow, match=r"0\.\d s of a processor"):
        fuzz(Target("slow", "parser", st.text(max_size=3), _rest_on_some, ("",)), 50, number=1)
    monkeypatch.setattr(runner, "HANG_S", 0.05)
    with pytest.raises(TooSlow, match="no end after"):
        fuzz(Target("hanging", "parser", st.text(max_size=3), _rest_on_some, ("",)), 50, number=1)
