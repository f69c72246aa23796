"""Gradio blocks whose streams send every value whole, and whose API may grow arguments with defaults."""

from inspect import Parameter, signature
from typing import Any

import gradio as gr


class WholeBlocks(gr.Blocks):
    """As gradio's, but what a generator yields is sent as it is, not as edits of what it yielded before.

    Gradio 6.31 numbers the deletions of a list that lies in a list twice (`gradio.utils.diff`), so that a client that
    applies the edits ends up with other values than were yielded, or with an IndexError. What this app streams are
    news, which edits do not make smaller.
    """

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

    def validate_inputs(self, block_fn: Any, inputs: list) -> None:
        """See gradio; but values that a caller leaves out at the end are the endpoint's defaults.

        A caller over plain HTTP gives all values in order, and would fail whenever an argument is added.
        """
        if block_fn.api_visibility == "public":
            for parameter in list(signature(block_fn.fn).parameters.values())[len(inputs) : len(block_fn.inputs)]:
                if parameter.default is Parameter.empty:
                    break
                inputs.append(parameter.default)
        super().validate_inputs(block_fn, inputs)
