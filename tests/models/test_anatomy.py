"""What config.json says of a model is what the model is; settings that name its parts are checked against it."""

import pytest
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from metier.core.errors import ModelError
from metier.models.anatomy import Anatomy, check_targets, known, matching
from metier.models.shape import anatomy, skeleton

SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = [
    LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    LlamaConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True),
    MistralConfig(**SMALL, num_key_value_heads=2),
    Qwen2Config(**SMALL, num_key_value_heads=2),
    GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4),
    GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_inner=80),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_what_a_config_says_is_what_the_model_is(config: LlamaConfig) -> None:
    said, found = known(config.to_dict()), anatomy(skeleton(config))
    assert said is not None
    assert (said.depth, said.tied, said.head, said.head_sides) == (
        found.depth,
        found.tied,
        found.head,
        found.head_sides,
    )
    assert dict(said.linear) == dict(found.linear)
    assert set(said.parameters) == set(found.parameters)


def test_an_unknown_architecture_is_left_to_the_skeleton() -> None:
    assert known({"model_type": "gpt_neox"}) is None


LLAMA = known(CONFIGS[0].to_dict())


def targets(**changes: object) -> tuple[str, ...]:
    assert isinstance(LLAMA, Anatomy)
    settings = {"targets": "all-linear", "r": 4, "rank_pattern": {}, "where": "lora", **changes}
    return check_targets(LLAMA, **settings)


def test_targets_may_be_parts_of_names() -> None:
    assert targets(targets=["layers.1.mlp.up_proj"]) == ("layers.1.mlp.up_proj",)
    assert targets()[0] == "q_proj"


@pytest.mark.parametrize(
    ("changes", "field", "parts"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "lora.rank_pattern", ["matches no layer", "did you mean 'q_proj'"]),
        ({"rank_pattern": {"layers.0.self_attn.q_prj": 2}}, "lora.rank_pattern", ["layers.0.self_attn.q_proj"]),
        ({"rank_pattern": {"up_proj": 2}, "targets": ["q_proj"]}, "lora.rank_pattern", ["that the adapter goes on"]),
        ({"rank_pattern": {"q_proj": 2, r"layers\.0\..*": 2}}, "lora.rank_pattern", ["two patterns match"]),
        ({"rank_pattern": {"k_proj": 17}}, "lora.rank_pattern", ["smaller side (16)", "found: 17"]),
        ({"r": 33, "rank_pattern": {"q_proj": 4}}, "lora.r", ["smaller side", "found: 33"]),
        ({"targets": ["layers.2.self_attn.q_proj"]}, "lora.targets", ["no such linear layer"]),
        ({"targets": ["lm_head"]}, "lora.targets", ["tied"]),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], field: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        targets(**changes)
    assert str(caught.value).startswith(field)
    assert all(part in str(caught.value) for part in parts)


def test_a_lower_rank_by_pattern_makes_room_for_a_higher_r() -> None:
    assert targets(r=32, rank_pattern={r"[kv]_proj": 16}, targets=["q_proj", "k_proj", "v_proj"])


def test_patterns_name_parameters() -> None:
    assert isinstance(LLAMA, Anatomy)
    found = matching(LLAMA.parameters, [r"layers\.0\.mlp", "embed"], where="freeze.patterns")
    assert {name.split(".")[-2] for name in found} == {"gate_proj", "up_proj", "down_proj", "embed_tokens"}
    with pytest.raises(ModelError, match=r"(?s)matches no parameter.*did you mean 'embed_tokens\.weight'"):
        matching(LLAMA.parameters, ["embbed_tokens.weight"], where="freeze.patterns")
