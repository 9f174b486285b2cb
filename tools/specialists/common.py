"""What all sets share: reading a table of facts, filling sentences, writing JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).parent

Facts = dict[str, str]


def table(name: str, columns: tuple[str, ...], key: str = "name") -> list[Facts]:
    """The rows of `name`, one a line, fields parted by `|`. Raises ValueError for a line that does not fit.

    key: the column that tells rows apart.
    """
    rows = []
    for number, line in enumerate((HERE / name).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != len(columns) or not all(fields):
            raise ValueError(f"{name}:{number}: {len(columns)} fields are needed, none of them empty: {line!r}")
        rows.append(dict(zip(columns, fields, strict=True)))
    keys = [row[key] for row in rows]
    if twice := {one for one in keys if keys.count(one) > 1}:
        raise ValueError(f"{name}: stands twice: {', '.join(sorted(twice))}")
    return rows


def sentence(text: str) -> str:
    """First letters large, also after a mark; exactly one mark at the end."""
    text = re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda found: found.group().upper(), text)
    return text if text[-1] in ".!?" else text + "."


def slug(name: str) -> str:
    """A name as part of an id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def jsonl(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
