"""How far a long prompt is, as it is told: in a tick's figures, and by the command line's bar."""

import io

import pytest

from selfspan_core.compare.lane_view import LaneView
from selfspan_core.compare.lanes import lane_specs
from selfspan_core.engine.events import Prefilled, PromptPart
from selfspan_core.serve.prompt_bar import with_bar
from tests.support.session_tools import TOKENIZER


def test_a_tick_tells_how_far_the_prompt_is():
    """Would catch a clock that stands still for as long as a prompt takes, or counts its parts twice, a part that is
    still told behind the prompt, and one that is told of a prompt that has none."""
    (spec,) = lane_specs("sparse", "span", "")
    view = LaneView(spec, TOKENIZER, prompt_tokens=100)
    assert "prompt_done" not in view.delta()
    for num_done in (40, 80):
        view.apply(PromptPart(num_done, 0.5))
        told = view.delta()
        assert (told["prompt_done"], told["elapsed_s"], told["phase"]) == (num_done, num_done / 80, "prefill")
    view.apply(Prefilled(100, 1.25, told_s=1.0))
    told = view.delta()
    assert "prompt_done" not in told and (told["elapsed_s"], told["phase"]) == (1.25, "between")


class Terminal(io.StringIO):
    """Standard error of somebody who looks."""

    def isatty(self):
        return True


def ticks():
    """Of two lanes, whose prompts of 100 and 200 tokens take turns."""
    yield {"kind": "start", "lanes": [{"id": "dense", "prompt_tokens": 100}, {"id": "sparse", "prompt_tokens": 200}]}
    waiting, through = {"phase": "prefill"}, {"phase": "between"}
    yield {"kind": "tick", "lanes": {"dense": waiting | {"prompt_done": 64}, "sparse": waiting}}
    yield {"kind": "tick", "lanes": {"dense": through, "sparse": waiting | {"prompt_done": 128}}}
    yield {"kind": "tick", "lanes": {"dense": through, "sparse": through}}
    yield {"kind": "end", "lanes": {}}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_for_who_looks(is_terminal, monkeypatch):
    """Would catch a bar in a script's log, a prompt of two lanes that is half done at its end, and ticks that the bar
    swallows or changes."""
    error = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", error)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    monkeypatch.setattr(
        "selfspan_core.serve.prompt_bar.OF_TERMINALS", {"disable": None, "leave": False, "mininterval": 0}
    )
    assert list(with_bar(ticks())) == list(ticks())
    shown = error.getvalue()
    assert ("64/300" in shown, "228/300" in shown, "reading the prompt" in shown) == (is_terminal,) * 3
    assert is_terminal or not shown


def test_nobody_looks_and_nothing_is_there_to_write_to(monkeypatch):
    """Would catch a run that fails because standard error is closed."""
    monkeypatch.setattr("sys.stderr", None)
    assert list(with_bar(ticks())) == list(ticks())


def test_a_run_that_is_left_is_closed():
    """Would catch a bar that keeps a run's lanes, whose device others wait for."""
    closed = []

    def run():
        try:
            yield from ticks()
        finally:
            closed.append(True)

    running = with_bar(run())
    next(running)
    running.close()
    assert closed == [True]
