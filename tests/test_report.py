"""Documents tell the truth of the results files."""

from pathlib import Path

import pytest

from training import report

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_documents_hold_what_the_results_files_say(name):
    """Would catch a figure edited by hand, or a new results file that no document shows."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert report.filled(text) == text, "run: python -m training.report"


def test_every_block_is_known_and_closed():
    """Would catch a misspelt block, which would stay as it is for good."""
    for name in report.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        opened = [block[1] for block in report.BLOCK.findall(text)]
        assert opened and text.count("<!-- results:") == len(opened)
        assert set(opened) <= set(report.BLOCKS)
