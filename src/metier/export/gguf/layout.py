"""How a model of transformers is laid out in a GGUF file: names, numbers and the order of rows.

Llama's queries and keys are stored with the two halves of each head interleaved, because llama.cpp rotates neighbouring
numbers where transformers rotates halves; GPT-2's Conv1D weights are turned round. Refuses every setting that llama.cpp
would silently read as another one (biases, activations, other kinds of position scaling). Reads no weights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metier.core.errors import MissingExtra, ModelError

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PretrainedConfig

Array = NDArray[Any]
ARCHITECTURES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
"""What can be written, by the configuration's model type."""

LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""What the factors of Llama 3.1's frequencies are computed from. llama.cpp reads the factors, transformers these."""

_NEEDED: Mapping[str, Mapping[str, object]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
}
_CURE = "export without `gguf`: the folder for transformers holds everything"


def gguf_package() -> "ModuleType":
    """The package `gguf`. Raises MissingExtra."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtra("gguf", "gguf", needed_by="writing a GGUF file") from error
    return gguf


@dataclass(frozen=True)
class Field:
    """One number or flag of the header. key: behind the architecture's name. kind: of gguf's `GGUFValueType`."""

    key: str
    value: float | int | str
    kind: str


@dataclass(frozen=True)
class Placed:
    """Where a tensor goes. turn: how its rows are reordered. plain: kept in 32 bits whatever the file's type."""

    name: str
    turn: Callable[[Array], Array]
    plain: bool
    embedding: bool = False


def check_layout(config: "PretrainedConfig", where: str) -> None:
    """Raise ModelError unless llama.cpp computes exactly this model."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise ModelError(f"GGUF files are written for {known} models only", where=where, value=kind, cure=_CURE)
    for key, wanted in _NEEDED[kind].items():
        found = getattr(config, key, wanted)
        if found != wanted:
            raise ModelError(
                f"llama.cpp computes {kind} models with {key} = {wanted!r} only",
                where=f"{where}/config.json",
                value=found,
                cure=_CURE,
            )
    if kind == "llama":
        scaling = rope(config)
        if scaling["rope_type"] not in ("default", "linear", "llama3"):
            raise ModelError(
                "this scaling of rotary positions is not written to GGUF",
                where=f"{where}/config.json",
                value=scaling["rope_type"],
                cure=_CURE,
            )


def rope(config: "PretrainedConfig") -> dict[str, Any]:
    """The rotary positions' parameters, `rope_type` and `rope_theta` among them."""
    return {"rope_type": "default", "rope_theta": 10_000.0} | dict(getattr(config, "rope_parameters", None) or {})


def header(config: "PretrainedConfig", tokens: int) -> list[Field]:
    """The numbers of the model's shape."""
    if config.model_type == "gpt2":
        return [
            Field("context_length", config.n_positions, "UINT32"),
            Field("embedding_length", config.n_embd, "UINT32"),
            Field("feed_forward_length", config.n_inner or 4 * config.n_embd, "UINT32"),
            Field("block_count", config.n_layer, "UINT32"),
            Field("attention.head_count", config.n_head, "UINT32"),
            Field("attention.layer_norm_epsilon", config.layer_norm_epsilon, "FLOAT32"),
        ]
    size, turning = head_size(config), rope(config)
    fields = [
        Field("vocab_size", tokens, "UINT32"),
        Field("context_length", config.max_position_embeddings, "UINT32"),
        Field("embedding_length", config.hidden_size, "UINT32"),
        Field("feed_forward_length", config.intermediate_size, "UINT32"),
        Field("block_count", config.num_hidden_layers, "UINT32"),
        Field("attention.head_count", config.num_attention_heads, "UINT32"),
        Field("attention.head_count_kv", config.num_key_value_heads, "UINT32"),
        Field("attention.key_length", size, "UINT32"),
        Field("attention.value_length", size, "UINT32"),
        Field("attention.layer_norm_rms_epsilon", config.rms_norm_eps, "FLOAT32"),
        Field("rope.dimension_count", size, "UINT32"),
        Field("rope.freq_base", float(turning["rope_theta"]), "FLOAT32"),
    ]
    if turning["rope_type"] == "linear":
        fields += [
            Field("rope.scaling.type", "linear", "STRING"),
            Field("rope.scaling.factor", float(turning["factor"]), "FLOAT32"),
        ]
    if turning["rope_type"] == "llama3":
        fields += [Field(f"metier.rope.{name}", float(turning[name]), "FLOAT32") for name in LLAMA3_ROPE]
    return fields


def head_size(config: "PretrainedConfig") -> int:
    """The width of one of Llama's heads."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def places(config: "PretrainedConfig", names: list[str], where: str) -> dict[str, Placed]:
    """Where each of the model's tensors goes, in the order of `names`. A tied head is not written twice."""
    gguf = gguf_package()
    llama = config.model_type == "llama"
    layers = int(config.num_hidden_layers)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if llama else gguf.MODEL_ARCH.GPT2, layers)
    found: dict[str, Placed] = {}
    for name in names:
        if (name == "lm_head.weight" and config.tie_word_embeddings) or name.endswith(
            (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
        ):
            continue
        target = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError("GGUF has no place for one of the weights", where=where, value=name, cure=_CURE)
        turn = _turn(name, config)
        wide = target in ("token_embd.weight", "output.weight")
        plain = target.endswith(".bias") or "norm" in target or target == "position_embd.weight"
        found[name] = Placed(target, turn, plain, wide)
    return found


def _turn(name: str, config: "PretrainedConfig") -> Callable[[Array], Array]:
    if config.model_type == "gpt2":
        turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
        return np.transpose if name.endswith(turned) else _as_it_is
    if name.endswith(".q_proj.weight"):
        return lambda rows: interleaved(rows, int(config.num_attention_heads))
    if name.endswith(".k_proj.weight"):
        return lambda rows: interleaved(rows, int(config.num_key_value_heads))
    return _as_it_is


def _as_it_is(rows: Array) -> Array:
    return rows


def interleaved(rows: Array, heads: int) -> Array:
    """The rows (heads x 2 x half, in) of a projection with the halves of each head interleaved."""
    half = rows.shape[0] // heads // 2
    turned: Array = rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    return turned


def rope_factors(config: "PretrainedConfig") -> Array | None:
    """By what each rotary frequency is divided, (head size / 2), for Llama 3.1's scaling; None without it.

    Source: `_compute_llama3_parameters` in transformers.
    """
    if config.model_type != "llama" or (turning := rope(config))["rope_type"] != "llama3":
        return None
    size, factor = head_size(config), float(turning["factor"])
    low, high = float(turning["low_freq_factor"]), float(turning["high_freq_factor"])
    before = float(turning["original_max_position_embeddings"])
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * float(turning["rope_theta"]) ** (i / size)
        smooth = min(1.0, max(0.0, (before / wavelength - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
