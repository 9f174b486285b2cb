"""What a recipe may ask to be pruned, and what that comes to on a model of a given shape. Imports nothing heavy."""

from collections.abc import Sequence
from math import floor
from typing import Literal

from pydantic import Field

from metier.core.errors import ModelError
from metier.core.stage import Config
from metier.prune.anatomy import Cut, Shape

Importance = Literal["activation", "gradient", "magnitude"]
TINY = 1e-9


class Heads(Config):
    """Attention heads, the least important of each block."""

    fraction: float = Field(ge=0, le=1)
    """The share of each block's heads (or groups) to take; it must come to a whole number of them."""
    last_layers: int | None = Field(None, ge=1)
    """Take them from so many of the last blocks only. Left out: from all. Removed ones go from all blocks alike."""
    remove: Literal[False, "groups", "queries"] = False
    """false: their weights are set to zero, which saves neither time nor bytes. groups: whole key/value groups leave
    the files, which makes the cache smaller too. queries: as many query heads leave each group. Not GPT-2's."""
    importance: Importance = "activation"
    """activation: what a head adds to the residual stream (root mean square over the calibration data). gradient: how
    much the loss would change without it, to first order (Michel et al. 2019). magnitude: the norm of its weights."""


class Width(Config):
    """Channels of the MLPs (GLU width), as many of each block."""

    fraction: float = Field(ge=0, le=1)
    """The share of the channels to take; what is left is rounded to a multiple."""
    multiple: int = Field(32, ge=1)
    """The number of channels left is a multiple of this: 32 suits fast kernels and 8-bit GGUF, 256 its K-quants."""
    importance: Importance = "activation"
    """As of heads, of a channel."""


class Layers(Config):
    """Whole blocks: those that change the residual stream least (block influence, Men et al. 2024)."""

    count: int = Field(ge=0)
    """How many to remove."""


class Weights(Config):
    """Single weights of the blocks' linear layers, set to zero. The files keep their size."""

    fraction: float = Field(0.5, ge=0, lt=1)
    """The share of each layer's weights; with `pattern: 2:4` it is a half."""
    rank: Literal["wanda", "ria", "magnitude"] = "wanda"
    """wanda: size of the weight times the norm of what goes into it, within each output (Sun et al. 2024). ria: its
    share of its input's and its output's weights times the root of that norm (Zhang et al. 2024). magnitude: size of
    the weight, within each layer."""
    pattern: Literal["2:4"] | None = None
    """Two of every four neighbouring weights, which some GPUs multiply faster. Left out: wherever they are."""


class HeadsMethod(Config):
    """`method: {heads: {...}}`."""

    heads: Heads
    """What to take."""


class WidthMethod(Config):
    """`method: {width: {...}}`."""

    width: Width
    """What to take."""


class LayersMethod(Config):
    """`method: {layers: {...}}`."""

    layers: Layers
    """What to take."""


class WeightsMethod(Config):
    """`method: {weights: {...}}`."""

    weights: Weights
    """What to take."""


Method = HeadsMethod | WidthMethod | LayersMethod | WeightsMethod


def name_of(method: Method) -> str:
    """heads, width, layers or weights."""
    return next(iter(type(method).model_fields))


def needs_calibration(method: Method) -> bool:
    """Whether what is least important follows from what a model does with text, not from its weights alone."""
    if isinstance(method, HeadsMethod):
        return method.heads.importance != "magnitude" and method.heads.fraction > 0
    if isinstance(method, WidthMethod):
        return method.width.importance != "magnitude" and method.width.fraction > 0
    if isinstance(method, LayersMethod):
        return method.layers.count > 0
    return method.weights.rank != "magnitude" and method.weights.fraction > 0


def cuts(method: Method, shape: Shape, smaller: Sequence[float]) -> list[Cut]:
    """What is asked, then ever less of it, each once, down to but without nothing (unless that is asked).

    smaller: shares of what is asked, falling. Raises ModelError for what the model has not, or would have nothing left
    of, and for shares that do not come to whole units.
    """
    asked = cut_of(method, shape)
    found = [asked]
    for share in smaller:
        less = _less(asked, share, method)
        if 0 < less.taken < found[-1].taken and fits(less, shape):
            found.append(less)
    return found


def cut_of(method: Method, shape: Shape) -> Cut:
    """What the method takes from a model of that shape. Raises ModelError as `cuts` does."""
    if isinstance(method, HeadsMethod):
        return _heads(method.heads, shape)
    if isinstance(method, WidthMethod):
        return _width(method.width, shape)
    every = tuple(range(shape.depth))
    if isinstance(method, LayersMethod):
        _leave_some("method.layers.count", method.layers.count, shape.depth, "layer")
        return Cut("layers", method.layers.count, shape.depth, every)
    weights = method.weights
    if weights.pattern is None:
        return Cut("weights", weights.fraction, 1, every)
    _check_fours(weights, shape)
    return Cut("2:4", shape.depth if weights.fraction else 0, shape.depth, every)


