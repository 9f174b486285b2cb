"""Trackers: TensorBoard and Weights & Biases, as listeners on the same events that the console shows.

Both write files below `<out>/<recipe>/` and neither reaches the network. Their packages are an extra (`metier[track]`),
imported when a tracker is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.core.errors import InputError, nearest
from metier.track.tracker import Tracker

Configs = Mapping[str, Mapping[str, Any]]


def open_trackers(names: Sequence[str], *, folder: Path, recipe: str, configs: Configs) -> list[Tracker]:
    """The trackers of those names, each once. Nothing is written before a step starts.

    folder: `<out>/<recipe>`. configs: what each step of the recipe was asked to do, with defaults, by its name.
    Raises InputError for a name that is unknown, MissingExtra where a tracker's package is not installed.
    """
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise InputError(
            "there is no such tracker", where="--track", value=unknown[0], cure=nearest(unknown[0], TRACKERS)
        )
    return [TRACKERS[name](folder, recipe, configs) for name in dict.fromkeys(names)]


def _tensorboard(folder: Path, recipe: str, configs: Configs) -> Tracker:  # noqa: ARG001 - curves alone
    from metier.track.tensorboard import TensorBoard

    return TensorBoard(folder)


def _wandb(folder: Path, recipe: str, configs: Configs) -> Tracker:
    from metier.track.wandb import WeightsAndBiases

    return WeightsAndBiases(folder, recipe, configs)


TRACKERS: dict[str, Callable[[Path, str, Configs], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
