"""Users' files, line by line, with the place of everything that is wrong in them.

Reads UTF-8 (a byte order mark is accepted, dropped and noted), plain or packed by gzip or zstd, which the last suffix
says. Refuses, with file, line and column: what cannot be opened, damaged or cut-off packing, other encodings, NUL
bytes, files without content, and lines past 64 MiB. Memory holds one line: 200,000 rows take about half a second.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO, NoReturn, TypeVar

from metier.core.errors import DataError, InputError, shorten, together
from metier.core.packed import PACKINGS, Damaged, unpacked

MOST_PROBLEMS = 20
LONGEST = 64 * 2**20
"""Bytes of one line, row, page or item above which a file is not what its suffix says, or no memory could hold it."""
NOTEWORTHY = 8 * 2**20
"""Bytes of a line from which it is mentioned: such a row is rarely meant."""
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_OTHER_KINDS = {
    b"\x1f\x8b": ("packed by gzip", ".gz at the end of its name"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", ".zst at the end of its name"),
    b"PAR1": ("Parquet", "the suffix .parquet"),
    b"%PDF-": ("PDF", "the suffix .pdf"),
    b"PK\x03\x04": ("a zip archive (as .docx, .xlsx and .epub are)", "its content, unpacked and converted to text"),
}
"""First bytes that no text has: what the file is, and what it needs to be read."""

T = TypeVar("T")
Note = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file. line: counted from 1, or a row's or page's number where `unit` says so.

    column counts characters from 1; 0 where it concerns the whole row.
    """

    what: str
    line: int
    column: int = 0
    value: object = None
    cure: str | None = None
    unit: str = ""

    @property
    def place(self) -> str:
        """`line`, `line:column`, or `row 7`."""
        return place(self.line, self.unit) + (f":{self.column}" if self.column else "")


@dataclass
class Problems:
    """What is wrong in one file, gathered so that one message shows up to twenty of them.

    unit: what the file is counted in where it has no lines (`row`, `page`). keep_going: the twentieth does not stop the
    reading; further ones are counted.
    """

    path: PurePath
    unit: str = ""
    keep_going: bool = False
    found: list[Problem] = field(default_factory=list)
    further: int = 0

    def add(self, problem: Problem) -> None:
        """Take note of a problem; the twentieth raises, unless all are to be counted."""
        if len(self.found) >= MOST_PROBLEMS:
            self.further += 1
            return
        self.found.append(problem)
        if len(self.found) >= MOST_PROBLEMS and not self.keep_going:
            self.stop()

    def stop(self) -> None:
        """Raise DataError where anything was found."""
        if not self.found:
            return
        first, *others = self.found
        if not others:
            raise DataError(first.what, where=f"{self.path}:{first.place}", value=first.value, cure=first.cure)
        cures = dict.fromkeys(p.cure for p in self.found if p.cure)
        raise DataError(
            f"{self._count()} in this file\n" + "\n".join(f"  {_line(self.path, p)}" for p in self.found),
            where=str(self.path),
            cure="; ".join(list(cures)[:3]) or None,
        )

    def _count(self) -> str:
        if self.keep_going:
            every = len(self.found) + self.further
            return f"{every} problems, the first {len(self.found)} of them," if self.further else f"{every} problems"
        most = "the first " if len(self.found) >= MOST_PROBLEMS else ""
        return f"{most}{len(self.found)} problems"


@dataclass
class Faults:
    """What is wrong in several files: the first faulty one stops the reading, or with `keep_going` all are read first.

    Pass every reading through `of`, and call `stop` after the last one.
    """

    keep_going: bool = False
    found: list[InputError] = field(default_factory=list)

    def of(self, items: Iterable[T]) -> Iterator[T]:
        """Pass on what a reader gives; keep the error that ends it, where all are wanted."""
        try:
            yield from items
        except InputError as error:
            if not self.keep_going:
                raise
            self.found.append(error)

    def stop(self) -> None:
        """Raise one error that shows all that were kept."""
        if self.found:
            raise together(self.found)


def place(number: int, unit: str) -> str:
    """`7` for a line, `row 7` or `page 7` for what has no lines."""
    return f"{unit} {number}" if unit else str(number)


