"""What a record says beside the result: time, memory, versions and machine. Never part of an identity or a digest."""

import os
import platform
import threading
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

from metier.core.fingerprint import Json

RECORDED_PACKAGES = ("metier", "torch", "transformers", "peft", "numpy")
SAMPLE_SECONDS = 0.1


class Stopwatch:
    """Seconds since it was made, on a clock that is never set back."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


class PeakMemory:
    """The process's largest resident memory while the block runs, in bytes.

    Looked at ten times a second: the system's own peak counts from the start of the process, so that every step after
    a large one would seem as large. A spike shorter than a tenth of a second may be missed.
    """

    def __init__(self) -> None:
        import psutil

        self.peak_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, int(self._process.memory_info().rss))


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def versions() -> dict[str, Json]:
    """Versions of what the result may depend on, without importing it. A package that is not installed is left out."""
    found: dict[str, Json] = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, Json]:
    """System, processor, cores and memory of this machine."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": int(psutil.virtual_memory().total),
    }
