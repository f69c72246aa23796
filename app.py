"""The app: layout and wiring. It knows ticks, payloads and the names of models; no torch.

One generator feeds both panes. Page and API share one device (`serve/device.py`); whoever comes second waits in its
line, and is told how long.
"""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import gradio as gr
from starlette.middleware import Middleware

from selfspan_core.errors import ModelError
from selfspan_core.models.registry import ModelSpec, offered, resolve_model
from selfspan_core.serve import page_files
from selfspan_core.serve.api import compare_endpoint
from selfspan_core.serve.device import MOST_RUN_S, SharedDevice
from selfspan_core.serve.feed import Feed
from selfspan_core.serve.gate import Gate
from selfspan_core.serve.large_models import large_models
from selfspan_core.serve.lazy_session import LazySession, shipped_tasks
from selfspan_core.serve.leftovers import Leftovers
from selfspan_core.serve.outer_calls import OuterCalls
from selfspan_core.serve.own_address import OwnAddress
from selfspan_core.serve.runs import PageRuns, offered_load
from selfspan_core.serve.starting import (
    impl_of_environment,
    port_of_environment,
    reach_itself,
    refuse,
    seconds_of_environment,
    settle,
    wait_for_interrupt,
)
from selfspan_core.serve.stores import engines_named
from selfspan_core.serve.tools import tools
from selfspan_core.serve.whole_blocks import WholeBlocks
from selfspan_core.serve.zero_gpu import IMPL, ZeroGpuSession, is_zero_gpu
from selfspan_core.tasks.page import HIDDEN, Controls, controls
from selfspan_core.tasks.registry import TASKS, get_task

if TYPE_CHECKING:
    from selfspan_core.serve.http_engine.served import Engines

# All of these wait in the device's line, which tells each its place; more wait in gradio's queue.
LANE = {"concurrency_id": "lane", "concurrency_limit": 64}
# A waiting run takes one of the server's threads: as many as may wait, and enough for checks and pages besides.
MAX_THREADS = 100
# Not queue=False: gradio then reports no change of a State. Bounded, so that checks never take all of its threads.
AT_ONCE = {"concurrency_id": "checks", "concurrency_limit": 8}
# Waits while models load; with a limit of its own it keeps no check waiting.
AFTER_LOADING = {"concurrency_id": "loading", "concurrency_limit": 4}
ONCE = {"compare": "compare_once"}
"""Endpoints of tools whose own names are taken."""
TURNED = "() => void document.dispatchEvent(new CustomEvent('ss-turn', { detail: %s }))"
"""A tab is in sight: the race shows the result of its task."""
INTRO = """# selfspan
A language model that says what it needs to read, and then reads only that. Watch it """
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Menlo", "Consolas", "monospace"]}


def build_app(
    session,
    tasks: Sequence[str] = (next(iter(TASKS)),),
    model: ModelSpec | None = None,
    device: SharedDevice | None = None,
    recorded: str | None = None,
) -> gr.Blocks:
    """The page and the API around a session (anything with its `compare` and `can_load`).

    Args:
        tasks: what the page offers, a tab each where there are several.
        model: the session's own, of requests that name none; None: of each task its usual one. Others are offered
            beside it where there are any.
        device: of the session's runs, where others use it, too; None: one of its own.
        recorded: a run that the page plays until a visitor runs something.
    """
    device = device or SharedDevice(session)
    runs = PageRuns(device)
    with WholeBlocks(title="selfspan", analytics_enabled=False) as demo:
        gr.Markdown(INTRO + pitch(tasks), elem_id="intro")
        # Above the controls, so that what a visitor sees first is the idea; the script of `race` draws both.
        gr.HTML(html_template=page_files.markup("stage"), apply_default_css=False, elem_id="stage")
        with gr.Tabs(elem_id="tasks") if len(tasks) > 1 else nullcontext():
            asked = [_tab(name, len(tasks) > 1, model) for name in tasks]
        script = page_files.script(known=[one.known for one in asked], large=large_models())
        gr.HTML(html_template=page_files.markup("race"), js_on_load=script, apply_default_css=False, elem_id="race")
        feed = gr.HTML(
            recorded, html_template="", js_on_load=page_files.feed_script(), apply_default_css=False, elem_id="feed"
        )
        job = gr.State()
        streaming = job.change(runs.stream, job, feed, trigger_mode="multiple", **LANE, **HIDDEN)
        streaming.failure(lambda: Feed("").note("halted"), None, feed, queue=False, **HIDDEN)
        for one in asked:
            _wire(one, runs, feed, job)
            if one.load is not None:
                demo.load(lambda: offered_load(session.can_load()), None, one.load, **AFTER_LOADING, **HIDDEN)
        gr.api(compare_endpoint(device, tasks, model), api_name="compare", **LANE)
        for tool in tools(device, tasks):
            gr.api(tool, api_name=ONCE.get(tool.__name__, tool.__name__), **LANE)
        demo.unload(runs.forget)
        demo.explain_api()
    # Closed to calls beside the queue: each of those would block one of gradio's threads on the lane.
    return demo.queue(max_size=64, api_open=False)