def kind_of(path: PurePath) -> str:
    """What a file holds by its name: the suffix in lower case, without the packing's (`a.jsonl.gz`: `.jsonl`)."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in PACKINGS else suffix


def how_read(path: PurePath) -> str:
    """All of a name that says how the file is read: `.csv`, or `.csv.gz` for a packed one."""
    suffix = path.suffix.lower()
    return kind_of(path) + suffix if suffix in PACKINGS else suffix


def _line(path: PurePath, problem: Problem) -> str:
    found = "" if problem.value is None else f" (found: {shorten(problem.value, 60)})"
    return f"{path.name}:{problem.place}: {problem.what}{found}"


def refuse(
    path: PurePath, what: str, *, line: int | str | None = None, value: object = None, cure: str | None = None
) -> NoReturn:
    """Stop at once: the file as a whole cannot be read."""
    raise DataError(what, where=str(path) if line is None else f"{path}:{line}", value=value, cure=cure)


def first_line(error: Exception) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked. Raises DataError for what cannot be opened or is damaged while it is read."""
    try:
        with path.open("rb") as file:
            yield unpacked(file, path.suffix.lower())
    except Damaged as error:
        cure = "fetch or pack the file again: what comes after this place is lost"
        refuse(path, str(error), line=error.line, cure=cure)
    except OSError as error:
        refuse(
            path,
            f"the file cannot be read: {error.strerror or error}",
            cure="check that it exists, is a file and may be read by you",
        )


def read_text(path: Path, note: Note, *, keep_going: bool = False) -> str:
    """A whole file as text, its line ends made `\\n`. Raises DataError."""
    problems, size, found = Problems(path, keep_going=keep_going), 0, []
    for number, text in lines(path, problems, note):
        size += len(text)
        if size > LONGEST:
            refuse(path, _too_long("one page"), line=number, cure="split it into several files")
        found.append(text)
    problems.stop()
    return unified("".join(found))


def unified(text: str) -> str:
    """The same text with all line ends as `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path, problems: Problems, note: Note, *, replace: bool = False) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers, line ends kept. What is wrong with one goes to `problems`.

    replace: a faulty line comes too, with marks where its faults were, so that the lines around it keep their sense.
    """
    number = 0
    with opened(path) as file:
        try:
            for number, text in _decoded(path, file, problems, note):
                if text is not None:
                    yield number, text
                elif replace:
                    yield number, "\ufffd\n"
        except Damaged as error:
            error.line = number + 1
            raise


def _decoded(path: Path, file: BinaryIO, problems: Problems, note: Note) -> Iterator[tuple[int, str | None]]:
    """Every line; None for one that is not text."""
    offset = 0
    for number, line in enumerate(iter(partial(file.readline, LONGEST + 1), b""), 1):
        if len(line) >= NOTEWORTHY:
            _long_line(path, number, len(line), note)
        data = start(path, line, note) if number == 1 else line
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(_undecodable(path, number, offset + len(line) - len(data), data, error))
            yield number, None
        else:
            if "\0" in text:
                what = f"a NUL byte at byte offset {offset + line.index(0)}"
                cure = f"the file is binary or damaged; if not: tr -d '\\000' < {path.name} > clean{path.suffix}"
                problems.add(Problem(what, number, text.index("\0") + 1, text[:60], cure))
                yield number, None
            else:
                yield number, text
        offset += len(line)
    if offset == 0:
        refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")


def start(path: Path, data: bytes, note: Note) -> bytes:
    """The first bytes of a file without the UTF-8 mark. Refuses those of UTF-16 and of files that are no text."""
    if data.startswith(BOM):
        note(f"{path.name}: a UTF-8 byte order mark was dropped")
        return data[len(BOM) :]
    if data[:2] in _OTHER_BOMS:
        what = f"the file is {_OTHER_BOMS[data[:2]]}, not UTF-8"
        refuse(path, what, line=1, cure=_encoding_cure(path, "utf-16"))
    for mark, (kind, need) in _OTHER_KINDS.items():
        if data.startswith(mark):
            refuse(path, f"the file is {kind}, not text", line=1, value=data[:16], cure=f"it needs {need}")
    return data


def _undecodable(path: Path, number: int, offset: int, data: bytes, error: UnicodeDecodeError) -> Problem:
    """offset: of `data` in the file, in bytes."""
    what = f"not UTF-8: byte 0x{data[error.start]:02x} at byte offset {offset + error.start}"
    column = len(data[: error.start].decode("utf-8")) + 1
    value = data[max(0, error.start - 20) : error.start + 20]
    return Problem(what, number, column, value, _encoding_cure(path, "latin1"))


def _long_line(path: Path, number: int, size: int, note: Note) -> None:
    if size > LONGEST:
        cure = "split it; where the file is a JSON array, name it .json"
        refuse(path, _too_long("one line"), line=number, cure=cure)
    note(f"{path.name}:{number}: one line of {size / 1e6:.0f} MB")


def _too_long(what: str) -> str:
    return f"{what} of more than {LONGEST // 2**20} MiB"


def _encoding_cure(path: Path, guess: str) -> str:
    return f"save it as UTF-8; if it is {guess}: iconv -f {guess} -t utf-8 {path.name} > utf8-{path.name}"
