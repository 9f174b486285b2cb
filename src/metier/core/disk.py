"""Getting things onto the disk whole: locks, flushing, files written aside and renamed.

A rename is atomic, but a machine that loses power may keep the rename and lose what it names, unless file and folder
were flushed before. Flushing costs milliseconds a file, and on a slow disk the time to write it.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

WAIT_SECONDS = 0.5
"""How long one look at another process's lock takes."""


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process dies, however it dies.

    on_wait: called twice a second while another holds it; may raise.
    """
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
            break
        except Timeout:
            on_wait()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place, flushed, where the block ends well, and else goes.

    Its name is like nobody else's: processes in different containers may have the same number.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is the old one or the new one, whatever happens."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def flush(folder: Path) -> None:
    """fsync every file and folder below, so that a rename never outruns the data it names."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in (*[p for p in folder.rglob("*") if p.is_dir()], folder):
        flush_folder(path)


def flush_folder(folder: Path) -> None:
    """fsync a folder: what its entries are called."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
