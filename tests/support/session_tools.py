"""A session on scripted engines, and its ticks put together again."""

from selfspan_core.compare.session import Session
from selfspan_core.tasks.registry import get_task
from tests.support.scripted import CharacterTokenizer, FakeClock, ScriptedEngine, ScriptedStore, right_output

TASK = get_task("arithmetic")
TOKENIZER = CharacterTokenizer()
TEXT = "79*36+63"
RESULT_FIELDS = [
    *("input", "canonical", "attention", "adapter", "output", "answer", "expected", "correct", "tokens", "seconds"),
    *("tokens_per_second", "attended_tokens", "dense_tokens", "malformed_steps", "steps"),
]
LANE_FIELDS = {
    *("from", "items", "tokens", "tokens_per_second", "ms_per_token", "first_token_ms", "elapsed_s"),
    *("attended_tokens", "dense_tokens", "share", "reading", "phase", "steps", "done", "finish"),
    *("rows_from", "rows"),
}


def scripted_session(
    span_ids=None, plain_ids=None, step_ms=None, text=TEXT, clock=None, tokenizer=TOKENIZER, can_load=False
):
    problem = TASK.parse(text)
    step_ms = step_ms or {"dense": 2.0, "sparse": 1.0}
    span = ScriptedEngine(tokenizer, span_ids or right_output(tokenizer, problem), step_ms)
    plain = ScriptedEngine(tokenizer, plain_ids or right_output(tokenizer, problem, annotated=False), step_ms)
    store = ScriptedStore(tokenizer, {"span": span, "plain": plain}, can_load)
    return Session(store, clock or FakeClock(0.01)), store


def assembled(ticks, lane):
    """All items of a lane, put together from the deltas; fails on a gap or an overlap."""
    items = []
    for tick in ticks:
        if tick["kind"] == "tick":
            news = tick["lanes"][lane]
            assert news["from"] == len(items), "a delta does not start where the last one ended"
            items += news["items"]
    return items


def show(items):
    return "".join(item["text"] if item["kind"] in ("text", "newline") else f"[{item['text']}]" for item in items)


def last_lane(ticks, lane):
    return [tick["lanes"][lane] for tick in ticks if tick["kind"] == "tick"][-1]
