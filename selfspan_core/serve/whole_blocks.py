"""Gradio blocks whose streams send every value whole and stand still for no search for garbage, and whose API may grow
arguments with defaults.
"""

import gc
import logging
from inspect import Parameter, signature
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.utils import get_function_description

from selfspan_core.serve.call_queue import CallQueue
from selfspan_core.serve.starting import settle

log = logging.getLogger("selfspan")
FORGED = "The page's own functions take the page's own values."


class WholeBlocks(gr.Blocks):
    """As gradio's, but what a generator yields is sent as it is, not as edits of what it yielded before.

    Gradio 6.31 numbers the deletions of a list that lies in a list twice (`gradio.utils.diff`), so that a client that
    applies the edits ends up with other values than were yielded, or with an IndexError. What this app streams are
    news, which edits do not make smaller.
    """

    def queue(self, *args: Any, **options: Any) -> Any:
        """See gradio; with a queue that no caller can stop."""
        queued = super().queue(*args, **options)
        self._queue = CallQueue.take_over(self._queue)
        return queued

    def launch(self, *args: Any, **options: Any) -> Any:
        """See gradio; what is there when the server stands is then left out of searches for garbage."""
        served = super().launch(*args, **options)
        settle()
        return served

    def close(self, verbose: bool = True) -> None:
        """See gradio; what the server held can be found as garbage again."""
        super().close(verbose)
        gc.unfreeze()

    def explain_api(self) -> None:
        """Name the arguments of all endpoints on the page of the API, and say what their functions' docstrings say.

        Gradio numbers them, and says nothing.
        """
        for block_fn in self.fns.values():
            if block_fn.api_visibility != "public" or block_fn.fn is None:
                continue
            _, said, _ = get_function_description(block_fn.fn)
            for value, (name, text) in zip(block_fn.inputs, said.items(), strict=False):
                if isinstance(value, Api):
                    value.label = name
                    value._api_info = {**value._api_info, "additional_description": text}

    def handle_streaming_diffs(
        self,
        block_fn: Any,
        data: list,
        session_hash: str | None,
        run: str | None,
        final: bool,
        simple_format: bool = False,
    ) -> list:
        """See gradio: values for the next message of a run; some kinds are sent whole anyway."""
        is_whole = simple_format or final or session_hash is None or run is None
        is_whole = is_whole or run not in self.pending_diff_streams[session_hash]
        data = super().handle_streaming_diffs(block_fn, data, session_hash, run, final, simple_format=True)
        return data if is_whole else [[["replace", [], value]] for value in data]

    async def preprocess_data(self, block_fn: Any, inputs: list, state: Any, explicit_call: bool = False) -> list:
        """See gradio; but values that no page sends are refused in a word, not with a traceback that quotes them.

        Raises:
            gr.Error: a control does not take its value, or the function is one of the browser's.
        """
        if block_fn.fn is None:
            raise gr.Error(FORGED, print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception:
            raise gr.Error(FORGED, print_exception=False) from None

    async def call_function(self, block_fn: Any, *args: Any, **kwargs: Any) -> Any:
        """See gradio; but a function of the page that fails at what no page sends says so, without a traceback.

        Raises:
            gr.Error: see above, or what the function itself tells.
        """
        try:
            return await super().call_function(block_fn, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            if block_fn.api_visibility == "public":
                raise
            log.warning("a function of the page failed with %s", type(error).__name__)
            log.debug("where it failed", exc_info=error)
            raise gr.Error(FORGED, print_exception=False) from None

    def validate_inputs(self, block_fn: Any, inputs: list) -> None:
        """See gradio; but values that a caller leaves out at the end are the endpoint's defaults.

        A caller over plain HTTP gives all values in order, and would fail whenever an argument is added.

        Raises:
            gr.Error: there are more values than arguments, or an argument without a default is missing. Gradio's own
                error would name nothing to the caller, and write the values into the server's log.
        """
        if block_fn.api_visibility != "public":
            if len(inputs) != len(block_fn.inputs):
                raise gr.Error(FORGED, print_exception=False)
            return
        parameters = list(signature(block_fn.fn).parameters.values())[: len(block_fn.inputs)]
        names = ", ".join(parameter.name for parameter in parameters)
        if len(inputs) > len(parameters):
            given = f"{len(inputs):,} values were given, and there are {len(parameters)} arguments: {names}."
            raise gr.Error(given, print_exception=False)
        for parameter in parameters[len(inputs) :]:
            if parameter.default is Parameter.empty:
                raise gr.Error(
                    f"{parameter.name} is missing. Arguments are given in this order: {names}.", print_exception=False
                )
            inputs.append(parameter.default)
