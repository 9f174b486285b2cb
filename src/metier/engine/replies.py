"""What endpoints replied, kept on disk by the question, so that nothing is paid for twice.

One SQLite file for all runs of a store. A reply's key is the SHA-256 of the address, the whole request and how often
the same request came before in its call; the key of the endpoint is no part of it, and no prompt is stored. A reply is
on the disk before it is given, so a process that is killed loses none that it had received. May be deleted at any time:
then the questions are asked, and paid for, again.
"""

import hashlib
import json
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from metier.core.errors import StoreError

FILE = "replies.sqlite"
WAIT_SECONDS = 30.0
"""How long another process may hold the file."""


class Replies:
    """The file, open. Threads may share it, and so may processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(self._path, timeout=WAIT_SECONDS, check_same_thread=False)
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._file.commit()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def get(self, key: str) -> dict[str, Any] | None:
        """What was replied, None where nobody asked yet."""
        try:
            with self._lock:
                row = self._file.execute("SELECT value FROM replies WHERE key = ?", (key,)).fetchone()
            return None if row is None else dict(json.loads(row[0]))
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep a reply; on the disk when this returns."""
        text = json.dumps(value, ensure_ascii=False)
        try:
            with self._lock, self._file:
                self._file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._file.close()

    def _damaged(self, error: Exception) -> StoreError:
        cure = "delete the file (its questions are then asked again), or free some space"
        return StoreError(f"the kept replies cannot be used: {error}", where=str(self._path), cure=cure)


def keys(address: str, bodies: list[dict[str, Any]]) -> list[str]:
    """A key for every request of one call. Equal requests are told apart by their place among their like."""
    seen: Counter[str] = Counter()
    found = []
    for body in bodies:
        text = json.dumps([address, body], sort_keys=True, ensure_ascii=False)
        found.append(hashlib.sha256(f"{seen[text]}:{text}".encode()).hexdigest())
        seen[text] += 1
    return found
