"""Pre-train the base model from scratch: `accelerate launch -m training.pretrain --config training/configs/base.yaml`.

English prose, article → summary text, exact copying of named sentences, and worked arithmetic without markers, mixed by
tokens. Writes a transformers Llama folder (safetensors shards) and a report of held-out figures per source.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

if not __package__:
    # Run as a file (`python` or `accelerate launch` with training/pretrain.py): Python looks for modules in this
    # folder, whose names (config, metrics, evaluate) could hide other packages, and not in the repository.
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parent), *(entry for entry in sys.path if Path(entry).resolve() != _FOLDER)]

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cuda_kernels.bench.provenance import provenance
from cuda_kernels.bench.whole_file import write_whole
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.tasks.registry import get_task
from training.data import sources
from training.data.copying import copy_examples
from training.data.generated import evaluation_set
from training.loop import heldout as metrics
from training.loop.config import ConfigError, load_config
from training.loop.loss import LanguageModelLoss
from training.loop.muon import StackedMuon
from training.loop.output import require_name, require_output, written_into
from training.loop.packing import Row, Sample, pack, plain_sample, sample_of
from training.loop.trainer import LoopConfig, Trainer, require_positive
from training.text_data import TextShards

FILES = ("model*.safetensors", "model*.safetensors.index.json", "*config.json", "pretraining.json")
HELDOUT_TOKENS = 400_000
HELDOUT_COPIES = 400
HELDOUT_PROBLEMS = 64
HELDOUT_OPERANDS = (8, 24, 48)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the base: Llama, tied embeddings."""

    hidden_size: int = 384
    num_layers: int = 8
    num_heads: int = 6
    num_kv_heads: int = 6
    intermediate_size: int = 1024
    max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} is 1 or more, not {getattr(self, field.name)}")
        # Rotary embeddings turn pairs of a head's dimensions.
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size ({self.hidden_size}) is no multiple of twice num_heads ({self.num_heads})")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is no multiple of num_kv_heads ({self.num_kv_heads})")

    def build(self, tokenizer: SpanTokenizer) -> LlamaForCausalLM:
        """A freshly initialised model for this tokenizer."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                num_key_value_heads=self.num_kv_heads,
                intermediate_size=self.intermediate_size,
                max_position_embeddings=self.max_position_embeddings,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.markers.bos,
                eos_token_id=tokenizer.markers.eos,
                pad_token_id=tokenizer.pad_id,
            )
        )


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run.

    Attributes:
        text: folder of token shards (`training.text_data`).
        tokenizer: tokenizer folder; the model is saved beside it.
        mixture: source name -> share of the tokens.
        matrix_lr: Muon's learning rate, for the matrices of the layers; other_lr: AdamW's, for the rest.
    """

    text: str
    tokenizer: str
    output: str
    run: str
    mixture: dict[str, float]
    loop: LoopConfig
    model: ModelConfig = ModelConfig()
    matrix_lr: float = 0.02
    other_lr: float = 0.003
    weight_decay: float = 0.02
    shard_megabytes: int = 14

    def __post_init__(self) -> None:
        for key in ("output", "run"):
            require_name(key, getattr(self, key))
        if not self.mixture:
            raise ValueError("mixture names no source")
        require_positive("matrix_lr", self.matrix_lr)
        require_positive("other_lr", self.other_lr)
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is 0 or more, not {self.weight_decay}")
        if self.shard_megabytes < 1:
            raise ValueError(f"shard_megabytes is 1 or more, not {self.shard_megabytes}")


