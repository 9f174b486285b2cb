"""Files that are whole or absent: written aside, flushed, and renamed into place."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text`; whoever reads meanwhile sees the earlier file or this one."""
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
