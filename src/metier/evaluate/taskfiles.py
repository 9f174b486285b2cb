"""Benchmarks as folders of data: `task.yaml` says what is asked and where it comes from, `README.md` tells people.

    <folder>/task.yaml     fields of TaskFile
    <folder>/README.md     source, licence, what it was checked against
    <folder>/...           items and lists of ids, where they may be given away

Items are a JSON Lines file, a JSON list, or a JSON object by ids. A question is written from an item's fields:
"{CONTEXTS}\\n\\n{QUESTION}"; a list of texts is joined by line ends. Refuses, with file and cure: a folder without
either file, unknown keys, a missing licence, items that lack a field, and what `items` refuses. Imports nothing heavy.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from metier.core.errors import DataError, nearest
from metier.core.stage import Config
from metier.text.items import Item, check_ids, checked
from metier.text.nouns import Message

SHIPPED = Path(__file__).parent / "tasks"
TASK, README = "task.yaml", "README.md"

_FIELD = re.compile(r"\{(\w+)\}")

Row = dict[str, Any]


class TaskFile(Config):
    """What stands in a task.yaml."""

    title: str
    """One line for people."""
    source: str = Field(min_length=3)
    """Where the items come from."""
    licence: str = Field(min_length=2)
    """Under which they may be used."""
    checked: str = Field(min_length=3)
    """What the task was checked against, or that it was not."""
    items: str | None = None
    """The file of items in the folder. Without it the recipe names the file that the user has (`data`)."""
    needs: str = ""
    """Which file that is, and where it can be had."""
    question: dict[str, str] = Field(min_length=1)
    """Ways to ask, by name, each a text with fields of an item in braces. The first is the usual one."""
    label: str = "label"
    """The field that holds the right choice."""
    choices: list[str] | str = "choices"
    """The choices of every item, or the field that holds an item's own list."""
    id: str | None = "id"
    """The field that holds an item's id; null where the file is an object by ids."""
    group: str | None = None
    """The field that scores are broken down by."""
    test_ids: str | None = None
    """A file of the folder with the ids that are asked, one a line; the other items may be trained on."""
    folds: list[str] = Field(default_factory=list)
    """Files of the folder with the ids of each part of the other items, on which models are selected in turn."""
    people: dict[str, str] = Field(default_factory=dict)
    """By way to ask: the field with what a person answered, who then stands beside the models."""


@dataclass(frozen=True)
class Task:
    """A task's folder, read. name: the folder's. readme: its text."""

    name: str
    folder: Path
    file: TaskFile
    readme: str

    def way(self, name: str | None) -> str:
        """The way to ask of that name, or the first. Raises DataError for one that is not there."""
        ways = self.file.question
        if name is not None and name not in ways:
            raise DataError(f"the task {self.name!r} has no such way to ask", value=name, cure=nearest(name, ways))
        return next(iter(ways)) if name is None else name

    def items(self, data: Path | None, way: str) -> "Parts":
        """All items, asked in one way, parted. data: the user's file, where the task has none of its own."""
        path = self._path(data)
        made = [self._item(path, place, row, way) for place, row in _rows(path)]
        check_ids(made, path.name)
        if self.file.test_ids is None:
            return Parts(tuple(made), ())
        wanted = self._ids(self.file.test_ids)
        by_id = {item.id: item for item in made}
        named = [*wanted, *(one for name in self.file.folds for one in self._ids(name))]
        missing = [one for one in named if one not in by_id]
        if missing:
            raise DataError(
                f"the file lacks {len(missing)} of the {len(named)} items that the task names",
                where=str(path),
                value=missing[0],
                cure=self.file.needs or "use the whole file",
            )
        asked = set(wanted)
        train = tuple(item for item in made if item.id not in asked)
        folds = [[by_id[one] for one in self._ids(name)] for name in self.file.folds]
        return Parts(tuple(by_id[one] for one in wanted), train, tuple(map(tuple, folds)))

    def _ids(self, name: str) -> list[str]:
        return (self.folder / name).read_text(encoding="utf-8").split()

    def _path(self, data: Path | None) -> Path:
        if self.file.items is not None:
            if data is not None:
                raise DataError(f"the task {self.name!r} brings its items along", where="data", cure="leave data out")
            return self.folder / self.file.items
        if data is None:
            raise DataError(
                f"the task {self.name!r} does not bring its items along",
                where="data",
                cure=f"name the file: data: path. {self.file.needs}".strip(),
            )
        return data

    def _item(self, path: Path, place: str, row: Row, way: str) -> Item:
        where = f"{path}: {place}"

        def text(field: str) -> str:
            if field not in row:
                raise DataError(f"the item has no field {field!r}", where=where, cure=nearest(field, map(str, row)))
            value = row[field]
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                return "\n".join(value)
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            if not isinstance(value, str):
                raise DataError(f"the field {field!r} is no text", where=where, value=value)
            return value

        asked = _FIELD.sub(lambda m: text(m[1]), self.file.question[way]).strip()
        if isinstance(self.file.choices, str):
            choices = row.get(self.file.choices)
            if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
                raise DataError(f"the field {self.file.choices!r} is no list of choices", where=where, value=choices)
        else:
            choices = self.file.choices
        person = self.file.people.get(way)
        return checked(
            Item(
                place if self.file.id is None else text(self.file.id),
                (Message("user", asked),),
                tuple(choices),
                text(self.file.label),
                text(self.file.group) if self.file.group else "",
                {"human": text(person)} if person else {},
            ),
            where,
        )


