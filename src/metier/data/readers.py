"""Users' files as texts and examples, one at a time, and what of them cannot be used.

Texts come from `.jsonl`/`.ndjson` (one row, one text), `.json` (an array of such rows) and, one file one document,
`.txt`, `.text`, `.md` and `.markdown`. Examples come from the first three. Anything wrong raises DataError at the end
of its file (up to twenty problems in one message); rows that are sound but unusable, such as a blank answer, come back
as a Reject.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import DataError
from metier.data.files import Note, Problems, read_rows, read_text, refuse
from metier.data.shapes import Shape, Wrong, find_shape, id_of, mapped_shape, messages_of, rename, text_of
from metier.text.nouns import Message

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown")


@dataclass(frozen=True)
class Reject:
    """A sound but unusable row. where: `file name:line`."""

    where: str
    reason: str
    row: Any


@dataclass(frozen=True)
class Text:
    """One text to read. id: its row's, if it has one."""

    where: str
    id: str | None
    text: str


@dataclass(frozen=True)
class Example:
    """One conversation, checked: system message or none, then user and assistant in turn."""

    where: str
    id: str | None
    messages: tuple[Message, ...]
    group: str


def read_texts(path: Path, *, field: str = "text", min_chars: int = 1, note: Note) -> Iterator[Text | Reject]:
    """The texts of one file. field: the rows' field that holds it. Texts below `min_chars` characters are rejects."""
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        whole = read_text(path, note).strip()
        yield _long_enough(Text(f"{path.name}:1", None, whole), min_chars, {"text": whole})
        return
    if suffix not in ROW_SUFFIXES:
        refuse(
            path, "a document cannot be read from this kind of file", value=path.name, cure=_suffix_cure(TEXT_SUFFIXES)
        )
    problems, rows = Problems(path), 0
    for line, row in read_rows(path, problems, note):
        rows += 1
        try:
            text = Text(f"{path.name}:{line}", id_of(row), text_of(row, field))
        except Wrong as wrong:
            problems.add(wrong.at(line))
        else:
            yield _long_enough(text, min_chars, row)
    _finish(path, problems, rows)


def read_examples(path: Path, *, fields: Mapping[str, str] | None = None, note: Note) -> Iterator[Example | Reject]:
    """The conversations of one file. fields: our names to the rows' own, such as {"question": "q", "answer": "a"}."""
    if path.suffix.lower() not in ROW_SUFFIXES:
        refuse(path, "examples cannot be read from this kind of file", value=path.name, cure=_suffix_cure(()))
    fields = fields or {}
    fixed = mapped_shape(fields)
    first: tuple[Shape, int] | None = None
    problems, rows = Problems(path), 0
    for line, row in read_rows(path, problems, note):
        rows += 1
        try:
            renamed = rename(row, fields)
            shape = fixed or _same_shape(renamed, first)
            first = first or (shape, line)
            yield _example(f"{path.name}:{line}", row, renamed, shape)
        except Wrong as wrong:
            problems.add(wrong.at(line))
    _finish(path, problems, rows)


def _same_shape(row: Mapping[str, Any], first: tuple[Shape, int] | None) -> Shape:
    """The row's form, which has to be that of the file's first row."""
    if first is None:
        return find_shape(row)
    shape, line = first
    if all(name in row for name in shape.needed):
        return shape
    other = find_shape(row)
    raise Wrong(
        f"mixed forms in one file: this row is {other.name}, line {line} is {shape.name}",
        sorted(map(str, row)),
        "put each form into a file of its own and list both as sources",
    )


def _example(where: str, row: Mapping[str, Any], renamed: Mapping[str, Any], shape: Shape) -> Example | Reject:
    messages = messages_of(renamed, shape)
    if isinstance(messages, str):
        return Reject(where, messages, row)
    group = renamed.get("group")
    return Example(where, id_of(renamed), messages, group if isinstance(group, str) else "")


def _long_enough(text: Text, min_chars: int, row: Any) -> Text | Reject:
    if not text.text:
        return Reject(text.where, "blank text", row)
    if len(text.text) < min_chars:
        return Reject(text.where, f"shorter than {min_chars} characters", row)
    return text


def _finish(path: Path, problems: Problems, rows: int) -> None:
    problems.stop()
    if rows == 0:
        raise DataError("the file holds no row", where=str(path), cure="remove it from the source's path, or fill it")


def _suffix_cure(more: tuple[str, ...]) -> str:
    return f"files end in {', '.join((*ROW_SUFFIXES, *more))}; convert it, or narrow the path, such as folder/*.jsonl"
