"""The CUDA sources: rules that all kernels keep, and their machine code for every architecture, without a GPU."""

import ast
import platform
import re

import pytest

from cuda_kernels import compile as loader
from cuda_kernels.compile import ARCHITECTURES, KernelConfig
from tests.support.slow import sampled


@pytest.mark.parametrize("name", sorted(file.name for file in loader.FOLDER.glob("*.cu")))
def test_every_kernel_waits_for_its_inputs(name):
    """Would catch a kernel that reads what the one before has not written yet: launches overlap from sm_90 on."""
    if name in ("read_stream.cu", "check.cu"):
        return  # launched alone
    kernels = re.findall(r'extern "C" __global__.*?^}', loader.source(name), re.DOTALL | re.MULTILINE)
    assert kernels
    for kernel in kernels:
        waits = kernel.rindex("wait_for_prior_grids();")
        assert "launch_dependents();" in kernel[:waits]
        # Lambdas that load weights may return: they say so by capturing.
        before = re.sub(r"\[&\]\([^)]*\) \{.*?^    \};", "", kernel[:waits], flags=re.DOTALL | re.MULTILINE)
        assert "return" not in before


def test_the_kernels_import_nothing_of_the_rest():
    """Would catch an import that takes the kernels' folder for more than it is: it can be used alone."""
    files = list(loader.FOLDER.parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"selfspan_core", "training", "app"}, file


# Where the test requirements install NVRTC, its absence is a failure and no reason to skip.
needs_nvrtc = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="needs NVRTC, which is for Linux on x86_64"
)


BEGIN_A_GENERATION = (75, 80, 90, 100, 120)
"""The architectures whose instructions the one before lacks; the others have those of the one before them."""


def compiles(config: KernelConfig, architecture: int, name: str) -> str:
    return loader.compile_for(config.macros(), architecture, name)[1]


@needs_nvrtc
@pytest.mark.parametrize("name", ["plan.cu", "plan_pages.cu", "attention.cu", "read_stream.cu"])
@pytest.mark.parametrize("architecture", sampled(ARCHITECTURES, BEGIN_A_GENERATION))
def test_compiles_for_every_architecture(architecture, name):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    for is_bf16 in (False, True)[: 1 if architecture < 80 else 2]:
        assert "spill" in compiles(KernelConfig(128, 4, is_bf16, 8), architecture, name)


def spilled(config: KernelConfig, architecture: int) -> tuple[int, int, int]:
    """Bytes of a thread's stack, of the stores to it in the code, and of the loads."""
    report = compiles(config, architecture, "attention.cu")
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(found) == 1
    return tuple(map(int, found[0]))


def assert_nothing_spilled(config: KernelConfig, architecture: int) -> None:
    assert spilled(config, architecture) == (0, 0, 0)


