"""The benchmark of drafts on the CPU, with a tiny shape, and what is made of its results."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from cuda_kernels.bench.pictures import PictureError, save_picture
from selfspan_core.engine.batch_shape import BatchShape
from selfspan_core.engine.batch_step import BatchStep
from selfspan_core.engine.device_drafts import DeviceDrafts
from selfspan_core.engine.hints import DraftHints
from selfspan_core.models.model import SpanModel
from selfspan_core.models.weights import DecodeWeights
from selfspan_core.spans.render import render
from selfspan_core.spans.tracker import Tracker
from selfspan_core.tasks.registry import get_task
from tests.support.engine_tools import tiny_hf
from tests.support.span_examples import MARKERS, worked_example
from training import bench_app, bench_drafts, check_drafts, picture_drafts
from training.bench import answer_cells, texts
from training.bench.answer_cells import LANES, AnswerLane, answer_cell, compared
from training.bench.replay import Recording, Replay
from training.bench.shapes import Machine
from training.bench.texts import Text, articles, behind_more, typical_first, weights_of
from training.reports import drafts as report

MACHINE = Machine(torch.device("cpu"), 1e10, 8e9)
HINTS = DraftHints(2, frozenset(), (MARKERS.res,))


@pytest.fixture(scope="module")
def weights():
    return DecodeWeights(SpanModel(tiny_hf()))


def recording(seed, num_steps=3):
    rendered = render(worked_example(seed, num_segments=3, num_steps=num_steps), MARKERS)
    start = rendered.prompt.num_tokens
    return Recording(rendered.prompt, tuple(rendered.ids[start:]), True, tuple(rendered.ids[:start]))


def test_a_rehearsal_counts_the_steps_of_every_row(weights):
    """Would catch an answer whose last steps are in nobody's time, or drafts that skip a part of a text."""
    recordings = [recording(seed, num_steps=2 + seed) for seed in range(3)]
    undrafted = Replay(BatchStep(weights, MARKERS, BatchShape(3, 200, False)))
    assert undrafted.rehearse(recordings) == [len(one.ids) - 1 for one in recordings]
    own = DeviceDrafts(HINTS, 7)
    drafted = Replay(BatchStep(weights, MARKERS, BatchShape(3, 200, False, drafts=7)), own)
    num_steps = drafted.rehearse(recordings)
    assert all(
        -(-(len(one.ids) - 1) // 8) <= num < len(one.ids) - 1 for num, one in zip(num_steps, recordings, strict=True)
    )
    assert drafted.rehearse(recordings) == num_steps, "a second rehearsal is another"


def test_the_time_to_an_answer_counts_every_step(weights, monkeypatch):
    """Would catch a sum that leaves steps out, counts a sample once, or takes one row's end for all."""
    recordings = [recording(1), recording(2, num_steps=5)]
    lane = AnswerLane(BatchStep(weights, MARKERS, BatchShape(2, 200, False)), recordings, None, 10)
    seconds = []
    monkeypatch.setattr(lane.replay, "launch", lambda: seconds.append(0.5))
    monkeypatch.setattr(lane.replay, "seconds", lambda: seconds)
    while lane.sample():
        pass
    figures = lane.figures(weights, MACHINE)
    lengths = [len(one.ids) - 1 for one in recordings]
    assert figures["seconds_to_answer"] == pytest.approx(0.5 * sum(lengths) / 2)
    assert figures["tokens_per_step"] == 1 and figures["ms_per_step"] == pytest.approx(500)


def test_the_tokens_that_a_step_reads_are_counted_once(weights):
    """Would catch a floor of other bytes than the step's queries see together."""
    one = recording(3)
    step = BatchStep(weights, MARKERS, BatchShape(1, 200, False))
    replay = Replay(step)
    replay.follow(0, one)
    tracker = Tracker(MARKERS, one.layout, True)
    for token in one.ids[:-1]:
        step.skip(1)
        assert int(step.num_planned) == tracker.push(token).num_visible


def test_cells_report_and_pictures(weights, tmp_path, monkeypatch):
    """Would catch a lane that is compared with another's time, or a report that does not know what it finds."""
    text = Text("3 operands", [recording(1), recording(2)], [recording(4)], HINTS)
    cell = answer_cell(weights, MARKERS, MACHINE, text, 2, 4)
    assert list(cell["lanes"]) == list(LANES)
    drafted, plain = cell["lanes"]["span sparse + drafts"], cell["lanes"]["plain dense"]
    assert set(drafted["sizes"]) == {"1", "4", "8", "16"} and drafted["sizes"]["16"]["tokens_per_step"] > 1
    assert plain["plain_dense_over_this"] == 1
    assert drafted["plain_dense_over_this"] == pytest.approx(plain["seconds_to_answer"] / drafted["seconds_to_answer"])
    assert "auto" not in cell
    text_alone = Text("3 operands", [recording(1)], [recording(4)], HINTS)
    shapes: list[BatchShape] = []
    monkeypatch.setattr(answer_cells, "BatchStep", lambda *of, **more: shapes.append(of[2]) or BatchStep(*of, **more))
    auto = answer_cell(weights, MARKERS, MACHINE, text_alone, 1, 4, with_auto=True)["auto"]
    whole = [(one.is_dense, one.drafts) for one in shapes[-4:]]
    assert whole == [(True, "off"), (True, "auto"), (False, "off"), (False, "auto")]
    for lane in auto.values():
        gain = lane["undrafted_seconds_to_answer"] / lane["seconds_to_answer"]
        assert lane["undrafted_over_this"] == pytest.approx(gain) and gain > 0
    assert 1 <= auto["span sparse + drafts"]["steps"] < len(recording(1).ids)  # drafts were taken
    assert auto["plain dense + lookup"]["steps"] <= len(recording(4).ids), "the dense lane writes the plain text"
    cell["auto"] = auto
    small = answer_cell(weights, MARKERS, Machine(torch.device("cpu"), 1e10, 5e9), text, 10**9, 4)
    assert "do not fit" in small["unavailable"]
    origin = {"machine": {"gpu": "some GPU"}, "commit": "abc", "dirty": False, "command": "python -m x"}
    results = {
        **origin,
        "shapes": {"tiny": {"answers": [cell, {"text": "3 operands", "batch": 9, "unavailable": "x"}]}},
    }
    lane = {"answers": 5, "tokens": 100, "drafts_kept": 40, "answers_that_drafts_changed": 1, "ties": [0.125]}
    lane["rounding_moved"] = 0.25
    lossless = {**origin, "dtype": "bfloat16", "lanes": {"articles": {"span sparse": lane}}}
    rates = {"tokens_per_second": 2000.0, "seconds_to_answer": 0.05}
    kind = {"lanes": {"dense": rates, "sparse": rates}, "to_answer": 1.0, "self_selected_behind": 0, "answers": 3}
    app = {**origin, "drafts": {"auto": {"articles, short": kind}}}
    files = {"drafts": {"d.json": results}, "lossless": {"l.json": lossless}, "app": {"a.json": app}}
    monkeypatch.setattr(report, "read_all", files.__getitem__)
    whole = report.drafts()
    assert "| tiny, 3 operands, batch 2 |" in whole and "Do not fit: tiny, 3 operands, 9." in whole
    gains = [auto[lane]["undrafted_over_this"] for lane in ("span sparse + drafts", "plain dense + lookup")]
    assert f"{gains[0]:.2f}x / {gains[1]:.2f}x |" in whole
    assert "| articles, span sparse | 5 | 100 | 40 | 1 | 0.125 (1) | 0.25 |" in whole
    assert "| articles, short, drafts auto | 2,000 | 2,000 | 50 | 50 | 1.00x | 0 of 3 |" in whole
    monkeypatch.setattr(report, "BRIEF_TEXTS", ("3 operands",))
    monkeypatch.setattr(report, "BRIEF_BATCHES", (2,))
    assert "| tiny, 3 operands, batch 2 |" in report.drafts_brief()
    save_picture(picture_drafts.draw(json.loads(json.dumps(results))), tmp_path / "picture.png", {})
    assert (tmp_path / "picture.png").stat().st_size > 5000
    with pytest.raises(PictureError, match="no replayed text"):
        picture_drafts.cells_of({"shapes": {"x": {"answers": []}}, "machine": {"gpu": "x"}})
    half = {"shapes": {"a": {"answers": [{"lanes": {}, "text": "t", "batch": 1}]}}, "machine": {"gpu": "x"}}
    for wrong in ({}, half):
        with pytest.raises(PictureError, match="these are no results"):
            picture_drafts.cells_of(wrong)
    assert picture_drafts.cells_of({**results, "machine": {"cpu": "some CPU"}})[2] == "some CPU"


def test_no_drafts_at_all_is_among_the_sizes():
    """Would catch drafts that are told to pay where they do not: "auto" may leave them out."""
    figures = {}
    for lane, size, seconds in [
        *(("plain dense", 1, 2.0), ("plain dense + lookup", 4, 3.0)),
        *(("span sparse", 1, 1.0), ("span sparse + drafts", 4, 0.5)),
    ]:
        figures[lane, size] = {"seconds_to_answer": seconds, "tokens": 11, "ms_per_step": 1.0, "tokens_per_step": 1.0}
    found = compared(figures)
    assert found["plain dense + lookup"]["queries_per_row"] == 1
    assert found["span sparse + drafts"]["lookup_over_this"] == 4
    assert found["span sparse"]["tokens_per_second_per_row"] == 10


def test_articles_of_a_length():
    """Would catch texts that are all alike, or of another length than is said."""
    tokenizer = weights_of("summarize-span", torch.device("cpu")).model.tokenizer
    task = get_task("summarize")
    found = articles(500, 3, 7, tokenizer)
    assert len({problem.text for problem in found}) == 3
    lengths = [task.render(problem, tokenizer, True).prompt.num_tokens for problem in found]
    assert all(430 < length < 520 for length in lengths)
    assert [one.text for one in articles(500, 3, 7, tokenizer)] == [one.text for one in found]
    longer = articles(900, 3, 7, tokenizer)
    assert all(more.text.startswith(one.text) for one, more in zip(found, longer, strict=True))
    short, long = (task.render(problem, tokenizer, True) for problem in (found[0], longer[0]))
    markers = tokenizer.markers
    names = list(short.prompt.segments)
    new = markers.anchors[(markers.anchor_index[names[-1]] + 1) % len(markers.anchors)]
    ids = (markers.ref, names[2], new, markers.go, 900, markers.end, markers.eos)
    made = behind_more(Recording(short.prompt, ids, True, tuple(short.ids[: short.prompt.num_tokens])), long, markers)
    tracker = Tracker(markers, made.layout, True)
    for token in made.ids:
        tracker.push(token)
    assert tracker.num_malformed == 0 and made.ids[1] == names[2] and made.ids[2] != new


def test_summaries_of_articles_beyond_the_context(monkeypatch):
    """Would catch a benchmark that dies at its longest article, after minutes."""
    monkeypatch.setattr(texts, "LONGEST_SUMMARIZED", 150)
    made = texts.summaries(400, 1, 3, torch.device("cpu"))
    for one in (made.span[0], made.plain[0]):
        assert 330 < len(one.prompt) < 420 and one.layout.num_tokens == len(one.prompt)
    tracker = Tracker(weights_of("summarize-span", torch.device("cpu")).model.tokenizer.markers, made.span[0].layout)
    for token in made.span[0].ids:
        tracker.push(token)
    assert tracker.num_malformed == 0 and len(tracker.steps) >= 2


def test_the_gap_at_a_tie_of_a_text_with_rules():
    """Would catch a check that dies at its first tie: the run that names the gap is forced, and has no rules."""
    side = check_drafts.Side(get_task("summarize", length="short"), "span dense", torch.device("cpu"), 2)
    problem = get_task("summarize").parse(get_task("summarize").examples[0])
    (written,), _ = side.texts([problem], "off")
    place = len(written) // 2
    tie = side.tie(problem, 0, place, written[place], written)
    assert tie.gap == 0 and tie.moved < 1e-3
    (logits,) = side.led(problem, written[:1], 1)
    assert int(logits.argmax()) == written[0]


def test_rounding_is_what_the_number_of_rows_moves(monkeypatch):
    """Would catch one row compared with itself, which moves nothing, whatever a step of all rows does."""
    side = check_drafts.Side(get_task("arithmetic"), "span sparse", torch.device("cpu"), 3)
    asked = []

    def led(problem, written, rows):
        asked.append(rows)
        return [torch.tensor([0.0, 2.0 + rows, 1.0])] * len(written)

    monkeypatch.setattr(side, "led", led)
    tie = side.tie(None, 4, 1, 2, [1, 1])
    assert (tie.ids, tie.logits, tie.moved) == ((1, 2), (3.0, 1.0), 2.0) and asked == [1, 3]


def test_what_rounding_moves():
    """Would catch the movement of one logit taken for that of a gap, or of ids that are far behind."""
    logits, others = torch.tensor([1.0, 5.0, 4.0, -9.0]), torch.tensor([1.0, 6.0, 5.5, 9.0])
    assert check_drafts.moved_gap(logits, others) == 0.5


def test_the_check_finds_a_text_that_drafts_changed(monkeypatch):
    """Would catch a check that cannot fail, or that blames drafts for a tie without naming the gap."""
    side = check_drafts.Side(get_task("arithmetic"), "span sparse", torch.device("cpu"), 2)
    problems = [get_task("arithmetic").parse(text) for text in ("7+5*3", "9-4+2")]
    right = check_drafts.compare(side, problems)
    assert right.ties == [] and right.drafts_kept > 5 and right.answers == 2
    decode, undone = side.texts, iter([False, True])

    def changed(*arguments):
        found, accepted = decode(*arguments)
        if next(undone):
            found[1][5] += 1
        return found, accepted

    monkeypatch.setattr(side, "texts", changed)
    wrong = check_drafts.compare(side, problems)
    (tie,) = wrong.ties
    assert (tie.number, tie.place) == (1, 5) and tie.gap > 0
    right.add(wrong)
    told = right.figures(torch.float32)
    assert told["answers_that_drafts_changed"] == 1 and right.answers == 4
    assert (told["ties"], told["widest"]["ids"]) == ([tie.gap], tie.ids)


def test_the_check_finds_a_text_that_is_cut_short(monkeypatch):
    """Would catch a check that takes a text's beginning for the text."""
    side = check_drafts.Side(get_task("arithmetic"), "span sparse", torch.device("cpu"), 1)
    decode = side.texts

    def cut(problems, drafts):
        found, accepted = decode(problems, drafts)
        return [ids if drafts == "off" else ids[:-3] for ids in found], accepted

    monkeypatch.setattr(side, "texts", cut)
    with pytest.raises(RuntimeError, match="the same up to there"):
        check_drafts.compare(side, [get_task("arithmetic").parse("7+5*3")])


@pytest.mark.parametrize(
    ("logits", "dtype", "num_steps"),
    [((32.0, 32.75), torch.bfloat16, 3), ((-5.0, 31.0), torch.bfloat16, 288), ((8.0, 8.0), torch.float32, 0)],
)
def test_steps_between_logits(logits, dtype, num_steps):
    """Would catch a gap that is measured by the numbers near another logit, or one below zero that counts as none."""
    assert check_drafts.Tie(0, 0, (1, 2), logits).num_steps(dtype) == num_steps


def test_the_widest_tie_is_the_one_of_most_steps():
    """Would catch a narrow gap of small logits, which no rounding explains, behind a wider one of large logits."""
    ties = [check_drafts.Tie(0, 0, (1, 2), pair) for pair in ((24.0, 23.5), (2.25, 1.85))]
    found = check_drafts.Compared(2, 10, 5, ties)
    assert found.widest(torch.bfloat16) is ties[1]
    assert found.figures(torch.bfloat16)["steps"] == pytest.approx([25.6, 4])


@pytest.mark.parametrize(("gap", "moved", "fails"), [(0.01, 0.004, True), (0.01, 0.006, False), (0.0, 0.0, False)])
def test_a_gap_that_no_rounding_explains_fails_the_check(gap, moved, fails, tmp_path, monkeypatch):
    """Would catch a check whose exit status says nothing, or that keeps no figures when it fails."""
    tie = check_drafts.Tie(3, 7, (1, 2), (20.0 + gap, 20.0), moved)
    found = check_drafts.Compared(1, 10, 5, [tie])
    monkeypatch.setattr(check_drafts, "compare_part", lambda *_: found)
    monkeypatch.setattr(check_drafts, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    out = tmp_path / "lossless.json"
    argv = ["--device", "cpu", "--expressions", "1", "--articles", "0", "--lanes", "span sparse", "--out", str(out)]
    if fails:
        with pytest.raises(SystemExit, match=r"Tie\(number=3, place=7"):
            check_drafts.main(argv)
    else:
        check_drafts.main(argv)
    told = json.loads(out.read_text())["lanes"]["expressions"]["span sparse"]
    assert (told["ties"], told["rounding_moved"]) == ([pytest.approx(gap)], moved)


def test_rates_of_the_app_are_over_all_tokens():
    """Would catch a mean of rates, in which a short answer counts as much as a long one."""
    calls = [
        {"lanes": {lane: {"tokens": n + 1, "tokens_per_second": rate, "seconds": s} for lane in ("dense", "sparse")}}
        for n, rate, s in ((10, 10.0, 1.5), (90, 90.0, 1.0))
    ]
    calls[1]["lanes"]["sparse"] = {"tokens": 91, "tokens_per_second": 45.0, "seconds": 2.0}
    found = bench_app.summed(calls)
    assert found["lanes"]["dense"]["tokens_per_second"] == 50
    assert found["lanes"]["sparse"]["tokens_per_second"] == pytest.approx(100 / 3)
    assert found["self_selected_behind"] == 1 and found["lanes"]["sparse"]["slowest_tokens_per_second"] == 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--operands", "1"], "--operands"),
        (["--batches", "0"], "from 1 on"),
        (["--articles", "3"], "100 tokens or more"),
        (["--operands", "--articles"], "at least one text"),
        (["--others", "nonsense"], "no text is called 'nonsense'"),
    ],
)
def test_arguments(argv, message, capsys):
    """Would catch a benchmark that finds out after minutes what it was asked for."""
    with pytest.raises(SystemExit):
        bench_drafts.parse_arguments(["--device", "cpu", "--shapes", "tiny", *argv])
    assert message in capsys.readouterr().err
    for module in (check_drafts, bench_app):
        with pytest.raises(SystemExit):
            module.main(["--out", "/nowhere/at/all.json"])
        assert "lies in none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_app.main(["--port", "99999"])
    assert "--port: 1 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused():
    """Would catch figures of another program that answers on the port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RuntimeError, match="is taken"), bench_app.running_app(other.getsockname()[1]):
            pass


def test_the_most_typical_text_comes_first():
    """Would catch a figure for a single row that rests on a text which is short in one lane by chance, and pairs that
    come apart."""
    lengths = [(10, 40), (30, 31), (31, 30), (80, 5), (29, 30)]
    spans, plains = ([SimpleNamespace(ids=[0] * pair[side]) for pair in lengths] for side in (0, 1))
    span, plain = typical_first(spans, plains)
    found = [(len(a.ids), len(b.ids)) for a, b in zip(span, plain, strict=True)]
    assert found[0] in lengths[1:3] and sorted(found) == sorted(lengths)
    assert found[1:] == [pair for pair in lengths if pair != found[0]]
