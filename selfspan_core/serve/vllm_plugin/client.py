"""For whoever asks a vLLM with this plugin: prompts as ids, and what an answer's ids say of its reads. No vLLM here.

sampling = vllm.SamplingParams(temperature=0, max_tokens=512, extra_args=asked.extra_args)
output = llm.generate(asked.prompt, sampling)[0].outputs[0]
answer = account_of(output.token_ids, asked, tokenizer.markers)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfspan_core.engine.events import Account, Finished
from selfspan_core.params import SamplingParams
from selfspan_core.serve.vllm_plugin.settings import KEY, SpanSettings
from selfspan_core.spans.protocol import Markers
from selfspan_core.spans.render import Rendered
from selfspan_core.tasks.base import Tokenizer, read_pasted
from selfspan_core.tasks.registry import get_task


@dataclass(frozen=True)
class Asked:
    """A request to vLLM.

    Attributes:
        rendered: the prompt as the project's own engine takes it.
        attention: "dense" reads everything; "sparse" reads what the answer declares.
    """

    rendered: Rendered
    attention: Literal["dense", "sparse"]

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt's ids, markers included."""
        return self.rendered.ids[: self.rendered.prompt.num_tokens]

    @property
    def settings(self) -> SpanSettings:
        """What the worker is told."""
        return SpanSettings.of_prompt(self.attention, self.rendered.prompt)

    @property
    def prompt(self) -> dict[str, Any]:
        """The prompt for `vllm.LLM.generate`."""
        salt = self.settings.cache_salt(len(self.prompt_ids))
        return {"prompt_token_ids": self.prompt_ids} | ({"cache_salt": salt} if salt else {})

    @property
    def extra_args(self) -> dict[str, Any]:
        """For `vllm.SamplingParams`."""
        return self.settings.to_extra_args()

    def to_json(self, model: str, max_tokens: int, temperature: float = 0.0) -> dict[str, Any]:
        """The body of a request to `/v1/completions` of vLLM's server; `choices[0].token_ids` of its answer are ids."""
        salt = self.settings.cache_salt(len(self.prompt_ids))
        return {
            "model": model,
            "prompt": self.prompt_ids,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "return_token_ids": True,
            "vllm_xargs": self.settings.to_extra_args(as_text=True),
        } | ({"cache_salt": salt} if salt else {})

    def to_stream_json(
        self, model: str, sampling: SamplingParams, most_tokens: int, eos: int, run: str, with_seed: bool = True
    ) -> dict[str, Any]:
        """The body of a request whose ids are streamed, as the project's own engine would draw them.

        Nothing is left to the server's usual settings of sampling, and only `<eos>` ends an answer.

        Args:
            model: what the server calls it.
            sampling: how tokens are drawn. Of a seed other ids come than from the own engine, the same ones every time.
            most_tokens: most tokens to write.
            eos: id of the tokenizer's end of sequence.
            run: names the run: none finds the pages of another in vLLM's prefix cache, so that the time to the first
                token is that of a whole prompt in every lane.
            with_seed: whether the server takes a seed; without one other ids are drawn every time.
        """
        body = self.to_json(model, most_tokens, sampling.temperature)
        drawn: dict[str, Any] = {"top_p": sampling.top_p if sampling.temperature > 0 else 1.0}
        drawn |= {"seed": sampling.seed} if sampling.temperature > 0 and with_seed else {}
        fixed = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        ends = {"ignore_eos": True, "stop_token_ids": [eos]}  # a server may know other ends, which are text here
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return body | drawn | fixed | ends | streamed | {"cache_salt": f"{body.get('cache_salt', KEY)}-{run}"}


def asked(task: str, text: str, tokenizer: Tokenizer, attention: Literal["dense", "sparse"], **options: str) -> Asked:
    """A request that has a task's input answered by its span adapter; the task's rules are the project's own engine's.

    Args:
        task: name of the task.
        text: what the user typed; it is cleaned as in the app, and can never become a marker.
        tokenizer: of the served model.
        attention: how the answer reads.
        options: of the task.

    Raises:
        InputError: the text cannot be used.
    """
    known = get_task(task, **options)
    problem, _ = read_pasted(known, text, clean=True)
    return Asked(known.render(problem, tokenizer, annotated=True), attention)


def account_of(output_ids: Sequence[int], asked: Asked, markers: Markers) -> Finished:
    """Steps and reads of an answer, by the tracker: what a query sees follows from the ids before it, so it is exact.

    Its `attended_tokens` over `dense_tokens` is the share of keys and values that was read; what vLLM computes once
    more after a preemption is not counted. It has no times: those are vLLM's to tell.
    """
    account = Account(markers, asked.rendered.prompt, annotated=True, is_dense=asked.attention == "dense")
    for token in output_ids:
        account.follow(token)
        account.token(token, 0.0)
        if account.is_at_end:
            break
    return account.finished("eos" if account.is_at_end else "length")
