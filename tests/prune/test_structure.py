"""What is cut out: the right parts, the predicted sizes, and stock classes read the same model back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fakes import TINYLLAMA, byte_tokenizer, tiny_gpt2, tiny_llama
from metier.core.errors import ModelError
from metier.core.events import Events
from metier.models.load import load
from metier.models.save import save_model
from metier.models.shape import linear_layers
from metier.prune.anatomy import Cut, cut_config, parameters, shape_of
from metier.prune.apply import Work, importance, make
from metier.prune.methods import (
    Heads,
    HeadsMethod,
    Layers,
    LayersMethod,
    Method,
    Weights,
    WeightsMethod,
    Width,
    WidthMethod,
    cut_of,
    cuts,
)
from metier.prune.size import size_of, tensor_bytes
from metier.prune.sparse import scores_of
from metier.prune.stage import predicted
from metier.prune.stream import Pieces
from metier.prune.surgery import matrix, smaller, without_heads

IDS = torch.randint(6, 260, (4, 32), generator=torch.Generator().manual_seed(1))


def heads(fraction: float, **others: Any) -> HeadsMethod:
    return HeadsMethod(heads=Heads(fraction=fraction, **others))


def width(fraction: float, **others: Any) -> WidthMethod:
    return WidthMethod(width=Width(fraction=fraction, **({"multiple": 8} | others)))


def layers(count: int) -> LayersMethod:
    return LayersMethod(layers=Layers(count=count))


def weights(**settings: Any) -> WeightsMethod:
    return WeightsMethod(weights=Weights(**settings))


def wide_heads(**others: Any) -> PreTrainedModel:
    """Three blocks; heads wider than hidden / heads, 6 over 3 groups, with biases."""
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}
    shape = heads | {"hidden_size": 48, "num_hidden_layers": 3}
    model = tiny_llama(**({"attention_bias": True, "mlp_bias": True} | shape | others))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "llama-untied": lambda: tiny_llama(tied=False),
    "biased": wide_heads,
    "gpt2": tiny_gpt2,
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, model in MODELS.items():
        save_model(model(), byte_tokenizer(), tmp_path / name)
    save_model(tiny_llama().to(torch.bfloat16), byte_tokenizer(), tmp_path / "half")
    return tmp_path


def pruned(folder: Path, method: Method, out: Path, ids: Pieces = (IDS,), *, heal: bool = False) -> Cut:
    work = Work(folder, method, heal, ids, Events("prune"), lambda: None)
    loaded = load(folder)
    cut = cut_of(method, shape_of(loaded.model.config.to_dict()))
    make(work, cut, importance(loaded, work, cut), out)
    return cut


REMOVED = [
    ("llama", heads(0.5, remove="groups")),
    ("llama-untied", heads(0.5, remove="queries")),
    ("biased", heads(1 / 3, remove="groups")),
    ("biased", heads(0.5, remove="queries", importance="gradient")),
    ("llama", width(0.25)),
    ("biased", width(0.5, importance="magnitude")),
    ("gpt2", width(0.25, importance="gradient")),
    ("llama-untied", layers(1)),
    ("gpt2", layers(1)),
    ("half", width(0.25)),
]


@pytest.mark.parametrize(("kind", "method"), REMOVED, ids=str)
def test_what_is_left_has_the_predicted_size_and_stock_classes_read_it(folders: Path, kind: str, method: Method):
    out = folders / "out"
    cut = pruned(folders / kind, method, out)
    before, after = load(folders / kind), load(out)
    assert cut.removes
    told = predicted(before.model.config.to_dict(), cut, 2 if kind == "half" else 4)
    size = size_of(after)
    assert {name: size.row[name] for name in told} == told
    assert size.bytes == tensor_bytes(out) < tensor_bytes(folders / kind)
    stock = AutoModelForCausalLM.from_pretrained(out)
    assert stock.dtype == (torch.bfloat16 if kind == "half" else torch.float32)
    with torch.no_grad():
        assert torch.equal(stock.float()(IDS).logits, after.model(IDS).logits)
    if kind != "gpt2":
        assert stock.config.head_dim == before.model.config.head_dim


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "biased", "gpt2", "half"])
@pytest.mark.parametrize(
    "method", [heads(0.0), width(0.0), layers(0), weights(fraction=0.0), weights(fraction=0.0, pattern="2:4")], ids=str
)
def test_pruning_by_nothing_keeps_every_bit(folders: Path, kind: str, method: Method):
    pruned(folders / kind, method, folders / "out")
    written = (folders / "out" / "model.safetensors").read_bytes()
    assert written == (folders / kind / "model.safetensors").read_bytes()


def test_what_is_kept_keeps_its_bits():
    model = wide_heads()
    before, state = model.state_dict(), dict(model.state_dict())
    without_heads(state, 1, Cut("groups", 1, 3, (0, 1, 2)), shape_of(model.config.to_dict()), [1])
    place = "model.layers.1.self_attn"
    q, v, o = (before[f"{place}.{name}"] for name in ("q_proj.weight", "v_proj.bias", "o_proj.weight"))
    assert torch.equal(state[f"{place}.q_proj.weight"], torch.cat([q[:32], q[64:]]))
    assert torch.equal(state[f"{place}.v_proj.bias"], torch.cat([v[:16], v[32:]]))
    assert torch.equal(state[f"{place}.o_proj.weight"], torch.cat([o[:, :32], o[:, 64:]], 1))
    assert torch.equal(state[f"{place}.o_proj.bias"], before[f"{place}.o_proj.bias"])


@pytest.mark.parametrize(("what", "taken", "units"), [("groups", [1], [2, 3]), ("queries", [0, 3, 4], [0, 3, 4])])
@torch.no_grad()
def test_removing_heads_is_zeroing_them(folders: Path, what: Any, taken: list[int], units: list[int]):
    model, folder = wide_heads(), folders / "biased"
    shape, every = shape_of(model.config.to_dict()), (0, 1, 2)
    zeroed = smaller(wide_heads(), folder, Cut("heads", len(units), 6, every), shape, dict.fromkeys(every, units))
    cut = Cut(what, 1, 3 if what == "groups" else 2, every)
    gone = smaller(wide_heads(), folder, cut, shape, dict.fromkeys(every, taken))
    assert (zeroed(IDS).logits - gone(IDS).logits).abs().max() < 2e-4
    assert (zeroed(IDS).logits - model(IDS).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "name"), [("biased", "model.layers.{}.self_attn.o_proj"), ("gpt2", "transformer.h.{}.attn.c_proj")]
)
def test_heads_are_zeroed_in_the_last_blocks_alone(folders: Path, kind: str, name: str):
    assert not pruned(folders / kind, heads(0.5, last_layers=1), folders / "out").removes
    model = load(folders / "out").model
    *others, last = range(len(model.base_model.layers if kind == "biased" else model.base_model.h))
    assert (model.get_submodule(name.format(last)).weight == 0).float().mean() == 0.5
    assert all((model.get_submodule(name.format(i)).weight != 0).all() for i in others)
    assert tensor_bytes(folders / "out") == tensor_bytes(folders / kind)


def test_layers_that_do_nothing_go_first(folders: Path):
    model = tiny_llama(num_hidden_layers=4)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    save_model(model, byte_tokenizer(), folders / "idle")
    pruned(folders / "idle", layers(1), folders / "out")
    with torch.no_grad():
        assert torch.equal(load(folders / "out").model(IDS).logits, load(folders / "idle").model(IDS).logits)


def idle(kind: str) -> PreTrainedModel:
    """Heads 0 and 3 (rows 0-7 and 24-31) and the first 16 channels neither read nor add."""
    model = MODELS[kind]()
    gone, first = [*range(8), *range(24, 32)], list(range(16))
    with torch.no_grad():
        for block in model.base_model.layers if kind == "llama" else model.base_model.h:
            if kind == "llama":
                block.self_attn.q_proj.weight[gone] = 0
                block.self_attn.o_proj.weight[:, gone] = 0
                block.mlp.gate_proj.weight[first] = 0
                block.mlp.up_proj.weight[first] = 0
                block.mlp.down_proj.weight[:, first] = 0
            else:
                block.attn.c_attn.weight.view(32, 3, 32)[:, :, gone] = 0
                block.attn.c_proj.weight[gone] = 0
                block.mlp.c_fc.weight[:, first] = 0
                block.mlp.c_proj.weight[first] = 0
    return model


@pytest.mark.parametrize("by", ["activation", "gradient", "magnitude"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_units_without_effect_go_first(folders: Path, by: str, kind: str):
    model = idle(kind)
    save_model(model, byte_tokenizer(), folders / "idle")
    fraction = 0.25 if kind == "llama" else 0.125
    for number, method in enumerate([heads(0.5, importance=by), width(fraction, importance=by)]):
        pruned(folders / "idle", method, folders / f"out{number}")
        with torch.no_grad():
            found = load(folders / f"out{number}").model(IDS).logits
            assert (found - model(IDS).logits).abs().max() < 1e-4


def test_wanda_is_what_the_paper_says(folders: Path):
    """The first block's query weights, recomputed plainly: |W| times the norm of the input, half of each row."""
    pruned(folders / "llama", weights(fraction=0.5), folders / "out")
    model = load(folders / "llama").model
    block = model.model.layers[0]
    with torch.no_grad():
        x = block.input_layernorm(model.model.embed_tokens(IDS)).flatten(0, 1)
        q = block.self_attn.q_proj.weight
        score = q.abs() * x.square().mean(0).sqrt()
        limit = score.sort(dim=1).values[:, 15:16]
        expected = torch.where(score <= limit, torch.zeros(()), q)
    assert torch.equal(load(folders / "out").model.model.layers[0].self_attn.q_proj.weight, expected)


