"""Reads the tables in `text/`: sections `[name]` of one entry per line; a line that begins with "# " is a comment."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_SECTION = re.compile(r"\[([\w.]+)\]")
_FOLDER = Path(__file__).parent / "text"


@cache
def table(name: str) -> dict[str, list[str]]:
    """The sections of `text/<name>.txt`; an entry before the first section is refused."""
    out: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate((_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("# "):
            continue
        head = _SECTION.fullmatch(line)
        if head:
            current = out.setdefault(head.group(1), [])
        elif current is None:
            raise ValueError(f"{name}.txt, line {number}: an entry before the first [section]: {line!r}")
        else:
            current.append(line)
    return out
