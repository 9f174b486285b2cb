"""Users' files, line by line, with the place of everything that is wrong in them.

Reads UTF-8 (a byte order mark is accepted, dropped and noted) as JSON Lines, a JSON array, or one plain text. Refuses,
with file, line and column: what cannot be opened, other encodings, NUL bytes, malformed JSON, lone surrogates, and
files without content. JSON Lines are streamed: memory holds one line, 200,000 rows take about half a second. A JSON
array and a plain text are held whole.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from metier.core.errors import DataError, shorten

MOST_PROBLEMS = 20
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file. column counts characters from 1; 0 where it concerns the whole row."""

    what: str
    line: int
    column: int = 0
    value: object = None
    cure: str | None = None

    @property
    def place(self) -> str:
        """`line` or `line:column`."""
        return f"{self.line}:{self.column}" if self.column else str(self.line)


@dataclass
class Problems:
    """What is wrong in one file, gathered so that one message shows up to twenty of them."""

    path: Path
    found: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Take note of a problem; the twentieth raises."""
        self.found.append(problem)
        if len(self.found) >= MOST_PROBLEMS:
            self.stop()

    def stop(self) -> None:
        """Raise DataError where anything was found."""
        if not self.found:
            return
        first, *others = self.found
        if not others:
            raise DataError(first.what, where=f"{self.path}:{first.place}", value=first.value, cure=first.cure)
        most = f"the first {len(self.found)}" if len(self.found) >= MOST_PROBLEMS else str(len(self.found))
        cures = dict.fromkeys(p.cure for p in self.found if p.cure)
        raise DataError(
            f"{most} problems in this file\n" + "\n".join(f"  {_line(self.path, p)}" for p in self.found),
            where=str(self.path),
            cure="; ".join(list(cures)[:3]) or None,
        )


def _line(path: Path, problem: Problem) -> str:
    found = "" if problem.value is None else f" (found: {shorten(problem.value, 60)})"
    return f"{path.name}:{problem.place}: {problem.what}{found}"


def refuse(
    path: Path, what: str, *, line: int | None = None, value: object = None, cure: str | None = None
) -> NoReturn:
    """Stop at once: the file as a whole cannot be read."""
    raise DataError(what, where=str(path) if line is None else f"{path}:{line}", value=value, cure=cure)


def read_text(path: Path, note: Note) -> str:
    """A whole file as text, its line ends made `\\n`. Raises DataError."""
    problems = Problems(path)
    lines = [text for _, text in _lines(path, problems, note)]
    problems.stop()
    return "".join(lines).replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a `.jsonl` or `.json` file with the line that each starts on.

    What is wrong with single rows goes to `problems`, for the caller to `stop()` at the end. Blank lines are skipped.
    """
    values = _array(path, problems, note) if path.suffix.lower() == ".json" else _json_lines(path, problems, note)
    for line, value in values:
        if isinstance(value, dict):
            yield line, value
        else:
            problems.add(
                Problem("a row has to be a JSON object", line, 1, value, 'write rows such as {"question": "...", ...}')
            )


def _json_lines(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, Any]]:
    for number, text in _lines(path, problems, note):
        if not text.strip():
            continue
        try:
            value = json.loads(text.rstrip(), **_STRICT)
        except json.JSONDecodeError as error:
            problems.add(
                Problem(f"malformed JSON: {error.msg}", number, error.colno, text.strip(), _json_cure(text, error))
            )
        except (ValueError, RecursionError) as error:
            problems.add(Problem(f"not usable as JSON: {error}", number, 1, text.strip(), "correct or remove the row"))
        else:
            if _sound(text, value, number, problems):
                yield number, value


def _array(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, Any]]:
    """The items of a JSON array, decoded one by one, so that each is known by the line it starts on."""
    text = read_text(path, note)
    decoder = json.JSONDecoder(**_STRICT)
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        refuse(
            path,
            "a .json file has to be one array of objects",
            line=1,
            value=text[at : at + 60],
            cure="write [ {...}, {...} ]; where each line is an object, name the file .jsonl",
        )
    at = _skip(text, at + 1)
    line, counted = 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            problems.add(
                Problem(f"malformed JSON: {error.msg}", error.lineno, error.colno, text[at : at + 60], "correct it")
            )
            return
        except (ValueError, RecursionError) as error:
            problems.add(
                Problem(f"not usable as JSON: {error}", line, 0, text[at : at + 60], "correct or remove the item")
            )
            return
        if _sound(text[at:end], value, line, problems):
            yield line, value
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            problems.add(Problem("malformed JSON: expected ',' or ']'", line, 0, text[at : at + 60], "correct it"))
            return
    rest = text[at + 1 :].strip()
    if rest:
        refuse(path, "something follows the array", value=rest[:60], cure="a .json file holds one array")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _lines(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers, line ends kept. Bad lines go to `problems`."""
    try:
        with path.open("rb") as file:
            yield from _decoded(path, file, problems, note)
    except OSError as error:
        refuse(
            path,
            f"the file cannot be read: {error.strerror or error}",
            cure="check that it exists, is a file and may be read by you",
        )


def _decoded(path: Path, file: BinaryIO, problems: Problems, note: Note) -> Iterator[tuple[int, str]]:
    offset = 0
    number = 0
    for number, line in enumerate(file, 1):
        data = line
        if number == 1:
            if data.startswith(BOM):
                note(f"{path.name}: a UTF-8 byte order mark was dropped")
                data = data[len(BOM) :]
            elif data[:2] in _OTHER_BOMS:
                refuse(
                    path, f"the file is {_OTHER_BOMS[data[:2]]}, not UTF-8", line=1, cure=_encoding_cure(path, "utf-16")
                )
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            at = offset + len(line) - len(data) + error.start
            column = len(data[: error.start].decode("utf-8")) + 1
            what = f"not UTF-8: byte 0x{data[error.start]:02x} at byte offset {at}"
            value = data[max(0, error.start - 20) : error.start + 20]
            problems.add(Problem(what, number, column, value, _encoding_cure(path, "latin1")))
        else:
            if "\0" in text:
                what = f"a NUL byte at byte offset {offset + line.index(0)}"
                cure = f"the file is binary or damaged; if not: tr -d '\\000' < {path.name} > clean{path.suffix}"
                problems.add(Problem(what, number, text.index("\0") + 1, text[:60], cure))
            else:
                yield number, text
        offset += len(line)
    if offset == 0:
        refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")


def _sound(text: str, value: Any, line: int, problems: Problems) -> bool:
    """Half of a surrogate pair is legal in JSON's escapes, but no text that UTF-8 can write."""
    if not _ESCAPED_SURROGATE.search(text):
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ascii(str(error.object)[error.start : error.end])
        problems.add(Problem("half of a surrogate pair in a text", line, 0, found, r"remove the \ud8.. escape"))
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large a number")
    return value


_STRICT: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _finite}
"""What Python's reader would let in and no JSON writer may put out: NaN, Infinity, 1e999."""


def _json_cure(text: str, error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Extra data"):
        return "one object a line: put what follows on a line of its own"
    if text.lstrip().startswith("{'"):
        return "JSON quotes names and texts with \", not '"
    if text.strip() in ("[", "{", "[{"):
        return "this looks like JSON over several lines: name an array's file .json, or write one object a line"
    return "every line has to be one complete JSON object"


def _encoding_cure(path: Path, guess: str) -> str:
    return f"save it as UTF-8; if it is {guess}: iconv -f {guess} -t utf-8 {path.name} > utf8-{path.name}"
