"""What several processes do together in one training step, over torch.distributed (gloo on CPUs, nccl on GPUs).

Every process holds the whole model and the same optimizer, reads the same plan of windows, and computes some of a
window's micro-steps; losses and gradients are summed over all (Li et al. 2020, arXiv 2006.15704). So:

- losses are those of one process to rounding. Where accumulation is a multiple of the processes, each micro-step is
  also cut as one process cuts it, so dropout draws the same numbers
- what is decided (a window is left out, memory is scarce, it is time to stop) is decided by all from the same numbers
- process 0 alone writes checkpoints, in the form that one process writes and reads

Gradients are summed after the backward pass, not during it: a window can then be done again in smaller micro-steps.
Costs a copy of the small gradients, and for each step the gradients' bytes over the network, about twice.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metier.core.team import Team
from metier.train.batches import Micro, Window, spread

T = TypeVar("T")
LARGE = 2**18
"""Numbers from which on a gradient is summed where it lies; smaller ones are copied together."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """All processes of a training step. One process alone: every method gives back what it was given.

    whole: micro-steps are dealt out as one process cuts them, which leaves a process idle where they are no multiple
    of the processes; else they are cut smaller. sharded: they hold the model between them (`sharded`), so each takes
    part in every micro-step: who has none does another's, for nothing.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    whole: bool = False
    sharded: bool = False
    _cuts: deque[tuple[Window, Window]] = field(default_factory=lambda: deque(maxlen=4))

    @classmethod
    def of(cls, team: Team | None, accumulation: int = 1, *, sharded: bool = False) -> "World":
        """The processes of a context, whose default group is there. accumulation: micro-steps of most windows."""
        if team is None or team.size == 1:
            return cls()
        return cls(team.rank, team.size, team.local_size, accumulation % team.size == 0, sharded)

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def cut(self, window: Window) -> Window:
        """The window in a multiple of `size` micro-steps, of nearly equal tokens; as it is, where it is that already.

        Fewer where it has too few pieces, and as it is if that is to be kept `whole`. Asked again for a window of late,
        it gives back the same object.
        """
        if self.whole or len(window) % self.size == 0:
            return window
        for known, found in self._cuts:
            if known is window:
                return found
        pieces = [(piece,) for micro in window for piece in micro]
        found = spread(pieces, -(-len(window) // self.size) * self.size)
        self._cuts.append((window, found))
        return found

    def own(self, window: Window) -> list[tuple[int | None, Micro]]:
        """This process's micro-steps, with their places in the window, each of one owner (None: for nothing)."""
        places: list[int | None] = [*range(self.rank, len(window), self.size)]
        found = list(zip(places, window[self.rank :: self.size], strict=True))
        if self.sharded and len(found) < -(-len(window) // self.size):
            found.append((None, window[0]))
        return found

    def added(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small tensor, in place; the same bits in each."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def largest(self, *values: int) -> list[int]:
        """Of each number the largest that a process has."""
        if self.alone:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [int(value) for value in found]

    def sum_gradients(self, named: Mapping[str, nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients; None where no process has one."""
        if self.alone or self.sharded:  # shards have the sum already
            return
        there = torch.tensor([p.grad is not None for p in named.values()], dtype=torch.int32)
        dist.all_reduce(there, op=dist.ReduceOp.MAX)
        large: list[Tensor] = []
        small: list[Tensor] = []
        for parameter, anywhere in zip(named.values(), there.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            (large if parameter.grad.numel() >= LARGE and parameter.grad.is_contiguous() else small).append(
                parameter.grad
            )
        works = [dist.all_reduce(grad, async_op=True) for grad in large]
        if small:
            flat = torch.cat([grad.flatten() for grad in small])
            dist.all_reduce(flat)
            start = 0
            for grad in small:
                grad.copy_(flat[start : (start := start + grad.numel())].view_as(grad))
        for work in works:
            work.wait()

    def same(self, values: list[float]) -> list[float]:
        """Numbers as process 0 has them: other processors may round otherwise."""
        if self.alone:
            return values
        found = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(found, 0)
        return [float(value) for value in found]

    def decide(self, ask: Callable[[], T]) -> T:
        """What process 0 answers, as JSON; nobody else is asked."""
        if self.alone:
            return ask()
        said: list[Any] = [json.dumps(ask()) if self.first else None]
        dist.broadcast_object_list(said, 0)
        found: T = json.loads(said[0])
        return found

    def gathered(self, value: T) -> list[T]:
        """What each process has, by rank. Small: it goes through the processes' memory, pickled."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def in_turn(self, do: Callable[[], T]) -> T:
        """Do something in process 0, then in the others: what it leaves on disk they find."""
        if self.alone:
            return do()
        if self.first:
            found = do()
            self.wait()
            return found
        self.wait()
        return do()

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            self.largest(0)


ALONE = World()
