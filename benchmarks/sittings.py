"""What was measured at one go, and how it is kept until a whole benchmark is through.

A long one need not hold the machine for its whole time: each part is kept in build/sittings/<name>.json, and the next
call goes on behind it. What was measured with other code or on another machine is not gone on with.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from benchmarks.rows import hardware

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build/sittings"
CODE = ("src/metier/train", "src/metier/models", "benchmarks/peers")
"""What the figures depend on."""


@dataclass
class Sitting:
    """peaks: operations a second of large products, by numeric type. results: what each contender's run printed."""

    peaks: dict[str, float]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def speed(self, name: str) -> float:
        """Useful tokens a second."""
        result = self.results[name]
        return float(result["useful_tokens"] / result["seconds"])


class Others:
    """What processes other than this one and its children took of the cores since it was made. Linux."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of the clock, of all cores together, and of this process with its children."""
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        busy = sum(int(fields[place]) for place in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])
        return time.monotonic(), busy, own

    def share(self) -> float:
        """From 0 to 1."""
        clock, busy, own = (now - then for now, then in zip(self._now(), self._before, strict=True))
        return max(0.0, (busy - own) / (clock * len(os.sched_getaffinity(0))))


class Kept:
    """The parts of a benchmark that are through, in order: anything that JSON holds. folder: where they are kept."""

    def __init__(self, name: str, folder: Path = KEPT):
        self._path = folder / f"{name}.json"
        self._key = f"{hardware()} {_digest()}"
        self.parts: list[dict[str, Any]] = []
        if self._path.is_file():
            held = json.loads(self._path.read_text(encoding="utf-8"))
            if held["key"] == self._key:
                self.parts = held["parts"]

    def add(self, part: dict[str, Any]) -> None:
        """Keep one more."""
        self.parts.append(part)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".aside")
        aside.write_text(json.dumps({"key": self._key, "parts": self.parts}), encoding="utf-8")
        aside.rename(self._path)

    def forget(self) -> None:
        """Keep none."""
        self.parts = []
        self._path.unlink(missing_ok=True)


def _sources() -> Iterator[Path]:
    for folder in CODE:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _digest() -> str:
    found = blake2b(digest_size=8)
    for path in _sources():
        found.update(path.read_bytes())
    return found.hexdigest()