@needs_nvrtc
@pytest.mark.parametrize("is_bf16", [True, False], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", loader.HEAD_DIMS)
@pytest.mark.parametrize("group_size", sampled([1, 4, 8, 9, 16], [4, 9]))
def test_nothing_is_spilled_on_hopper(head_dim, group_size, is_bf16):
    """Would catch registers that go to memory: the kernel would read more than the intervals name."""
    # Often the same configuration for both limits.
    for config in {loader.choose_config(head_dim, group_size, is_bf16, 256, kib * 1024) for kib in (99, 227)}:
        assert_nothing_spilled(config, 90)


QUERIES = [(group_size, num_queries) for group_size in (1, 3, 4, 7, 9, 16) for num_queries in (2, 5, 8, 16)]


@needs_nvrtc
@pytest.mark.parametrize("name", ["plan.cu", "attention.cu"])
@pytest.mark.parametrize("architecture", sampled(ARCHITECTURES, [75, 120]))
def test_several_queries_compile_for_every_architecture(architecture, name):
    """Would catch an instruction that a Turing or a Blackwell GPU does not have."""
    assert "spill" in compiles(KernelConfig(128, 4, architecture >= 80, 4, 8), architecture, name)


@needs_nvrtc
@pytest.mark.parametrize("architecture", sampled([80, 90], [90]))
@pytest.mark.parametrize("head_dim", sampled(loader.HEAD_DIMS, [64, 128]))
@pytest.mark.parametrize(("group_size", "num_queries"), sampled(QUERIES, [(1, 8), (4, 8)]))
def test_several_queries_spill_nothing(group_size, num_queries, head_dim, architecture):
    """Would catch masks of queries that push registers to memory, at 8 columns and at 16: 254 of 255 are in use; or
    sums of up to 32 columns that go there: the few words that do are addresses."""
    limit = {80: 163, 90: 227}[architecture] * 1024
    config = loader.choose_config(head_dim, group_size, True, 256, limit, num_queries)
    if not config.is_wide:
        assert_nothing_spilled(config, architecture)
    # A tile of 8 columns has 128 bytes of sums, or 256.
    most = 16 if (architecture, head_dim) == (90, 128) else 0 if head_dim == 96 else 112
    assert spilled(config, architecture)[0] <= most


@needs_nvrtc
@pytest.mark.parametrize("head_dim", [64, 96])
@pytest.mark.parametrize(("architecture", "is_bf16"), [(75, False), (86, True), (86, False), (120, True), (120, False)])
def test_short_heads_elsewhere(architecture, is_bf16, head_dim):
    """Would catch a head_dim that compiles, or stays in registers, on Hopper only."""
    # Large groups take two tiles of columns; there, registers once went to memory on the newest.
    group_size = 9 if architecture == 120 else 4
    assert_nothing_spilled(KernelConfig(head_dim, group_size, is_bf16, 8), architecture)


def test_the_digest_is_of_what_one_kernel_includes(tmp_path, monkeypatch):
    """Would catch CuPy's disk cache serving yesterday's kernel after an included file has changed, or every kernel
    being compiled anew after a change that does not concern it."""
    names = [file.name for file in loader.FOLDER.glob("*.cu")]
    for file in loader.FOLDER.glob("*.cu*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(loader, "FOLDER", tmp_path)

    def digests() -> dict[str, str]:
        loader.digest.cache_clear()
        return {name: loader.digest(name) for name in names}

    def changed_by(name: str) -> set[str]:
        before = digests()
        with (tmp_path / name).open("a") as file:
            file.write("// changed\n")
        return {kernel for kernel, digest in digests().items() if digest != before[kernel]}

    assert changed_by("tile.cuh") == {"attention.cu", "plan.cu", "plan_pages.cu", "check.cu"}
    assert changed_by("gated.cuh") == {"layer.cu", "gemm_wgmma.cu"}
    assert changed_by("gemm.cu") == {"gemm.cu"}
    assert changed_by("ptx.cuh") == set(names)
    monkeypatch.undo()
    loader.digest.cache_clear()


@pytest.mark.parametrize("name", sorted(file.name for file in loader.FOLDER.glob("*.cu*")))
def test_every_include_is_followed(name):
    """Would catch an include that the digest overlooks: only <standard> headers may be outside the folder."""
    for line in re.findall(r"^\s*#\s*include.*$", loader.source(name), re.MULTILINE):
        included = line.split()[1].strip('<>"')
        assert included in loader.included_files(name) or re.fullmatch(r"#include <c?[a-z]+>", line)


@pytest.mark.parametrize("limit_kib", [64, 99, 163, 227])
@pytest.mark.parametrize("group_size", range(1, 17))
def test_every_group_fits_every_gpu(group_size, limit_kib):
    """Would catch a shape that a GPU with little shared memory (Turing: 64 KiB a block) cannot launch."""
    for num_queries in range(1, 17):
        config = loader.choose_config(128, group_size, False, 256, limit_kib * 1024, num_queries)
        assert config.shared_bytes(256) <= limit_kib * 1024
