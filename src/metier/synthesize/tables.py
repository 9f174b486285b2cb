"""Rows of a user's small tables: fact tables, and examples of the user's own style. CSV, TSV or JSON Lines.

Every value becomes text on one line; an empty cell is no value. Refuses, with file and line: a file that is empty, is
not UTF-8 or has another suffix, a header that names a column twice, rows of another width, values that are no text,
number or list of these. A table is held in memory.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from metier.core.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Fact:
    """One row: column -> text, without the empty cells. line: where it starts, from 1."""

    file: str
    line: int
    values: dict[str, str]

    @property
    def where(self) -> str:
        """`file name:line`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Table:
    """The rows of one or several files. columns: of all of them, in the order in which they first appear."""

    columns: tuple[str, ...]
    facts: tuple[Fact, ...]


def read_table(paths: Sequence[Path]) -> Table:
    """The rows of these files, one after the other. Raises DataError."""
    columns: dict[str, None] = {}
    facts: list[Fact] = []
    for path in paths:
        names, found = _read(path)
        columns |= dict.fromkeys(names)
        facts += found
    return Table(tuple(columns), tuple(facts))


def _read(path: Path) -> tuple[Sequence[str], list[Fact]]:
    text = _text(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = list(_json_lines(path, text))
        names: Sequence[str] = list(dict.fromkeys(name for _, row in rows for name in row))
        facts = [Fact(path.name, line, _filled(row.items())) for line, row in rows]
    else:
        names, facts = _delimited(path, text, "\t" if suffix == ".tsv" else ",")
    if not facts:
        refuse(path, "the table has no rows", cure="give it a row for each thing that there are facts of")
    return names, facts


def _text(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        cure = "save it as one of " + ", ".join(SUFFIXES)
        refuse(path, "a table of another kind than can be read here", value=path.suffix, cure=cure)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        refuse(
            path, f"the table is not UTF-8: byte 0x{error.object[error.start]:02x}", line=line, cure="save it as UTF-8"
        )
    except OSError as error:
        refuse(path, f"the table cannot be read: {error.strerror}", cure="check that it exists and may be read")
    if not text.strip():
        refuse(path, "the table is empty", cure="fill it, or take it out of `tables`")
    return text


def _delimited(path: Path, text: str, delimiter: str) -> tuple[list[str], list[Fact]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    facts: list[Fact] = []
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if not names:
                    names = _header(path, line, cells)
                else:
                    facts.append(_fact(path, line, names, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        refuse(path, f"malformed row: {error}", line=line, cure='write a quotation mark inside a quoted cell twice: ""')
    return names, facts


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        refuse(path, "two columns have the same name", line=line, value=twice, cure="give every column its own name")
    return names


def _fact(path: Path, line: int, names: Sequence[str], cells: Sequence[str]) -> Fact:
    if len(cells) != len(names):
        what = f"the row has {len(cells)} cells where the header has {len(names)}"
        refuse(path, what, line=line, value=cells, cure="put cells that hold a comma in quotation marks")
    return Fact(path.name, line, _filled(zip(names, cells, strict=True)))


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, one in enumerate(text.split("\n"), 1):
        if not one.strip():
            continue
        try:
            value = json.loads(one)
        except (ValueError, RecursionError) as error:
            refuse(path, f"malformed JSON: {error}", line=line, cure="write one object a line")
        if not isinstance(value, dict):
            refuse(path, "the line is no JSON object", line=line, value=value, cure='write {"column": "value"}')
        yield line, {name: _plain(path, line, name, cell) for name, cell in value.items()}


def _plain(path: Path, line: int, name: str, cell: Any) -> str:
    """A cell as text: a list is its parts, the last joined by `and`."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return f"{cell:g}" if isinstance(cell, float) else str(cell)
    if isinstance(cell, list) and all(isinstance(part, str) for part in cell):
        return joined(cell)
    what = f"the value of {name!r} is of a kind that cannot stand in a sentence"
    return refuse(path, what, line=line, value=cell, cure="write text, a number or a list of texts")


def _filled(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    """White space as one space; empty cells and columns without a name are left out."""
    return {name: " ".join(cell.split()) for name, cell in cells if name and cell.strip()}


def joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def refuse(
    path: Path, what: str, *, line: int | None = None, value: object = None, cure: str | None = None
) -> NoReturn:
    """Raise DataError at a place of a file."""
    raise DataError(what, where=str(path) if line is None else f"{path}:{line}", value=value, cure=cure)
