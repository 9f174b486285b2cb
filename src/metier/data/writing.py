"""A documents or examples artifact on disk: a file a split, `rejects.jsonl` and `about.json`. One pass a split."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metier.data.gathering import Pile, Row, Telling, reject_row
from metier.data.split import content_id
from metier.data.spool import DIGEST, Fates, Indices, numbered
from metier.text.artifacts import write_json, write_jsonl

KINDS = ("rejected", "filtered", "private", "repeated", "near", "leaked", "contaminated", "kept_out")
"""What a row that is left out is counted as."""


def write(
    out: Path, pile: Pile, fates: Fates, *, telling: Telling, more: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Write every split, the rejects and `about.json`, to which `more` is added. Returns the step's metrics."""
    for name in fates.order:
        _write_split(out / f"{name}.jsonl", name, pile, fates, telling)
    write_jsonl(out / "rejects.jsonl", _left_out(pile, fates))
    counts = {name: len(fates.split(name)) for name in fates.order}
    out_of = fates.counts()
    left_out = {kind: out_of.get(kind, 0) + pile.rejects.kinds[kind] for kind in KINDS}
    characters = {name: _sum(pile.columns.characters, fates.split(name)) for name in fates.order}
    about = {
        **(more or {}),
        "counts": counts,
        "rows_read": pile.rows,
        **left_out,
        "characters": characters,
        "bytes": {name: _sum(pile.columns.sizes, fates.split(name)) for name in fates.order},
        "mean_characters": {name: round(size / max(1, counts[name]), 1) for name, size in characters.items()},
        "groups": {name: _groups(pile, fates.split(name)) for name in fates.order},
    }
    write_json(out / "about.json", about)
    return {**counts, **left_out}


def domains(pile: Pile, fates: Fates, *, part: str, split: str) -> list[int]:
    """How many rows of a split come from each source of a part, in order: the split's file has them in that order."""
    number = [p.name for p in pile.parts].index(part)
    rows = fates.split(split)
    mine = rows[np.frombuffer(pile.columns.parts, np.uint8)[rows] == number]
    found = np.bincount(np.frombuffer(pile.columns.domains, np.uint16)[mine], minlength=len(pile.parts[number].sources))
    return [int(count) for count in found]


def _write_split(path: Path, name: str, pile: Pile, fates: Fates, telling: Telling) -> None:
    rows = fates.split(name)
    shared = _sharing_ids(pile, rows)
    if len(shared):
        telling.note(f"{len(shared)} rows share their id with another; part of their content's digest was added to it")
    again = set(shared.tolist())

    def lines() -> Iterator[Row | bytes]:
        for spooled in telling.each(f"write {name}", pile.spool.rows(rows), len(rows)):
            if spooled.index not in again:
                yield spooled.line
                continue
            row = spooled.row
            yield {**row, "id": f"{row['id']}-{content_id(pile.columns.content(spooled.index))}"}

    _write_lines(path, lines())


def _write_lines(path: Path, rows: Iterator[Row | bytes]) -> None:
    """As `write_jsonl`, but for rows that are JSON already."""
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        for row in rows:
            file.write(row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode())
            file.write(b"\n")
    aside.replace(path)


def _sharing_ids(pile: Pile, rows: Indices) -> Indices:
    """Those of the rows whose id another of them has too."""
    ids, _ = numbered(pile.columns.ids, DIGEST // 2)
    _, inverse, count = np.unique(ids[rows], return_inverse=True, return_counts=True)
    return rows[count[inverse.reshape(-1)] > 1]


def _left_out(pile: Pile, fates: Fates) -> Iterator[Row]:
    yield from pile.rejects.rows()
    for spooled in pile.spool.rows(fates.dropped()):
        _, reason = fates.reason(spooled.index)
        other = int(fates.other[spooled.index])
        told = reason.replace("{}", pile.spool.where(other)) if other >= 0 else reason
        yield {**reject_row(spooled.where, told, spooled.row), **fates.details.get(spooled.index, {})}


def _sum(numbers: Any, rows: Indices) -> int:
    return int(np.frombuffer(numbers, np.uint32)[rows].sum(dtype=np.int64))


def _groups(pile: Pile, rows: Indices) -> dict[str, int]:
    """How many rows each named group has, by name; empty for documents."""
    names = pile.columns.group_names
    if len(names) == 1:
        return {}
    count = np.bincount(np.frombuffer(pile.columns.groups, np.uint32)[rows], minlength=len(names))
    return {name: int(count[place]) for name, place in sorted(names.items()) if name and count[place]}
