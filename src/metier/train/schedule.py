"""The learning rate as a plain function of the step."""

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant", "wsd"]

DECAY = 0.1
"""The share of the steps that wsd falls over where none is given; the tenth that Hu et al. found to suffice."""


def share_of_peak(step: int, total: int, *, shape: Shape, warmup: float, floor: float, decay: float = DECAY) -> float:
    """The learning rate of a step (0 to total - 1) as a share of its peak.

    It rises in equal strides over the first `warmup` share of the steps (rounded up), never from 0, then falls as
    `shape` says to `floor`, which the last step has. wsd (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395)
    stays at the peak and falls in a straight line over the last `decay` share of the steps (rounded up).
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if shape == "constant" or total - rising < 2:
        return 1.0
    if shape == "wsd":
        falling = min(math.ceil(decay * total), total - rising)
        stable = total - falling
        return 1.0 if step < stable else floor + (1 - floor) * (total - 1 - step) / falling
    done = (step - rising) / (total - 1 - rising)
    fall = (1 + math.cos(math.pi * done)) / 2 if shape == "cosine" else 1 - done
    return floor + (1 - floor) * fall
