"""Merged models for other engines, and the command that starts vLLM on one."""

import json
import shlex

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfspan_core.errors import ModelError
from selfspan_core.models.export import export_merged
from selfspan_core.models.export_record import ExportRecord, of_config
from selfspan_core.models.marker_ids import read_from_config
from selfspan_core.models.model import SpanModel
from selfspan_core.models.tokenizer import SpanTokenizer
from selfspan_core.serve import cli, cli_engines
from selfspan_core.serve.vllm_plugin.support import SPAN_REQUESTS, SPAN_WORKER
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="module", params=[False, True], ids=["markers", "markers-added"])
def tiny(request, tmp_path_factory):
    """A base whose tokenizer has the markers, or lacks them, and its span adapter."""
    base, adapters = save_tiny(tmp_path_factory.mktemp("tiny"), is_byte_level=request.param)
    return base, adapters / "arithmetic-span"


def test_an_exported_model_is_the_merged_one(tiny, tmp_path):
    """A folder without the adapter, without rows for the markers, or with a tokenizer whose markers have other ids."""
    base, adapter = tiny
    folder = export_merged(base, adapter, tmp_path / "out", "float32")
    merged, exported = SpanModel.load(base, adapter), SpanModel.load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = merged.hf.state_dict()
    for loaded in (exported.hf, plain):
        assert loaded.state_dict().keys() == ours.keys()
        assert all(torch.equal(weight, ours[name]) for name, weight in loaded.state_dict().items())
    assert exported.tokenizer.markers == merged.tokenizer.markers
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert read_from_config(config["selfspan"], "m") == SpanTokenizer.load(base).markers
    assert read_from_config(getattr(plain.config, "selfspan", None), "m") == merged.tokenizer.markers


def test_nothing_is_overwritten(tiny, tmp_path):
    """Somebody's folder, filled with a model; a dtype that is taken for another."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty"):
        export_merged(*tiny, tmp_path)
    with pytest.raises(ModelError, match="bfloat16, float16, float32"):
        export_merged(*tiny, tmp_path / "new", "int8")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_server_says_what_it_serves(tiny, tmp_path, capsys, monkeypatch):
    """A served model that nobody can use as an engine, since its name says nothing; an option that is given twice."""
    monkeypatch.setattr(cli_engines, "find_spec", lambda name: name)
    base, adapter = tiny
    record = ExportRecord("arithmetic", "span", "selfspan-17m")
    folder = export_merged(base, adapter, tmp_path / "named", record=record)
    assert of_config(json.loads((folder / "config.json").read_text()), "f") == record
    command = cli_engines.vllm_command(str(folder), ["--port", "1"])
    at = command.index("--served-model-name")
    assert command[at + 1 : at + 4] == [str(folder), "selfspan/arithmetic/span/selfspan-17m", cli_engines.TIMES]
    own = ["--served-model-name=mine", "--disable-log-stats"]
    assert cli_engines.vllm_command(str(folder), own)[-3:] == ["--no-async-scheduling", *own]
    # A base or an adapter that others do not have: its name would send them to other files.
    asked = ["export", "--model", str(base), "--adapter-folder", str(adapter), "--out", str(tmp_path / "own")]
    assert cli.main(asked) == 0
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert of_config(config, "f") == ExportRecord("arithmetic", "span", None)
    assert "--served-model-name" not in cli_engines.vllm_command(str(tmp_path / "own"), [])


def test_a_server_on_cuda_plans_steps_ahead(tiny, tmp_path, monkeypatch):
    """A GPU that waits for the host between two steps; more rows than the kernel has; an option that is overruled."""
    monkeypatch.setattr(cli_engines, "find_spec", lambda name: name)
    folder = str(export_merged(*tiny, tmp_path / "exported"))

    def command(*options: str) -> list[str]:
        words = cli_engines.vllm_command(folder, list(options))
        return words[words.index(SPAN_REQUESTS) + 1 : words.index(cli_engines.TIMES)]

    assert command() == ["--no-async-scheduling"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    ahead, backend = ["--async-scheduling", "--worker-cls", SPAN_WORKER], ["--attention-backend", "FLASH_ATTN"]
    assert command() == [*ahead, "--max-num-seqs", "256", *backend]
    assert command("--no-async-scheduling") == ["--max-num-seqs", "256", *backend]
    assert command("--max-num-seqs=8") == command("--max-num-s", "8") == [*ahead, *backend]
    assert command("--max-num-seqs=8", "--attention-backend=FLASHINFER") == ahead  # which the plugin refuses


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--skip-tokenizer-init", "ends the server for all"),
        ("--skip_tokenizer_init", "ends the server for all"),
        ("--skip-tokenizer-ini", "ends the server for all"),
        ("--logits-processors=mine:One", "a server reads everything"),
        ("--model=other", "named before --"),
    ],
)
def test_a_server_without_its_checks_is_not_started(tiny, tmp_path, monkeypatch, option, reason):
    """One request with an id that the model has not, which ends the server for everybody; a plugin switched off by a
    second list of processors; a folder that nobody looked at; and all of it by half an option's name.
    """
    monkeypatch.setattr(cli_engines, "find_spec", lambda name: name)
    folder = str(export_merged(*tiny, tmp_path / "exported"))
    with pytest.raises(ModelError, match=reason):
        cli_engines.vllm_command(folder, ["--port", "1", option])


def test_an_export_that_is_interrupted_leaves_nothing(tiny, tmp_path, monkeypatch):
    """A folder without its weights' second half, or without markers, that `serve` takes for a whole one."""
    folder = tmp_path / "exported"

    def interrupt(*_args, **_options):
        assert not (folder / "config.json").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("selfspan_core.models.export.said_in_config", interrupt)  # weights and tokenizer are there
        with pytest.raises(KeyboardInterrupt):
            export_merged(*tiny, folder)
    assert list(folder.iterdir()) == []
    assert (export_merged(*tiny, folder) / "config.json").is_file()
    assert not [file for file in folder.iterdir() if file.is_dir()]
    # safetensors makes its files their user's alone: a service of another user could not read them.
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_options_of_a_server_are_known_however_they_are_written(tmp_path):
    """An option that was given with `_`, or in a file, and is overruled by a second one."""
    own = tmp_path / "own.yaml"
    own.write_text("port: 1\nmax_num_seqs: 8\n")
    given = {"--disable-log-stats", "--served-model-name", "--config", "--port", "--max-num-seqs"}
    for options in (["--config", str(own)], [f"--config={own}"]):
        assert cli_engines.named_options(["--disable_log_stats", "--served-model_name=a_b", *options]) == given
    own.write_text("- a\n")
    for file in (own, tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ModelError, match=r"vLLM's options in .*(no `name: value` lines|No such file|directory)"):
            cli_engines.named_options(["--config", str(file)])


