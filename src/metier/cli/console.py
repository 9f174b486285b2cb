"""How a run is shown: live on a terminal, as plain lines in a pipe, as JSON lines, or not at all.

All are readers of the same events. The live view and the plain lines say the same things; the lines of a running task
come at most every few seconds.
"""

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from metier.cli.wording import metrics_text, number_text, seconds_text
from metier.core.events import Event

EVERY_SECONDS = 5.0
SHOWN: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: f"loss {number_text(value)}",
    "learning_rate": lambda value: f"lr {value:.2g}",
    "tokens_per_second": lambda value: f"{number_text(value)} tokens/s",
    "utilisation": lambda value: f"{value:.0%} of peak",
}
"""Extra fields of a progress event that are shown beside it, and how."""


class Display:
    """Base: hears events between entering and leaving."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def hear(self, event: Event) -> None:
        """Show one event, or not."""


class Quiet(Display):
    """Shows nothing."""


class JsonLines(Display):
    """One event a line, for programs."""

    def hear(self, event: Event) -> None:
        """Print the event as it is."""
        typer.echo(json.dumps(event, ensure_ascii=False))


class TimeLeft:
    """Guesses the seconds that a task still takes from what it took since it was first heard of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[tuple[str, str], tuple[float, float]] = {}

    def guess(self, event: Event) -> float | None:
        """Seconds left, or None where there is nothing to go by: no total, or one mark alone."""
        key, now, done = (event["step"], event["task"]), self._clock(), float(event["done"])
        began, start = self._first.setdefault(key, (now, done))
        if event["total"] is None or done <= start:
            return None
        return (float(event["total"]) - done) * (now - began) / (done - start)


def line_for(event: Event) -> str | None:
    """An event as one line of text; None for those that only a running task's display shows."""
    step, name = event["step"], event["event"]
    if name == "run_started":
        pending = sum(s["state"] == "run" for s in event["steps"])
        return f"{event['recipe']}: {pending} of {len(event['steps'])} steps to run"
    if name == "run_finished":
        return f"{event['recipe']}: finished in {seconds_text(event['seconds'])}"
    texts: dict[str, Callable[[Any], str]] = {
        "cached": lambda e: _joined("made already", metrics_text(e["metrics"])),
        "started": lambda e: f"started ({e['kind']}; {e['why']})" if e["why"] else f"started ({e['kind']})",
        "finished": lambda e: _joined(f"done in {seconds_text(e['seconds'])}", metrics_text(e["metrics"])),
        "failed": lambda e: f"FAILED: {e['error']}",
        "note": lambda e: str(e["text"]),
        "warning": lambda e: f"WARNING: {e['text']}",
        "dev": lambda e: f"loss on held-out data {number_text(e['dev_loss'])} at step {e['at']}",
    }
    return f"[{step}] {texts[name](event)}" if name in texts else None


def _joined(head: str, tail: str) -> str:
    return f"{head}: {tail}" if tail else head


def progress_text(event: Event, left: float | None) -> str:
    """`120/900 steps  loss 2.31  lr 0.0002  8,700 tokens/s  62% of peak  1 min 20 s left`."""
    done, total = number_text(event["done"]), event["total"]
    count = f"{done}/{number_text(total)}" if total is not None else done
    parts = [f"{count} {event['unit']}".strip()]
    parts += [text(event[key]) for key, text in SHOWN.items() if event.get(key) is not None]
    if left is not None and left >= 1:
        parts.append(f"{seconds_text(left)} left")
    return "  ".join(parts)


class PlainLines(Display):
    """Lines for logs and pipes; a running task speaks every few seconds. err: on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, err: bool = False) -> None:
        self._clock = clock
        self._err = err
        self._left = TimeLeft(clock)
        self._last = clock()

    def hear(self, event: Event) -> None:
        """Print the event if it is worth a line."""
        if event["event"] != "progress":
            line = line_for(event)
            if line:
                typer.echo(line, err=self._err)
            return
        left = self._left.guess(event)
        if self._clock() - self._last >= EVERY_SECONDS:
            self._last = self._clock()
            typer.echo(f"[{event['step']}] {event['task']} {progress_text(event, left)}", err=self._err)


class LiveView(Display):
    """Finished things scroll by above; the running task has a bar below."""

    def __init__(self, console: Console | None = None) -> None:
        self._left = TimeLeft()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console or Console(highlight=False),
            transient=True,
        )
        self._task: TaskID | None = None
        self._running = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def hear(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        if event["event"] == "progress":
            self._show(f"[{event['step']}] {event['task']}", event)
            return
        line = line_for(event)
        if line:
            self._progress.console.print(line, markup=False, highlight=False, style=_style(event["event"]))
        if event["event"] in ("finished", "failed", "cached"):
            self._end_task()

    def _show(self, name: str, event: Event) -> None:
        if self._task is None or self._running != name:
            self._end_task()
            self._task = self._progress.add_task(name, total=event["total"], text="")
            self._running = name
        text = progress_text(event, self._left.guess(event))
        self._progress.update(self._task, completed=event["done"], total=event["total"], text=text)

    def _end_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def _style(event: str) -> str:
    return {"finished": "green", "cached": "dim", "failed": "bold red", "warning": "yellow"}.get(event, "")
