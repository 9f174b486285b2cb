"""What happens while a step runs, as one JSON line each.

A step tells its `Events`; the file `events.jsonl` in its artifact keeps them, and any number of listeners (the
console's progress display, `--json`, trackers) read the same stream. Events carry wall-clock time, so they are
never part of an artifact's identity or digest.

What a training step tells, every few steps and at its last:

    train  at, total (optimizer steps), epoch, loss (nats a target), learning_rate, grad_norm, tokens (so far),
           tokens_per_second, utilisation (share of the measured peak; None where unknown), rss_bytes
    dev    at, total, dev_loss
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

Event = dict[str, Any]
Listener = Callable[[Event], None]
_ONE = RLock()
"""Steps side by side have the same listeners."""


@dataclass
class Events:
    """One step's stream of events.

    step: the step's name, put on every event. path: the file they are appended to (None: kept nowhere).
    """

    step: str
    path: Path | None = None
    listeners: list[Listener] = field(default_factory=list)

    def emit(self, event: str, **fields: Any) -> None:
        """Record `event` (a short word: started, progress, train, dev, note, warning, finished ...) with its fields."""
        self.pass_on({"time": round(time.time(), 3), "step": self.step, "event": event, **fields})

    def pass_on(self, record: Event) -> None:
        """Record an event as it was told elsewhere."""
        with _ONE:
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
            for listener in self.listeners:
                listener(record)

    def progress(self, task: str, done: float, total: float | None, *, unit: str = "", **fields: Any) -> None:
        """`done` of `total` units of `task` are through; extra fields (loss, tokens_per_second) are shown beside it."""
        self.emit("progress", task=task, done=done, total=total, unit=unit, **fields)

    def note(self, text: str) -> None:
        """Something a person may want to know."""
        self.emit("note", text=text)

    def warning(self, text: str) -> None:
        """Something a person should know: it did not stop the run, but it may not be what they meant."""
        self.emit("warning", text=text)
