"""Bases that bitsandbytes holds go through the same products as whole ones: equal to what the layers stand for."""

import contextlib

import pytest
import torch
from exactly import stirred
from torch import nn

import fakes
from metier.models.adapter import LoraSettings, add_lora
from metier.models.quantized import Kind, Packed, mark, quantized
from metier.models.stream import convert_
from metier.train import forward as room
from metier.train.batches import Piece, weight_of
from metier.train.fast.linear import Group, Made, resolve
from metier.train.fast.ops import Identity
from metier.train.forward import Forward
from metier.train.precision import choose

FP32 = choose("fp32", width=32, device=torch.device("cpu"))
PIECES = [Piece.of(str(n), list(range(6, 6 + n)), [i >= n // 2 for i in range(n)]) for n in (20, 33, 41)]


def base(kind: Kind) -> nn.Module:
    model = fakes.tiny("llama").train()
    convert_(model, lambda layer: quantized(layer, kind, compute=torch.float32))
    mark(model, kind)
    return model


def whole(model: nn.Module) -> nn.Module:
    """The same model with each layer's weight made whole for good."""
    plain = fakes.tiny("llama").train()
    for name, module in model.named_modules():
        if isinstance(module, Packed):
            plain.get_submodule(name).weight.data = module.dequantized(torch.float32)
    return plain


def trained(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    add_lora(model, LoraSettings(r=4))
    stirred(model)
    with Forward(model, precision=FP32) as forward:
        loss = forward.backward(PIECES, scale=1 / weight_of(PIECES)).item()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_loss_and_gradients_are_those_of_the_weights_made_whole(kind: Kind):
    model = base(kind)
    expected, wanted = trained(whole(model))
    loss, found = trained(model)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_they_have_a_formula_here(kind: Kind):
    model = base(kind)
    add_lora(model, LoraSettings(r=4))
    layer = model.model.layers[0].self_attn.q_proj
    linear = resolve(layer)
    assert linear is not None
    assert isinstance(linear.weight, Made)
    assert linear.adapter is not None
    assert Group(Identity(), [layer], lambda module, x: module(x)).whole


@pytest.mark.parametrize(("kind", "expected"), [("4bit", "returned"), (None, "kept")])
def test_which_bases_give_their_memory_back(kind: Kind | None, expected: str, monkeypatch: pytest.MonkeyPatch):
    entered = []

    def noting(name: str):
        @contextlib.contextmanager
        def within():
            entered.append(name)
            yield

        return within

    monkeypatch.setattr(room, "kept_memory", noting("kept"))
    monkeypatch.setattr(room, "returned_memory", noting("returned"))
    model = fakes.tiny("llama") if kind is None else base(kind)
    with Forward(model, precision=FP32):
        assert entered == [expected]
