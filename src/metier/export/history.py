"""Where a model comes from, as far as the store's records tell: for its card.

From an artifact's record back through everything that it was made from. A model from outside brings no record, and
that is said. Costs reading a few small files for each ancestor.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.core.store import RECORD, Artifact


@dataclass(frozen=True)
class Ancestor:
    """One step behind the model. about: what it wrote of itself; measured: what the run that made it measured."""

    step: str
    kind: str
    produces: str
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    about: Mapping[str, Any]
    measured: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.record.get("seconds") or 0.0)


@dataclass
class History:
    """The steps behind a model, first made first, and the models from outside."""

    steps: list[Ancestor] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def history(files: Path, name: str) -> History:
    """All that is behind the model whose files lie in `files`. name: what it is called, where it has no record."""
    found = History()
    _follow(files, name, found, set())
    return found


def _follow(files: Path, name: str, found: History, passed: set[Path]) -> None:
    if files in passed:
        return
    passed.add(files)
    if not (files.parent / RECORD).is_file():
        found.outside.append(_short(name))
        return
    artifact = Artifact(files.parent)
    record = artifact.record
    for value, given in (record.get("inputs") or {}).items():
        link = str(given.get("link", ""))
        if link.startswith("../"):
            before = Path(os.path.normpath(files / link))
            if (before.parent / RECORD).is_file():
                _follow(before, value, found, passed)
        elif "model" in str(given.get("field", "")) and _short(value) not in found.outside:
            found.outside.append(_short(value))
    found.steps.append(
        Ancestor(
            step=str(record.get("step", name)),
            kind=str(record.get("kind", "")),
            produces=str(record.get("produces", "")),
            config=record.get("config") or {},
            record=record,
            about=_object(artifact.files / "about.json"),
            measured=_object(artifact.measured / "about.json"),
        )
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _short(name: str) -> str:
    """A model's name without the folders of this machine."""
    return name.rstrip("/").rsplit("/", 1)[-1] if Path(name).is_absolute() else name
