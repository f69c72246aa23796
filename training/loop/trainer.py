"""The training loop: packed rows in, updates out; the same for pre-training and adapters, one process or several.

Runs under `accelerate launch` unchanged. Progress, speed and ETA are printed; `metrics.jsonl` keeps every figure;
a run with `--resume` goes on where its newest checkpoint stands (`training.loop.checkpoints`).
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.loop import checkpoints
from training.loop.loss import LanguageModelLoss
from training.loop.masks import attention_implementation
from training.loop.packing import MAX_ROW_TOKENS, Sample, pack, stack
from training.loop.resuming import changes, plain
from training.loop.space import require_file, require_space

METRICS = "metrics.jsonl"
MOST_SEED = 2**31 - 1
"""Every generator takes it, with the number of a process added to it."""
SampleStream = Callable[[int, int, int], Iterator[Sample]]
"""`stream(seed, shard, num_shards)`: an endless iterator of samples; shards are disjoint or differently seeded."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how to train.

    Attributes:
        steps: optimizer steps; `rows_per_step` rows of `row_tokens` each, over all processes.
        micro_rows: most rows of one forward pass on one device; fewer where several processes share a step.
        max_intervals: visible intervals recorded per query.
        warmup_steps, decay_from: linear warm-up, constant until the fraction `decay_from` of all steps, then
            linear to zero.
        workers: processes that make batches; 0 makes them in the training process.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
        snapshots: steps before the last after which the weights are handed out, for curves over training tokens.
        max_seconds: stop cleanly with a checkpoint when this much time is used (None: no limit).
    """

    steps: int
    rows_per_step: int
    micro_rows: int
    row_tokens: int = 4096
    max_intervals: int = 4
    warmup_steps: int = 100
    decay_from: float = 0.3
    max_grad_norm: float = 1.0
    seed: int = 0
    workers: int = 2
    log_every: int = 20
    evaluate_every: int = 0
    checkpoint_every: int = 500
    snapshots: tuple[int, ...] = ()
    mixed_precision: str = "no"
    compile: bool = False
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        rows = ("rows_per_step", "micro_rows", "row_tokens", "max_intervals")
        self._require_least(1, ("steps", *rows, "log_every", "checkpoint_every"))
        self._require_least(0, ("warmup_steps", "seed", "workers", "evaluate_every"))
        if self.seed > MOST_SEED:
            raise ValueError(f"seed is at most {MOST_SEED}, not {self.seed}")
        if not all(1 <= step < self.steps for step in self.snapshots):
            raise ValueError(f"snapshots are steps from 1 to {self.steps - 1}, not {list(self.snapshots)}")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from is a fraction from 0 to 1, not {self.decay_from}")
        require_positive("max_grad_norm", self.max_grad_norm)
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise ValueError(f"max_seconds is 0 or more, not {self.max_seconds}")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision is no, bf16 or fp16, not {self.mixed_precision}")
        if self.rows_per_step % self.micro_rows:
            raise ValueError(f"rows_per_step ({self.rows_per_step}) is no multiple of micro_rows ({self.micro_rows})")
        if self.row_tokens % 128:
            raise ValueError(f"row_tokens ({self.row_tokens}) is no multiple of 128")
        if self.row_tokens > MAX_ROW_TOKENS:
            raise ValueError(f"row_tokens is at most {MAX_ROW_TOKENS}, not {self.row_tokens}")

    def _require_least(self, least: int, names: Sequence[str]) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {least} or more, not {getattr(self, name)}")

    def lr_scale(self, step: int) -> float:
        """Factor on every learning rate at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decay_start = int(self.steps * self.decay_from)
        return min(1.0, (self.steps - step) / max(1, self.steps - decay_start))


def require_positive(name: str, value: float) -> None:
    """Raise a ValueError that names the setting unless it is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is a number above 0, not {value}")


def share_of_step(config: LoopConfig, num_processes: int) -> tuple[int, int]:
    """Rows of one forward pass, and how many of them each process does in one step.

    Raises:
        ValueError: the rows of a step cannot be shared evenly.
    """
    share, rest = divmod(config.rows_per_step, num_processes)
    micro_rows = min(config.micro_rows, share)
    if rest or not share or share % micro_rows:
        raise ValueError(
            f"{config.rows_per_step} rows per step cannot be shared by {num_processes} processes in forward passes of "
            f"at most {config.micro_rows} rows: rows_per_step must be a multiple of both numbers together"
        )
    return micro_rows, share // micro_rows


class _Batches(IterableDataset):
    """Batches of `micro_rows` packed rows; every worker of every process draws its own shard of the stream."""

    def __init__(
        self, stream: SampleStream, config: LoopConfig, micro_rows: int, pad_id: int, seed: int, rank: int, world: int
    ) -> None:
        super().__init__()
        self._stream, self._config, self._micro_rows, self._pad_id = stream, config, micro_rows, pad_id
        self._seed, self._rank, self._world = seed, rank, world

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        num_workers = worker.num_workers if worker else 1
        shard = self._rank * num_workers + (worker.id if worker else 0)
        samples = self._stream(self._seed, shard, self._world * num_workers)
        config, rows = self._config, []
        for row in pack(samples, config.row_tokens, config.max_intervals, self._pad_id):
            rows.append(row)
            if len(rows) == self._micro_rows:
                yield {key: torch.from_numpy(value) for key, value in stack(rows).items()}
                rows = []


def prepare_model(model: nn.Module, config: LoopConfig, device: torch.device) -> None:
    """Set the attention implementation for the device and compile each decoder layer where asked.

    Layers are compiled one by one: they share their code, so the first compilation serves all.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal_lm.set_attn_implementation(attention_implementation(device))
    if config.compile:
        for layer in causal_lm.model.layers:
            layer.compile()


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch, widening ids and labels to int64 there."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    return moved | {"ids": moved["ids"].long(), "labels": moved["labels"].long()}


