"""Rows of tables: `.csv` and `.tsv` with a header line, and `.parquet`.

Delimited files hold only texts; a row is known by the line that it starts on, as cells may hold line breaks. Refuses
ragged rows, quotation marks out of place, headers that name a column twice. Parquet is read in batches: memory holds
one, whatever the file's size, and a row is known by its number from 1.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from metier.core.errors import MissingExtra
from metier.data.files import LONGEST, Note, Problem, Problems, first_line, lines, opened, refuse

BATCH = 256
"""Rows of Parquet held at a time."""

Row = dict[str, Any]


def delimited(path: Path, problems: Problems, note: Note, *, delimiter: str) -> Iterator[tuple[int, Row]]:
    """The rows of a delimited file, by the names in its first line. Blank lines are skipped.

    Where the first line has no `delimiter`, but semicolons or tabs, these are taken to be it, and a note says so.
    """
    csv.field_size_limit(LONGEST)  # an unclosed quotation mark would take in the rest of any file
    texts = lines(path, problems, note, replace=True)
    number, first = next(texts, (0, ""))
    other = _other_delimiter(first, delimiter)
    if other:
        note(f"{path.name}: its columns are taken to be parted by {other!r}")
    rows = _cells(_again(number, first, texts), problems, other or delimiter)
    line, cells = next(rows, (1, []))
    problems.stop()
    header = _header(path, line, cells)
    for line, cells in rows:
        if len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        else:
            what = f"the row has {len(cells)} cells where the header has {len(header)}"
            cure = f'put cells that hold {other or delimiter!r}, " or a line break in quotation marks: "..."'
            problems.add(Problem(what, line, 0, cells, cure))


def _again(number: int, first: str, rest: Iterator[tuple[int, str]]) -> Iterator[str]:
    if number:
        yield first
    for _, text in rest:
        yield text


def _cells(texts: Iterator[str], problems: Problems, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row with the line that it starts on; rows that break the rules go to `problems`."""
    reader = csv.reader(texts, delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cure = 'a quotation mark inside a quoted cell is written twice: ""; and every one that opens has to close'
            problems.add(Problem(f"malformed row: {error}", line, 0, None, cure))
        else:
            if any(cell.strip() for cell in cells):
                yield line, cells


def _other_delimiter(first: str, delimiter: str) -> str | None:
    """What parts the columns of a header that lacks the delimiter which the suffix promises."""
    if delimiter in first:
        return None
    counts = {other: first.count(other) for other in (";", "\t", ",") if other in first}
    return max(counts, key=lambda other: counts[other]) if counts else None


def _header(path: Path, line: int, cells: Sequence[str]) -> list[str]:
    """The columns' names; those without one are called by their number."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        refuse(path, f"two columns are named {twice!r}", line=line, value=names, cure="give every column its own name")
    return names


def parquet(path: Path, problems: Problems) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file by number. What JSON has no word for becomes text, as `plain` says."""
    try:
        import pyarrow
        import pyarrow.parquet as files
    except ImportError:
        raise MissingExtra("pyarrow", "formats", needed_by="a Parquet file") from None
    number = 0
    with opened(path) as file:
        if not file.read(1):
            refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")
        try:
            table = files.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
            for batch in table.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {str(name): plain(value) for name, value in row.items()}
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
            reason = first_line(error)
            cure = "write it again; it is cut off, damaged or no Parquet"
            problems.add(Problem(f"the file cannot be read as Parquet: {reason}", number + 1, cure=cure, unit="row"))


def plain(value: Any) -> Any:
    """A value as JSON knows it: dates and decimals as text, bytes as their count, NaN as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta) else f"<{type(value).__name__}>"
