"""Several processes that run one step together, as a stage sees them. Imports no torch.

Process 0 runs the recipe and writes the store; the others only help with the steps that can use them. Who they are, how
they are started and how they find each other is `metier.scale`'s business.
"""

from contextlib import AbstractContextManager
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


class Helpers(Protocol):
    """The other processes of a run."""

    @property
    def size(self) -> int:
        """How many processes there are, this one included."""

    def together(self, stage: "Stage", ctx: "Context") -> "AbstractContextManager[Context]":
        """Within it all processes run the stage, each with its place in `Context.team`.

        Raises InputError where they do not fit together, and what made another process fail.
        """
