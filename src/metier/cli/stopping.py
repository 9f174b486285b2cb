"""SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and a time limit: the first asks the run to stop at a safe point, a second signal
stops it at once.

Clusters send SIGTERM or SIGUSR1 some time before they take a machine away. Either way nothing half made is left behind:
what is being built lies aside until it is whole. Stopping at a safe point ends with exit code 75, at once with 130.
"""

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from metier.core.workers import STOPS

MESSAGE = b"\nstopping at the next safe point; once more stops at once\n"
OVER = b"\nthe time limit is reached: stopping at the next safe point\n"


class StopFlag:
    """A callable that says whether to stop. Handles the signals while entered.

    minutes: the time limit, from when it is entered; None: there is none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._asked = False
        self._minutes = minutes
        self._deadline: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come, or the time is over."""
        if not self._asked and self._deadline is not None and time.monotonic() >= self._deadline:
            self._deadline = None
            self._ask(OVER)
        return self._asked

    def __enter__(self) -> Self:
        if self._minutes is not None:
            self._deadline = time.monotonic() + 60 * self._minutes
        # elsewhere Python lets nobody handle signals; the time limit holds there too
        for number in STOPS if threading.current_thread() is threading.main_thread() else ():
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._ask(MESSAGE)

    def _ask(self, message: bytes) -> None:
        self._asked = True
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            os.write(2, message)  # not through a stream: the signal may have come in the middle of a write to it
