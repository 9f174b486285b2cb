"""JSON Lines that grow while a step works: a run that is killed at any moment goes on from the last whole line.

For what lies in a step's scratch: an artifact's files are written at once, aside.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metier.core.errors import StoreError


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object a line and see them on the disk, which takes milliseconds. Makes the file and its folder.

    Raises ValueError for NaN and infinity.
    """
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def appended(path: Path, what: str) -> list[dict[str, Any]]:
    """The rows of such a file, none where there is none. A line that a killed run left unfinished is cut off.

    Raises StoreError where another line is damaged; what: the rows in a word or two, for the message.
    """
    if not path.is_file():
        return []
    data = path.read_bytes()
    finished = data[: data.rfind(b"\n") + 1]
    if len(finished) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(finished))
    try:
        rows = [json.loads(line) for line in finished.decode("utf-8").split("\n") if line]
    except ValueError as error:
        raise damaged(path, what, str(error)) from error
    if not all(isinstance(row, dict) for row in rows):
        raise damaged(path, what, "a line is not a JSON object")
    return rows


def damaged(path: Path, what: str, why: str) -> StoreError:
    """What to say of rows that cannot be used."""
    return StoreError(f"{what} cannot be read: {why}", where=str(path), cure="delete the file and run again")
