"""What every tracker does: turn a step's events into points, and plot none of them twice.

A step that was killed goes on from a checkpoint that may lie before the last point that was plotted. Training repeats
itself to the bit, so what is plotted already is left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from metier.core.events import Event

TRAINING = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_second",
    "utilisation",
    "rss_bytes",
)
"""Fields of a `train` event that are plotted, under the same names; one that is missing or None is left out."""


def points(event: Event) -> dict[str, float]:
    """What an event has to plot, by name: a curve's name, or `result/<metric>` when a step finishes."""
    kind = event["event"]
    if kind == "train":
        return {name: float(event[name]) for name in TRAINING if event.get(name) is not None}
    if kind == "dev":
        return {"dev_loss": float(event["dev_loss"])}
    if kind == "finished":
        results = {**event["metrics"], "seconds": event["seconds"], "peak_rss_bytes": event["peak_rss_bytes"]}
        return {f"result/{name}": float(value) for name, value in results.items()}
    return {}


class Tracker(ABC):
    """Base: hears a run's events, one step after another. The horizontal axis is the optimizer step; 0 where none was.

    what: a tracker's own words for `metier run` to end with: how to look at what was written. used: whether any step
    was heard of, so that there is something to look at.
    """

    what: str

    def __init__(self) -> None:
        self.used = False
        self._open = False
        self._last: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(failed=error is not None)
        self.close()

    def hear(self, event: Event) -> None:
        """Plot what the event says, if it says anything."""
        if event["event"] == "started":
            self._end(failed=False)
            self._last = dict(self.begin(event["step"], event["key"]))
            self.used = self._open = True
        if self._open:
            self._plot(event)
        if event["event"] in ("finished", "failed"):
            self._end(failed=event["event"] == "failed")

    def _plot(self, event: Event) -> None:
        found = points(event)
        at = event["at"] if "at" in event else max(self._last.values(), default=0)
        fresh = {name: value for name, value in found.items() if at > self._last.get(name, -1)}
        if fresh:
            self._last |= dict.fromkeys(fresh, at)
            self.write(fresh, at=at, time=event["time"])

    def _end(self, *, failed: bool) -> None:
        if self._open:
            self._open = False
            self.end(failed=failed)

    @abstractmethod
    def begin(self, step: str, key: str) -> Mapping[str, int]:
        """A step starts, or goes on. Returns where each curve ended that was plotted for this key before."""

    @abstractmethod
    def write(self, values: Mapping[str, float], *, at: int, time: float) -> None:
        """Plot values at an optimizer step. time: when, in seconds since 1970."""

    @abstractmethod
    def end(self, *, failed: bool) -> None:
        """The step is over, or stopped: let nothing be lost."""

    def close(self) -> None:  # noqa: B027 - most hold nothing beyond a step
        """No step will follow."""
