"""The learning rate as a plain function of the step."""

import math
from typing import Literal

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
