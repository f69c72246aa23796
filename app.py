"""The app: layout and wiring. It knows ticks and payloads, neither torch nor models.

One generator feeds both panes. The lane (one device) is one lock and one gradio concurrency id, shared by the page
and the API; whoever comes second waits in gradio's queue.
"""

import itertools
import json
import logging
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from selfspan_core.errors import InputError, NotReady, TooLongError
from selfspan_core.params import MAX_LOAD, MAX_NEW_TOKENS, Request, SamplingParams
from selfspan_core.serve.feed import Feed
from selfspan_core.serve.lazy_session import LazySession, SharedDevice, public, shipped_tasks, without_lists
from selfspan_core.tasks.registry import get_task
from selfspan_core.tasks.summarize.form import MAX_SUMMARY_TOKENS

ASSETS = Path(__file__).parent / "assets" / "app"
LANE = {"concurrency_id": "lane", "concurrency_limit": 1}
# Not queue=False: gradio then reports no change of a State. Bounded, so that checks never take all of its threads.
AT_ONCE = {"concurrency_id": "checks", "concurrency_limit": 8}
# Waits while models load; with a limit of its own it keeps no check waiting.
AFTER_LOADING = {"concurrency_id": "loading", "concurrency_limit": 4}
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}
COMPARISONS = [
    ("Same adapter, mask off and on: isolates attention", "span"),
    ("Plain adapter against span adapter: time to answer", "plain"),
]
LENGTHS = [("Short: two sentences", "short"), ("Medium: three to five", "medium")]
LOAD_LABEL = "Load: requests at once"
LOAD_INFO = "In each lane: yours, and random others of its size."
NO_LOAD_INFO = "More than one needs a CUDA GPU and its captured steps, which are not in use here."
INTRO = """# selfspan
**A language model that says what it needs to read, and then reads only that.** Usually a model looks back at all of the
text so far to write each next bit (a *token*), and that takes time. Watch one model """
WHAT = {
    ("arithmetic",): "solve the same sum both ways.",
    ("summarize",): "summarize the same article both ways, in sentences that name their sources.",
}
WHAT_OF_ALL = "do the same task both ways: solve a sum, or summarize an article in sentences that name their sources."
ALERT = {
    "html_template": '<p class="ss-alert" role="alert"></p>',
    "js_on_load": (ASSETS / "alert.js").read_text(),
    "apply_default_css": False,
    "elem_classes": "ss-alert-box",
}
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Menlo", "Consolas", "monospace"]}
log = logging.getLogger("selfspan")


