"""Train an adapter: `accelerate launch -m training.finetune --config training/configs/arithmetic-span.yaml`.

PEFT LoRA on any Llama-family base; for span adapters the marker embeddings are trained too
(`trainable_token_indices`) and the span mask is applied, so that the model learns to write each step from what its
header names. Saves safetensors in bfloat16.
"""

import argparse
import functools
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

if not __package__:
    # Run as a file (`python` or `accelerate launch` with training/finetune.py): Python looks for modules in this
    # folder, whose names (config, metrics, evaluate) could hide other packages, and not in the repository.
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.adapter_config import MOST_ALPHA, MOST_RANK
from selfspan_core.models.adapters import expected_of_peft
from selfspan_core.models.learned import Learned, record_of
from selfspan_core.models.loading import load_base, resize_for_tokenizer
from selfspan_core.models.places import place_of_base
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.registry import get_task
from training.data import summary_mixture
from training.loop.config import ConfigError, load_config
from training.loop.folded_lora import fold_lora
from training.loop.marker_rows import start_marker_rows
from training.loop.output import require_name, require_output, written_into
from training.loop.trainer import LoopConfig, Trainer, require_positive
from training.materials import DIFFERENCES, training_material

MARKER_STARTS = ("random", "meaning")
FILES = ("adapter_model.safetensors", "adapter_config.json", "training.json")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraShape:
    """PEFT LoRA settings."""

    rank: int = 20
    alpha: int = 40
    target_modules: tuple[str, ...] = ALL_LINEAR

    def __post_init__(self) -> None:
        # An adapter outside of these bounds would be trained and then refused where it is loaded.
        for name, value, most in (("rank", self.rank, MOST_RANK), ("alpha", self.alpha, MOST_ALPHA)):
            if not 1 <= value <= most:
                raise ValueError(f"{name} is a whole number from 1 to {most}, not {value}")
        if not self.target_modules:
            raise ValueError("target_modules names no layer")


@dataclass(frozen=True)
class FinetuneConfig:
    """One adapter.

    Attributes:
        base: a Llama-family base (Llama, Mistral, Qwen): a registered model, a folder, a GGUF file or a hub id.
        task: name of the task.
        annotated: True for steps with markers and the span mask, False for the same text without either.
        fold_lora: compute each layer as one product (`training.loop.folded_lora`); quicker for a small base, not for a
            large one, whose weights it would copy in every step.
        output: adapter folder, and with `-step-N` behind it those of `loop.snapshots`; run: folder of metrics and
            checkpoints.
        mask_off_share: share of the examples that a span adapter sees without the span mask, so that it also answers
            with the mask off (what the app compares it with).
        more_differences: train on three times as many differences whose leading digits cancel
            (`random_trees.DIFFERENCES_MIX`); of tasks whose generator has that variant.
        heldout_operands: sizes of the held-out problems (of expressions: operands), `heldout_problems` of each; their
            longest worked solution has to fit into `loop.row_tokens`.
        head_tokens: of a span adapter whose headers see an index: tokens of each segment behind its name; None: headers
            see everything. Not of the task summarize.
        marker_start: where the markers' rows of a span adapter start: "random" as the resized base has them, or
            "meaning", what they mean in pieces that the base knows (`training.loop.marker_rows`). The trained rows
            are in the adapter either way.
        data: for the task summarize, the folder that `training.summary_data` wrote, or several by name.
        mixture: for the task summarize, kind of summaries -> share of the tokens; for several folders `name/kind`;
            with `/among` behind it, articles among pieces of others (`training.data.summary_mixture`).
        sentence_dropout: share of an article's sentences, of those that no step reads, that are left out at random.
    """

    base: str
    task: str
    annotated: bool
    output: str
    run: str
    loop: LoopConfig
    learning_rate: float
    lora: LoraShape = LoraShape()
    fold_lora: bool = False
    mask_off_share: float = 0.0
    more_differences: bool = False
    heldout_operands: tuple[int, ...] = (8, 24, 48)
    heldout_problems: int = 96
    head_tokens: int | None = None
    marker_start: str = "random"
    data: str | dict[str, str] | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    sentence_dropout: float = 0.0

    def __post_init__(self) -> None:
        for key in ("output", "run"):
            require_name(key, getattr(self, key))
        if not 0 <= self.mask_off_share <= 1:
            raise ValueError(f"mask_off_share is a share from 0 to 1, not {self.mask_off_share}")
        if self.mask_off_share and not self.annotated:
            raise ValueError("mask_off_share is for span adapters: without annotations there is no mask")
        require_positive("learning_rate", self.learning_rate)
        if self.marker_start not in MARKER_STARTS:
            raise ValueError(f"marker_start is {' or '.join(MARKER_STARTS)}, not {self.marker_start}")
        if self.marker_start == "meaning" and not self.annotated:
            raise ValueError("marker_start is for span adapters: without annotations there are no markers")
        needed = get_task(self.task).max_reads_intervals
        if self.annotated and self.loop.max_intervals < needed:
            raise ValueError(
                f"loop.max_intervals is {self.loop.max_intervals}, but a span adapter for the task {self.task} needs "
                f"{needed} or more"
            )
        if self.heldout_problems < 1:
            raise ValueError(f"heldout_problems is 1 or more, not {self.heldout_problems}")
        if self.head_tokens is not None and (self.head_tokens < 1 or not self.annotated or self.task == "summarize"):
            raise ValueError(
                f"head_tokens is 1 or more, for span adapters of tasks other than summarize, not {self.head_tokens}"
            )
        self._check_generator()
        self._check_summaries()

    def _check_generator(self) -> None:
        generator = get_task(self.task).generator
        if self.more_differences and (generator is None or DIFFERENCES not in generator.variants):
            raise ValueError(f"more_differences is for the task arithmetic, not {self.task}")
        for size in self.heldout_operands if generator else ():
            if not generator.least <= size <= generator.most:
                bounds = f"{generator.least} to {generator.most}"
                raise ValueError(f"heldout_operands are numbers from {bounds}, not {size}")

    def _check_summaries(self) -> None:
        if not 0 <= self.sentence_dropout < 1:
            raise ValueError(f"sentence_dropout is a share from 0 to below 1, not {self.sentence_dropout}")
        if self.task != "summarize":
            if self.data is not None or self.mixture or self.sentence_dropout:
                raise ValueError(f"data, mixture and sentence_dropout are for the task summarize, not {self.task}")
            return
        if not self.data or not self.mixture:
            raise ValueError("the task summarize needs data (what training.summary_data wrote) and a mixture")
        summary_mixture.check(self.data, self.mixture)


