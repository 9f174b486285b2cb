"""What the page shows of runs: published reports and leaderboards, steps under way, questions to try.

Reads the folder of published runs and the store; writes nothing. A name that is no run's is not looked up as a path.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import MetierError
from metier.core.store import Store
from metier.text.artifacts import read_questions

Row = dict[str, Any]
REPORT = "report.html"
BOARD = "leaderboards_full.json"
QUESTIONS = 6
TAIL_BYTES = 64_000
"""How much of a step's events is read from the end."""
CURVE_POINTS = 60


@dataclass(frozen=True)
class Runs:
    """out: where runs are published. store: where their steps are kept."""

    out: Path
    store: Store

    def published(self) -> list[Row]:
        """Name, time and what there is, newest first."""
        found = [self._row(folder) for folder in self._folders()]
        return sorted(found, key=lambda row: -row["time"])

    def _folders(self) -> Iterator[Path]:
        if self.out.is_dir():
            yield from (p for p in self.out.iterdir() if p.is_dir() and (p / REPORT).is_file())

    def _row(self, folder: Path) -> Row:
        page = folder / REPORT
        return {"name": folder.name, "time": page.stat().st_mtime, "leaderboard": (folder / BOARD).is_file()}

    def _folder(self, name: str) -> Path | None:
        return next((folder for folder in self._folders() if folder.name == name), None)

    def report(self, name: str) -> bytes | None:
        """The report's page."""
        folder = self._folder(name)
        return None if folder is None else (folder / REPORT).read_bytes()

    def leaderboard(self, name: str) -> bytes | None:
        """The leaderboard's JSON."""
        folder = self._folder(name)
        path = None if folder is None else folder / BOARD
        return path.read_bytes() if path is not None and path.is_file() else None

    def progress(self) -> list[Row]:
        """Steps that are being made now: task, done, total, seconds since, and the curve of the loss."""
        found = []
        for path in sorted((self.store.root / "scratch").glob("*/build/events.jsonl")):
            try:
                events = list(_tail(path))
                age = time.time() - path.stat().st_mtime
            except FileNotFoundError:
                continue  # it has just ended
            if events:
                found.append(_progress(events, age))
        return found

    def questions(self, model: str) -> list[str]:
        """The first few test questions of the recipe that made the model `recipe/step`."""
        recipe, slash, _ = model.partition("/")
        steps = self.store.root / "refs" / recipe
        if not slash or not recipe or recipe.startswith(".") or not steps.is_dir():
            return []
        for path in sorted(steps.iterdir()):
            artifact = self.store.ref(recipe, path.name)
            if artifact is None or artifact.record["produces"] != "examples":
                continue
            try:
                asked = read_questions(artifact.files, "test")
            except MetierError:
                continue
            if asked:
                step = max(1, len(asked) // QUESTIONS)
                return [question.messages[-1].content for question in asked[::step]][:QUESTIONS]
        return []


def _tail(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    whole = lines[1:] if size > TAIL_BYTES else lines
    for line in whole[:-1]:  # the last one may be half written
        yield json.loads(line)


def _progress(events: list[Row], age: float) -> Row:
    last = next((e for e in reversed(events) if e["event"] in ("progress", "train")), events[-1])
    trained = [e for e in events if e["event"] == "train"]
    step = max(1, len(trained) // CURVE_POINTS)
    return {
        "step": last["step"],
        "task": last.get("task", last["event"]),
        "done": last.get("done", last.get("at")),
        "total": last.get("total"),
        "unit": last.get("unit", "steps"),
        "seconds_ago": round(age, 1),
        "loss": [[e["at"], e["loss"]] for e in trained[::step]],
        "tokens_per_second": trained[-1].get("tokens_per_second") if trained else None,
    }
