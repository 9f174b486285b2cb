"""What a record says beside the result: time, memory, versions and machine. Never part of an identity or a digest."""

import os
import platform
import threading
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from metier.core.fingerprint import Json

RECORDED_PACKAGES = ("metier", "torch", "transformers", "peft", "numpy")
SAMPLE_SECONDS = 0.1
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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

    Linux keeps the exact peak and lets it be set back, else every step after a large one would seem as large (`5` in
    /proc/self/clear_refs, proc(5)). Where that is not so, memory is looked at ten times a second, and a spike shorter
    than that may be missed. Blocks may lie within one another.
    """

    _open: ClassVar[list["PeakMemory"]] = []

    def __init__(self) -> None:
        import psutil

        self.peak_bytes = 0
        self._process = psutil.Process()
        self._exact = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        for outer in list(self._open):  # before what they would read is set back
            outer._look()
        self._exact = _set_back()
        self._open.append(self)
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self._open.remove(self)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        found = _highest() if self._exact else int(self._process.memory_info().rss)
        self.peak_bytes = max(self.peak_bytes, found)


def _set_back() -> bool:
    """Make the system count the peak anew from here. Whether it does."""
    try:
        CLEAR.write_text("5", encoding="ascii")
        return _highest() > 0
    except OSError:
        return False


def _highest() -> int:
    """The system's own peak in bytes, 0 where it tells none."""
    found = next((line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")), "")
    return 1024 * int(found.split()[1]) if found else 0


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
