"""Users' files as texts and examples, one at a time, and what of them cannot be used.

Rows come from `.jsonl`/`.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, MedQuAD-like `.xml` and data sets of the hub;
each holds one text or one example. `.txt`, `.text`, `.md`, `.markdown`, `.html`, `.htm` and `.pdf` are one text a file.
All but `.parquet` and `.pdf` may be packed: `.jsonl.gz`, `.csv.zst`. Memory holds a few rows, whatever the file's size.

Anything wrong raises DataError at the end of its file (up to twenty problems in one message); rows that are sound but
unusable, such as a blank answer, come back as a Reject.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metier.core.errors import DataError, nearest
from metier.core.packed import PACKINGS
from metier.data.files import Note, Problems, kind_of, lines, place, refuse, unified
from metier.data.formats import hub as hubs
from metier.data.formats import jsonfiles, markup, medquad, pdf, table
from metier.data.formats.hub import Hub
from metier.data.shapes import (
    Lacking,
    Shape,
    Wrong,
    find_shape,
    id_of,
    mapped_shape,
    messages_of,
    meta_of,
    rename,
    text_of,
)
from metier.text.nouns import Message

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xml")
PLAIN_SUFFIXES = (".txt", ".text")
PAGE_SUFFIXES = (".md", ".markdown", ".html", ".htm", ".pdf")
TEXT_SUFFIXES = (*PLAIN_SUFFIXES, *PAGE_SUFFIXES)
NEVER_PACKED = (".parquet", ".pdf")  # they are packed inside, and read from their end
SHOWN_VALUES = 10
LONG_TEXT = 16 * 2**20
"""Characters from which a plain text comes in pieces, so that memory holds one of them."""

Wanted = Literal["texts", "examples"]
Only = Mapping[str, str | list[str]]


@dataclass(frozen=True)
class Reject:
    """A sound but unusable row. where: `file name:line`."""

    where: str
    reason: str
    row: Any


@dataclass(frozen=True)
class Text:
    """One text to read. id: its row's, if it has one. group: a name from its row, or "". meta: what else it tells."""

    where: str
    id: str | None
    text: str
    group: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One conversation, checked: system message or none, then user and assistant in turn.

    meta: what else its row tells, such as the `label` and `choices` of PubMedQA.
    """

    where: str
    id: str | None
    messages: tuple[Message, ...]
    group: str
    meta: Mapping[str, str] = field(default_factory=dict)


def suffixes(wanted: Wanted) -> tuple[str, ...]:
    """The suffixes, packed ones too, of the files that hold texts or examples."""
    plain = ROW_SUFFIXES if wanted == "examples" else (*ROW_SUFFIXES, *TEXT_SUFFIXES)
    return (*plain, *(f"{suffix}{packing}" for packing in PACKINGS for suffix in plain if suffix not in NEVER_PACKED))


def pick(paths: Iterable[Path], wanted: Wanted) -> tuple[list[Path], list[Path]]:
    """The files of a folder that can be read as texts or as examples, and the others (licences, pictures)."""
    readable = suffixes(wanted)
    kept: list[Path] = []
    left: list[Path] = []
    for path in paths:
        (kept if path.name.lower().endswith(readable) else left).append(path)
    return kept, left


def first_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a file, as they are, to see what form they have. Raises DataError where there is none."""
    rows = _Rows.of(path, lambda _text: None, False, ())
    found = [row for _, (_, row) in zip(range(count), rows.rows, strict=False)]
    if not found:
        rows.problems.stop()
        refuse(path, "the file holds no row", cure="leave it out, or fill it")
    return found


