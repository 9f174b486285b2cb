"""Parts of a step's work as Ray tasks: what `metier.core.workers` asks of a cluster.

Tasks, not Ray Data: the parts are cut, counted and put together in order by the code that also runs without a cluster,
so the bytes that come out are the same; Ray Data would deal rows out anew. A task whose process or machine is lost is
run again by Ray. This module runs in the process that asks, and its functions in those that are asked; it imports
nothing heavy.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

RETRIES = 3
"""How often a task is run again whose process was lost."""
WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class RaySpread:
    """workers, asked: as in `metier.core.workers.Spread`. each: what a worker takes, in Ray's names."""

    workers: int
    asked: bool
    each: Mapping[str, float] = field(default_factory=dict)

    def pool(self, begin: Callable[..., None], state: tuple[Any, ...]) -> Executor:
        """As `Spread.pool`."""
        return Tasks(self.workers, begin, state, options(self.each))

    def stream(
        self, work: Callable[..., Iterator[Any]], parts: Sequence[tuple[Any, ...]], stop: Callable[[], object]
    ) -> Iterator[Any]:
        """As `Spread.stream`."""
        import ray
        from ray.exceptions import RayTaskError

        asked = {"max_retries": RETRIES, "max_calls": 1, "num_returns": "streaming", **options(self.each)}
        task = ray.remote(**asked)(_yielding)
        waiting = deque(parts)
        running: list[Any] = []
        try:
            while waiting or running:
                stop()
                while waiting and len(running) < self.workers:
                    running.append(task.remote(work, waiting.popleft()))
                ready, _ = ray.wait(running, timeout=WAIT_SECONDS, fetch_local=False)
                for one in ready:
                    try:
                        found = ray.get(next(one))
                    except StopIteration:
                        running.remove(one)
                        continue
                    except RayTaskError as error:
                        raise _cause(error) from None
                    yield found
        finally:
            for one in running:
                ray.cancel(one)


def options(each: Mapping[str, float]) -> dict[str, Any]:
    """What a worker takes, as Ray's options say it."""
    found: dict[str, Any] = {"num_cpus": each.get("CPU", 1.0), "num_gpus": each.get("GPU", 0.0)}
    return found | ({"memory": each["memory"]} if "memory" in each else {})


class Tasks(Executor):
    """Functions as tasks, so many at a time, in processes that began with `begin(*state)`."""

    def __init__(
        self, workers: int, begin: Callable[..., None], state: tuple[Any, ...], asked: Mapping[str, Any]
    ) -> None:
        import ray

        self._workers = workers
        self._task = ray.remote(max_retries=RETRIES, **asked)(_begun)
        self._known = {"key": uuid4().hex, "begin": begin, "state": ray.put(state), "env": ours()}
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._running: dict[Future[Any], Any] = {}
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As `Executor.submit`, without keyword arguments."""
        assert not kwargs
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append((future, fn, args))
            self._start()
        return future

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._workers:
            future, fn, args = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            reference = self._task.remote(self._known, fn, args)
            self._running[future] = reference
            reference.future().add_done_callback(lambda done, future=future: self._finish(future, done))

    def _finish(self, future: "Future[Any]", done: "Future[Any]") -> None:
        error = done.exception()
        with self._lock:
            self._running.pop(future, None)
            self._start()
            self._idle.notify_all()
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(_cause(error))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `Executor.shutdown`."""
        with self._lock:
            if cancel_futures:
                for future, _, _ in self._waiting:
                    future.cancel()
                self._waiting.clear()
            while wait and (self._running or self._waiting):
                self._idle.wait()


def ours() -> dict[str, str]:
    """The variables that this process was told, for others."""
    return {name: value for name, value in os.environ.items() if name.startswith("METIER_")}


def _cause(error: BaseException) -> BaseException:
    """What a task raised, as it was there."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


_ready = ""
"""In a worker: what it began with last."""


def _begun(known: Mapping[str, Any], fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    global _ready
    if _ready != known["key"]:
        import ray

        os.environ.update(known["env"])
        known["begin"](*ray.get(known["state"]))
        _ready = known["key"]
    return fn(*args)


def _yielding(work: Callable[..., Iterator[Any]], part: tuple[Any, ...]) -> Iterator[Any]:
    yield from work(*part)
