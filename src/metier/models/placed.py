"""A loaded model on the device where it answers fastest: the first CUDA device that has room for it, else the CPU.

Evaluation runs in float32 wherever it is, and torch rounds no product further unless it is told to: a GPU's answers
differ from a CPU's by the order of sums alone (1e-5 nats or so), which may break a near tie otherwise.
CUDA_VISIBLE_DEVICES="" keeps everything on the CPU.
"""

import gc
from collections.abc import Callable

import torch

from metier.models.load import Loaded

CPU = torch.device("cpu")
ROOM = 1.25
"""Times the size of its weights that a model needs while it reads: activations, keys and values."""


def best_device() -> torch.device:
    """The first CUDA device where torch has one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU


def place(loaded: Loaded, warn: Callable[[str], None] = lambda _what: None) -> Loaded:
    """The same, its model moved (in place) to the best device; `warn` is told where that has too little memory left."""
    device = best_device()
    if device.type == "cpu":
        return loaded
    size = sum(value.numel() * value.element_size() for value in loaded.model.state_dict().values())
    free, _ = torch.cuda.mem_get_info(device)
    if size * ROOM > free:
        need, room = (f"{count / 1e9:.1f} GB" for count in (size, free))
        warn(f"{loaded.folder.name}: {need} of weights do not fit the GPU's free {room}; it stays on the CPU")
        return loaded
    loaded.model.to(device)
    return loaded


def free() -> None:
    """Give back the memory of models that nobody holds any more, a GPU's too.

    A model's modules refer to one another in circles: without this two would be in memory.
    """
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was never used
