"""Worker processes beside signals: only the parent decides when to stop, and nobody outlives it.

Ctrl-C in a terminal, systemd and cluster managers signal a whole group of processes. A worker that died of it would
break the pool in the midst of its parent's orderly stop. A worker whose parent was killed would otherwise wait for work
for good.

Where a step runs on a cluster, its workers are the cluster's (`SPREAD`): the same functions on the same parts, so what
comes out is the same.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextvars import ContextVar
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import Any, Protocol

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1
"""The signals that ask a run to stop."""


class Spread(Protocol):
    """Processes of a cluster for parts of a step's work. workers: how many at a time. asked: the recipe says so."""

    workers: int
    asked: bool

    def pool(self, begin: Callable[..., None], state: tuple[Any, ...]) -> Executor:
        """What runs functions in processes that began with `begin(*state)`. What it lost with a process it does again.

        Functions have to be such that doing them twice does no harm.
        """

    def stream(
        self, work: Callable[..., Iterator[Any]], parts: Sequence[tuple[Any, ...]], stop: Callable[[], object]
    ) -> Iterator[Any]:
        """What `work(*part)` yields, each part in a process of its own that ends with it, in any order.

        stop: asked often; may raise.
        """


SPREAD: ContextVar[Spread | None] = ContextVar("spread", default=None)
"""The cluster that the step under way runs on; None: it runs on this machine alone."""


def count(size: int, worthwhile: int) -> int:
    """How many processes should work on so many bytes; 0: this one alone. worthwhile: from where on starting some pays.

    A cluster's are there already, so that it pays from an eighth of that; what a recipe asks for it gets.
    """
    spread = SPREAD.get()
    if spread is not None:
        return spread.workers if spread.asked or size >= worthwhile // 8 else 0
    if size < worthwhile:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(workers: int, begin: Callable[..., None], state: tuple[Any, ...]) -> Executor:
    """So many processes that began with `begin(*state)`: here or, where the step runs on one, on the cluster."""
    spread = SPREAD.get()
    if spread is not None:
        return spread.pool(begin, state)
    context = get_context("spawn")  # a fork would take over locks that other threads hold
    return ProcessPoolExecutor(workers, context, initializer=begin, initargs=state)


def begin() -> None:
    """Call it first in a worker process: it leaves signals to its parent, and ends with it."""
    if parent_process() is None:  # a cluster's, which ends it
        return
    leave_signals()
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def leave_signals() -> None:
    """Let the parent alone decide what signals mean."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def close(pool: Executor) -> None:
    """Call it in a `finally`: waits for the work under way; while a second signal is handled, ends it instead."""
    if isinstance(sys.exception(), KeyboardInterrupt):
        for child in active_children():
            child.kill()
    pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
