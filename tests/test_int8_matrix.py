"""Weights of 8 bits: near the floats, one set of values for every pass, and chosen where they pay."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspan_core.engine import model_store
from selfspan_core.engine.engine import Engine
from selfspan_core.engine.model_store import ModelStore, pick_dtype
from selfspan_core.models import huge_pages
from selfspan_core.models.int8_matrix import MOST_ROWS, Int8Matrix, Int8Store
from selfspan_core.models.model import SpanModel
from selfspan_core.models.registry import MODELS, Folder, GgufFrom, ModelSpec
from selfspan_core.models.weights import DenseStore
from tests.support.asking import generate
from tests.support.engine_tools import logits, text_prompt
from tests.support.tiny_models import save_tiny

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 20).map(lambda n: 16 * n), st.integers(1, 20))


@settings(deadline=None)
@given(SIZES, st.booleans(), st.integers(0, 2**31))
def test_products(sizes, has_bias, seed):
    """Would catch scales of another row, a lost bias, and a pass of many rows that computes with other weights."""
    num_out, depth, rows = sizes
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).bfloat16()  # noqa: E731
    weight, bias = draw(num_out, depth) * draw(num_out, 1), draw(num_out) if has_bias else None
    own = weight.clone()
    matrix = Int8Matrix.of(weight, bias)
    packed = Int8Store()(own.clone(), bias, is_shared=False)
    assert matrix.shape == (num_out, depth) and matrix.values is weight and matrix.floats is None
    step = own.float().abs().amax(1, keepdim=True) / 127
    assert ((weight.float() - own.float()).abs() <= 0.51 * step + 2**-7 * own.float().abs()).all()
    x = draw(rows, depth)
    wide = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    bound = 2**-6 * F.linear(x.double().abs(), weight.double().abs()) + 2**-6
    assert ((matrix.apply(x).double() - wide).abs() <= bound).all()
    assert ((packed.apply(x).double() - wide).abs() <= bound).all() and packed.shape == matrix.shape


def test_rows_that_are_zero():
    """Would catch a division by zero in a row that nothing trained."""
    matrix = Int8Matrix.of(torch.zeros(4, 32, dtype=torch.bfloat16), None)
    assert matrix.apply(torch.ones(1, 32, dtype=torch.bfloat16)).tolist() == [[0.0] * 4]


def test_bytes_of_a_step():
    """Would catch a floor of bytes that counts the floats, too."""
    matrix = Int8Matrix.of(torch.randn(8, 32).bfloat16(), torch.randn(8).bfloat16())
    assert matrix.num_bytes == 8 * 32 + 2 * 8 + 2 * 8


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12), st.integers(0, 3))
def test_pages_hold_tensors_apart(shapes, num_lines):
    """Would catch tensors that overlap, run over the end of a block, begin inside a line, or die with the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huge_pages, "BLOCK_BYTES", 4096 + huge_pages.LINE_BYTES * num_lines)
        pages = huge_pages.HugePages()
        tensors = [pages.empty(*shape) for shape in shapes]
        del pages
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape and tensor.data_ptr() % huge_pages.LINE_BYTES == 0
        assert tensor.eq(number).all()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of a tiny base and its adapters."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def test_a_model_of_8_bits(tiny):
    """Would catch prefill and steps that read different weights, and a matrix that is left in floats."""
    model = SpanModel.load(tiny[0], None, dtype=torch.bfloat16, store=Int8Store())
    matrices = list(model.weights.matrices)
    assert all(isinstance(matrix, Int8Matrix) for matrix in matrices)
    if not Int8Store().keeps_weights:
        assert all(matrix.is_packed for matrix in matrices[:-1])
        assert not any(
            module.weight.numel() for module in model.hf.model.layers[0].mlp.children() if hasattr(module, "weight")
        )
    engine = Engine(model, model.tokenizer.markers)
    exact = Engine(SpanModel.load(tiny[0], None), model.tokenizer.markers)
    prompt = text_prompt(40)
    found, wanted = (list(generate(one, prompt, max_new_tokens=3, with_logits=True)) for one in (engine, exact))
    assert F.cosine_similarity(logits(found)[0].float(), logits(wanted)[0], 0) > 0.98


@pytest.mark.parametrize("has_instructions", [False, True])
def test_who_gets_8_bits(tiny, monkeypatch, has_instructions):
    """Would catch the shipped model in 8 bits, whose figures are those of float32, and a CPU that emulates bfloat16."""
    monkeypatch.setattr(model_store, "multiplies_bfloat16", lambda: has_instructions)
    base, adapters = tiny
    store = ModelStore(base, adapters, device="cpu")
    assert store.numbers_of(store.default) == (torch.float32, DenseStore())
    assert store.device_name == "CPU, float32"
    few = ModelSpec("few", GgufFrom(base / "model.gguf"), {})
    assert (
        few.has_few_bits and MODELS["smollm2-135m"].has_few_bits and not ModelSpec("x", Folder(base), {}).has_few_bits
    )
    found = ModelStore(few, device="cpu")
    if has_instructions:
        dtype, kept = found.numbers_of(few)
        assert dtype is torch.bfloat16 and isinstance(kept, Int8Store)
        assert found.device_name == "CPU, bfloat16 with weights of 8 bits"
    else:
        assert found.numbers_of(few) == (torch.float32, DenseStore())
    named = ModelStore(few, device="cpu", dtype=torch.float32)
    assert named.numbers_of(few) == (torch.float32, DenseStore())
    assert pick_dtype(torch.device("cpu")) is torch.float32 and MOST_ROWS < 16