def fits(cut: Cut, shape: Shape) -> bool:
    """Whether stock transformers loads what a cut leaves.

    Of Llama (not of Mistral or Qwen2) it wants the hidden size to be a multiple of the number of heads, though
    `head_dim` says how wide they are.
    """
    if shape.kind != "llama" or cut.what not in ("groups", "queries"):
        return True
    per_unit = shape.queries if cut.what == "groups" else shape.groups
    return shape.hidden % (shape.heads - int(cut.taken) * per_unit) == 0


def _heads(heads: Heads, shape: Shape) -> Cut:
    where = "method.heads"
    if heads.remove and shape.is_gpt2:
        raise ModelError(
            "heads cannot be removed from a GPT-2: stock transformers takes the width of one from their number",
            where=f"{where}.remove",
            value=heads.remove,
            cure="set them to zero (remove: false), or take width or layers",
        )
    if heads.remove and heads.last_layers is not None:
        raise ModelError(
            "heads that are removed go from all blocks alike, as a config.json has one number of them",
            where=f"{where}.last_layers",
            value=heads.last_layers,
            cure="leave last_layers out, or set heads to zero (remove: false)",
        )
    if heads.last_layers is not None and heads.last_layers > shape.depth:
        raise ModelError(
            f"the model has {shape.depth} blocks",
            where=f"{where}.last_layers",
            value=heads.last_layers,
            cure=f"use at most {shape.depth}",
        )
    what = heads.remove or "heads"
    whole = {"heads": shape.heads, "groups": shape.groups, "queries": shape.queries}[what]
    unit = {"heads": "head", "groups": "key/value group", "queries": "query head of a group"}[what]
    taken = round(heads.fraction * whole)
    fitting = [n for n in range(1, whole) if fits(Cut(what, n, whole, ()), shape)]
    shares = ", ".join(f"{n / whole:.4g}" for n in fitting)
    if abs(heads.fraction * whole - taken) > 1e-6:
        raise ModelError(
            f"a fraction of {heads.fraction:g} of {whole} ({unit}s) is no whole number",
            where=f"{where}.fraction",
            value=heads.fraction,
            cure=f"one of {shares}" if shares else f"there is one {unit} only: take something else",
        )
    _leave_some(f"{where}.fraction", taken, whole, unit, value=heads.fraction)
    if taken and taken not in fitting:
        left = shape.heads - taken * (shape.queries if what == "groups" else shape.groups)
        raise ModelError(
            f"the {left} heads that would be left do not divide the hidden size of {shape.hidden}, and stock "
            "transformers refuses such a Llama",
            where=f"{where}.fraction",
            value=heads.fraction,
            cure=f"one of {shares}" if shares else "set heads to zero (remove: false), or take width",
        )
    first = shape.depth - (heads.last_layers or shape.depth)
    return Cut(what, taken, whole, tuple(range(first, shape.depth)))


def _width(width: Width, shape: Shape) -> Cut:
    every = tuple(range(shape.depth))
    if width.fraction == 0:
        return Cut("width", 0, shape.inner, every)
    left = _rounded(shape.inner * (1 - width.fraction), width.multiple)
    _leave_some("method.width.fraction", shape.inner - left, shape.inner, "channel", value=width.fraction)
    if left >= shape.inner:
        raise ModelError(
            f"of {shape.inner} channels, in multiples of {width.multiple}, such a small share takes none",
            where="method.width.fraction",
            value=width.fraction,
            cure="take more, or set a smaller multiple",
        )
    return Cut("width", shape.inner - left, shape.inner, every)


def _check_fours(weights: Weights, shape: Shape) -> None:
    if weights.fraction not in (0.0, 0.5):
        raise ModelError(
            "2:4 takes half of the weights",
            where="method.weights.fraction",
            value=weights.fraction,
            cure="leave it out",
        )
    sides = {"hidden size": shape.hidden, "MLP width": shape.inner, "heads": shape.heads * shape.head}
    for name, side in sides.items():
        if side % 4:
            raise ModelError(
                f"groups of four do not divide the model's {name} of {side}",
                where="method.weights.pattern",
                value="2:4",
                cure="leave the pattern out",
            )


def _leave_some(where: str, taken: float, whole: int, unit: str, *, value: float | None = None) -> None:
    if taken >= whole:
        raise ModelError(
            f"nothing would be left: the model has {whole} ({unit}s)",
            where=where,
            value=taken if value is None else value,
            cure=f"take at most {whole - 1} of {whole}"
            if whole > 1
            else f"there is one {unit} only: take another part",
        )


def _less(asked: Cut, share: float, method: Method) -> Cut:
    """A share of what was asked, in whole units."""
    if asked.what == "weights":
        taken = asked.taken * share
    elif isinstance(method, WidthMethod):
        left = _rounded(asked.whole - asked.taken * share, method.width.multiple)
        taken = max(0, asked.whole - left)
    else:
        taken = floor(asked.taken * share + TINY)
    return Cut(asked.what, taken, asked.whole, asked.blocks)


def _rounded(value: float, multiple: int) -> int:
    return multiple * floor(value / multiple + 0.5)
