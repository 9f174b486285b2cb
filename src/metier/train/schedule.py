"""The learning rate as a plain function of the step, and the optimizer's parameter groups."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

Shape = Literal["cosine", "linear", "constant"]


def share_of_peak(step: int, total: int, *, shape: Shape, warmup: float, floor: float) -> float:
    """The learning rate of a step (0 to total - 1) as a share of its peak.

    It rises in equal strides over the first `warmup` share of the steps (rounded up), never from 0, then falls as
    `shape` says to `floor`, which the last step has.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if shape == "constant" or total - rising < 2:
        return 1.0
    done = (step - rising) / (total - 1 - rising)
    fall = (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done
    return floor + (1 - floor) * fall


def groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay on matrices only, never on norms and biases."""
    every = list(parameters)
    matrices = [p for p in every if p.ndim >= 2]
    others = [p for p in every if p.ndim < 2]
    found = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]
