"""Which parameters a training step changes: all of them, the last blocks, or a low-rank adapter.

`check` refuses before any weight is loaded what would have no effect or cannot be done. It asks the model's anatomy,
which for common architectures follows from config.json without torch.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from metier.core.errors import ModelError
from metier.core.stage import Config
from metier.models.anatomy import Anatomy, check_targets, matching
from metier.models.extension import Extension

if TYPE_CHECKING:
    from metier.models.shape import Parameters

Quantize = Literal["int8", "8bit", "4bit"]
INT8_MULTIPLE = 8
"""What both sides of a layer must be multiples of for products in int8."""

FULL_RATE = 2e-5
LORA_RATE = 2e-4
ROWS_RATE = 1e-3


class Freeze(Config):
    """Train the last blocks and the final norm; the rest stays as it is."""

    blocks: int = Field(ge=0)
    """How many of the model's last blocks to train."""
    head: bool = True
    """Train the output head too. Where it is tied to the input embeddings, those change with it."""
    patterns: list[str] = Field(default_factory=list)
    """Train as well every parameter in whose full name one of these regular expressions is found, such as
    `layers\\.[0-3]\\.mlp` or `bias$`."""

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: list[str]) -> list[str]:
        return [_compiled(pattern) for pattern in patterns]

    @model_validator(mode="after")
    def _trains_something(self) -> "Freeze":
        if self.blocks == 0 and not self.head and not self.patterns:
            raise ValueError("nothing would train: give blocks of 1 or more, head: true, or patterns")
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
    new_rows: bool = False
    """Train as well the rows of the tokens that `extend_tokenizer` added, and save them with the adapter; all other
    rows keep their bits. false: they stay as they are."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers: regular expressions, each with its rank, that match the end of a layer's name from a
    dot on (`down_proj: 64`, `layers\\.0\\.mlp\\..*: 8`). At most one may match a layer; the rest has rank r."""

    @field_validator("rank_pattern")
    @classmethod
    def _patterns_compile(cls, ranks: dict[str, int]) -> dict[str, int]:
        return {_compiled(pattern): rank for pattern, rank in ranks.items()}

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


Method = Literal["full", "rows"] | FreezeMethod | LoraMethod


def name_of(method: Method) -> str:
    """full, rows, freeze or lora."""
    if isinstance(method, FreezeMethod):
        return "freeze"
    return "lora" if isinstance(method, LoraMethod) else method


def default_rate(method: Method) -> float:
    """The peak learning rate where none is given: an adapter takes about ten times that of whole weights, new rows,
    each of which few tokens teach, fifty times."""
    if method == "rows":
        return ROWS_RATE
    return LORA_RATE if isinstance(method, LoraMethod) else FULL_RATE


def trains_new_rows(method: Method) -> bool:
    """Whether the rows of new tokens train apart from the matrix that they stand in."""
    return method == "rows" or (isinstance(method, LoraMethod) and method.lora.new_rows)


def check(
    method: Method, anatomy: Anatomy, *, quantize: Quantize | None, where: str, extension: Extension | None = None
) -> None:
    """Raise ModelError where the method does not fit a model. where: `step.method` or `method`.

    extension: what `extend_tokenizer` added to it.
    """
    if trains_new_rows(method) and extension is None:
        raise ModelError(
            "the model's tokenizer was not extended, so there are no new rows to train",
            where=f"{where}.lora.new_rows" if isinstance(method, LoraMethod) else where,
            value="true" if isinstance(method, LoraMethod) else "rows",
            cure="start from a step of kind extend_tokenizer (which passes a model through where it does not pay)",
        )
    if isinstance(method, FreezeMethod):
        if method.freeze.blocks > anatomy.depth:
            raise ModelError(
                f"the model has only {anatomy.depth} blocks",
                where=f"{where}.freeze.blocks",
                value=method.freeze.blocks,
                cure=f"use at most {anatomy.depth}",
            )
        matching(anatomy.parameters, method.freeze.patterns, where=f"{where}.freeze.patterns")
    if isinstance(method, LoraMethod):
        lora = method.lora
        check_targets(anatomy, targets=lora.targets, r=lora.r, rank_pattern=lora.rank_pattern, where=f"{where}.lora")
    if quantize == "int8":
        for name, (ins, outs) in anatomy.linear.items():
            if ins % INT8_MULTIPLE or outs % INT8_MULTIPLE:
                raise ModelError(
                    f"int8 products need sides that are multiples of {INT8_MULTIPLE}, and {name} is {ins} x {outs}",
                    where="quantize",
                    value=quantize,
                    cure="use quantize: 8bit, or leave it out",
                )


def frozen_below(method: Method, anatomy: Anatomy) -> int:
    """How many of the lowest blocks lie below all that trains."""
    if trains_new_rows(method):
        return 0
    if isinstance(method, LoraMethod):
        targets = anatomy.names if method.lora.targets == "all-linear" else method.lora.targets
        trained = {
            name for name in (*anatomy.linear, anatomy.head) if any(f".{name}".endswith(f".{t}") for t in targets)
        }
        lowest = anatomy.depth
    elif isinstance(method, FreezeMethod):
        trained = matching(anatomy.parameters, method.freeze.patterns, where="freeze.patterns")
        lowest = 0 if method.freeze.head and anatomy.tied else anatomy.depth - method.freeze.blocks
    else:
        return 0
    for name in trained:
        place = re.search(r"\.(\d+)\.", name)
        lowest = min(lowest, int(place[1]) if place else 0 if _embeds(name) else lowest)
    return lowest


def apply(model: Any, method: Method, *, seed: int, extension: Extension | None = None) -> "tuple[Any, Parameters]":
    """Make exactly the method's parameters trainable. Returns the model (a PeftModel for LoRA and rows) and the counts.

    model: a transformers model, changed in place. seed: of an adapter's random half. extension: its new tokens.
    """
    import torch

    from metier.models.adapter import LoraSettings, add_lora
    from metier.models.new_rows import add_rows
    from metier.models.shape import count_parameters, freeze_all_but

    if isinstance(method, FreezeMethod):
        freeze = method.freeze
        return model, freeze_all_but(model, freeze.blocks, head=freeze.head, patterns=freeze.patterns)
    if isinstance(method, LoraMethod):
        lora = method.lora
        targets = lora.targets if lora.targets == "all-linear" else tuple(lora.targets)
        settings = LoraSettings(lora.r, lora.alpha, lora.dropout, targets, lora.rslora, lora.dora, lora.rank_pattern)
        torch.manual_seed(seed)
        adapted = add_lora(model, settings, extension.ids if lora.new_rows and extension else ())
        return adapted, count_parameters(adapted)
    if method == "rows":
        assert extension is not None
        adapted = add_rows(model, extension.ids)
        return adapted, count_parameters(adapted)
    model.requires_grad_(True)
    return model, count_parameters(model)


def _embeds(parameter: str) -> bool:
    return "embed" in parameter or parameter.endswith(("wte.weight", "wpe.weight"))


def _compiled(pattern: str) -> str:
    """A regular expression that is one."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern
