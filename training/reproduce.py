"""Make all that is trained or measured: `python -m training.reproduce --text DIR --pairs DIR`.

Token shards, base model, annotated summaries, adapters, evaluation, speed on this CPU, and the tables of README and
model card. A stage whose product exists is skipped, and training that was cut off goes on from its newest checkpoint,
so the same command can be given again after any interruption. The repository holds the products of most stages, so a
fresh clone has little to do: `--remake base arithmetic-span` makes those stages although their products exist,
`--remake all` makes everything. What builds on a remade stage is not remade by itself: name it too.

A remade training stage, too, goes on from the newest checkpoint in its run folder (`run` in its configuration), so an
interrupted remake is continued by the same command. Where that checkpoint is the last one of a finished run, nothing
is left to train: remove the run folder to train from the beginning. The tokenizer is never retrained: its ids are part
of every stored weight (`python -m training.train_tokenizer` makes another).
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.summary_data import META

ATTEMPTS = 3
SUMMARIES = Path("data/summarize")


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        product: the file that exists once it is finished; None for a quick stage that always runs.
        is_training: it takes `--resume`, and is tried again when it fails.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    product: Path | None
    is_training: bool = False

    def command(self, num_gpus: int) -> list[str]:
        """Arguments for Python. Training on several GPUs goes through accelerate's launcher, one process each."""
        launcher = []
        if self.is_training and num_gpus > 1:
            launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_gpus), "-m"]
        return ["-m", *launcher, self.module, *self.arguments, *(["--resume"] if self.is_training else [])]


def stages(text: str, pairs: str, workers: int, evaluation: tuple[str, ...]) -> list[Stage]:
    """All stages, in order."""
    shards = ("--text", text, "--pairs", pairs, "--tokenizer", "assets/base", "--out", "data/text")
    adapters = [
        Stage(
            name,
            "training.finetune",
            ("--config", f"training/configs/{name}.yaml"),
            Path("assets/adapters") / name / "training.json",
            is_training=True,
        )
        for name in ("arithmetic-span", "arithmetic-plain", "summarize-span", "summarize-plain")
    ]
    summaries = ("--text", text, "--pairs", pairs, "--tokenizer", "assets/base", "--out", str(SUMMARIES))
    return [
        Stage("text", "training.text_data", (*shards, "--workers", str(workers)), Path("data/text/meta.json")),
        Stage(
            "base",
            "training.pretrain",
            ("--config", "training/configs/base.yaml"),
            Path("assets/base/pretraining.json"),
            is_training=True,
        ),
        Stage("summaries", "training.summary_data", (*summaries, "--workers", str(workers)), SUMMARIES / META),
        *adapters,
        Stage("evaluation", "training.evaluate", evaluation, Path("assets/results/arithmetic.json")),
        Stage(
            "summarize-evaluation",
            "training.evaluate",
            ("--task", "summarize", "--data", str(SUMMARIES), "--pairs", pairs),
            Path("assets/results/summarize.json"),
        ),
        Stage("cpu", "selfspan_core.bench_cpu", (), Path("assets/results/cpu_engine.json")),
        Stage("report", "training.report", (), None),
    ]


def select(
    all_stages: Sequence[Stage], remake: Collection[str], exists: Callable[[Path], bool] = Path.exists
) -> list[Stage]:
    """The stages to run, in order: those without their product, and those named in `remake` (or `all`)."""
    return [
        stage
        for stage in all_stages
        if stage.product is None or "all" in remake or stage.name in remake or not exists(stage.product)
    ]


def run(stage: Stage, logs: Path) -> None:
    """Run one stage, its output going to `logs/NAME.log`.

    Raises:
        RuntimeError: it failed every time; the message names the log.
    """
    log = logs / f"{stage.name}.log"
    for attempt in range(1, ATTEMPTS + 1):
        started = time.monotonic()
        command = stage.command(torch.cuda.device_count())
        print(f"{time.strftime('%H:%M:%S')}  {stage.name}: {' '.join(command)}", flush=True)
        with log.open("a", encoding="utf-8") as file:
            status = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT).returncode
        print(f"{time.strftime('%H:%M:%S')}  {stage.name}: {time.monotonic() - started:.0f} s", flush=True)
        if status == 0:
            return
        print(f"{stage.name} failed with status {status}, attempt {attempt} of {ATTEMPTS}; see {log}", flush=True)
        # Exit status 2 means a wrong setting: another attempt would fail, too.
        if not stage.is_training or status == 2:
            break
    raise RuntimeError(f"{stage.name} failed; see {log}")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line (by default this process's)."""
    names = [stage.name for stage in stages("", "", 1, ())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="folder of NAME-K.jsonl.xz files (id, title, text)")
    parser.add_argument("--pairs", required=True, help="folder of train_*.jsonl.xz files (id, article, summary)")
    parser.add_argument("--workers", type=int, default=16, help="processes that make token shards")
    parser.add_argument("--logs", type=Path, default=Path("runs/logs"))
    parser.add_argument(
        "--remake",
        nargs="+",
        default=[],
        choices=[*names, "all"],
        metavar="STAGE",
        help=f"make these although their products exist: {', '.join(names)} or all",
    )
    parser.add_argument("evaluation", nargs="*", help="arguments for training.evaluate, behind --")
    return parser.parse_args(words)


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    all_stages = stages(arguments.text, arguments.pairs, arguments.workers, tuple(arguments.evaluation))
    chosen = select(all_stages, arguments.remake)
    if all(stage.product is None for stage in chosen):
        print("every product exists; --remake STAGE ... (or --remake all) makes them anew", flush=True)
    for stage in all_stages:
        if stage not in chosen:
            print(f"{stage.name}: {stage.product} exists, skipped", flush=True)
            continue
        try:
            run(stage, arguments.logs)
        except RuntimeError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
