"""Which parameters a training step changes: all of them, the last blocks, or a low-rank adapter.

`check` refuses from the model's config.json alone what would have no effect or cannot be done, for architectures whose
layers are known here; for the rest the same refusals come when the model is loaded. Imports no torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from metier.core.errors import ModelError, nearest
from metier.core.stage import Config

if TYPE_CHECKING:
    from metier.models.shape import Parameters

FULL_RATE = 2e-5
LORA_RATE = 2e-4


class Freeze(Config):
    """Train the last blocks and the final norm; the rest stays as it is."""

    blocks: int = Field(ge=0)
    """How many of the model's last blocks to train."""
    head: bool = True
    """Train the output head too. Where it is tied to the input embeddings, those change with it."""

    @model_validator(mode="after")
    def _trains_something(self) -> "Freeze":
        if self.blocks == 0 and not self.head:
            raise ValueError("nothing would train: give blocks of 1 or more, or head: true")
        return self


class Lora(Config):
    """Train thin matrices beside frozen ones; what is saved is an adapter on the base."""

    r: int = Field(32, ge=1)
    """The rank. More holds more: 8 suffices for a style, 128 and above for knowledge."""
    alpha: float = Field(64.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """The share of the adapter's inputs that are dropped while training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers, by the end of their names (q_proj, c_attn ...); all-linear: all but the output head."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead, which keeps high ranks learning (arXiv 2312.03732)."""
    dora: bool = False
    """Train directions and norms apart (arXiv 2402.09353): slower, sometimes better at low rank."""

    @model_validator(mode="after")
    def _names_targets(self) -> "Lora":
        if not self.targets:
            raise ValueError("no targets are named: leave targets out, or name at least one layer")
        return self


class FreezeMethod(Config):
    """`method: {freeze: {...}}`."""

    freeze: Freeze
    """Which part trains."""


class LoraMethod(Config):
    """`method: {lora: {...}}`."""

    lora: Lora
    """The adapter."""


Method = Literal["full"] | FreezeMethod | LoraMethod


def name_of(method: Method) -> str:
    """full, freeze or lora."""
    if isinstance(method, FreezeMethod):
        return "freeze"
    return "lora" if isinstance(method, LoraMethod) else "full"


def default_rate(method: Method) -> float:
    """The peak learning rate where none is given: an adapter takes about ten times that of whole weights."""
    return LORA_RATE if isinstance(method, LoraMethod) else FULL_RATE


def known_layers(config: Mapping[str, Any]) -> dict[str, tuple[int, int]] | None:
    """The linear layers of a block by the last part of their names, each with its two sides (in, out).

    config: a config.json. None for an architecture that is not known here.
    """
    if config.get("model_type") == "gpt2":
        width = int(config["n_embd"])
        inner = int(config.get("n_inner") or 4 * width)
        # c_proj stands in attention (width, width) and in the MLP (inner, width)
        return {"c_attn": (width, 3 * width), "c_proj": (min(width, inner), width), "c_fc": (width, inner)}
    if config.get("model_type") in ("llama", "mistral", "qwen2"):
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or width // heads)
        keys = int(config.get("num_key_value_heads") or heads) * head
        inner = int(config["intermediate_size"])
        return {
            "q_proj": (width, heads * head),
            "k_proj": (width, keys),
            "v_proj": (width, keys),
            "o_proj": (heads * head, width),
            "gate_proj": (width, inner),
            "up_proj": (width, inner),
            "down_proj": (inner, width),
        }
    return None


def check(method: Method, config: Mapping[str, Any], *, where: str) -> None:
    """Raise ModelError where the method does not fit a model's config.json. where: `step.method` or `method`."""
    depth = config.get("num_hidden_layers", config.get("n_layer"))
    if isinstance(method, FreezeMethod) and depth is not None and method.freeze.blocks > int(depth):
        raise ModelError(
            f"the model has only {depth} blocks",
            where=f"{where}.freeze.blocks",
            value=method.freeze.blocks,
            cure=f"use at most {depth}",
        )
    layers = known_layers(config)
    if not isinstance(method, LoraMethod) or layers is None:
        return
    lora = method.lora
    named = list(layers) if lora.targets == "all-linear" else list(lora.targets)
    known = {**layers, "lm_head": (10**9, 10**9)}  # the head's own rules are checked when the model is loaded
    for target in named:
        last = target.rpartition(".")[2]
        if last not in known:
            raise ModelError(
                "the model has no such linear layer",
                where=f"{where}.lora.targets",
                value=target,
                cure=f"{nearest(last, layers)} (there are: {', '.join(layers)})",
            )
        if lora.r > min(known[last]):
            raise ModelError(
                f"the rank is above the smaller side ({min(known[last])}) of {target}",
                where=f"{where}.lora.r",
                value=lora.r,
                cure=f"use at most {min(known[last])}; 8 to 32 is usual",
            )


def apply(model: Any, method: Method, *, seed: int) -> "tuple[Any, Parameters]":
    """Make exactly the method's parameters trainable. Returns the model (a PeftModel for LoRA) and the counts.

    model: a transformers model, changed in place. seed: of an adapter's random half.
    """
    import torch

    from metier.models.adapter import LoraSettings, add_lora
    from metier.models.shape import count_parameters, freeze_all_but

    if isinstance(method, FreezeMethod):
        return model, freeze_all_but(model, method.freeze.blocks, head=method.freeze.head)
    if isinstance(method, LoraMethod):
        lora = method.lora
        targets = lora.targets if lora.targets == "all-linear" else tuple(lora.targets)
        settings = LoraSettings(lora.r, lora.alpha, lora.dropout, targets, lora.rslora, lora.dora)
        torch.manual_seed(seed)
        adapted = add_lora(model, settings)
        return adapted, count_parameters(adapted)
    model.requires_grad_(True)
    return model, count_parameters(model)
