"""What the files are that a user names: texts or examples, in which form, for training or for testing.

Looks at names and at the first rows of each file; nothing is read whole. What is guessed stands in the recipe that
`metier init` writes, where it can be corrected.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from metier.core.errors import DataError
from metier.data.files import kind_of
from metier.data.readers import ROW_SUFFIXES, TEXT_SUFFIXES, all_rows, first_rows, pick
from metier.data.shapes import Wrong, find_shape, guess_field, guess_fields, rename

Role = Literal["sources", "dev", "test", "ids"]
FIRST = 20
"""Rows of a file that are looked at."""
MOST_IDS_BYTES = 4_000_000
_NAMES: Mapping[str, Role] = {
    "test": "test",
    "heldout": "test",
    "holdout": "test",
    "eval": "test",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
}
_ABOUT = ("license", "licence", "readme", "copying", "notice", "changelog", "authors")
"""Names of files that tell about data and are none."""
_TRAINED = ("train", "training")
_COLUMNS = ("split", "partition", "subset", "fold")
MOST_PARTS = 8
"""Different values that a column of splits may have."""
_GROUPS = ("group", "focus", "topic", "entity", "doc_id", "document_id", "source_id")


@dataclass(frozen=True)
class Guess:
    """What a file seems to be.

    form: in words. role: what its name says it is for. fields: our names to its own, for examples. field: of the text,
    for texts in rows. group: a field that rows which belong together seem to share. parts: (role, column, value), where
    a column says what each row is for. only: the column and the values of the rows that are meant, where not all are.
    """

    path: Path
    wanted: Literal["texts", "examples", "ids"]
    form: str
    role: Role = "sources"
    fields: tuple[tuple[str, str], ...] = ()
    field: str = "text"
    group: str = ""
    parts: tuple[tuple[Role, str, str], ...] = ()
    only: tuple[str, tuple[str, ...]] | None = None

    @property
    def setting(self) -> tuple[str, ...]:
        """What has to be equal for two files to share one source."""
        return (self.wanted, self.role, str(self.fields), self.field, str(self.only))


def guess_all(paths: Iterable[Path]) -> tuple[list[Guess], list[Path]]:
    """What each file is, and those to be left alone: what cannot be read as anything, and what is about the others.

    Raises DataError for a damaged file.
    """
    readable, left = pick(paths, "texts")
    about = [path for path in readable if path.name.split(".")[0].lower() in _ABOUT]
    if len(about) < len(readable):
        readable = [path for path in readable if path not in about]
        left += about
    return [part for path in readable for part in _by_part(guess(path))], left


def _by_part(found: Guess) -> list[Guess]:
    """A guess for each role that a file's rows have."""
    if not found.parts:
        return [found]
    column = found.parts[0][1]
    values: dict[Role, list[str]] = {}
    for role, _, value in found.parts:
        values.setdefault(role, []).append(value)
    return [replace(found, role=role, only=(column, tuple(some))) for role, some in values.items()]


def guess(path: Path) -> Guess:
    """What one readable file is."""
    if kind_of(path) in TEXT_SUFFIXES:
        return Guess(path, "texts", f"one text a file ({kind_of(path)})", _role(path))
    assert kind_of(path) in ROW_SUFFIXES, path
    if _is_id_list(path):
        return Guess(path, "ids", "ids", "ids")
    rows = first_rows(path, FIRST)
    found = _of_rows(path, rows)
    return replace(found, parts=_parts(path, rows[0])) if found.role == "sources" else found


def _parts(path: Path, row: Mapping[str, Any]) -> tuple[tuple[Role, str, str], ...]:
    """A column named `split` that says of each row what it is for, with its values; only where all are understood."""
    column = next((str(key) for key in row if str(key).strip().lower() in _COLUMNS), None)
    if column is None or not isinstance(row[column], str):
        return ()
    values: Counter[str] = Counter()
    try:
        for each in all_rows(path):
            value = each.get(column)
            values[value.strip() if isinstance(value, str) else ""] += 1
            if len(values) > MOST_PARTS:
                return ()
    except DataError:
        return ()  # whoever reads it says what is wrong
    roles = {value: "sources" if value.lower() in _TRAINED else _NAMES.get(value.lower()) for value in values}
    if len(roles) < 2 or None in roles.values() or "sources" not in roles.values():
        return ()
    return tuple((role, column, value) for value, role in roles.items() if role is not None)


def _of_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Guess:
    row = max(rows, key=len)
    try:
        return Guess(path, "examples", find_shape(row).name, _role(path), group=_group(rows, ()))
    except Wrong:
        pass
    fields = guess_fields(row)
    if fields is not None and "text" not in row:
        found = tuple(fields.items())
        try:
            find_shape({name: row[key] for name, key in found})
            rename(row, fields)
        except Wrong:
            pass
        else:
            form = " and ".join(f"{name} in {key!r}" for name, key in found)
            return Guess(path, "examples", form, _role(path), found, group=_group(rows, tuple(fields.values())))
    field = "text" if isinstance(row.get("text"), str) else _text_field(row)
    if field is None:
        raise DataError(
            "neither a text nor a question and an answer is found in the rows",
            where=str(path),
            value=sorted(map(str, row)),
            cure="write a recipe that names the fields: sources: [{path: ..., fields: {question: ..., answer: ...}}]",
        )
    return Guess(path, "texts", f"a text a row, in {field!r}", _role(path), field=field)


def _text_field(row: Mapping[str, Any]) -> str | None:
    """The field that looks like a text by its name, else the longest one of several words."""
    named = guess_field(row, "text")
    if named is not None and isinstance(row[named], str):
        return named
    prose = {str(key): len(value) for key, value in row.items() if isinstance(value, str) and " " in value.strip()}
    return max(prose, key=lambda key: prose[key], default=None)


def _group(rows: Sequence[Mapping[str, Any]], taken: tuple[str, ...]) -> str:
    """A field by whose name rows that belong together may share a value."""
    keys = {str(key).lower(): str(key) for key in rows[0]}
    return next((keys[name] for name in _GROUPS if name in keys and keys[name] not in taken), "")


def _role(path: Path) -> Role:
    """What a file is for, by a word of its name or the name of its folder: `pubmed_test.jsonl`, `val/a.txt`."""
    for word in reversed(re.split(r"[^a-z]+", path.name.split(".")[0].lower())):
        if word in _NAMES:
            return _NAMES[word]
        if word in _TRAINED:
            return "sources"
    return _NAMES.get(path.parent.name.lower(), "sources")


def _is_id_list(path: Path) -> bool:
    """An object of ids, each with a label: the form of PubMedQA's list of test questions."""
    if kind_of(path) != ".json" or path.suffix != ".json" or path.stat().st_size > MOST_IDS_BYTES:
        return False
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        return False  # whoever reads it says what is wrong
    return isinstance(value, dict) and bool(value) and all(isinstance(label, str) for label in value.values())
