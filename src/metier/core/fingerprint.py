"""Canonical JSON and sha256 digests: what makes two things the same thing.

Floats are written by `repr` (shortest form that reads back equal), keys are sorted, NaN and infinity are refused, so
equal values give equal bytes on every machine. Hashing a file costs about a second per gigabyte and is remembered by
path, size, modification time and inode.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from metier.core.disk import write_whole

Json = Any
"""A value made of dict, list, str, int, float, bool and None."""
SAMPLES, SAMPLE_BYTES = 16, 2**14


def canonical(value: Json) -> str:
    """The one JSON text of a value. Raises ValueError for NaN and infinity, TypeError for what is not JSON."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def digest(value: Json) -> str:
    """sha256 (64 hex digits) of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_digest(path: Path) -> str:
    """sha256 of a file's size and of `SAMPLES` pieces of it: what was put in, taken out or cut off shows, a change of a
    few bytes that keeps the size only where it meets a piece. Costs a millisecond, however large the file is."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            found.update(file.read())
            return found.hexdigest()
        for number in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
            found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def tree(folder: Path) -> dict[str, Path]:
    """Every file below `folder`, by its relative path with forward slashes, sorted. Links count as files."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return dict(sorted(found.items()))


class FileDigests:
    """File digests remembered in one JSON file, so that an unchanged 2 GB corpus is hashed once.

    A file counts as unchanged while its path, size, modification time (ns) and inode are.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = {}
        self._dirty = False
        if cache.exists():
            try:
                self._known = json.loads(cache.read_text(encoding="utf-8"))
            except ValueError:  # a torn cache costs only the time to hash again
                self._known = {}

    def file(self, path: Path) -> str:
        """sha256 of one file."""
        real = path.resolve()
        return self._of(str(real), real, file_digest)

    def sample(self, path: Path) -> str:
        """`sample_digest` of one file."""
        real = path.resolve()
        return self._of(f"sample:{real}", real, sample_digest)

    def _of(self, name: str, path: Path, make: Callable[[Path], str]) -> str:
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known is not None and known[:3] == mark:
            return str(known[3])
        value = make(path)
        self._known[name] = [*mark, value]
        self._dirty = True
        return value

    def folder(self, folder: Path) -> str:
        """One digest over the names and bytes of every file below a folder."""
        return digest({name: self.file(path) for name, path in tree(folder).items()})

    def save(self) -> None:
        """Keep what was learned, atomically. Does nothing where nothing is new or the store does not exist yet.

        Where it cannot be written (a full disk, a folder that is only read) the next look costs the time to hash again.
        """
        if not self._dirty or not self._cache.parent.is_dir():
            return
        with suppress(OSError):
            write_whole(self._cache, json.dumps(self._known))
            self._dirty = False