def test_ria_looks_at_a_weights_share_of_its_row_and_column():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = scores_of(weight, torch.tensor([4.0, 9.0]), "ria")
    expected = torch.tensor([[2 * (1 / 4 + 1 / 3), 3 * (2 / 6 + 2 / 3)], [2 * (3 / 4 + 3 / 7), 3 * (4 / 6 + 4 / 7)]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", ["wanda", "ria", "magnitude"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_half_of_the_weights_are_zero(folders: Path, kind: str, rank: str, pattern: str | None):
    out = folders / "out"
    pruned(folders / kind, weights(rank=rank, pattern=pattern), out)
    for layer in linear_layers(load(out).model).values():
        found = matrix(layer) == 0
        assert found.float().mean() == 0.5
        if pattern:
            assert set(found.reshape(len(found), -1, 4).sum(-1).unique().tolist()) == {2}
        elif rank != "magnitude":
            assert set(found.sum(1).tolist()) == {found.shape[1] // 2}
    assert tensor_bytes(out) == tensor_bytes(folders / kind)


def test_less_of_2_4_takes_the_blocks_that_lose_least(folders: Path):
    method = weights(pattern="2:4")
    asked, less = cuts(method, shape_of(load(folders / "biased").model.config.to_dict()), [0.5, 0.1])
    assert (asked.taken, asked.ratio, less.taken) == (3, 0.5, 1)
    make(Work(folders / "biased", method, False, (IDS,), Events("prune"), lambda: None), less, None, folders / "out")
    state = load(folders / "out").model.state_dict()
    shares = [(state[f"model.layers.{i}.mlp.up_proj.weight"] == 0).float().mean().item() for i in range(3)]
    assert sorted(shares) == [0.0, 0.0, 0.5]


HEALED = [
    ("llama", heads(0.5, remove="groups")),
    ("gpt2", heads(0.5)),
    ("biased", heads(0.5, last_layers=2)),
    ("llama", width(0.5)),
    ("gpt2", width(0.5)),
    ("biased", layers(1)),
]


@pytest.mark.parametrize(("kind", "method"), HEALED, ids=str)
def test_reconstruction_comes_nearer_on_text_not_seen(folders: Path, kind: str, method: Method):
    ids = torch.randint(6, 260, (24, 64), generator=torch.Generator().manual_seed(2)).split(16)
    pruned(folders / kind, method, folders / "plain", ids)
    pruned(folders / kind, method, folders / "healed", ids, heal=True)
    with torch.no_grad():
        wanted = load(folders / kind).model(IDS).logits
        plain, healed = (load(folders / name).model(IDS).logits - wanted for name in ("plain", "healed"))
    assert healed.square().mean() < 0.95 * plain.square().mean()


def test_twice_gives_the_same_bytes(folders: Path):
    for name in ("a", "b"):
        pruned(folders / "llama", width(0.25), folders / name, heal=True)
    assert (folders / "a/model.safetensors").read_bytes() == (folders / "b/model.safetensors").read_bytes()


def test_predicted_parameters_are_those_of_the_model():
    for make_one in MODELS.values():
        model = make_one()
        assert parameters(model.config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_tinyllama_without_a_group_is_4_7_percent_smaller_and_its_cache_a_quarter():
    mistral = TINYLLAMA | {"model_type": "mistral"}  # of Llama itself stock transformers wants heads to divide 2048
    cut = cut_of(heads(0.25, remove="groups"), shape_of(mistral))
    left = cut_config(mistral, cut)
    assert 1 - parameters(left) / parameters(mistral) == pytest.approx(0.047, abs=5e-4)
    assert (left["num_key_value_heads"], left["num_attention_heads"], left["head_dim"]) == (3, 24, 64)
    assert predicted(mistral, cut, 2)["cache_bytes"] == 2 * 22 * 3 * 64 * 2


ODD: dict[str, Callable[[], PreTrainedModel]] = {
    "thrice": lambda: tiny_llama(hidden_size=33, num_attention_heads=3, num_key_value_heads=1, head_dim=8)
}
BAD = [
    (heads(1.0), "llama", "nothing would be left"),
    (heads(1.0, remove="queries"), "llama", "nothing would be left"),
    (heads(0.3, remove="groups"), "llama", r"one of 0\.5"),
    (heads(0.3), "gpt2", r"one of 0\.25, 0\.5, 0\.75"),
    (heads(0.5, remove="groups"), "gpt2", "cannot be removed from a GPT-2"),
    (heads(0.5, remove="groups", last_layers=1), "llama", "from all blocks alike"),
    (heads(0.5, last_layers=9), "llama", "2 blocks"),
    (width(1.0), "llama", "nothing would be left"),
    (width(0.01, multiple=32), "llama", "takes none"),
    (layers(2), "gpt2", "nothing would be left"),
    (heads(1 / 3, remove="queries"), "thrice", "the 2 heads that would be left do not divide the hidden size of 33"),
    (weights(fraction=0.3, pattern="2:4"), "llama", "half of the weights"),
]


@pytest.mark.parametrize(("method", "kind", "message"), BAD, ids=str)
def test_what_cannot_be_taken_is_refused(method: Method, kind: str, message: str):
    with pytest.raises(ModelError, match=message) as caught:
        cut_of(method, shape_of((MODELS | ODD)[kind]().config.to_dict()))
    assert caught.value.where is not None
    assert caught.value.where.startswith("method.")
    assert caught.value.exit_code == 2


def test_architectures_that_are_not_known_are_refused():
    with pytest.raises(ModelError, match="cannot be pruned") as caught:
        shape_of({"model_type": "gpt_neox"})
    assert "llama" in str(caught.value.cure)


def test_fours_must_divide():
    shape = shape_of(tiny_llama(intermediate_size=66).config.to_dict())
    with pytest.raises(ModelError, match="groups of four do not divide the model's MLP width of 66"):
        cut_of(weights(pattern="2:4"), shape)


def test_smaller_cuts_fall_in_whole_units():
    shape = shape_of(TINYLLAMA)
    assert [c.taken for c in cuts(heads(0.75, remove="groups"), shape, [0.75, 0.5, 0.25])] == [
        3,
        2,
    ]  # 24 heads do not fit
    assert [c.taken for c in cuts(width(0.2, multiple=32), shape, [0.75, 0.5, 0.25])] == [1120, 832, 544, 288]
    assert [c.taken for c in cuts(weights(), shape, [0.5])] == [0.5, 0.25]
    assert [c.taken for c in cuts(layers(3), shape, [0.75, 0.5, 0.25])] == [3, 2, 1]
