"""The command line's options: their names, defaults and help. No torch here."""

import argparse
import re
from typing import NoReturn

from selfspan_core.models.registry import DEFAULT_MODEL, MODELS, PREFERRED
from selfspan_core.params import ADAPTERS, MAX_DRAFTS, MAX_LOAD
from selfspan_core.tasks.registry import TASKS, task_options

EPILOG = """examples:
  python -m selfspan_core run '79*36+63'
  echo '79*36+63' | python -m selfspan_core run
  python -m selfspan_core run --attention both --adapter plain --input expressions.txt --json
  python -m selfspan_core run --task summarize --length short --input article.txt

figures: seconds is the lane's own clock, prefill included; tokens_per_second is its speed after the first token;
with --load, total_tokens_per_second is that of all the lane's requests together, by the time of its steps

exit status: 0 when every input ran (right answer or wrong), 2 on bad input, 1 if a run failed; reasons go to standard
error"""


def printable(text: str) -> str:
    """Text with all terminal control sequences escaped: text from users and models is data."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Parser(argparse.ArgumentParser):
    """As argparse's, which repeats what was typed in its messages as it is."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(prog="python -m selfspan_core", description="Self-selected attention spans.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="solve inputs with dense attention, self-selected attention, or both side by side",
        description="Solves one expression per line, or takes all of the input: an article with --task summarize, a "
        "program with --task trace; prints worked steps, answer and speed of each lane.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("text", nargs="?", help="the input itself, in place of --input and standard input")
    # What argparse takes for a negative number is no option; so is an expression that begins with a minus.
    run._negative_number_matcher = re.compile(r"-\s*[\d(.+-]*\d")
    run.add_argument("--task", default=next(iter(TASKS)), help=f"what the input is: {', '.join(TASKS)}")
    for option in task_options():
        run.add_argument(f"--{option.name}", help=option.help)
    run.add_argument("--attention", default="both", help="dense, sparse, or both as a race (default)")
    run.add_argument(
        "--adapter",
        default="span",
        help="span (default), or plain: writes no annotations, so dense only; with --attention both the plain adapter, "
        "dense, races the span adapter, self-selected",
    )
    run.add_argument(
        "--input", metavar="FILE", help="read FILE instead of standard input: an input per line, or one article"
    )
    run.add_argument(
        "--as-is",
        action="store_true",
        help="use an article as it was pasted; otherwise broken lines are joined, marks of other formats, menus and "
        "notices are taken out, and standard error says so",
    )
    run.add_argument("--json", action="store_true", help="one JSON object per input and lane, one per line")
    _add_decoding(run)
    _add_models(run)
    _add_export(commands)
    _add_serve(commands)
    return parser


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`export`: a folder for other engines."""
    export = commands.add_parser(
        "export",
        help="write a base with an adapter merged in as a folder that other engines load",
        description="Writes weights, tokenizer and settings; config.json also names the marker ids.",
    )
    export.add_argument("--task", default=next(iter(TASKS)), help=f"whose adapter: {', '.join(TASKS)}")
    export.add_argument("--adapter", default="span", choices=ADAPTERS, help="span (default) or plain")
    export.add_argument("--adapter-folder", metavar="DIR", help="another adapter (default: the task's shipped one)")
    export.add_argument("--model", default=DEFAULT_MODEL, metavar="NAME", help=f"base (default: {DEFAULT_MODEL})")
    export.add_argument("--dtype", default="bfloat16", help="of the weights: bfloat16 (default), float16 or float32")
    export.add_argument("--out", required=True, metavar="DIR", help="folder to make")


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`serve`: another engine, started."""
    serve = commands.add_parser(
        "serve",
        help="serve an exported model by vLLM, with self-selected attention",
        description="Prints the command that starts vLLM's server, and runs it. What follows -- goes to vLLM.",
    )
    serve.add_argument("--model", required=True, metavar="DIR", help="folder that `export` wrote")
    serve.add_argument("--engine", default="vllm", choices=("vllm",), help="vllm (default)")
    serve.add_argument("--print", action="store_true", help="print the command only")
    serve.add_argument("options", nargs="*", help="vLLM's own options, behind --")


def _add_decoding(run: argparse.ArgumentParser) -> None:
    """How tokens are drawn and drafted, and how many."""
    run.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens to write (default: the task's limit)")
    run.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    run.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="above temperature 0, sample only from the likeliest tokens that hold this share of the probability: "
        "above 0, at most 1 (default: all tokens)",
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling above temperature 0")
    run.add_argument(
        "--drafts",
        default="auto",
        metavar="off|auto|N",
        help="tokens proposed from what is named or was written before, and verified several at a time; only the time "
        f"changes, and in 16 bits near ties: auto (default: as many as pay), off, or at most N, 1 to {MAX_DRAFTS}",
    )


def _add_models(run: argparse.ArgumentParser) -> None:
    """Where and how the models run, and which they are."""
    preferred = ", ".join(f"for {task} {names[0]}" for task, names in PREFERRED.items())
    run.add_argument("--device", default="auto", help="auto (default: CUDA if there is any), cpu or cuda")
    run.add_argument(
        "--impl",
        help="how decoding runs: captured (default on CUDA: either lane in a captured graph), gather (default on a "
        "CPU), reference or cuda (implementations of self-selected attention, token by token)",
    )
    run.add_argument(
        "--load",
        type=int,
        default=1,
        metavar="N",
        help=f"requests that each lane answers at once, 1 (default) to {MAX_LOAD}: this one and random others of about "
        "its size; more than 1 needs a CUDA GPU",
    )
    run.add_argument(
        "--model",
        metavar="NAME",
        help=f"model: a registered one ({', '.join(MODELS)}), a folder, a GGUF file or a hub id (default: "
        f"{DEFAULT_MODEL}, also for adapters given below; {preferred} where its adapters are there)",
    )
    run.add_argument(
        "--engine",
        metavar="URL",
        help="let a vLLM server with the plugin decode (http://host:port, started by `serve`) in place of a model that "
        "is loaded here; --model then names its exported folder, where its own name does not say what it is (default: "
        "SELFSPAN_ENGINE of the environment)",
    )
    run.add_argument(
        "--plain-engine",
        metavar="URL",
        help="another one that serves the plain adapter, for --adapter plain (default: SELFSPAN_PLAIN_ENGINE)",
    )
    run.add_argument("--span-adapter", metavar="DIR", help="span adapter (default: the task's shipped one)")
    run.add_argument("--plain-adapter", metavar="DIR", help="plain adapter (default: the task's shipped one)")
