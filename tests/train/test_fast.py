"""The pieces of the fast blocks equal their plain forms, and linear layers with adapters those of PEFT."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactly import stirred
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import fakes
from metier.models.adapter import LoraSettings, add_lora
from metier.train.fast import gpt2, llama, ops
from metier.train.fast.linear import Dense, Group, resolve
from metier.train.fast.ops import Apply, Gelu, Identity, LayerNorm, RmsNorm, Rotate, SwiGlu
from metier.train.int8 import Int8Linear, Int8Weight

pytestmark = pytest.mark.usefixtures("both_ways")

N, C = 11, 24
PLAIN: dict[str, tuple[object, tuple[tuple[int, ...], ...], Callable[..., Tensor]]] = {
    "identity": (Identity(), ((N, C),), lambda x: x),
    "rms": (RmsNorm(1e-5, torch.float32), ((N, C), (C,)), lambda x, w: F.rms_norm(x, (C,), w, 1e-5)),
    "layer": (
        LayerNorm(1e-5, torch.float32),
        ((N, C), (C,), (C,)),
        lambda x, w, b: F.layer_norm(x, (C,), w, b, 1e-5),
    ),
    "swiglu": (SwiGlu(), ((N, C), (N, C)), lambda gate, up: F.silu(gate) * up),
    "gelu": (Gelu(), ((N, C),), lambda x: F.gelu(x, approximate="tanh")),
}


@pytest.fixture(autouse=True)
def a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "ELEMENTS", 4 * C)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("frozen", [False, True])
def test_what_stands_before_linear_layers(name: str, frozen: bool):
    before, shapes, plain = PLAIN[name]
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=len(shape) == 2 or not frozen) for shape in shapes]
    wants = [x for x in given if x.requires_grad]
    toward = torch.randn(N, C)
    out, wanted = Apply.apply(before, *given), plain(*given)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    for found, expected in zip(
        torch.autograd.grad((out * toward).sum(), wants),
        torch.autograd.grad((wanted * toward).sum(), wants),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_backward_leaves_what_it_was_given_alone():
    torch.manual_seed(0)
    x, weight, grad = torch.randn(N, C), torch.randn(C), torch.randn(N, C)
    before = x.clone(), grad.clone()
    RmsNorm(1e-5, torch.float32).backward(grad, x, weight)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])


def test_rotary_positions():
    torch.manual_seed(0)
    x = torch.randn(N, 3, 8, requires_grad=True)
    angle = torch.randn(N, 4).repeat(1, 2)
    cos, sin = angle.cos(), angle.sin()
    out = Rotate.apply(x, cos, sin)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=1)
    torch.testing.assert_close(out, wanted)
    toward = torch.randn_like(out)
    (found,), (expected,) = (torch.autograd.grad((y * toward).sum(), x) for y in (out, wanted))
    torch.testing.assert_close(found, expected)


def test_parts_cover_every_row():
    for rows in (0, 1, 4, 5, 9):
        x = torch.arange(rows * C).view(rows, C)
        parts = [x[part] for part in ops.parts(x)]
        assert torch.equal(torch.cat(parts) if parts else x, x)
        assert all(0 < len(part) <= 4 for part in parts)


def adapted(dropout: float = 0.0, **settings: object) -> nn.Module:
    """An attention block of a tiny Llama whose q, k and v have adapters."""
    model = fakes.tiny("llama").train()
    stirred(add_lora(model, LoraSettings(r=4, dropout=dropout, **settings)))
    return model.model.layers[0].self_attn


def group(module: nn.Module) -> Group:
    def refuse(module: nn.Module, x: Tensor) -> Tensor:
        raise AssertionError(module)

    return Group(Identity(), [module.q_proj, module.k_proj, module.v_proj], refuse)


def test_layers_with_one_input_equal_pefts():
    attention = adapted()
    x = torch.randn(N, 32, requires_grad=True)
    for found, layer in zip(group(attention)(x), (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean():
    attention = adapted(dropout=0.3)
    x = torch.randn(1, 32)
    many = group(attention)(x.expand(6000, -1))[0]
    attention.eval()
    (wanted, *_) = group(attention)(x)
    spread = many.std(0) / len(many) ** 0.5
    assert spread.min() > 0
    assert ((many.mean(0) - wanted[0]).abs() < 5 * spread).all()
    torch.testing.assert_close(wanted, attention.q_proj(x), rtol=1e-5, atol=1e-5)


def test_dropout_is_differentiated_with_the_inputs_it_dropped():
    attention = adapted(dropout=0.4)
    x = torch.randn(N, 32, requires_grad=True)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    wants = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
    toward = [torch.randn(N, layer.out_features) for layer in layers]
    torch.manual_seed(1)
    outs = group(attention)(x)
    found = torch.autograd.grad(sum((y * t).sum() for y, t in zip(outs, toward, strict=True)), wants)
    torch.manual_seed(1)
    dropped = x * (torch.rand(x.shape) >= 0.4) / 0.6  # one draw for all three
    plain = [
        layer.base_layer(x) + layer.scaling["default"] * layer.lora_B["default"](layer.lora_A["default"](dropped))
        for layer in layers
    ]
    wanted = torch.autograd.grad(sum((y * t).sum() for y, t in zip(plain, toward, strict=True)), wants)
    for one, other in zip(outs, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_dropout_of_zero_and_evaluation_draw_nothing():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    x = torch.ones(N, 32)
    attention = adapted()
    drawn = torch.get_rng_state()
    group(attention)(x)
    attention = attention.eval()
    group(attention)(x)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(before, drawn)


def test_dropout_of_nothing_but_ones_is_exact():
    attention, plain = adapted(dropout=0.3), adapted()
    attention.load_state_dict(plain.state_dict())
    x = torch.randn(N, 32)
    attention.eval()
    for one, other in zip(group(attention)(x), group(plain)(x), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_formula_here_goes_through_its_module():
    dora = adapted(dora=True, dropout=0.1).eval()
    assert resolve(dora.q_proj) is None
    assert resolve(nn.Bilinear(2, 2, 2)) is None
    seen: list[nn.Module] = []

    def fallback(module: nn.Module, x: Tensor) -> Tensor:
        seen.append(module)
        return module(x)

    x = torch.randn(N, 32)
    modules = [dora.q_proj, nn.Linear(32, 8)]
    outs = Group(Identity(), modules, fallback)(x)
    assert seen == modules
    assert torch.equal(outs[0], dora.q_proj(x))


@pytest.mark.parametrize("change", ["disabled", "merged", "two"])
def test_an_adapter_in_another_state_is_left_to_peft(change: str):
    model = fakes.tiny("llama")
    wrapped = stirred(add_lora(model, LoraSettings(r=4)))
    layer = model.model.layers[0].self_attn.q_proj
    assert resolve(layer) is not None
    if change == "disabled":
        wrapped.base_model.disable_adapter_layers()
    elif change == "merged":
        wrapped.merge_adapter()
    else:
        wrapped.add_adapter("other", wrapped.peft_config["default"])
        wrapped.base_model.set_adapter(["default", "other"])
    assert resolve(layer) is None


def test_layers_are_known_by_how_they_keep_their_weight():
    q_proj = fakes.tiny("llama").model.layers[0].self_attn.q_proj
    c_attn = fakes.tiny("gpt2").transformer.h[0].attn.c_attn
    found = [resolve(module).weight for module in (q_proj, c_attn, Int8Linear(q_proj))]
    assert [type(weight) for weight in found] == [Dense, Dense, Int8Weight]
    assert [weight.turned for weight in found[:2]] == [False, True]


def test_families_refuse_what_they_do_not_compute():
    assert llama.fits(fakes.tiny("llama"))
    assert gpt2.fits(fakes.tiny("gpt2"))
    assert not llama.fits(fakes.tiny("gpt2"))
    assert not gpt2.fits(fakes.tiny("llama"))
    other = fakes.tiny("llama")
    other.config.hidden_act = "gelu"
    assert not llama.fits(other)
    windowed = fakes.tiny("llama")
    windowed.config.sliding_window = 64
    assert not llama.fits(windowed)
    windowed.config.use_sliding_window = False
    assert llama.fits(windowed)
    scaled = fakes.tiny("gpt2")
    scaled.config.reorder_and_upcast_attn = True
    assert not gpt2.fits(scaled)