def all_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every row of a file as it is. Raises DataError for what is wrong with one."""
    rows = _Rows.of(path, lambda _text: None, False, ())
    for _, row in rows.rows:
        yield row
    rows.problems.stop()


def read_texts(
    path: Path | Hub,
    *,
    field: str = "text",
    min_chars: int = 1,
    note: Note,
    id_field: str = "id",
    keep: Sequence[str] = (),
    only: Only | None = None,
    keep_going: bool = False,
) -> Iterator[Text | Reject]:
    """The texts of one file or data set. field: the rows' field that holds it; id_field: the one that holds the id.

    Texts below `min_chars` characters are rejects. keep: fields of the rows to carry on in `meta`. only: values by
    field; rows without one of them are passed over. keep_going: count all problems of a file, instead of stopping at
    the twentieth.
    """
    if not isinstance(path, Hub) and kind_of(path) in TEXT_SUFFIXES:
        if only:
            refuse(path, "`only` chooses rows, and this file has none", value=only, cure="leave `only` out")
        _check_packing(path)
        for text in _whole(path, note, keep_going):
            yield _long_enough(text, min_chars, {"text": text.text})
        return

    def made(where: str, row: Mapping[str, Any]) -> Text | Reject:
        group = _name(row.get("group"))
        text = Text(where, id_of(row, id_field), text_of(row, field), group, meta_of(row, keep))
        return _long_enough(text, min_chars, row)

    yield from _items(_Rows.of(path, note, keep_going, TEXT_SUFFIXES), made, only)


def read_examples(
    path: Path | Hub,
    *,
    fields: Mapping[str, str] | None = None,
    note: Note,
    keep: Sequence[str] = (),
    only: Only | None = None,
    keep_going: bool = False,
) -> Iterator[Example | Reject]:
    """The conversations of one file or data set. fields: our names to the rows' own: {"question": "q", "answer": "a"}.

    keep, only, keep_going: as in `read_texts`.
    """
    fields = fields or {}
    rows = _Rows.of(path, note, keep_going, ())
    shape = mapped_shape(fields)
    first: tuple[Shape, str] | None = None

    def made(where: str, row: Mapping[str, Any]) -> Example | Reject:
        nonlocal first
        renamed = rename(row, fields)
        found = shape or _same_shape(renamed, first)
        first = first or (found, where)
        messages = messages_of(renamed, found)
        if isinstance(messages, str):
            return Reject(where, messages, row)
        meta = meta_of(row, (*rows.meta, *keep))
        return Example(where, id_of(renamed), messages, _name(renamed.get("group")), meta)

    yield from _items(rows, made, only)


@dataclass(frozen=True)
class _Rows:
    """The rows of a file or data set by their numbers. alike: all have the same fields. meta: fields always kept."""

    rows: Iterator[tuple[int, dict[str, Any]]]
    problems: Problems
    name: str
    alike: bool = False
    meta: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Path | Hub, note: Note, keep_going: bool, also: tuple[str, ...]) -> "_Rows":
        """Open a source. also: the suffixes that could be read here beside those of rows."""
        if isinstance(source, Hub):
            problems = Problems(source.place, "row", keep_going)
            return cls(hubs.rows(source, problems), problems, source.name, alike=True)
        kind = kind_of(source)
        if kind not in ROW_SUFFIXES:
            what = "a document" if also else "an example"
            known = ", ".join((*ROW_SUFFIXES, *also))
            cure = f"files end in {known}; convert it, or narrow the path, such as folder/*.jsonl"
            refuse(source, f"{what} cannot be read from this kind of file", value=source.name, cure=cure)
        _check_packing(source)
        problems = Problems(source, "row" if kind == ".parquet" else "", keep_going)
        if kind in (".csv", ".tsv"):
            rows = table.delimited(source, problems, note, delimiter="," if kind == ".csv" else "\t")
        elif kind == ".parquet":
            rows = table.parquet(source, problems)
        elif kind == ".xml":
            rows = medquad.pairs(source, problems, note)
        else:
            rows = (jsonfiles.json_items if kind == ".json" else jsonfiles.json_lines)(source, problems, note)
        alike = kind in (".csv", ".tsv", ".parquet")
        return cls(rows, problems, source.name, alike, medquad.META if kind == ".xml" else ())


def _items(rows: _Rows, made: Callable[[str, Mapping[str, Any]], Any], only: Only | None = None) -> Iterator[Any]:
    """What `made` makes of each row; what is wrong with rows is raised at the end, as is a file without any."""
    problems, count, ids = rows.problems, 0, _Ids()
    chosen = _Chosen(only) if only else None
    for number, row in rows.rows:
        count += 1
        try:
            if chosen and not chosen.holds(row):
                continue
            item = made(f"{rows.name}:{place(number, problems.unit)}", row)
            if not isinstance(item, Reject):
                ids.check(item.id)
        except Wrong as wrong:
            problems.add(wrong.at(number, problems.unit))
            if isinstance(wrong, Lacking) and (rows.alike or count == 1):
                break  # a missing column is missing in every row, and a first row tells the file's form: once is enough
        else:
            yield item
    problems.stop()
    if chosen and chosen.none and count:
        cure = f"values in the file are {chosen.told}"
        raise DataError("no row has the values in `only`", where=str(problems.path), value=only, cure=cure)
    if count == 0:
        raise DataError(
            "the file holds no row", where=str(problems.path), cure="remove it from the source's path, or fill it"
        )


class _Chosen:
    """Says which rows are read. Raises Wrong where a row lacks a field that decides it."""

    def __init__(self, only: Only) -> None:
        self._wanted = {name: {values} if isinstance(values, str) else set(values) for name, values in only.items()}
        self._met: dict[str, dict[str, None]] = {name: {} for name in only}
        self.none = True

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has one of the values in every field."""
        found = True
        for name, wanted in self._wanted.items():
            if name not in row:
                raise Lacking(f"the field {name!r} (of `only`) is missing", sorted(map(str, row)), nearest(name, row))
            value = _name(row[name])
            if len(self._met[name]) < SHOWN_VALUES:
                self._met[name][value] = None
            found = found and value in wanted
        self.none = self.none and not found
        return found

    @property
    def told(self) -> str:
        """The fields' first values, as they were met."""
        return "; ".join(f"{name}: {', '.join(map(repr, values))}" for name, values in self._met.items())


