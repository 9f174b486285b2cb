"""Ctrl-C and SIGTERM: the first asks the run to stop at a safe point, the second stops it at once.

Either way nothing half made is left behind: what is being built lies aside until it is whole.
"""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

MESSAGE = b"\nstopping at the next safe point; once more stops at once\n"


class StopFlag:
    """A callable that says whether to stop. Handles the signals while entered."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self._asked

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
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
        self._asked = True
        os.write(2, MESSAGE)  # not through a stream: the signal may have come in the middle of a write to it