def build_app(session, tasks: Sequence[str] = ("arithmetic",)) -> gr.Blocks:
    """The page and the API around a session (anything with its `compare` and `can_load`).

    Args:
        tasks: what the page offers, a tab each where there are several.
    """
    device = SharedDevice(session)
    runs = itertools.count(1)
    newest: dict[str, int] = {}  # a tab's newest run: an older one that still runs gives way within a tick

    def check(task: str, text: str, settings: dict, request: gr.Request):
        """Bad input: the reason, and nothing else changes. Good input: a job for `stream`."""
        number, asked = next(runs), None
        try:
            asked = Request(task, text or "", **settings)
            get_task(task, **asked.options).parse(asked.text)
        except TooLongError:
            pass  # said by the run, which offers what fits
        except InputError as error:
            return json.dumps({"run": number, "message": str(error)}), gr.skip(), gr.skip()
        newest[request.session_hash] = number
        return (
            None,
            Feed(str(number)).note("waiting"),
            {"run": number, "request": asked},
        )

    def check_expression(text: str, adapter: str, max_new_tokens: int, load: int, request: gr.Request):
        settings = {"adapter": adapter, "load": load, "sampling": SamplingParams(max_new_tokens)}
        return check("arithmetic", text, settings, request)

    def check_article(text: str, adapter: str, length: str, request: gr.Request):
        settings = {
            "adapter": adapter,
            "options": {"length": length},
            "sampling": SamplingParams(MAX_SUMMARY_TOKENS),
        }
        return check("summarize", text, settings, request)

    def stream(job: dict, request: gr.Request) -> Iterator[str]:
        tab, feed = request.session_hash, Feed(str(job["run"]))
        try:
            if newest.get(tab) == job["run"]:
                yield feed.note("starting")
                with closing(device.compare(job["request"])) as ticks:
                    for tick in ticks:
                        yield feed.add(tick)
                        if newest.get(tab) != job["run"]:
                            break
        except TooLongError as error:
            yield feed.note("failed", str(error), beginning=error.beginning)
        except (InputError, NotReady) as error:
            yield feed.note("failed", str(error))
        except Exception as error:
            log.exception("a run failed")
            yield feed.note("failed", f"The run failed: {public(error)}")
        finally:
            if newest.get(tab) == job["run"]:
                del newest[tab]

    def compare(
        task: str,
        text: str,
        adapter: str = "span",
        max_new_tokens: int = MAX_NEW_TOKENS,
        load: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        length: str = "medium",
    ) -> Iterator[dict]:
        """Answer one input in both lanes. Streams one object per tick and ends with how they compare.

        Args:
            task: arithmetic or summarize.
            text: the expression, or the article.
            adapter: span (the same adapter, mask off and on) or plain (the plain adapter against the span adapter).
            max_new_tokens: the most tokens that a lane may write.
            load: requests that each lane answers at once, 1 to 64; more than 1 needs a CUDA GPU.
            temperature: 0 is greedy, above it tokens are sampled.
            top_p: sample only from the likeliest tokens that hold this share of the probability, above 0, at most 1.
            seed: of the sampling.
            length: of a summary, short or medium.
        """
        try:
            options = {"length": length} if task == "summarize" else {}
            sampling = SamplingParams(max_new_tokens, temperature, top_p, seed)
            asked = Request(task, text, options, adapter=adapter, load=load, sampling=sampling)
            with closing(device.compare(asked)) as ticks:
                yield from map(without_lists, ticks)
        except (InputError, NotReady) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            raise gr.Error(f"The run failed: {public(error)}") from error

    def halt(request: gr.Request):
        """Stop: the tab's newest run ends within a tick, or as soon as its turn comes.

        Not gradio's `cancels`: the page knows the name of what it would cancel only when the server has answered, and
        until then a Stop would be shown and not happen.
        """
        number = newest.pop(request.session_hash, None)
        return gr.skip() if number is None else Feed(str(number)).note("stopped")

    def offer_load():
        """The slider as this device has it; asked when a page opens, since the answer takes torch."""
        can_load = session.can_load()
        return gr.update(interactive=can_load, info=LOAD_INFO if can_load else NO_LOAD_INFO)

    def forget(request: gr.Request) -> None:
        newest.pop(request.session_hash, None)

    with gr.Blocks(title="selfspan", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + WHAT.get(tuple(tasks), WHAT_OF_ALL))
        asked, checks = {}, {"arithmetic": check_expression, "summarize": check_article}
        with gr.Tabs(elem_id="tasks") if len(tasks) > 1 else nullcontext():
            for task in tasks:
                with gr.Tab(TABS[task], id=task) if len(tasks) > 1 else nullcontext():
                    asked[task] = ASK[task]()
        race = gr.HTML(
            html_template=(ASSETS / "panes.html").read_text(),
            js_on_load=(ASSETS / "panes.js").read_text(),
            apply_default_css=False,
            elem_id="race",
        )
        job = gr.State()
        streaming = job.change(stream, job, race, trigger_mode="multiple", **LANE, **HIDDEN)
        streaming.failure(lambda: Feed("").note("halted"), None, race, queue=False, **HIDDEN)
        for task, one in asked.items():
            gr.on(one.begins, checks[task], one.inputs, [one.alert, race, job], **AT_ONCE, **HIDDEN)
            one.stop.click(halt, None, race, queue=False, **HIDDEN)
            # What was wrong with the last input says nothing of the next.
            one.box.change(None, None, one.alert, js="() => null", **HIDDEN)
        gr.api(compare, api_name="compare", **LANE)
        if "arithmetic" in asked:
            demo.load(offer_load, None, asked["arithmetic"].load, **AFTER_LOADING, **HIDDEN)
        demo.unload(forget)
    # Closed to calls beside the queue: each of those would block one of gradio's threads on the lane.
    return demo.queue(max_size=32, api_open=False)


@dataclass(frozen=True)
class Asked:
    """A task's controls: `begins` are the events that begin a run, `inputs` what it is made of, the text first."""

    box: gr.Textbox
    alert: gr.HTML
    stop: gr.Button
    begins: list
    inputs: list
    load: gr.Slider | None = None


