"""Several things at a time in this process, each of which mostly waits for others: threads, and no more than that.

Where one of them fails, the others are asked to stop, and what it raised is raised once they have.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from threading import Event
from typing import TypeVar

T = TypeVar("T")
Stop = Callable[[], bool]
Work = Callable[[Stop], T]
"""Something to do. It is given what it has to ask often whether to stop."""


def beside(works: Sequence[Work[T]], stop: Stop) -> list[T]:
    """What each of these gives, in their order."""
    found = dict(as_ready(dict(enumerate(works)), {}, stop))
    return [found[number] for number in range(len(works))]


K = TypeVar("K", int, str)


def as_ready(works: Mapping[K, Work[T]], needs: Mapping[K, set[K]], stop: Stop) -> Iterator[tuple[K, T]]:
    """What each of these gives, as it is finished. needs: those that have to be through before one begins; what was
    given is through once the next is asked for."""
    failed = Event()
    done: set[K] = set()
    waiting = dict(works)
    running: dict[Future[T], K] = {}
    pool = ThreadPoolExecutor(max(1, len(works)), thread_name_prefix="beside")
    try:
        while waiting or running:
            for name in [name for name in waiting if needs.get(name, set()) & works.keys() <= done]:
                running[pool.submit(copy_context().run, waiting.pop(name), lambda: stop() or failed.is_set())] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                yield name, future.result()
                done.add(name)
    finally:
        failed.set()
        pool.shutdown(wait=True, cancel_futures=True)
