"""int8 layers stay near the float ones, forward and backward, and replace nothing but what lies in the blocks."""

import pytest
import torch
import torch.nn.functional as F
from exactly import FP32, assert_exact, packed, pieces_of, stirred
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import fakes
from metier.core.errors import ModelError
from metier.models.adapter import LoraSettings, add_lora
from metier.train.batches import shared_prefix
from metier.train.fast import ops
from metier.train.forward import Forward, check_exact, take_int8_head
from metier.train.int8 import (
    LANES,
    Int8Linear,
    Int8Stack,
    Int8Weight,
    carried,
    joined,
    quantize_,
    quantized,
)

pytestmark = pytest.mark.usefixtures("both_ways")

N, IN, OUT = 40, 64, 96


def llama(seed: int = 0) -> LlamaForCausalLM:
    sides = {"hidden_size": IN, "intermediate_size": 128}
    return fakes.tiny_llama(seed, tied=False, initializer_range=0.1, **sides).train()


def far(found: Tensor, wanted: Tensor) -> float:
    """The error's share of what is wanted, by norms."""
    return ((found - wanted).norm() / wanted.norm()).item()


def frozen(weight: Tensor) -> Int8Weight:
    rounded, scale = quantized(weight)
    return Int8Weight(rounded, scale[:, 0])


@pytest.mark.parametrize("elements", [64, 2**18])
def test_products_are_within_two_percent(monkeypatch: pytest.MonkeyPatch, elements: int):
    monkeypatch.setattr(ops, "ELEMENTS", elements)
    torch.manual_seed(0)
    weight, x, dy = torch.randn(OUT, IN) * torch.rand(OUT, 1), torch.randn(N, IN), torch.randn(N, OUT)
    held = Int8Stack([frozen(weight)])
    assert far(held.forward(x)[0], x @ weight.t()) < 0.02
    assert far(held.backward([dy]), dy @ weight) < 0.02


@pytest.mark.parametrize("elements", [64, 2**18])
def test_weights_that_read_the_same_are_multiplied_as_one(monkeypatch: pytest.MonkeyPatch, elements: int):
    monkeypatch.setattr(ops, "ELEMENTS", elements)
    torch.manual_seed(0)
    weights = [torch.randn(rows, IN) * torch.rand(rows, 1) for rows in (OUT, 16, 32)]
    x, grads = torch.randn(N, IN), [torch.randn(N, len(weight)) for weight in weights]
    held = [frozen(weight) for weight in weights]
    before = [one.parameter.clone() for one in held]
    apart = [Int8Stack([one]).forward(x)[0] for one in held]
    stack = Int8Stack(held)
    assert all(torch.equal(a, b) for a, b in zip(stack.forward(x), apart, strict=True))
    assert far(stack.backward(grads), sum(dy @ weight for dy, weight in zip(grads, weights, strict=True))) < 0.02
    assert all(torch.equal(one.parameter, was) for one, was in zip(held, before, strict=True))


def test_joined_weights_are_parts_of_one_matrix_and_joined_once():
    held = [frozen(torch.randn(rows, IN)).parameter for rows in (16, 8, 24)]
    whole = joined(held)
    assert len({one.untyped_storage().data_ptr() for one in held}) == 1
    assert torch.equal(whole, torch.cat(held))
    for few in (held, held[1:], held[:2], held[1:2]):
        again = joined(few)
        assert torch.equal(again, torch.cat(few))
        assert again.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert joined([held[2], held[0]]).untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_rounding_changes_neither_what_it_rounds_nor_more_than_half_a_step():
    torch.manual_seed(0)
    x = torch.randn(N, IN)
    before = x.clone()
    rounded, scale = quantized(x)
    assert torch.equal(x, before)
    assert rounded.abs().amax(-1).tolist() == [127] * N
    assert ((rounded * scale - x).abs() <= scale * 0.5001).all()


def test_rows_of_zeros_stay_zeros():
    held = Int8Stack([frozen(torch.zeros(OUT, IN))])
    assert not held.forward(torch.randn(N, IN))[0].any()
    assert not held.backward([torch.randn(N, OUT)]).any()
    held = Int8Stack([frozen(torch.randn(OUT, IN)), frozen(torch.randn(OUT, IN))])
    assert not held.forward(torch.zeros(N, IN))[1].any()
    assert not held.backward([torch.zeros(N, OUT)] * 2).any()


def test_a_layer_elsewhere_than_in_training_dequantises():
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT)
    before = linear.weight.detach().clone()
    layer = Int8Linear(linear)
    assert torch.equal(linear.weight, before)
    assert (layer.in_features, layer.out_features, layer.weight.dtype) == (IN, OUT, torch.int8)
    assert layer.bias is linear.bias
    assert not layer.weight.requires_grad
    x = torch.randn(3, 5, IN)
    assert far(layer(x), linear(x)) < 0.02
    assert layer.dequantized(torch.bfloat16).dtype == torch.bfloat16
    assert layer.state_dict().keys() == {"weight", "scale", "bias"}


