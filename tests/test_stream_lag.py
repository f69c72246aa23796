"""The measurement of the page's lag, by frames and ticks that are made up, and its table."""

import json

import pytest

from tests.support import stream_lag
from training.reports import stream
from training.reports.markdown import ROOT

SENT = [(1000, 10, 10), (1070, 20, 20), (1500, 30, 30)]
FRAMES = [[900, 0, 0], [1016, 10, 10], [1032, 10, 10], [1200, 20, 20], [1216, 20, 20], [1530, 30, 30]]


def test_what_is_behind_and_what_stands_still():
    """Would catch a standstill of the server that is taken for the page's, and frames that show nothing new."""
    found = stream_lag.figures(SENT, FRAMES)
    assert (found["behind_ms_most"], found["behind_ms_median"]) == (130, 30)
    assert (found["gap_ms_most"], found["gap_of_server_ms_most"]) == (330, 430)
    assert (found["updates"], found["ticks"]) == (3, 3)


def test_a_tick_that_no_frame_shows_is_told():
    """Would catch a page that lost the end of a stream, and figures that pass over it."""
    with pytest.raises(RuntimeError, match="never showed"):
        stream_lag.figures(SENT, FRAMES[:-1])


def test_nothing_is_written_from_uncommitted_changes(tmp_path, monkeypatch):
    """Would catch published figures that no commit can give again."""
    monkeypatch.setattr(stream_lag, "provenance", lambda: {"dirty": True})
    with pytest.raises(SystemExit, match="clean commit"):
        stream_lag.main(["--out", str(tmp_path / "stream.json")])
    assert not list(tmp_path.iterdir())


def test_its_table(tmp_path, monkeypatch):
    """Would catch a report that fails while there is no file, and a median that is taken for the most."""
    names = ("behind_ms_most", "gap_ms_most", "gap_of_server_ms_most", "waited_for_a_core_ms")
    runs = [dict.fromkeys(names, milliseconds) for milliseconds in (50, 1200, 70)]
    machine = {"cpu": "AMD EPYC", "cores": 2}
    results = {"machine": machine, "commit": "0" * 40, "dirty": False, "command": "python -m x"}
    results |= {"load_average_before": 0.04, "cases": {"phone": stream_lag.CASES["7,000 tokens/s"] | {"runs": runs}}}
    file = tmp_path / "stream_cpu.json"
    monkeypatch.setattr(stream, "PATH", file)  # an absolute path takes the place of the project's
    assert (ROOT / file) == file and stream.stream() == stream.MISSING
    file.write_text(json.dumps(results))
    assert f"| 7,000 | 1280 x 1100 | 3 |{' 70 / 1,200 |' * 4}\n" in stream.stream()