def pitch(tasks: Sequence[str]) -> str:
    """What a visitor is going to see."""
    if len(tasks) == 1:
        return f"{TASKS[tasks[0]].page.pitch_alone}."
    *others, last = (TASKS[name].page.pitch for name in tasks)
    return f"{', '.join(others)} or {last}, both ways."


def _tab(name: str, is_tab: bool, model: ModelSpec | None) -> Controls:
    """A task's controls, in a tab of their own where there are several tasks."""
    with gr.Tab(TASKS[name].page.tab, id=name) if is_tab else nullcontext() as tab:
        if tab is not None:
            tab.select(None, js=TURNED % json.dumps(name), **HIDDEN)
        return controls(get_task(name), offered(name, model))


def _wire(one: Controls, runs: PageRuns, feed: gr.HTML, job: gr.State) -> None:
    """A task's controls begin and end runs."""

    def check(request: gr.Request, text: str, *values):
        return runs.check(one, text, values, request.session_hash)

    outputs = [one.alert, one.cleaning, feed, job]
    gr.on(one.begins, check, one.inputs, outputs, **AT_ONCE, **HIDDEN)
    for filled in one.fills:
        filled.then(check, one.inputs, outputs, **AT_ONCE, **HIDDEN)
    one.stop.click(runs.halt, None, feed, queue=False, **HIDDEN)
    # What was wrong with the last input says nothing of the next.
    one.box.change(None, None, [one.alert, one.cleaning], js="() => [null, null]", **HIDDEN)


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
        "css_paths": page_files.styles(),
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "run_history": False,
        "max_threads": MAX_THREADS,
        "mcp_server": True,
        # Nothing is ever uploaded, nothing but the page's own files is served, and nobody's statistics are anybody's
        # business.
        "app_kwargs": {"middleware": [Middleware(one) for one in (Gate, OwnAddress, OuterCalls, Leftovers)]},
        "max_file_size": "1kb",
        "enable_monitoring": False,
        # Gradio keeps what belongs to a visitor's session, the last answer among it, of 10,000 if nobody says
        # otherwise. These are more than can wait or run at a time; who comes back later gets a new one.
        "state_session_capacity": 200,
    }
    return demo.launch(**{**defaults, **options})


def serve(session: LazySession | ZeroGpuSession, device: SharedDevice, demo: gr.Blocks, port: int) -> None:
    """Open the port, then load the models; the process ends when it is interrupted.

    In this order: gradio asks its own page once before it counts as started, and gives up after three seconds, which
    the imports of a loading thread, or of the first visitors, can take.
    """
    reach_itself()
    with session.held():
        launch(demo, server_name="0.0.0.0", server_port=port, prevent_thread_lock=True)
    threading.Thread(target=warm, args=(device,), daemon=True).start()
    wait_for_interrupt()


def warm(device: SharedDevice) -> None:
    """Load the models, and leave them, with what they import, out of searches for garbage."""
    device.warm()
    settle()


def model_of_environment() -> ModelSpec | None:
    """The model of requests that name none: SELFSPAN_MODEL, a registered name, a folder, a GGUF file or a hub id.

    None where it is not set: then each task has its usual one.

    Raises:
        SystemExit: there is no such model; a server of nothing would help nobody.
    """
    try:
        named = os.environ.get("SELFSPAN_MODEL")
        return resolve_model(named) if named else None
    except ModelError as error:
        refuse(f"SELFSPAN_MODEL: {error}")


def engines_of_environment(model: ModelSpec | None) -> "Engines | None":
    """The vLLM servers that decode: SELFSPAN_ENGINE, and SELFSPAN_PLAIN_ENGINE; None where none is named.

    Raises:
        SystemExit: one cannot be used; what it serves decides what the page offers.
    """
    try:
        return engines_named(None, None, model)
    except ModelError as error:
        refuse(f"SELFSPAN_ENGINE: {error}")


def session_here(model: ModelSpec | None, engines: "Engines | None" = None) -> LazySession | ZeroGpuSession:
    """The session of this machine, whose lanes run as SELFSPAN_IMPL says, or as usual there; or on servers."""
    impl = impl_of_environment()
    if engines is not None and impl:
        refuse("SELFSPAN_IMPL is of models that are loaded here, and a server decodes (SELFSPAN_ENGINE): unset one.")
    if engines is not None or not is_zero_gpu():
        return LazySession(impl, model, engines)
    import spaces  # installed on every such Space

    return ZeroGpuSession(LazySession(impl or IMPL, model), spaces.GPU)


own_model = model_of_environment()
engines = engines_of_environment(own_model)
session = session_here(own_model, engines)
tasks = shipped_tasks(own_model)
if engines is not None:
    own_model, tasks = engines.span.spec, (engines.span.record.task,)
device = SharedDevice(session, most_run_s=seconds_of_environment(MOST_RUN_S))
demo = build_app(session, tasks, own_model, device, page_files.recorded())

if __name__ == "__main__":
    serve(session, device, demo, port_of_environment())
