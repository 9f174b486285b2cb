"""How large and how fast a model is: counted and timed, never looked up.

Sizes follow from the model and its files; speed depends on the machine, and goes where such figures go.
"""

import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from metier.models.builtin import is_adapter, weight_files
from metier.models.load import Loaded, stored_dtype
from metier.models.shape import count_parameters
from metier.prune.anatomy import shape_of

PROMPT, STEPS, ROUNDS = 64, 16, 3
CACHED = 16


@dataclass(frozen=True)
class Size:
    """parameters: a tied weight once. zeros: of them. bytes: of the tensors in the weights' files (an adapter's alone,
    where it is one). cache_bytes: of one token's keys and values, in the type that weights are stored in.
    """

    parameters: int
    zeros: int
    bytes: int
    cache_bytes: int
    layers: int
    heads: int
    groups: int
    width: int

    @property
    def row(self) -> dict[str, int]:
        """As JSON."""
        return asdict(self)


@torch.no_grad()
def size_of(loaded: Loaded) -> Size:
    """Counted in the model and its files. The cache is that of a real forward pass."""
    model: Any = loaded.model
    shape = shape_of(model.config.to_dict())
    cache = model(input_ids=torch.zeros(1, CACHED, dtype=torch.long), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) // CACHED
    return Size(
        parameters=count_parameters(model).total,
        zeros=sum(int((p == 0).sum()) for p in model.parameters()),
        bytes=tensor_bytes(loaded.folder),
        cache_bytes=numbers * stored_dtype(loaded.folder).itemsize,
        layers=shape.depth,
        heads=shape.heads,
        groups=shape.groups,
        width=shape.inner,
    )


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in the weights' files, headers not counted."""
    names = ["adapter_model.safetensors"] if is_adapter(folder) else weight_files(folder)
    total = 0
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no dict: it has no iteration of its own)
                part = file.get_slice(key)
                total += prod(part.get_shape()) * _ITEM_BYTES[part.get_dtype()]
    return total


_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


@torch.inference_mode()
def speeds_of(before: Loaded, after: Loaded) -> dict[str, float]:
    """Seconds to read a prompt and for each token after it, of two models turn by turn, one sequence at a time.

    Medians over all steps of all rounds. The ratio is how many times as fast the second goes on.
    """
    prompt = min(PROMPT, before.context // 2)
    steps = min(STEPS, before.context - prompt)
    rows: dict[str, list[tuple[float, list[float]]]] = {"before": [], "after": []}
    for number in range(ROUNDS + 1):
        for name, loaded in (("before", before), ("after", after)):
            timed = _timed(loaded, prompt, steps)
            if number:  # the first prepares kernels
                rows[name].append(timed)
    found: dict[str, float] = {"prompt_tokens": prompt}
    for name, timings in rows.items():
        found[f"{name}_prompt_seconds"] = median(first for first, _ in timings)
        found[f"{name}_token_seconds"] = median(one for _, later in timings for one in later)
    return found | {"ratio": found["before_token_seconds"] / found["after_token_seconds"]}


def _timed(loaded: Loaded, prompt: int, steps: int) -> tuple[float, list[float]]:
    """Seconds of a prompt, and of each token after it."""
    model: Any = loaded.model
    ids = torch.randint(0, int(model.config.vocab_size), (1, prompt), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    first, later = time.perf_counter() - started, []
    for _ in range(steps):
        started = time.perf_counter()
        out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        later.append(time.perf_counter() - started)
    return first, later