def test_a_server_on_a_cpu_leaves_memory(monkeypatch):
    """A vLLM that takes nearly all memory of a laptop, or ends at its start; what somebody said that is overruled."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert cli_engines.environment_of([]) == cli_engines.ENVIRONMENT | cli_engines.CPU_CACHE
    assert cli_engines.environment_of(["--gpu-memory-utilization=0.2"]) == cli_engines.ENVIRONMENT
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert cli_engines.environment_of([]) == cli_engines.ENVIRONMENT
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cli_engines.environment_of([]) == cli_engines.ENVIRONMENT


def test_the_command_line_exports_and_shows_how_vllm_is_started(tiny, tmp_path, capsys, monkeypatch):
    """An option that never arrives at vLLM; a command that cannot be pasted into a shell; a model without markers."""
    base, adapter = tiny
    folder = tmp_path / "a model"
    asked = ["export", "--model", str(base), "--adapter-folder", str(adapter), "--out", str(folder)]
    assert cli.main(asked) == 0 and str(folder) in capsys.readouterr().out
    assert SpanModel.load(folder).tokenizer.markers == SpanTokenizer.load(base).markers
    monkeypatch.setattr(cli_engines, "find_spec", lambda name: None)
    serve = ["serve", "--model", str(folder), "--print", "--", "--port", "8001"]
    assert cli.main(serve) == 2 and "vLLM is not installed" in capsys.readouterr().err
    monkeypatch.setattr(cli_engines, "find_spec", lambda name: name)
    assert cli.main(serve) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[0] == "VLLM_USE_V2_MODEL_RUNNER=0" and words[words.index("--model") + 1] == str(folder)
    assert words[words.index("--logits-processors") + 1] == SPAN_REQUESTS and words[-2:] == ["--port", "8001"]
    assert cli.main(["serve", "--model", str(base), "--print"]) == 2
    assert "names no marker ids" in capsys.readouterr().err
    assert cli.main(["serve", "--model", str(tmp_path / "none")]) == 2
    assert "selfspan export" in capsys.readouterr().err
    assert cli.main(asked) == 2 and "is not empty" in capsys.readouterr().err
