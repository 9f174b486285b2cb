"""What stands between a job on a cluster and the process that runs the recipe. Imports nothing heavy."""

import time
from typing import Any

from metier.core.events import Event


class Board:
    """The actor between a job and this process. It is told by the workers, and asked from here."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._starts: list[dict[str, Any]] = []
        self._stop = False
        self._failed: tuple[int, dict[str, Any]] | None = None
        self._done: dict[str, Any] | None = None
        self._heard = time.monotonic()

    def start(self, who: dict[str, Any]) -> None:
        """A worker begins."""
        self._heard = time.monotonic()
        self._starts.append(who)

    def exchange(self, events: list[Event]) -> bool:
        """Take in what happened. Returns whether to stop."""
        self._heard = time.monotonic()
        self._events += events
        return self._stop

    def finish(self, done: dict[str, Any]) -> None:
        """The first worker is through."""
        self._done = done

    def fail(self, rank: int, said: dict[str, Any]) -> None:
        """A worker gives up for good: the first reason counts."""
        self._failed = self._failed or (rank, said)

    def failed(self) -> tuple[int, dict[str, Any]] | None:
        """Why one gave up."""
        return self._failed

    def look(self, stop: bool) -> dict[str, Any]:
        """What is new, for the process that runs the recipe."""
        self._stop = self._stop or stop
        events, self._events = self._events, []
        starts, self._starts = self._starts, []
        silent = time.monotonic() - self._heard
        return {"events": events, "starts": starts, "failed": self._failed, "done": self._done, "silent": silent}
