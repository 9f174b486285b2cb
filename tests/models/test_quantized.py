"""Quantised bases: read layer by layer they are what the whole model is, quantised; adapters train on them."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import byte_tokenizer, save_tiny, tiny
from metier.core.errors import MissingExtra, ModelError
from metier.models import quantized as room
from metier.models.adapter import LoraSettings, add_lora
from metier.models.load import load
from metier.models.quantized import Kind, Packed, as_linear, mark, quantized
from metier.models.save import save_model
from metier.models.shape import blocks, cast_, count_parameters, linear_layers
from metier.models.stream import convert_, load_converted

IDS = torch.tensor([[0, 70, 80, 90, 100, 30, 40]])
NAMES = ["llama", "llama-untied", "gpt2"]
KINDS: list[Kind] = ["8bit", "4bit"]


def same(layer: torch.nn.Module) -> torch.nn.Module:
    return layer


def converter(kind: Kind) -> partial[torch.nn.Linear]:
    return partial(quantized, kind=kind, compute=torch.float32)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_read_layer_by_layer_a_model_is_the_same(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path / name, name)
    model = load_converted(folder, same, dtype=torch.float32)
    assert torch.equal(model(IDS).logits, load(folder).model(IDS).logits)
    assert not model.training
    halved, whole = load_converted(folder, same, dtype=torch.bfloat16), load(folder, dtype=torch.bfloat16).model
    assert torch.equal(halved(IDS).logits, whole(IDS).logits)
    assert {k: v.dtype for k, v in halved.named_buffers()} == {k: v.dtype for k, v in whole.named_buffers()}


@torch.no_grad()
def test_shards_and_names_without_a_prefix_are_read_too(tmp_path: Path) -> None:
    save_model(tiny("gpt2"), byte_tokenizer(), tmp_path / "many", shard_bytes=30_000)
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    plain = save_tiny(tmp_path / "plain", "gpt2")
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(plain / "model.safetensors").items()
    }
    tensors["h.0.attn.bias"] = torch.ones(1)  # the causal mask that the first GPT-2 files hold
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    expected = tiny("gpt2")(IDS).logits
    for folder in ("many", "plain"):
        assert torch.equal(load_converted(tmp_path / folder, same, dtype=torch.float32)(IDS).logits, expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("model.norm.weight"), "not in the file"),
        (lambda t: t.update(extra=torch.ones(2)), "knows nothing of"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), "other shapes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: object, what: str) -> None:
    folder = save_tiny(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=what):
        load_converted(folder, same, dtype=torch.float32)


def test_a_quantised_model_is_not_quantised_again(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ModelError, match=r"(?s)weights are quantised.*the model it was quantised from"):
        load_converted(folder, same, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_only_layers_of_the_blocks_are_quantised_and_counts_stay(tmp_path: Path, name: str, kind: Kind) -> None:
    folder = save_tiny(tmp_path / name, name)
    model = load_converted(folder, converter(kind), dtype=torch.float32)
    whole = tiny(name)
    assert count_parameters(model).total == count_parameters(whole).total
    assert count_parameters(model).trained == 0
    assert set(linear_layers(model)) == set(linear_layers(whole))
    assert {layer.weight.dtype for layer in linear_layers(model).values()} == {
        torch.int8 if kind == "8bit" else torch.uint8
    }
    assert model.get_output_embeddings().weight.dtype == torch.float32
    expected, found = whole(IDS).logits.log_softmax(-1), model(IDS).logits.log_softmax(-1)
    off = (expected.exp() * (expected - found)).sum(-1).mean()  # in nats
    assert 0 < off < (0.01 if kind == "8bit" else 0.4)  # random weights: the worst case for 4 bits


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_quantising_in_place_gives_the_same_layers(tmp_path: Path, kind: Kind) -> None:
    read = load_converted(save_tiny(tmp_path / "m", "gpt2"), converter(kind), dtype=torch.float32)
    model = tiny("gpt2")
    convert_(model, converter(kind))
    assert torch.equal(model(IDS).logits, read(IDS).logits)


@torch.no_grad()
def test_nf4_is_at_most_half_a_step_off() -> None:
    """Against the codebook as its paper gives it, blocks of 64 scaled by their largest number."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 2, bias=False)
    made = quantized(layer, "4bit", compute=torch.float32)
    values = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
    values += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
    scale = layer.weight.abs().amax(1, keepdim=True)
    nearest = (layer.weight / scale)[..., None].sub(torch.tensor(values)).abs().argmin(-1)
    expected = torch.tensor(values)[nearest] * scale
    found = made(torch.eye(64)).t()
    assert (found - expected).abs().max() < 0.02 * scale.max()  # double quantisation rounds the scales as well


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_on_it_gets_gradients_and_nothing_else_does(kind: Kind, name: str, dora: bool) -> None:
    model = tiny(name)
    convert_(model, converter(kind))
    mark(model, kind)
    torch.manual_seed(0)
    adapted = add_lora(model, LoraSettings(r=4, dora=dora))
    adapted.train()
    adapted(IDS, labels=IDS).loss.backward()
    with_gradient = {n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert with_gradient == {n for n in trained if "lora_A" not in n}  # B is zero at first, so A's gradient is too
    assert all(p.dtype == torch.float32 for n, p in adapted.named_parameters() if n in trained)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_evaluation_computes_what_training_does(kind: Kind) -> None:
    model = tiny("llama")
    convert_(model, converter(kind))
    training = model.train()(IDS).logits
    assert torch.equal(model.eval()(IDS).logits, training)
    assert torch.equal(model.train()(IDS).logits, training)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_weight_made_whole_again_is_what_the_layer_multiplies_with(kind: Kind) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 24)
    made = quantized(layer, kind, compute=torch.float32)
    assert isinstance(made, Packed)
    x = torch.randn(5, 64)
    before = made.dequantized(torch.float32)
    torch.testing.assert_close(made(x), x @ before.t() + layer.bias)
    assert torch.equal(made.dequantized(torch.float32), before)
    assert made.dequantized(torch.bfloat16).dtype == torch.bfloat16
    assert (before - layer.weight).abs().max() < (0.002 if kind == "8bit" else 0.03)


def test_loading_and_using_8_bits_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_converted(save_tiny(tmp_path / "m"), converter("8bit"), dtype=torch.bfloat16)
    model(IDS)
    assert capfd.readouterr() == ("", "")


def test_gpt2_s_layers_turned_round_are_the_same() -> None:
    layer = blocks(tiny("gpt2"))[0].attn.c_attn
    x = torch.randn(3, 32)
    torch.testing.assert_close(as_linear(layer)(x), layer(x))


def test_without_the_package_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(room.importlib, "import_module", absent)
    room.bitsandbytes.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"pip install 'metier\[quant\]'"):
            room.bitsandbytes()
    finally:
        room.bitsandbytes.cache_clear()


def test_casting_parameters_leaves_the_rotary_positions_alone() -> None:
    model = tiny("llama")
    cast_(model.parameters(), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
