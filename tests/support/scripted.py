"""Lanes without a model: an engine that replays ids through the real tracker at a pace of its choice.

Deterministic to the last figure, so that whatever turns events into text, ticks and lines can be tested exactly.
"""

from types import SimpleNamespace

from selfspan_core.engine.events import Finished, HeaderClosed, OtherRows, Prefilled, StepEnded, Token
from selfspan_core.engine.stores import Chosen, Terms
from selfspan_core.models.learned import Learned
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.tracker import Tracker

CHARACTERS = "0123456789+-*/()=;:\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,."
OTHER_PREFILL_S = 0.01
FIRST_BYTE = 512
"""Ids from here on are single bytes, 0 to 255, as byte-fallback pieces are."""


class CharacterTokenizer:
    """One id per character, bytes for what it does not know."""

    markers = Markers(bos=1, eos=2, ref=4, go=5, res=6, end=7, anchors=tuple(range(8, 264)))
    _kinds = {4: "ref", 5: "go", 6: "res", 7: "end"}  # noqa: RUF012

    def encode(self, text):
        ids = []
        for character in text:
            if character in CHARACTERS:
                ids.append(300 + CHARACTERS.index(character))
            else:
                ids += [FIRST_BYTE + byte for byte in character.encode()]
        return ids

    def decode(self, ids):
        data = b""
        for token in ids:
            if token >= FIRST_BYTE:
                data += bytes([token - FIRST_BYTE])
            elif token >= 300:
                data += CHARACTERS[token - 300].encode()
        return data.decode(errors="replace")

    def marker_kind(self, token):
        return "anchor" if token in self.markers.anchor_index else self._kinds.get(token)


def step(tokenizer, reads, name, work, result):
    """Ids of one well-formed step; `reads` and `name` are anchor numbers."""
    markers = tokenizer.markers
    header = [markers.ref, *(markers.anchors[read] for read in reads), markers.anchors[name], markers.go]
    return [*header, *tokenizer.encode(work), markers.res, *tokenizer.encode(result), markers.end]


def right_output(tokenizer, problem, annotated=True):
    """Ids of the worked steps of an arithmetic problem, with `<eos>`."""
    ids = []
    for reduction in problem.reductions:
        if annotated:
            ids += step(tokenizer, reduction.reads, reduction.name, reduction.work, reduction.result)
        else:
            ids += tokenizer.encode("\n" + reduction.work + reduction.result)
    return [*ids, tokenizer.markers.eos]


def replay(tokenizer, prompt, ids, attention, annotated, step_ms, prefill_s=0.02, draw_ms=1.0, on_close=None):
    """What an engine says while it writes `ids`; `on_close` is called when the generator ends, however it ends."""
    try:
        tracker = Tracker(tokenizer.markers, prompt.prompt, annotated)
        yield Prefilled(prompt.prompt.num_tokens, prefill_s)
        seconds, attended, dense, ended, token = prefill_s, 0, 0, 0, None
        for number, new in enumerate(ids):
            if token is not None:
                attended, dense = attended + token.num_visible, dense + token.num_context
            ms = step_ms if number else draw_ms
            seconds += ms / 1000
            state = tracker.push(new)
            visible = state.visible if attention == "sparse" else ((0, state.position + 1),)
            num_visible = sum(end - start for start, end in visible)
            where = (state.phase, state.step, visible, state.malformed)
            token = Token(new, state.position, ms, num_visible, state.position + 1, *where)
            yield token
            if state.header_closed:
                yield HeaderClosed(len(tracker.steps) - 1, tracker.steps[-1])
            while ended < len(tracker.steps) and tracker.steps[ended].end is not None:
                ended += 1
                yield StepEnded(ended - 1, tracker.steps[ended - 1])
        reason = "eos" if ids[-1] == tokenizer.markers.eos else "length"
        yield Finished(reason, seconds, len(ids), attended, dense, tracker.num_malformed, tuple(tracker.steps))
    finally:
        if on_close is not None:
            on_close()


class ScriptedEngine:
    """Stands in for engine.Engine: writes `ids`, cut at `max_new_tokens`, at `step_ms[attention]` per token."""

    def __init__(self, tokenizer, ids, step_ms, max_context=4096):
        self.model = SimpleNamespace(max_context=max_context, tokenizer=tokenizer, bytes_per_token=2048)
        self.tokenizer, self.ids, self.step_ms = tokenizer, ids, step_ms
        self.calls = []
        self.others = []
        self.num_open = 0
        self.num_closed = 0

    def _closed(self):
        self.num_closed += 1

    def drafter(self, request, hints, drafts, attention, impl):
        """It writes what it is told to, without drafts."""
        self.drafts = drafts

    def generate(self, request, attention="dense", impl="gather"):
        drawn = request.sampling
        settings = {"temperature": drawn.temperature, "top_p": drawn.top_p, "seed": drawn.seed}
        self.calls.append({"attention": attention, "annotated": request.annotated, **settings})
        ids, pace = self.ids[: drawn.max_new_tokens], self.step_ms[attention]
        return replay(self.tokenizer, request.prompt, ids, attention, request.annotated, pace, on_close=self._closed)

    def generate_among(self, request, others, num_rows, attention="dense"):
        """Every other row draws one id per step; each of their prefills takes OTHER_PREFILL_S."""
        self.others.append([next(others) for _ in range(num_rows - 1)])
        first = True
        for event in self.generate(request, attention):
            if isinstance(event, Token) and not first:
                yield OtherRows(num_rows - 1, 0.0)
            yield event
            if isinstance(event, Token) and first:
                first = False
                yield from [OtherRows(0, OTHER_PREFILL_S)] * (num_rows - 1)


class ScriptedStore:
    """Stands in for model_store.ModelStore: adapter -> engine."""

    default = SimpleNamespace(name="script")
    device_name = "script, float32"
    impl = "gather"
    terms = Terms()

    def __init__(self, tokenizer, engines, can_load=False):
        self.tokenizer = tokenizer
        self.can_load = can_load
        self.engines = engines

    def device_with(self, impl, model=None):
        return self.device_name

    def spec(self, model=None):
        return self.default

    def usual(self, task):
        return self.default

    def choose(self, task, model=None):
        return Chosen(self.default)

    def learned(self, task, adapter, model=None):
        return Learned()

    def engine(self, task, adapter, model=None):
        return self.engines[adapter]


class FakeClock:
    """Wall time that moves only when told: `advance` seconds at every look."""

    def __init__(self, advance=0.0):
        self.now, self.advance = 100.0, advance

    def __call__(self):
        self.now += self.advance
        return self.now
