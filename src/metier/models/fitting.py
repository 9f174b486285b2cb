"""Whether a model belongs to the base that is named for it, told from the heads of both files.

A safetensors file begins with the names and shapes of what it holds, so no weight is read and torch stays out. What
cannot be told this way (quantised bases, names that the base's file has otherwise) is left to loading, which looks too.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from metier.core.errors import ModelError
from metier.models.builtin import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE,
    CONFIG,
    base_link,
    folder_digest,
    follow,
    is_adapter,
    read_json,
    weight_files,
)

Shapes = dict[str, tuple[int, ...]]
LORA = (".lora_A.weight", ".lora_B.weight")
WRAPPED = "base_model.model."
"""What PEFT puts before a layer's name."""
TIED = ("lm_head", "embed_tokens", "wte")
"""Layers that the base's file may hold under another name, or that grow with new tokens."""


def check_fits(folder: Path) -> None:
    """Raise ModelError where an adapter's base is not here, or has layers of other shapes than it was trained on."""
    base, sides = _base_of(folder), dict(_sides(shapes(folder / ADAPTER_WEIGHTS)))
    if not sides or "quantization_config" in read_json(base / CONFIG):
        return
    held = _all_shapes(base)
    here = {layer: _found(layer, held) for layer in sides}
    absent = [layer for layer, shape in here.items() if shape is None]
    if len(absent) == len(here):
        return
    if absent:
        raise does_not_fit(folder, base, f"the base has no place for {len(absent)} layers, such as {absent[0]}")
    for layer, (inputs, outputs) in sides.items():
        shape = here[layer]
        if shape is not None and len(shape) == 2 and sorted(shape) != sorted((inputs, outputs)):
            raise does_not_fit(
                folder,
                base,
                f"{layer} has {inputs} inputs and {outputs} outputs there, the base {shape[0]} x {shape[1]} weights",
            )


def check_made_from(model: Path, base: Path, *, field: str) -> None:
    """Raise ModelError where an adapter says that it was trained on another model than `base`, or a whole model's
    weights have other shapes. field: where the model is named.
    """
    if is_adapter(model):
        below = follow(base_link(model), model)
        if below.resolve() != base.resolve() and folder_digest(below) != folder_digest(base):
            raise ModelError(
                "the adapter was trained on another model than the base",
                where=field,
                value=str(model),
                cure=f"name the model that it was trained on as base ({below}), or leave the adapter out",
            )
        return
    if is_adapter(base):
        return
    theirs, ours = _all_shapes(model), _all_shapes(base)
    for name, shape in ours.items():
        if theirs.get(name, shape) != shape:
            raise ModelError(
                f"the model was not made from this base: {name} is {list(theirs[name])}, and {list(shape)} in the base",
                where=field,
                value=str(model),
                cure=f"name the model that it was trained from as base, or leave {model.name} out",
            )


def does_not_fit(folder: Path, base: Path, why: str) -> ModelError:
    """The error for an adapter whose base is another model than it was trained on."""
    return ModelError(
        f"the adapter does not fit its base ({why})",
        where=str(folder / ADAPTER_CONFIG),
        value=str(base),
        cure=f"name the model it was trained on as base in {folder / BASE}",
    )


def shapes(path: Path) -> Shapes:
    """Names and shapes of a safetensors file's tensors. Raises ModelError for what is none."""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {name: tuple(one["shape"]) for name, one in told.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        cure = "copy or download the model again: it is incomplete or damaged"
        raise ModelError(f"the weights cannot be read ({error})", where=str(path), cure=cure) from error


def _all_shapes(folder: Path) -> Shapes:
    """Of a whole model, whose weights may lie in several files."""
    found: Shapes = {}
    for name in weight_files(folder):
        found |= shapes(folder / name)
    return found


def _base_of(folder: Path) -> Path:
    """The whole model below an adapter. Raises ModelError, naming the adapter, where there is none."""
    above = folder
    while is_adapter(above):
        link = base_link(above)
        try:
            above = follow(link, above)
        except ModelError as error:
            raise ModelError(
                f"the model that the adapter was trained on is not here ({error.what})",
                where=str(above / (BASE if (above / BASE).is_file() else ADAPTER_CONFIG)),
                value=link,
                cure=f'write {{"base": "<name, folder or hub id>"}} into {above / BASE}',
            ) from error
    return above


def _sides(held: Shapes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Inputs and outputs of each layer that a LoRA is on, by the layer's name."""
    for name, shape in held.items():
        layer = name.removesuffix(LORA[0])
        other = held.get(layer + LORA[1], ())
        if layer == name or len(shape) != 2 or len(other) != 2 or layer.endswith(TIED):
            continue
        yield layer.removeprefix(WRAPPED), (shape[1], other[0])


def _found(layer: str, held: Shapes) -> tuple[int, ...] | None:
    """The shape of a layer's weight in the base's files, which may be named without what wraps the whole model."""
    return held.get(f"{layer}.weight") or held.get(f"{layer.partition('.')[2]}.weight")
