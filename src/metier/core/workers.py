"""Worker processes beside signals: only the parent decides when to stop, and nobody outlives it.

Ctrl-C in a terminal, systemd and cluster managers signal a whole group of processes. A worker that died of it would
break the pool in the midst of its parent's orderly stop. A worker whose parent was killed would otherwise wait for work
for good.
"""

import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, parent_process
from threading import Thread

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1
"""The signals that ask a run to stop."""


def begin() -> None:
    """Call it first in a worker process: it leaves signals to its parent, and ends with it."""
    leave_signals()
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def leave_signals() -> None:
    """Let the parent alone decide what signals mean."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def close(pool: ProcessPoolExecutor) -> None:
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
