"""What is wrong with a window's numbers, seen before the optimizer steps, and what follows from it.

    skip       the window is left out, its samples are named; weights and moments stay as they were
    roll back  at the third within `NEAR` steps: to `BACK` steps before the first of them, from where on the learning
               rate is halved; windows once left out stay out
    stop       at the next three, with a diagnosis

Bad is a loss or gradient that is not finite, and a loss above the median of the last `RECENT` by more than 6 of their
median absolute deviations and by more than `LEAST` nats. Windows of fewer targets than usual spread more, and may. In
runs that go well, hard examples of a nearly learned set lie above 6 deviations (5 of 2,000 windows measured, 0.3 to 0.5
nats above the median): to leave them out would be to teach the easy ones only, hence the second condition.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from metier.core.errors import TrainingError
from metier.train.batches import Window

NEAR = 10
MANY = 3
BACK = 10
RECENT = 50
ENOUGH = 20
"""Losses before which no spike is seen."""
DEVIATIONS = 6.0
LEAST = 1.0
SHOWN = 8
SLOWER = 0.5
"""What the learning rate is multiplied by after a roll-back."""

Mishap = dict[str, Any]
"""step (that it would have been), what, found, read (ids of the samples)."""
Verdict = Literal["skip", "back", "stop"]


def limit(recent: Sequence[float], *, targets: float, usual: float) -> float:
    """The largest loss of a window that is no spike. targets: in the window, usual: in a window before it."""
    if len(recent) < ENOUGH:
        return math.inf
    middle = median(recent)
    spread = median(abs(loss - middle) for loss in recent) * max(1.0, math.sqrt(usual / max(targets, 1)))
    return middle + max(DEVIATIONS * spread, LEAST)


def judge(loss: float, norm: float, most: float) -> str | None:
    """What is wrong, in words. most: the largest loss that is no spike."""
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not math.isfinite(norm):
        return "the gradient is not finite"
    return f"the loss is above {most:.4g}" if loss > most else None


def mishap(step: int, what: str, loss: float, norm: float, window: Window) -> Mishap:
    """As it is kept and logged."""
    found = norm if math.isfinite(loss) and not math.isfinite(norm) else loss
    read = list(dict.fromkeys(piece.id for micro in window for piece in micro))
    return {"step": step, "what": what, "found": found if math.isfinite(found) else str(found), "read": read}


def follows(mishaps: Sequence[Mishap], *, went_back: bool, known: int) -> Verdict:
    """What to do about the last one. known: how many of them were left out before the run went back."""
    near = [one for one in mishaps[known:] if one["step"] > mishaps[-1]["step"] - NEAR]
    if len(near) < MANY:
        return "skip"
    return "stop" if went_back else "back"


def back_to(mishaps: Sequence[Mishap]) -> int:
    """The step to go back to: some way before the first of the last few."""
    return max(0, int(mishaps[-MANY]["step"]) - 1 - BACK)


def names(read: Sequence[str]) -> str:
    """Some of them."""
    return ", ".join(read[:SHOWN]) + (" ..." if len(read) > SHOWN else "")


def hopeless(
    mishaps: Sequence[Mishap], *, went_back: int | None, broken: Sequence[str], slopes: Sequence[str]
) -> TrainingError:
    """The diagnosis. broken: weights, slopes: weights' gradients that are not finite."""
    last = mishaps[-1]
    before = ", ".join(str(one["step"]) for one in mishaps[:-1])
    tried = [f"the windows of steps {before} were left out"] if before else []
    if went_back is not None:
        tried.append(f"training went back to step {went_back}, at half the learning rate from there")
    cure = "lower learning_rate, lengthen warmup, or set precision: fp32; look at these rows: they may be broken"
    if broken:
        tried.append(f"these weights are not finite: {names(broken)}")
        cure = "use another model: this one was damaged before training"
    elif slopes and len(slopes) <= SHOWN:
        tried.append(f"these gradients are not finite: {names(slopes)}")
    return TrainingError(
        f"{last['what']} at step {last['step']}; read in it: {names(last['read'])}"
        + "".join(f"; {text}" for text in tried),
        value=last["found"],
        cure=cure,
    )
