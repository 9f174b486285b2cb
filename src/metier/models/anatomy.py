"""A model's layers and parameters by name, from its config.json alone: no torch, no weights, microseconds.

Knows Llama, Mistral, Qwen2 and GPT-2; the rest must be asked of a skeleton (`shape.anatomy`). What settings name
(targets of an adapter, ranks by pattern, parameters to leave trained) is checked against either by the same rules.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metier.core.errors import ModelError, nearest

ALL_LINEAR: Literal["all-linear"] = "all-linear"


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of.

    depth: its blocks. linear: every linear layer but the output head, by its full name in model order, with its two
    sides (in, out). head, head_sides: the output head. tied: whether the head is the input embeddings. parameters: the
    full names of all.
    """

    depth: int
    linear: Mapping[str, tuple[int, int]]
    head: str
    head_sides: tuple[int, int]
    tied: bool
    parameters: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The last parts of the linear layers' names, each once: q_proj, k_proj ... or c_attn, c_proj, c_fc."""
        return tuple(dict.fromkeys(name.rpartition(".")[2] for name in self.linear))


def known(config: Mapping[str, Any]) -> Anatomy | None:
    """The anatomy that a config.json describes; None for an architecture that is not known here."""
    if config.get("model_type") == "gpt2":
        return _gpt2(config)
    if config.get("model_type") in ("llama", "mistral", "qwen2"):
        return _llama(config)
    return None


def check_targets(
    anatomy: Anatomy,
    *,
    targets: Literal["all-linear"] | Iterable[str],
    r: int,
    rank_pattern: Mapping[str, int],
    where: str,
) -> tuple[str, ...]:
    """The targets of an adapter, as PEFT takes them.

    targets: names of linear layers or parts of them (`q_proj`, `self_attn.q_proj`, `layers.0.self_attn.q_proj`).
    rank_pattern: regular expressions that a layer's name, or its end from a dot on, matches whole, each with a rank;
    at most one may match a layer. where: the settings' place in the recipe, for the message.

    Raises ModelError for a target or pattern that matches no layer, for a rank above the smaller side of one, and for a
    tied output head, whose adapter could not be merged.
    """
    layers = dict(anatomy.linear)
    chosen = anatomy.names if targets == ALL_LINEAR else tuple(targets)
    listed = ", ".join(anatomy.names)
    if not chosen:
        raise ModelError("no targets are named", where=f"{where}.targets", cure=f"one of {listed}")
    hit: dict[str, str] = {}  # layer -> the target that named it
    for target in chosen:
        if _named(anatomy.head, target):
            if anatomy.tied:
                raise ModelError(
                    "the output head is tied to the embeddings, so an adapter on it could not be merged",
                    where=f"{where}.targets",
                    value=target,
                    cure=f"leave it out; known here: {listed}",
                )
            layers[anatomy.head] = anatomy.head_sides
        matched = [name for name in layers if _named(name, target)]
        if not matched:
            raise ModelError(
                "the model has no such linear layer",
                where=f"{where}.targets",
                value=target,
                cure=f"{nearest(target.rpartition('.')[2], anatomy.names)} (there are: {listed})",
            )
        hit |= dict.fromkeys(matched, target)
    ranks = _ranks(hit, r, rank_pattern, where)
    for name, (rank, place) in ranks.items():
        smallest = min(layers[name])
        if rank > smallest:
            raise ModelError(
                f"the rank is above the smaller side ({smallest}) of {hit[name]}",
                where=place,
                value=rank,
                cure=f"use at most {smallest}; 8 to 32 is usual",
            )
    return chosen


def matching(names: Iterable[str], patterns: Iterable[str], *, where: str) -> set[str]:
    """The parameter names in which one of the regular expressions is found. Raises ModelError for one found in none."""
    everything = tuple(names)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in everything if re.search(pattern, name)}
        if not matched:
            raise ModelError(
                "the pattern matches no parameter", where=where, value=pattern, cure=_near(pattern, everything)
            )
        found |= matched
    return found