def optimizers(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon on the layers' matrices, AdamW on embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        StackedMuon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class Heldout:
    """Held-out samples per source, never trained on; calling it gives losses and exact rates.

    Raises:
        OSError, ValueError: there are no token shards, or a sample does not fit into `loop.row_tokens`.
    """

    def __init__(self, config: PretrainConfig, tokenizer: SpanTokenizer) -> None:
        loop, folder = config.loop, Path(config.text)
        self._row = (loop.row_tokens, loop.max_intervals, tokenizer.pad_id)
        self._rows: dict[str, list[Row]] = {}
        for name in sources.TEXT_SOURCES:
            if name in config.mixture:
                shards = TextShards(folder, name, "heldout")
                self._rows[name] = self._pack(plain_sample(shards.document(i)) for i in range(len(shards)))
        self._copies = []
        if sources.COPY in config.mixture:
            stream = copy_examples(folder, tokenizer, seed=1, split="heldout")
            self._copies = [next(stream) for _ in range(HELDOUT_COPIES)]
            metrics.require_room(
                (len(copy.ids) for copy in self._copies), loop.row_tokens, "the held-out copying tasks"
            )
        task = get_task("arithmetic")
        self._problems: dict[int, list[Sample]] = {}
        if sources.ARITHMETIC_PLAIN in config.mixture:
            for operands in HELDOUT_OPERANDS:
                problems = evaluation_set(task, operands, HELDOUT_PROBLEMS, seed=1)
                rendered = [task.render(p, tokenizer, annotated=False, with_steps=True) for p in problems]
                samples = [sample_of(r) for r in rendered]
                lengths = [len(sample.ids) for sample in samples]
                metrics.require_room(lengths, loop.row_tokens, f"the held-out expressions of {operands} operands")
                self._problems[operands] = samples

    def _pack(self, samples) -> list[Row]:
        rows, tokens = [], 0
        for row in pack(samples, *self._row):
            rows.append(row)
            tokens += row.used
            if tokens >= HELDOUT_TOKENS:
                break
        return rows

    def __call__(self, module: LanguageModelLoss, device: torch.device, micro_rows: int) -> dict[str, float]:
        """Figures: `loss/<source>`, `exact_copy`, `exact_copy/<variant>`, `exact_arithmetic/<operands>`."""
        figures = {
            f"loss/{name}": metrics.heldout_loss(module, device, rows, micro_rows) for name, rows in self._rows.items()
        }
        for operands, samples in self._problems.items():
            answers = [[(int(s.loss_mask.argmax()), len(s.ids))] for s in samples]
            figures[f"exact_arithmetic/{operands}"] = metrics.exact_answers(
                module, device, samples, answers, self._row, micro_rows
            )
        if self._copies:
            variants = sorted({copy.variant for copy in self._copies})
            for variant in [None, *variants]:
                chosen = [copy for copy in self._copies if variant in (None, copy.variant)]
                samples = [plain_sample(copy.ids, copy.loss_mask) for copy in chosen]
                key = "exact_copy" + (f"/{variant}" if variant else "")
                answers = [copy.answers for copy in chosen]
                figures[key] = metrics.exact_answers(module, device, samples, answers, self._row, micro_rows)
        return figures


def stream(config: PretrainConfig, tokenizer: SpanTokenizer):
    """The mixed training stream."""
    folder = Path(config.text)
    known = {name: sources.text_source(folder, name) for name in sources.TEXT_SOURCES}
    known[sources.COPY] = sources.copy_source(folder, tokenizer)
    known[sources.ARITHMETIC_PLAIN] = sources.generated_source(get_task("arithmetic"), tokenizer, annotated=False)
    return sources.mix(known, config.mixture)


def save_base(model: LlamaForCausalLM, config: PretrainConfig, report: dict) -> None:
    """Write bf16 safetensors shards, the configuration and the report beside the tokenizer.

    Raises:
        OSError: they could not be written; a base that was there is there still.
    """
    output = Path(config.output)
    model = model.to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    with written_into(output) as unfinished:
        model.save_pretrained(unfinished, max_shard_size=f"{config.shard_megabytes}MB")
        write_whole(unfinished / "pretraining.json", json.dumps(report, indent=2) + "\n")
        names = {file.name for file in unfinished.iterdir()}
    # Of a base that had other shards: transformers would take an old file for the whole model.
    for old in (*output.glob("model*.safetensors"), *output.glob("model*.safetensors.index.json")):
        if old.name not in names:
            old.unlink()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of this run")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, PretrainConfig)
    except ConfigError as error:
        parser.error(str(error))
    try:
        tokenizer = SpanTokenizer.load(config.tokenizer)
        samples = stream(config, tokenizer)
        heldout = Heldout(config, tokenizer)
        torch.manual_seed(config.loop.seed)
        model = config.model.build(tokenizer)
        trainer = Trainer(
            model,
            lambda model: optimizers(model, config),
            samples,
            config.loop,
            Path(config.run),
            tokenizer.pad_id,
            heldout,
        )
        trainer.start(arguments.resume, asdict(config))
        num_parameters = sum(p.numel() for p in model.parameters())
        if trainer.accelerator.is_main_process:
            require_output(Path(config.output), 2 * num_parameters, "the base", FILES)
    # No tokenizer, no token shards, no such source; settings that do not fit the machine or the run folder.
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.config}: {error}")
    try:
        model = trainer.run()
        if trainer.accelerator.is_main_process:
            report = {"parameters": num_parameters, **trainer.report(), "config": asdict(config), **provenance()}
            save_base(model, config, report)
            print(f"saved {config.output}")
    except OSError as error:
        sys.exit(f"training ended, since something could not be written: {error}; its checkpoints are in {config.run}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