class _Ids:
    """The ids of one file, as 8-byte numbers: a million take 70 MB, and two clash with a chance of 1 in 10^7."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def check(self, name: str | None) -> None:
        """Raise Wrong for an id that stood before."""
        if name is None:
            return
        number = hash(name)
        if number in self._seen:
            cure = "give every row an id of its own, or name the field that has one; leave the field out for none"
            raise Wrong("the id stands in the file twice", name, cure)
        self._seen.add(number)


def _same_shape(row: Mapping[str, Any], first: tuple[Shape, str] | None) -> Shape:
    """The row's form, which has to be that of the file's first row."""
    if first is None:
        return find_shape(row)
    shape, where = first
    if all(name in row for name in shape.needed):
        return shape
    other = find_shape(row)
    line = where.rpartition(":")[2]
    raise Wrong(
        f"mixed forms in one file: this row is {other.name}, {line if ' ' in line else f'line {line}'} is {shape.name}",
        sorted(map(str, row)),
        "put each form into a file of its own and list both as sources",
    )


def _whole(path: Path, note: Note, keep_going: bool) -> Iterator[Text]:
    """A file that is one text; a very long plain one in pieces."""
    kind, where = kind_of(path), f"{path.name}:1"
    if kind == ".pdf":
        yield Text(f"{path.name}:page 1", None, pdf.pdf_text(path, Problems(path, "page", keep_going), note))
    elif kind in (".html", ".htm"):
        text, title = markup.html_text(path, note, keep_going=keep_going)
        yield Text(where, None, text, meta={"title": title} if title else {})
    elif kind in (".md", ".markdown"):
        yield Text(where, None, markup.markdown_text(path, note, keep_going=keep_going).strip())
    else:
        yield from _plain(path, note, keep_going)


def _plain(path: Path, note: Note, keep_going: bool) -> Iterator[Text]:
    """A plain text, cut at the next blank line past LONG_TEXT characters, or at any line end past twice as many."""
    problems = Problems(path, keep_going=keep_going)
    found: list[str] = []
    size, first = 0, 1
    cut = False
    for number, line in lines(path, problems, note):
        found.append(line)
        size += len(line)
        if size >= LONG_TEXT and (not line.strip() or size >= 2 * LONG_TEXT):
            if not cut:
                note(f"{path.name}: a text of more than {LONG_TEXT // 2**20} million characters comes in pieces")
            cut = True
            yield Text(f"{path.name}:{first}", None, unified("".join(found)).strip())
            found, size, first = [], 0, number + 1
    problems.stop()
    rest = unified("".join(found)).strip()
    if rest or not cut:
        yield Text(f"{path.name}:{first}", None, rest)


def _check_packing(path: Path) -> None:
    if path.suffix.lower() in PACKINGS and kind_of(path) in NEVER_PACKED:
        refuse(
            path,
            f"a {kind_of(path)} file is not read packed",
            value=path.name,
            cure="unpack it; it is compressed inside",
        )


def _name(value: Any) -> str:
    """A group's name: a text or a whole number; "" for anything else."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _long_enough(text: Text, min_chars: int, row: Any) -> Text | Reject:
    if not text.text:
        return Reject(text.where, "blank text", row)
    if len(text.text) < min_chars:
        return Reject(text.where, f"shorter than {min_chars} characters", row)
    return text
