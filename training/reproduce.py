"""Make all that is trained or measured: `python -m training.reproduce --text DIR --pairs DIR`.

Token shards, base model, adapters, evaluation. A stage that is finished is skipped and one that was cut off goes on
from its newest checkpoint, so the same command can be given again after any interruption. The tokenizer is not made
anew: its ids are part of every stored weight (`python -m training.train_tokenizer` makes another).
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ATTEMPTS = 3


@dataclass(frozen=True)
class Stage:
    """One command. `product` is the file that exists once it is finished; `is_training` ones take `--resume`."""

    name: str
    module: str
    arguments: tuple[str, ...]
    product: Path
    is_training: bool = False

    def command(self, num_gpus: int) -> list[str]:
        """Arguments for Python. Training on several GPUs goes through accelerate's launcher, one process each."""
        launcher = []
        if self.is_training and num_gpus > 1:
            launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_gpus), "-m"]
        return ["-m", *launcher, self.module, *self.arguments, *(["--resume"] if self.is_training else [])]


def stages(text: str, pairs: str, workers: int, evaluation: tuple[str, ...]) -> list[Stage]:
    """What there is to do, in order."""
    shards = ("--text", text, "--pairs", pairs, "--tokenizer", "assets/base", "--out", "data/text")
    adapters = [
        Stage(
            name,
            "training.finetune",
            ("--config", f"training/configs/{name}.yaml"),
            Path("assets/adapters") / name / "training.json",
            is_training=True,
        )
        for name in ("arithmetic-span", "arithmetic-plain")
    ]
    return [
        Stage("text", "training.text_data", (*shards, "--workers", str(workers)), Path("data/text/meta.json")),
        Stage(
            "base",
            "training.pretrain",
            ("--config", "training/configs/base.yaml"),
            Path("assets/base/pretraining.json"),
            is_training=True,
        ),
        *adapters,
        Stage("evaluation", "training.evaluate", evaluation, Path("assets/results/arithmetic.json")),
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
        if not stage.is_training:
            break
    raise RuntimeError(f"{stage.name} failed; see {log}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="folder of NAME-K.jsonl.xz files (id, title, text)")
    parser.add_argument("--pairs", required=True, help="folder of train_*.jsonl.xz files (id, article, summary)")
    parser.add_argument("--workers", type=int, default=16, help="processes that make token shards")
    parser.add_argument("--logs", type=Path, default=Path("runs/logs"))
    parser.add_argument("evaluation", nargs="*", help="arguments for training.evaluate, behind --")
    arguments = parser.parse_args()
    arguments.logs.mkdir(parents=True, exist_ok=True)
    for stage in stages(arguments.text, arguments.pairs, arguments.workers, tuple(arguments.evaluation)):
        if stage.product.exists():
            print(f"{stage.name}: {stage.product} exists, skipped", flush=True)
            continue
        try:
            run(stage, arguments.logs)
        except RuntimeError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
