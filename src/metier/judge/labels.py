"""People's labels: a JSONL file that `metier label` appends to and `calibrate` reads. Imports nothing heavy.

A row: {"id", "contender", "answer" (the digest of the text that was labelled), "label", "who", "time"}; `note` may
stand there too. The last row of one person for one answer counts, so that a slip can be corrected; a row whose label is
null takes it back.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import DataError

FIELDS = ("id", "contender", "answer", "label", "who")
OPTIONAL = ("time", "note")
Row = dict[str, Any]


@dataclass(frozen=True)
class Label:
    """What a person said of an answer."""

    id: str
    contender: str
    answer: str
    label: str
    who: str


def read_labels(paths: Sequence[Path]) -> list[Label]:
    """The labels that count, each person's last word for each answer. Raises DataError with file and line."""
    found: dict[tuple[str, str, str, str], Label | None] = {}
    for path in paths:
        for place, row in _rows(path):
            _check(place, row)
            one = Label(*(str(row[name]) for name in FIELDS))
            key = (one.id, one.contender, one.answer, one.who)
            found.pop(key, None)
            found[key] = None if row["label"] is None else one
    return [one for one in found.values() if one is not None]


def _rows(path: Path) -> list[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("the labels are not UTF-8", where=str(path), cure="save the file as UTF-8") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}:{number}", json.loads(line)))
        except ValueError:
            cure = "labels are JSON Lines, as `metier label` writes them; delete the line"
            raise DataError("not JSON", where=f"{path}:{number}", value=line, cure=cure) from None
    return rows


def _check(place: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise DataError("a label is a JSON object", where=place, value=row)
    missing = [name for name in FIELDS if name not in row]
    if missing:
        cure = f"each row has {', '.join(FIELDS)}; label again with `metier label`"
        raise DataError(f"the label has no {missing[0]!r}", where=place, value=row, cure=cure)
    unknown = [name for name in row if name not in (*FIELDS, *OPTIONAL)]
    if unknown:
        raise DataError("unknown key of a label", where=place, value=unknown[0], cure=f"known: {', '.join(FIELDS)}")
    for name in FIELDS:
        if not isinstance(row[name], str) and not (name == "label" and row[name] is None):
            raise DataError(f"the label's {name!r} is not text", where=place, value=row[name], cure="put it in quotes")


def majority(labels: Sequence[Label]) -> dict[tuple[str, str, str], str]:
    """One label for each (id, contender, answer): the one that most people gave; where they draw, none."""
    votes: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for one in labels:
        votes[one.id, one.contender, one.answer][one.label] += 1
    found = {}
    for key, counts in votes.items():
        top = max(counts.values())
        best = [label for label, count in counts.items() if count == top]
        if len(best) == 1:
            found[key] = best[0]
    return found
