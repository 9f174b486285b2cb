"""Weights in PyTorch's pickled form, made into safetensors: only where a file is asked for by its name.

A pickle is a program. torch's `weights_only` reader runs none of it but what rebuilds tensors, and refuses all else; so
nothing else is ever used, and nothing reads a pickle on the way to something else. Refuses what that reader refuses,
what is no mapping of names to tensors, and weights that do not fit the config. Costs twice the weights in memory.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metier.core.errors import ModelError
from metier.models.builtin import PICKLED, read_json
from metier.models.load import check_loadable, from_weights, read_config, read_tokenizer

INDEX_ENDS = ".index.json"
NESTED = ("state_dict", "model", "module")
"""Keys below which training programs put the weights."""
_TROUBLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What torch's reader raises of a file that it refuses or cannot make sense of."""


def convert(path: Path, out: Path) -> int:
    """Write the model whose pickled weights are in the file `path`, or in shards that it lists, to the folder `out`.

    The config and the tokenizer are those beside the file. Returns how many numbers there are. Raises ModelError.
    """
    from metier.models.save import save_model

    if out.exists():
        raise ModelError("there is something already", where=str(out), cure="name a folder that is not there yet")
    files = _files(path)
    folder = path.parent
    config = read_config(folder)
    check_loadable(folder, config)
    tokenizer = read_tokenizer(folder)
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_pickled(file)
    model = from_weights(folder, config, weights)
    save_model(model, tokenizer, out)
    return sum(parameter.numel() for parameter in model.parameters())


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors in one pickled file, by name, read by torch's `weights_only` reader. Raises ModelError."""
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except _TROUBLE as error:
        raise ModelError(
            "the file holds something other than weights, or is damaged; nothing of it was run",
            where=str(path),
            value=str(error).strip().split("\n")[0],
            cure="ask whoever made it for safetensors",
        ) from error
    for name in NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        what = "the file does not hold a mapping of names to tensors"
        raise ModelError(what, where=str(path), value=type(held).__name__)
    return {str(name): value for name, value in held.items()}


def _files(path: Path) -> list[Path]:
    """The file, or the shards that an index lists; these lie beside it."""
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path), cure="name the .bin or .pt file itself")
    files = [path]
    if path.name.endswith(INDEX_ENDS):
        placed = read_json(path).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise ModelError("the index lists no weights", where=str(path))
        files = [path.with_name(Path(str(name)).name) for name in sorted(set(placed.values()))]
    for file in files:
        if file.suffix not in PICKLED:
            cure = "name one that ends in " + ", ".join(sorted(PICKLED))
            raise ModelError("this is no pickled file", where=str(file), cure=cure)
        if not file.is_file():
            raise ModelError("a shard is missing", where=str(file), cure="download the model again")
    return files