def ask_expression() -> Asked:
    """Controls for arithmetic; inside a gradio context."""
    task = get_task("arithmetic")
    examples = [[text] for text in task.examples]
    labels = [f"{len(re.findall(r'[0-9]+', text))} numbers" for text in task.examples]
    with gr.Column(elem_id="ask"):
        box = gr.Textbox(
            value=task.examples[len(examples) // 2],
            label="Arithmetic expression",
            placeholder="79*36+63",
            info="2 to 64 numbers from 0 to 99, with + − × ÷ and parentheses. Enter runs it.",
            lines=1,
            max_lines=4,
            elem_id="expression",
        )
        alert = gr.HTML(**ALERT, elem_id="alert")
        with gr.Row(elem_classes="ss-actions"):
            with gr.Row(elem_classes="ss-buttons"):
                run = gr.Button("Run", variant="primary", elem_id="run", min_width=90)
                stop = gr.Button("Stop", elem_id="stop", elem_classes="ss-stop", min_width=80)
                surprise = gr.Button("Surprise me", elem_id="surprise", min_width=120)
            with gr.Column(min_width=320):
                gr.Examples(examples, [box], label="Examples", example_labels=labels, api_visibility="private")
        with gr.Row(elem_classes="ss-options"):
            comparison = gr.Radio(COMPARISONS, value="span", label="What is compared", scale=4)
            load = gr.Slider(
                1,
                MAX_LOAD,
                1,
                step=1,
                label=LOAD_LABEL,
                info=NO_LOAD_INFO,
                interactive=False,
                elem_id="load",
                scale=2,
                min_width=260,
            )
            with gr.Column(scale=1, min_width=200), gr.Accordion("Advanced", open=False):
                limit = gr.Slider(16, MAX_NEW_TOKENS, MAX_NEW_TOKENS, step=1, label="Max new tokens per lane")
    surprise.click(lambda: task.surprise(random.randrange(2**31)), None, box, queue=False, **HIDDEN)
    return Asked(box, alert, stop, [run.click, box.submit], [box, comparison, limit, load], load)


def ask_article() -> Asked:
    """Controls for articles; inside a gradio context."""
    task = get_task("summarize")
    examples = [[text] for text in task.examples]
    labels = [f"{len(text.split())} words" for text in task.examples]
    with gr.Column(elem_id="ask-article"):
        box = gr.Textbox(
            value=task.examples[1],
            label="Article",
            placeholder="Paste an English article.",
            info="Plain English text, from 30 words up to what the model can hold (some 2,000 words).",
            lines=6,
            max_lines=10,
            elem_id="article",
        )
        alert = gr.HTML(**ALERT, elem_id="alert-article")
        with gr.Row(elem_classes="ss-actions"):
            with gr.Row(elem_classes="ss-buttons"):
                run = gr.Button("Summarize", variant="primary", elem_id="run-article", min_width=90)
                stop = gr.Button("Stop", elem_id="stop-article", elem_classes="ss-stop", min_width=80)
            with gr.Column(min_width=320):
                gr.Examples(examples, [box], label="Examples", example_labels=labels, api_visibility="private")
        with gr.Row(elem_classes="ss-options"):
            comparison = gr.Radio(COMPARISONS, value="span", label="What is compared", scale=4)
            length = gr.Radio(LENGTHS, value="medium", label="Length of the summary", scale=2)
    return Asked(box, alert, stop, [run.click], [box, comparison, length])


TABS = {"arithmetic": "Arithmetic", "summarize": "Articles"}
ASK = {"arithmetic": ask_expression, "summarize": ask_article}


def launch(demo: gr.Blocks, **options):
    """Serve an app of `build_app`: system fonts only, nothing fetched from anywhere else."""
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **FONTS).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
    defaults = {
        "theme": theme,
        "css_paths": [ASSETS / "panes.css"],
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "run_history": False,
    }
    return demo.launch(**{**defaults, **options})


def serve(session: LazySession, demo: gr.Blocks, port: int) -> None:
    """Open the port, then load the models; returns when the server is stopped.

    In this order: gradio asks its own page once before it counts as started, and gives up after three seconds, which
    the imports of a loading thread, or of the first visitors, can take.
    """
    with session.held():
        launch(demo, server_name="0.0.0.0", server_port=port, prevent_thread_lock=True)
    threading.Thread(target=session.warm, daemon=True).start()
    demo.block_thread()


session = LazySession(impl=os.environ.get("SELFSPAN_IMPL"))
demo = build_app(session, shipped_tasks() or ("arithmetic",))

if __name__ == "__main__":
    serve(session, demo, int(os.environ.get("PORT", "7860")))
