"""When memory runs out: how that is recognised, and the same samples in smaller micro-steps.

torch and Python say so where an allocation is refused (CUDA, and CPUs under a limit of the process). Under a control
group's limit nobody says anything, the process is killed: so before a micro-step larger than all before it, what it
will take is held against what is free (`Foresight`), and refused here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from metier.core.errors import TrainingError
from metier.core.machine import free_memory
from metier.train.batches import Micro, Window, size_of, within

SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""How torch's RuntimeErrors put it: its CPU allocator on Linux and macOS, on Windows, CUDA, cuBLAS."""


class MemoryRanOut(TrainingError):
    """There is too little memory for a single sample, or for what is beside them."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in SAYINGS)


def narrowed(window: Window, tokens: int | None) -> Window:
    """The same pieces, micro-steps of more than so many tokens cut into smaller ones; a longer piece is one alone."""
    if tokens is None:
        return window
    return tuple(
        part
        for micro in window
        for part in ((micro,) if size_of(micro) <= tokens else within([(piece,) for piece in micro], tokens))
    )


@dataclass
class Foresight:
    """What micro-steps on a CPU took so far, and whether there is room for a larger one.

    Memory is taken to grow with a micro-step's tokens, as what the first one added to the process shows. among: so many
    processes share what is free.
    """

    among: int = 1
    _before: int = 0
    _a_token: float = 0.0
    _largest: int = 0

    @contextmanager
    def of(self, micro: Micro) -> Iterator[None]:
        """Around a micro-step. Raises MemoryError where its pieces together will not fit."""
        size = size_of(micro)
        if not self._largest:
            self._before = _own()
        elif size > self._largest and len(micro) > 1:
            more = self._a_token * (size - self._largest)
            if more > (free_memory() - _own()) / self.among:
                raise MemoryError(f"a micro-step of {size} tokens would take {more / 1e9:.1f} GB more than the last")
        yield
        if size > self._largest:
            self._largest = size
            self._a_token = max(0.0, (_own() - self._before) / size)


def _own() -> int:
    """Bytes that the process holds."""
    return int(psutil.Process().memory_info().rss)