@dataclass(frozen=True)
class Parts:
    """A task's items. test: what is asked. train: what may be trained on, in folds for selecting models."""

    test: tuple[Item, ...]
    train: tuple[Item, ...]
    folds: tuple[tuple[Item, ...], ...] = ()


def shipped() -> list[str]:
    """The names of the tasks that come along."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{TASK}"))


def read_task(folder: Path) -> Task:
    """The task in a folder. Raises DataError for one that is not whole."""
    path = folder / TASK
    if not path.is_file():
        raise DataError(f"the task's folder has no {TASK}", where=str(folder), cure=f"write one as in {SHIPPED}")
    readme = folder / README
    if not readme.is_file() or not readme.read_text(encoding="utf-8").strip():
        raise DataError(
            f"the task's folder has no {README}",
            where=str(folder),
            cure="say there where the items come from, their licence, and what the task was checked against",
        )
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the file is no YAML: {error}", where=str(path)) from error
    try:
        file = TaskFile.model_validate(found)
    except ValidationError as error:
        raise _invalid(path, error) from error
    for name in (file.items, file.test_ids, *file.folds):
        if name is not None and not (folder / name).is_file():
            raise DataError("the task's folder lacks a file that it names", where=str(path), value=name)
    for way in file.people:
        if way not in file.question:
            raise DataError("people answered in a way that nobody asks", where=str(path), value=way)
    return Task(folder.name, folder, file, readme.read_text(encoding="utf-8"))


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The items of a file: an id or a line, and the fields."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the items cannot be read: {error}", where=str(path)) from error
    if path.suffix == ".jsonl":
        numbered: Iterator[tuple[str, Any]] = (
            (f"line {number}", _json(path, line, f"line {number}"))
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        )
    else:
        found = _json(path, text, "the file")
        if isinstance(found, Mapping):
            numbered = ((str(key), value) for key, value in found.items())
        elif isinstance(found, list):
            numbered = ((f"item {number}", value) for number, value in enumerate(found, 1))
        else:
            raise DataError("the file is neither a list of items nor an object by ids", where=str(path))
    for place, row in numbered:
        if not isinstance(row, dict):
            raise DataError("an item is no object", where=f"{path}: {place}", value=row)
        yield place, row


def _json(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=f"{path}: {place}") from error


def _invalid(path: Path, error: ValidationError) -> DataError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return DataError(f"the task does not say its {field}", where=str(path), cure=f"add `{field}: ...`")
    if first["type"] == "extra_forbidden":
        return DataError("unknown key", where=str(path), value=field, cure=nearest(field, TaskFile.model_fields))
    return DataError(f"{field}: {first['msg']}", where=str(path), value=first.get("input"))