class Trainer:
    """Runs a `LoopConfig`.

    Args:
        model: transformers or PEFT model; its parameters with requires_grad are trained.
        make_optimizers: builds the optimizers from the (prepared) model; learning rates are scaled per step.
        stream: source of the samples.
        evaluate: called with (loss module, device, rows per forward pass) every `evaluate_every` steps and at the end
            on the main process; returns figures to log.
        pad_id: id for unused positions.
        output: folder for metrics and checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]],
        stream: SampleStream,
        config: LoopConfig,
        output: Path,
        pad_id: int,
        evaluate: Callable[[LanguageModelLoss, torch.device, int], dict] | None = None,
    ) -> None:
        self.config, self.output, self._stream, self._pad_id = config, output, stream, pad_id
        self._evaluate = evaluate
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[ddp])
        set_seed(config.seed, device_specific=True)
        self._micro_rows, self._accumulation = share_of_step(config, self.accelerator.num_processes)
        prepare_model(model, config, self.accelerator.device)
        loss_module = LanguageModelLoss(model, compiled=config.compile)
        optimizers = make_optimizers(model)
        prepared = self.accelerator.prepare(loss_module, *optimizers)
        self._loss, self._optimizers = prepared[0], list(prepared[1:])
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]
        self.step = 0
        self._saved_step: int | None = None
        self._settings = plain({"loop": asdict(config)})
        self._changed: list[dict[str, Any]] = []
        self.last_evaluation: dict[str, float] = {}
        self._folder = output / "checkpoints"
        require_space(output, 0, "the run's files")
        require_file(output / METRICS, "the run's figures")

    def start(self, resume: bool, settings: Mapping[str, Any] | None = None) -> None:
        """Make ready for `run`: at the newest checkpoint (`resume`), or from the beginning in an unused run folder.

        Args:
            settings: the run's configuration, JSON-able, which checkpoints keep; by default that of the loop.

        Raises:
            ValueError: there are checkpoints that a new run would replace; the newest is beyond the last step, not
                whole, or was made with settings that may not change.
            OSError: there is no room for checkpoints.
        """
        if settings is not None:
            self._settings = plain(settings)
        found = checkpoints.found_in(self._folder)
        if not resume:
            if found:
                raise ValueError(
                    f"{found[-1].path} is there from another run: pass --resume to go on from it, or remove the "
                    f"folder {self.output} to start from the beginning"
                )
        elif not found:
            self._print(f"no checkpoint in {self.output}: starting from the beginning")
        else:
            self._go_on_from(found[-1])
        if self.accelerator.is_main_process:
            checkpoints.require_room(self._folder, self._trained())

    def _go_on_from(self, checkpoint: checkpoints.Checkpoint) -> None:
        if checkpoint.step > self.config.steps:
            raise ValueError(
                f"{checkpoint.path} is beyond the last step: loop.steps is {self.config.steps}; raise it, or "
                f"remove the folder {self.output} to start from the beginning"
            )
        facts = checkpoints.facts_of(checkpoint)
        changed = changes(facts["settings"], self._settings)
        checkpoints.load(self.accelerator, checkpoint, self._trained())
        self.step = self._saved_step = checkpoint.step
        self._changed = facts["changed"]
        self._print(f"resumed {checkpoint.path}")
        for name, (before, now) in changed.items():
            self._print(f"from here on {name} is {now}, before it was {before}")
            self._changed.append({"after_step": self.step, "setting": name, "before": before, "then": now})

    def _trained(self) -> checkpoints.Trained:
        model = self.accelerator.unwrap_model(self._loss).model
        return checkpoints.Trained.of(model, self._optimizers, self.accelerator.scaler)

    def run(self, snapshot: Callable[[nn.Module, int], None] | None = None) -> nn.Module:
        """Train to the end (or to `max_seconds`), evaluate, and return the bare model.

        Args:
            snapshot: called on the main process with (bare model, step) after each of `config.snapshots`.
        """
        config, started = self.config, time.monotonic()
        batches = self._batches()
        window_loss = torch.zeros((), device=self.accelerator.device)
        window_start, window_steps, first_step = time.monotonic(), 0, self.step
        while self.step < config.steps:
            window_loss += self._update(batches)
            self.step += 1
            window_steps += 1
            if self.step % config.log_every == 0 or self.step == config.steps:
                seconds = time.monotonic() - window_start
                # Of all processes: each has its own part of a step, and all end together where one is not finite.
                loss = self.accelerator.reduce(window_loss, "mean").item() / window_steps
                self._log_progress(loss, seconds / window_steps)
                window_loss.zero_()
                window_start, window_steps = time.monotonic(), 0
            if config.evaluate_every and self.step % config.evaluate_every == 0 and self.step < config.steps:
                self._run_evaluation()
                window_start = time.monotonic()
            if snapshot and self.step in config.snapshots and self.accelerator.is_main_process:
                snapshot(self.accelerator.unwrap_model(self._loss).model, self.step)
            out_of_time = self._out_of_time(started)
            if out_of_time or (self.step % config.checkpoint_every == 0 and self.step > first_step):
                self.save()
            if out_of_time:
                self._print(f"time limit of {config.max_seconds:.0f} s reached at step {self.step}")
                break
        if self._saved_step != self.step:
            self.save()  # an evaluation that fails must not cost the training
        self._run_evaluation()
        return self.accelerator.unwrap_model(self._loss).model

    def report(self) -> dict:
        """A run's part of the model's report: tokens seen, processes, the last held-out figures.

        Where settings were changed at a `--resume`: which, and after which step.
        """
        changed = {"changed_settings": self._changed} if self._changed else {}
        return {
            "tokens": self.step * self.config.rows_per_step * self.config.row_tokens,
            "num_processes": self.accelerator.num_processes,
            "heldout": self.last_evaluation,
            **changed,
        }

    def _out_of_time(self, started: float) -> bool:
        """Whether any process has used up `max_seconds`: all of them must stop at the same step."""
        limit = self.config.max_seconds
        if limit is None:
            return False
        late = torch.tensor(float(time.monotonic() - started > limit), device=self.accelerator.device)
        return bool(self.accelerator.reduce(late, "sum").item())

    def save(self) -> None:
        """Write a checkpoint and drop all others; one that was cut off while it was written is never resumed."""
        facts = {"step": self.step, "settings": self._settings, "changed": self._changed}
        checkpoints.write(self.accelerator, self._folder, self._trained(), facts)
        self._saved_step = self.step

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        config, accelerator = self.config, self.accelerator
        # A resumed run draws fresh samples instead of replaying and discarding those already seen: the unstopped run
        # would have had others, of the same kinds.
        seed = config.seed + 1_000_003 * self.step
        rank, world = accelerator.process_index, accelerator.num_processes
        dataset = _Batches(self._stream, config, self._micro_rows, self._pad_id, seed, rank, world)
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _update(self, batches: Iterator[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One optimizer step; returns this process's mean loss, detached, on the device."""
        scale = self.config.lr_scale(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
        total = torch.zeros((), device=self.accelerator.device)
        for micro in range(self._accumulation):
            batch = to_device(next(batches), self.accelerator.device)
            self._loss.require_backward_grad_sync = micro == self._accumulation - 1
            with self.accelerator.autocast():
                loss = self._loss(**batch) / self._accumulation
            self.accelerator.backward(loss)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self._loss.parameters(), self.config.max_grad_norm)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def _log_progress(self, loss: float, seconds_per_step: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step}: lower the learning rate")
        config = self.config
        tokens_per_second = config.rows_per_step * config.row_tokens / seconds_per_step
        eta = int((config.steps - self.step) * seconds_per_step)
        speed = f"{tokens_per_second / 1e6:.3f} M" if tokens_per_second > 1e5 else f"{tokens_per_second:,.0f}"
        self._print(
            f"step {self.step}/{config.steps}  loss {loss:.4f}  {speed} tokens/s  "
            f"ETA {eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
        )
        self._record({"step": self.step, "loss": loss, "tokens_per_second": tokens_per_second})

    def _run_evaluation(self) -> None:
        if self._evaluate is None or not self.accelerator.is_main_process:
            return
        module = self.accelerator.unwrap_model(self._loss)
        module.eval()
        with torch.no_grad(), self.accelerator.autocast():
            figures = self._evaluate(module, self.accelerator.device, self._micro_rows)
        module.train()
        self.last_evaluation = figures
        self._print(f"step {self.step}  " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()))
        self._record({"step": self.step, "evaluation": figures})

    def _record(self, entry: dict) -> None:
        if self.accelerator.is_main_process:
            with (self.output / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _print(self, line: str) -> None:
        if self.accelerator.is_main_process:
            print(line, flush=True)
