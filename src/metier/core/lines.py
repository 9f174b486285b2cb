"""Results on the disk, one JSON line each as they come, for a loop that is killed and goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.core.errors import StoreError

Row = dict[str, Any]


class Lines:
    """A file that only grows. rows: by the value under `key`, the first of several.

    What a killed run left unfinished at the end is cut off; anything else that is no row is a StoreError.
    """

    def __init__(self, path: Path, key: str = "key") -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._key = key
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._read()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, those that are there already left out, and see them on the disk."""
        fresh = [dict(row) for row in rows if str(row[self._key]) not in self.rows]
        if not fresh:
            return
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in fresh))
            file.flush()
            os.fsync(file.fileno())
        for row in fresh:
            self.rows.setdefault(str(row[self._key]), row)

    def _read(self) -> None:
        data = self.path.read_bytes()
        finished = data[: data.rfind(b"\n") + 1]
        if len(finished) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(finished))
        try:
            for line in finished.decode("utf-8").split("\n"):
                if line:
                    row = json.loads(line)
                    self.rows.setdefault(str(row[self._key]), row)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"kept results cannot be read: {error}", where=str(self.path), cure="delete the file and run again"
            ) from error
