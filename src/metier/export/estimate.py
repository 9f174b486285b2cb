"""What exporting or combining will take, from the headers of safetensors files. Imports nothing heavy.

Memory is certain but for the libraries. Time is rough: prompts are read at half the speed of the processor, answers at
that of memory, and files written at that of a disk.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from metier.core.errors import ModelError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Source
from metier.models.builtin import base_link, follow, is_adapter, weight_files

LIBRARIES = 0.9e9
"""Bytes of torch, transformers and peft."""
BYTES = {
    "F32": 4.0,
    "F16": 2.0,
    "BF16": 2.0,
    "Q8_0": 1.07,
    "Q6_K": 0.9,
    "Q5_K_M": 0.76,
    "Q4_K_M": 0.67,
    "Q4_0": 0.63,
    "Q3_K_M": 0.57,
    "int8": 1.15,
    "nf4": 0.7,
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
}
"""Of a parameter in each format, embeddings in a wider one included."""
_PROMPTS, _ANSWERED = 420, 96
"""Tokens that each form reads, and that it answers."""
_MEMORY_SPEED, _DISK_SPEED = 8e9, 2e8
"""Bytes a second."""


def export_estimate(
    source: Source, machine: Machine, *, dtype: str, gguf: Iterable[str], bits: Iterable[str]
) -> Estimate | None:
    """Of an export; None where nothing can be read yet. dtype: of the safetensors, `base` as they are."""
    found = weights_behind(source)
    if found is None:
        return None
    parameters, stored = found
    formats = [*gguf, *bits]
    disk = {"the model": parameters * BYTES.get(dtype, stored)}
    disk |= {kind: parameters * BYTES[kind] for kind in formats}
    memory = {"libraries": LIBRARIES, "the model and a copy": 2 * 4.0 * parameters}
    forms = 3 + len(formats)
    peak = machine.peaks.get("fp32")
    seconds = None
    if peak is not None:
        read = 2 * parameters * _PROMPTS / (0.5 * peak)
        said = _ANSWERED * 4 * parameters / _MEMORY_SPEED
        seconds = forms * (read + said) + sum(disk.values()) / _DISK_SPEED + 4
    return Estimate(memory, disk, seconds, about=not source.paths)


def combine_estimate(source: Source, models: int, *, dtype: str) -> Estimate | None:
    """Of arithmetic on the weights of a model and so many that are held beside it at once."""
    found = weights_behind(source)
    if found is None:
        return None
    parameters, stored = found
    memory = {"libraries": LIBRARIES, f"{1 + models} models": 4.0 * (1 + models) * parameters}
    return Estimate(memory, {"the model": parameters * BYTES.get(dtype, stored)}, None, about=not source.paths)


def weights_behind(source: Source) -> tuple[float, float] | None:
    """Parameters of the whole model behind a reference, and bytes of one on disk; of what it will be made from, where
    its step has not run.
    """
    for folder in source.paths:
        return _count(folder)
    for before in source.made_from:
        if found := weights_behind(before):
            return found
    return None


def _count(folder: Path) -> tuple[float, float] | None:
    try:
        while is_adapter(folder):
            folder = follow(base_link(folder), folder)
        headers = [_header(folder / name) for name in weight_files(folder) if (folder / name).is_file()]
    except (ModelError, OSError, ValueError, struct.error):
        return None  # what is wrong with it, `check` says
    tensors = [one for header in headers for name, one in header.items() if name != "__metadata__"]
    parameters = sum(prod(one["shape"]) for one in tensors)
    size = sum(one["data_offsets"][1] - one["data_offsets"][0] for one in tensors)
    return (float(parameters), size / parameters) if parameters else None


def _header(path: Path) -> Mapping[str, dict[str, list[int]]]:
    """What a safetensors file holds: its first eight bytes say how long the description is."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
        return found
