"""What was measured at one go, and how it is kept until all rounds of a case are through.

A long comparison need not hold the machine for its whole time: each sitting is kept in build/sittings/<case>.json, and
the next call goes on behind it. What was measured with other code or on another machine is not gone on with.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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


class Kept:
    """The sittings of a case so far. folder: where they are kept."""

    def __init__(self, case: str, folder: Path = KEPT):
        self._path = folder / f"{case}.json"
        self._key = f"{hardware()} {_digest()}"
        self.sittings: list[Sitting] = []
        if self._path.is_file():
            held = json.loads(self._path.read_text(encoding="utf-8"))
            if held["key"] == self._key:
                self.sittings = [Sitting(**one) for one in held["sittings"]]

    def add(self, sitting: Sitting) -> None:
        """Keep one more."""
        self.sittings.append(sitting)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = {"key": self._key, "sittings": [asdict(one) for one in self.sittings]}
        aside = self._path.with_suffix(".aside")
        aside.write_text(json.dumps(held), encoding="utf-8")
        aside.rename(self._path)

    def forget(self) -> None:
        """Keep none."""
        self.sittings = []
        self._path.unlink(missing_ok=True)


def _sources() -> Iterator[Path]:
    for folder in CODE:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _digest() -> str:
    found = blake2b(digest_size=8)
    for path in _sources():
        found.update(path.read_bytes())
    return found.hexdigest()
