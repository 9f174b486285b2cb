"""Counting, finding and freezing the parts of a model."""

import pytest
import torch

from fakes import tiny
from metier.core.errors import ModelError
from metier.models.shape import (
    blocks,
    count_parameters,
    freeze_all_but,
    input_embeddings,
    is_tied,
    linear_names,
    output_head,
)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["llama", "llama-untied", "gpt2"])
def test_parts(kind: str) -> None:
    model = tiny(kind)
    assert len(blocks(model)) == 2
    assert is_tied(model) is (kind != "llama-untied")
    assert input_embeddings(model).weight.shape == output_head(model).weight.shape == (265, 32)
    assert "lm_head" not in linear_names(model)


def test_a_tied_weight_counts_once() -> None:
    assert count_parameters(tiny("llama-untied")).total - count_parameters(tiny("llama")).total == 265 * 32


def test_linear_layers_of_gpt2_are_its_convolutions() -> None:
    assert linear_names(tiny("gpt2")) == ("c_attn", "c_proj", "c_fc")


@pytest.mark.parametrize(("kind", "norm"), [("llama-untied", "model.norm."), ("gpt2", "transformer.ln_f.")])
def test_the_last_block_the_norm_and_no_head(kind: str, norm: str) -> None:
    model = tiny(kind)
    parameters = freeze_all_but(model, 1, head=False)
    names = trained(model)
    assert all(".1." in name or name.startswith(norm) for name in names)
    assert any(name.startswith(norm) for name in names)
    block = count_parameters(blocks(model)[1]).total
    assert parameters.trained == block + sum(p.numel() for n, p in model.named_parameters() if n.startswith(norm))


def test_the_head_alone_when_it_is_its_own() -> None:
    model = tiny("llama-untied")
    freeze_all_but(model, 0)
    assert trained(model) == {"lm_head.weight", "model.norm.weight"}


def test_a_tied_head_is_trained_as_the_embeddings_too() -> None:
    model = tiny("llama")
    freeze_all_but(model, 0)
    assert trained(model) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert is_tied(model)


def test_patterns_add_to_what_is_trained() -> None:
    model = tiny("llama-untied")
    freeze_all_but(model, 0, head=False, patterns=[r"layers\.0\.mlp"])
    assert {name for name in trained(model) if "layers" in name} == {
        f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_all_blocks_may_be_trained_and_freezing_again_starts_over() -> None:
    model = tiny("llama-untied")
    freeze_all_but(model, 2)
    assert "model.embed_tokens.weight" not in trained(model)
    freeze_all_but(model, 1, head=False)
    assert not any("layers.0." in name for name in trained(model))


@pytest.mark.parametrize("last", [-1, 3])
def test_more_blocks_than_there_are(last: int) -> None:
    with pytest.raises(ModelError, match="the model has 2 blocks") as caught:
        freeze_all_but(tiny("llama"), last)
    assert "use 0 to 2" in str(caught.value)


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(ModelError, match="matches no parameter"):
        freeze_all_but(tiny("llama"), 1, patterns=["embbed"])


def test_a_model_without_blocks() -> None:
    model = tiny("llama")
    model.model.layers = torch.nn.ModuleList([*model.model.layers, model.model.layers[0]])
    with pytest.raises(ModelError, match="blocks cannot be found"):
        blocks(model)