def add_adapter(model: nn.Module, tokenizer: SpanTokenizer, config: FinetuneConfig) -> PeftModel:
    """Wrap a base in LoRA; a span adapter also trains the markers' rows of the (un)embedding.

    Raises:
        ValueError: `lora.target_modules` names something that is no linear layer of the base.
    """
    # PEFT is content if one of several names fits: the others would silently stay untrained.
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in config.lora.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"lora.target_modules: the base has no linear layer called '{target}'; there are: {', '.join(known)}"
            )
    token_rows = None
    if config.annotated:
        rows = list(tokenizer.markers.ids)
        token_rows = {"embed_tokens": rows}
        if not model.config.tie_word_embeddings:
            token_rows["lm_head"] = rows
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.target_modules),
        trainable_token_indices=token_rows,
        task_type="CAUSAL_LM",
    )
    with expected_of_peft():
        adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = config.base
    if config.marker_start == "meaning":
        start_marker_rows(adapted, tokenizer)
    return adapted


def optimizers(model: nn.Module, config: FinetuneConfig) -> list[torch.optim.Optimizer]:
    """AdamW on all that is trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def save_adapter(model: PeftModel, folder: Path, report: dict) -> None:
    """Write an adapter in bfloat16 and the report of its training; the model stays as it is.

    Raises:
        OSError: it could not be written; an adapter that was there is there still.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    exact = [parameter.data for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.to(torch.bfloat16)
    with written_into(folder) as unfinished:
        try:
            model.save_pretrained(unfinished, safe_serialization=True, save_embedding_layers=False)
        finally:
            for parameter, values in zip(trained, exact, strict=True):
                parameter.data = values
        # PEFT writes a template card; the project's own model card says what there is to say.
        (unfinished / "README.md").unlink(missing_ok=True)
        write_whole(unfinished / "training.json", json.dumps(report, indent=2) + "\n")


def snapshot_folder(step: int, config: FinetuneConfig) -> Path:
    """Where the adapter goes as it is after a step: beside the run's output."""
    output = Path(config.output)
    return output.with_name(f"{output.name}-step-{step}")


def require_places(trained: int, config: FinetuneConfig) -> None:
    """Whether the adapter of so many parameters, and its snapshots, can be written. Raises OSError where not."""
    folders = [Path(config.output), *(snapshot_folder(step, config) for step in config.loop.snapshots)]
    for folder in folders:
        require_output(folder, 2 * trained * len(folders), "the adapter", FILES)


def snapshot(model: PeftModel, step: int, config: FinetuneConfig, learned: Learned) -> None:
    """Write the adapter as it is after a step, beside the run's output."""
    tokens = step * config.loop.rows_per_step * config.loop.row_tokens
    folder = snapshot_folder(step, config)
    save_adapter(model, folder, {"tokens": tokens, **record_of(learned), "config": asdict(config), **provenance()})
    print(f"saved {folder}", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, FinetuneConfig)
    except ConfigError as error:
        parser.error(str(error))
    try:
        place = place_of_base(config.base)
        tokenizer = SpanTokenizer.load(place)
        stream, heldout, learned = training_material(config, tokenizer)
        torch.manual_seed(config.loop.seed)
        base = load_base(place, torch.float32, "sdpa")
        resize_for_tokenizer(base, tokenizer)
        model = add_adapter(base, tokenizer, config)
        if config.fold_lora:
            fold_lora(model)
        trainer = Trainer(
            model,
            lambda trained: optimizers(trained, config),
            stream,
            config.loop,
            Path(config.run),
            tokenizer.pad_id,
            heldout,
        )
        trainer.start(arguments.resume, asdict(config))
        num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if trainer.accelerator.is_main_process:
            require_places(num_trained, config)
    # No such base, or one that cannot be used; settings that do not fit the base, the machine or the run folder.
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.config}: {error}")
    try:
        model = trainer.run(functools.partial(snapshot, config=config, learned=learned))
        if trainer.accelerator.is_main_process:
            report = {
                "trained_parameters": num_trained,
                **trainer.report(),
                **record_of(learned),
                "config": asdict(config),
                **provenance(),
            }
            save_adapter(model, Path(config.output), report)
            print(f"saved {config.output}")
    except OSError as error:
        sys.exit(f"training ended, since something could not be written: {error}; its checkpoints are in {config.run}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
