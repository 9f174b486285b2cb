"""Several processes that run one step together, as a stage sees them. Imports no torch.

Process 0 runs the recipe and writes the store; the others only help with the steps that can use them. Who they are, how
they are started and how they find each other is `metier.scale`'s business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from metier.core.stage import Context, Stage


@dataclass(frozen=True)
class Team:
    """This process's place. rank: 0 to size - 1, over all machines. local_size: processes on this machine."""

    rank: int
    size: int
    local_size: int


@dataclass(frozen=True)
class Ran:
    """What a step that ran says. peak_bytes: the memory of the process that ran it, where that is not this one."""

    metrics: Mapping[str, float]
    peak_bytes: int | None = None


class Helpers(Protocol):
    """The other processes of a run. places: whether they are put where a step's `resources` say."""

    places: bool

    def processes(self, stage: "Stage") -> int:
        """How many processes run a step that several can run, the first included."""

    def check(self, stage: "Stage") -> None:
        """Raise InputError where there is no room for what a step wants."""

    def run(self, stage: "Stage", ctx: "Context") -> Ran:
        """Run a step with all that helps. Raises what made another process fail, as well as what the stage raises."""