def _ranks(hit: Iterable[str], r: int, rank_pattern: Mapping[str, int], where: str) -> dict[str, tuple[int, str]]:
    """The rank of each layer and the setting that gives it."""
    ranks = dict.fromkeys(hit, (r, f"{where}.r"))
    for pattern, rank in rank_pattern.items():
        matched = [name for name in ranks if re.match(rf"(.*\.)?({pattern})$", name)]  # PEFT's own rule
        if not matched:
            raise ModelError(
                "the pattern matches no layer that the adapter goes on",
                where=f"{where}.rank_pattern",
                value=pattern,
                cure=_near(pattern, ranks),
            )
        again = next((name for name in matched if ranks[name][1] != f"{where}.r"), None)
        if again is not None:
            raise ModelError(
                f"two patterns match the layer {again}",
                where=f"{where}.rank_pattern",
                value=pattern,
                cure="write them so that each layer matches one at most",
            )
        ranks |= dict.fromkeys(matched, (rank, f"{where}.rank_pattern"))
    return ranks


def _near(pattern: str, names: Iterable[str]) -> str:
    """A cure that names the nearest of the names, by its end that has as many parts as the pattern."""
    parts = len(re.split(r"\\?\.", pattern))
    return nearest(pattern, dict.fromkeys(".".join(name.split(".")[-parts:]) for name in names))


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _llama(config: Mapping[str, Any]) -> Anatomy:
    width, heads, depth = (int(config[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head = int(config.get("head_dim") or width // heads)
    keys = int(config.get("num_key_value_heads") or heads) * head
    inner = int(config["intermediate_size"])
    attention = {
        "self_attn.q_proj": (width, heads * head),
        "self_attn.k_proj": (width, keys),
        "self_attn.v_proj": (width, keys),
        "self_attn.o_proj": (heads * head, width),
    }
    mlp = {"mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner), "mlp.down_proj": (inner, width)}
    biased = set(attention) if config.get("attention_bias") else set()
    biased |= set(mlp) if config.get("mlp_bias") else set()
    if config["model_type"] == "qwen2":
        biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    block = [
        f"{name}.{kind}"
        for name in (*attention, *mlp)
        for kind in ("weight", "bias")
        if kind == "weight" or name in biased
    ]
    block += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    tied = bool(config.get("tie_word_embeddings", False))
    return _anatomy(
        depth,
        "model.layers",
        attention | mlp,
        block,
        head_sides=(width, int(config["vocab_size"])),
        tied=tied,
        others=["model.embed_tokens.weight", "model.norm.weight"],
    )


def _gpt2(config: Mapping[str, Any]) -> Anatomy:
    width, depth = int(config["n_embd"]), int(config["n_layer"])
    inner = int(config.get("n_inner") or 4 * width)
    linear = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    block = [f"{name}.{kind}" for name in ("ln_1", "ln_2", *linear) for kind in ("weight", "bias")]
    return _anatomy(
        depth,
        "transformer.h",
        linear,
        block,
        head_sides=(width, int(config["vocab_size"])),
        tied=bool(config.get("tie_word_embeddings", True)),
        others=[f"transformer.{name}" for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")],
    )


def _anatomy(
    depth: int,
    prefix: str,
    linear: Mapping[str, tuple[int, int]],
    block: Iterable[str],
    *,
    head_sides: tuple[int, int],
    tied: bool,
    others: Iterable[str],
) -> Anatomy:
    places = [f"{prefix}.{i}" for i in range(depth)]
    return Anatomy(
        depth,
        {f"{place}.{name}": sides for place in places for name, sides in linear.items()},
        "lm_head",
        head_sides,
        tied,
        (*others, *(f"{place}.{name}" for place in places for name in block), "lm_head.weight"),
    )
