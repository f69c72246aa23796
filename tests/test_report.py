"""Documents hold what the results files say, and their links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from cuda_kernels.bench.pictures import digest, drawn_from
from selfspan_core.models.registry import PREFERRED
from tests.support.paths import ROOT
from training import report
from training.reports.markdown import from_document

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MARKDOWN = sorted(
    file.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "assets/*.md", "assets/results/*.md")
    for file in ROOT.glob(pattern)
)
FOLDERS_OF_GUIDES = (".", "selfspan_core", "tests", "tests/support")
"""What paths in guides to the code begin at."""
RESULTS = ROOT / "assets/results"
DRAWN_BY = {
    "anchors": "training.picture_anchors",
    "drafts": "training.picture_drafts",
    "engine": "training.picture_engine",
    "kernel": "cuda_kernels.picture",
    "summary_curve": "training.picture_curve",
}
"""What draws a results file, by how its name begins."""
MAX_README_LINES, MAX_README_ROWS = 160, 6


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors_of(name: str) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", text_of(name)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_documents_hold_what_the_results_files_say(name):
    """Would catch a figure edited by hand, or a new results file that no document shows."""
    assert report.filled(text_of(name), name) == text_of(name), "run: python -m training.report"


def measured_blocks() -> set[str]:
    """Names of blocks that there are figures for: those of a new task come with its first results file."""
    return {name for name, block in report.blocks().items() if not block().endswith(" yet.\n")}


def test_every_block_is_known_closed_and_shown():
    """Would catch a misspelt block, which would stay as it is for good, and a table that no document shows."""
    shown = set()
    for name in report.DOCUMENTS:
        opened = [block[1] for block in report.BLOCK.findall(text_of(name))]
        assert opened and text_of(name).count("<!-- results:") == len(opened)
        shown |= set(opened)
    assert measured_blocks() <= shown <= set(report.blocks())


def test_results_are_complete_and_the_readme_is_short():
    """Would catch full tables that move back into the README, and a full table that docs/results.md lacks."""
    blocks = {name: {block[1] for block in report.BLOCK.findall(text_of(name))} for name in report.DOCUMENTS}
    known, measured = set(report.blocks()), measured_blocks()
    brief = {name for name in known if name.endswith("_brief")}
    # The README has the usual model of a task alone.
    others = {name.removesuffix("_brief") for name in brief & measured}
    replaced = {f"{task}_brief" for task in PREFERRED if any(name.startswith(f"{task}_") for name in others)}
    assert (brief & measured) - replaced <= blocks["README.md"] <= brief
    findings = {name for name in known if name.startswith("findings_")}
    assert measured - brief - findings <= blocks["docs/results.md"] <= known - brief - findings
    assert blocks["docs/findings.md"] == findings
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= MAX_README_LINES
    for block in report.BLOCK.finditer(readme):
        rows = [line for line in block[0].splitlines() if line.startswith("| ")][2:]
        assert 2 <= len(rows) <= MAX_README_ROWS, block[2]


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_lead_somewhere(name):
    """Would catch a link to a file that was moved, or to a heading that was renamed."""
    for target in LINK.findall(FENCE.sub("", text_of(name))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.is_relative_to(ROOT) and file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors_of(file.relative_to(ROOT).as_posix()), f"{name}: {target}"


def drawing(picture: Path) -> str:
    """The command that draws a picture of the results."""
    (module,) = {by for name, by in DRAWN_BY.items() if re.fullmatch(f"{name}(_[a-z0-9_]+)?", picture.stem)}
    assert importlib.util.find_spec(module), module
    return f"python -m {module} assets/results/{picture.stem}.json"


@pytest.mark.parametrize("picture", sorted(RESULTS.glob("*.png")), ids=lambda picture: picture.name)
def test_pictures_show_what_the_results_files_say(picture):
    """Would catch a results file that is measured again and whose picture is forgotten, and one by another command."""
    stated = drawn_from(picture)
    assert f"{picture.stem}.json" in stated, f"it does not say of what it was drawn; run: {drawing(picture)}"
    there = {name: digest((RESULTS / name).read_bytes()) for name in stated if (RESULTS / name).is_file()}
    assert stated == there, f"it was drawn of another file than lies there; run: {drawing(picture)}"


def test_links_of_tables_start_at_their_document():
    """Would catch a table whose links work in the README only."""
    text = "[`assets/results/x.json`](assets/results/x.json) ![p](assets/results/x.png) [web](https://x.org/assets/y)"
    assert from_document(text, "README.md") == text
    assert "](../assets/results/x.json) ![p](../assets/results/x.png)" in from_document(text, "docs/results.md")
    assert "](results/x.json)" in from_document(text, "assets/MODEL_CARD.md")
    assert "](https://x.org/assets/y)" in from_document(text, "docs/results.md")


def test_the_tree_names_folders_that_exist():
    """Would catch a tree of the README that names what has moved."""
    (tree,) = (block for block in FENCE.findall(text_of("README.md")) if "app.py  " in block)
    folder = ""
    for line in tree.splitlines()[1:-1]:
        # Names stand one or two spaces apart, the description further away.
        names = re.match(r" *((?:[\w./]+ {1,2})+)", line)[1].split()
        if not line.startswith(" "):
            folder = names[0]
        inside = folder if line.startswith(" ") else ""
        missing = [name for name in names if not (ROOT / inside / name).exists()]
        assert names and not missing, line


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/adding-a-task.md"])
def test_named_files_exist(name):
    """Would catch a guide to the code that names a file by where it was."""
    named = re.findall(r"`([\w./-]+\.(?:py|js|html|cuh?|yaml))`", FENCE.sub("", text_of(name)))
    missing = [path for path in named if not any((ROOT / folder / path).is_file() for folder in FOLDERS_OF_GUIDES)]
    assert len(named) > 5 and not missing


def test_python_examples_run(capsys):
    """Would catch an example that calls what has another name or other arguments now."""
    blocks = re.findall(r"^```python\n(.*?)^```", text_of("docs/api.md"), re.MULTILINE | re.DOTALL)
    examples = [block for block in blocks if "gradio_client" not in block]
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("start\ntick") and "end\n((0, 9), (10, 13))\n" in printed


def test_every_log_entry_is_in_the_index_and_opens_with_its_outcome():
    """Would catch an entry that nobody finds, or one whose result has to be searched for."""
    index = text_of("docs/log/README.md")
    entries = [file for file in (ROOT / "docs/log").glob("*.md") if file.name != "README.md"]
    assert entries
    for file in entries:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+\.md", file.name) and f"({file.name})" in index
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ") and lines[2].startswith("**Outcome (")


def test_the_command_says_what_is_out_of_date(monkeypatch, capsys, tmp_path):
    """Would catch `--check` that writes, and a stale document that passes it."""
    for name in report.DOCUMENTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text_of(name), encoding="utf-8")
    stale = tmp_path / "README.md"
    stale.write_text(text_of("README.md").replace("99.8 %", "99.9 %"), encoding="utf-8")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    for arguments, status, said in (
        (["--check"], 1, "README.md"),
        ([], 0, "README.md"),
        (["--check"], 0, "up to date"),
    ):
        monkeypatch.setattr("sys.argv", ["report", *arguments])
        with pytest.raises(SystemExit) as ended:
            report.main()
        assert ended.value.code == status and said in capsys.readouterr().out
    assert stale.read_text(encoding="utf-8") == text_of("README.md")
