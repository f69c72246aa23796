"""Which run of a tab is its newest, and what is kept of tabs that never begin one."""

from selfspan_core.serve.newest_runs import MOST_BETWEEN_S, NewestRuns
from tests.support.clock import Moved


def test_an_older_run_gives_way():
    """Two runs of a tab that both go on, an older one's end that stops the newer, a Stop that is not heard."""
    runs = NewestRuns()
    for number in (1, 2):
        runs.check("tab", number)
        runs.begin("tab", number)
    assert runs.is_newest("tab", 2) and not runs.is_newest("tab", 1)
    runs.end("tab", 1)
    assert runs.is_newest("tab", 2)
    assert runs.forget("tab") == 2 and runs.forget("tab") is None
    runs.begin("tab", 2)
    assert not runs.is_newest("tab", 2) and len(runs) == 0


def test_what_never_begins_is_forgotten():
    """An entry for good for every session that is made up; a run that is forgotten while it goes on or waits."""
    clock = Moved()
    runs = NewestRuns(clock)
    runs.check("runs", 1)
    runs.begin("runs", 1)
    for number in range(2, 100):
        runs.check(f"made-up-{number}", number)
    clock.now = MOST_BETWEEN_S / 2
    runs.check("waits", 100)
    clock.now = MOST_BETWEEN_S * 1.1
    runs.check("new", 101)
    assert len(runs) == 3 and runs.is_newest("runs", 1) and runs.is_newest("waits", 100)
    runs.check("runs", 102)  # once more, and not begun: its place is behind the others
    clock.now *= 2
    runs.check("last", 103)
    assert len(runs) == 1