def test_only_the_linear_layers_of_blocks_are_replaced():
    model = llama()
    head, embeddings = model.lm_head.weight, model.model.embed_tokens.weight
    quantize_(model)
    replaced = [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]
    assert len(replaced) == 2 * 7
    assert all(name.startswith("model.layers.") for name in replaced)
    assert model.lm_head.weight is head
    assert model.model.embed_tokens.weight is embeddings
    assert {p.dtype for name, p in model.named_parameters() if "norm" in name} == {torch.float32}


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelError, match="no linear layers") as caught:
        quantize_(fakes.tiny("gpt2"))
    assert (caught.value.where, caught.value.value) == ("quantize", "int8")


def test_sides_that_are_no_multiples_of_eight_are_refused():
    model = llama()
    model.model.layers[1].mlp.up_proj = nn.Linear(64, 100, bias=False)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj is 100 x 64, and int8 needs multiples of 8"):
        quantize_(model)


def adapted(*, int8: bool) -> LlamaForCausalLM:
    model = llama()
    if int8:
        quantize_(model)
    torch.manual_seed(1)
    stirred(add_lora(model, LoraSettings(r=4)), std=0.02)
    return model


@pytest.mark.parametrize("data", ["all", "sft"])
def test_lora_learns_nearly_the_same_on_it(data: str):
    pieces = pieces_of(data)
    prefix = shared_prefix(pieces)
    exact, wanted = packed(Forward(adapted(int8=False), precision=FP32, prefix=prefix), pieces)
    near, found = packed(Forward(adapted(int8=True), precision=FP32, prefix=prefix), pieces)
    assert near == pytest.approx(exact, rel=0.01)
    assert near != exact
    assert found.keys() == wanted.keys()
    a, b = (torch.cat([g[name].flatten() for name in wanted]) for g in (found, wanted))
    assert F.cosine_similarity(a, b, dim=0) > 0.98


@pytest.mark.parametrize("columns", [40, 43, 640])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_that_are_carried_leave_no_sum_behind(columns: int, dtype: torch.dtype):
    torch.manual_seed(3)
    by = torch.rand(columns) + 0.5
    by[5] = 1.5
    x = torch.softmax(torch.rand(9, columns) / 2, -1)
    x[:, 5] -= 1  # as the gradient of scores is: one large number, many small ones
    x = x.to(dtype)
    rounded, scale = carried(x, by)
    assert rounded.dtype == torch.int8
    exact, kept = x.double() * by, rounded.double() * scale
    assert ((kept - exact).abs() <= scale.double() * 1.01).all()
    own = torch.arange(columns) % LANES
    for lane in range(LANES):  # half a step of each lane is what may lack, and not of each column
        lacks = (kept - exact)[:, own == lane].sum(1)
        assert (lacks.abs() <= scale[:, 0] * 0.51).all()
    small = exact[:, 6:].sum(1)
    if columns == 640:  # each of them is less than half a step
        plain, plain_scale = quantized(x, by)
        lost = (plain.double() * plain_scale)[:, 6:].sum(1)
        assert ((kept[:, 6:].sum(1) - small).abs() / small).max() < 0.1
        assert (lost / small).max() < 0.1


def test_a_head_in_int8_is_near_the_head_forward_and_back():
    torch.manual_seed(0)
    weight, x, dy = torch.randn(256, 64), torch.randn(30, 64), torch.randn(30, 256)
    head = Int8Stack([frozen(weight)], carries=True)
    for found, wanted in ((*head.forward(x), x @ weight.t()), (head.backward([dy]), dy @ weight)):
        assert found.shape == wanted.shape
        assert (found - wanted).norm() / wanted.norm() < 0.02


def test_the_head_is_in_int8_where_nothing_of_it_trains():
    model = adapted(int8=True)
    assert take_int8_head(model) is not None
    assert isinstance(model.lm_head, Int8Linear)
    assert take_int8_head(model) is not None  # for whoever comes next
    assert take_int8_head(adapted(int8=False)) is None
    trained = adapted(int8=True)
    trained.lm_head.weight.requires_grad_()
    assert take_int8_head(trained) is None
    with_adapter = llama()
    quantize_(with_adapter)
    add_lora(with_adapter, LoraSettings(r=4, targets=["q_proj", "lm_head"]))
    assert take_int8_head(with_adapter) is None


def test_embeddings_that_are_the_head_as_well_stay_as_they_are():
    model = fakes.tiny_llama(tied=True, hidden_size=64, intermediate_size=128)
    quantize_(model)
    add_lora(model, LoraSettings(r=4))
    before = model.get_input_embeddings().weight
    assert take_int8_head(model) is not None
    assert model.get_output_embeddings().weight is before
    assert before.dtype.is_floating_point


def test_a_model_in_int8_passes_the_check():
    check_exact(adapted(int8=True), pieces_of("all"), FP32)


def test_a_frozen_base_of_floats_stays_exact():
    assert_exact(Forward(adapted(int8=False), precision=FP32), pieces_of("all"))
