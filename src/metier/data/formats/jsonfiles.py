"""Rows of JSON: one object a line (`.jsonl`), one array of objects, or one object of objects by their ids (`.json`).

All are streamed. An array may lie on one line of any length: memory holds a few items, and no item may pass 64 MiB.
Refuses malformed JSON, what is no object, NaN, Infinity, numbers past the range of a double, and halves of surrogate
pairs, each with line and column.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from metier.data.files import LONGEST, Note, Problem, Problems, lines, opened, refuse, start

PIECE = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DEEPEST = 100
"""Levels of brackets in a row: Python reads some 900 of them, and then fails to write them where it stands deeper."""
_NEAR_THE_END = 16
"""Characters: an error so near the end of what was read may only mean that the rest was not read yet."""

Row = dict[str, Any]


def json_lines(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, Row]]:
    """The objects of a file that holds one a line, each with its line. Blank lines are skipped."""
    first = 0
    for number, text in lines(path, problems, note):
        if not text.strip():
            continue
        first = first or number
        try:
            value = _DECODER.decode(text.rstrip())
        except json.JSONDecodeError as error:
            if number == first and text.lstrip().startswith("["):
                cure = "name an array's file .json, or write one object a line, without brackets and commas"
                what = "this looks like a JSON array, where one object a line is expected"
                refuse(path, what, line=number, value=text.strip()[:60], cure=cure)
            problems.add(Problem(f"malformed JSON: {error.msg}", number, error.colno, text.strip(), _cure(text, error)))
        except (ValueError, RecursionError) as error:
            problems.add(Problem(f"not usable as JSON: {error}", number, 1, text.strip(), "correct or remove the row"))
        else:
            if _sound(text, value, number, problems) and _is_object(value, number, problems):
                yield number, value


def json_items(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, Row]]:
    """The objects of a file that is one array of them, or one object of them by id, each with the line it starts on.

    An id that is only a key becomes the row's `id`.
    """
    text = _Unread(path, _pieces(path, problems, note))
    first = text.peek()
    if first not in ("[", "{"):
        _refuse_form(path, text.line, text.sample())
    text.at += 1
    closing = "]" if first == "[" else "}"
    while text.peek() != closing:
        try:
            key = None if first == "[" else _key(text)
            text.peek()
            line = text.line
            value = text.value()
        except json.JSONDecodeError as error:
            where, column = text.place(error.pos)
            problems.add(Problem(f"malformed JSON: {error.msg}", where, column, text.sample(), "correct it"))
            return
        except (ValueError, RecursionError) as error:
            what = f"not usable as JSON: {error}"
            problems.add(Problem(what, text.line, 0, text.sample(), "correct or remove the item"))
            return
        if _sound(text.taken, value, line, problems) and _is_object(value, line, problems):
            yield line, value if key is None else {"id": key, **value}
        if text.peek() == ",":
            text.at += 1
        elif text.peek() != closing:
            what = f"malformed JSON: expected ',' or '{closing}'"
            problems.add(Problem(what, text.line, 0, text.sample(), "correct it"))
            return
    text.at += 1
    if text.peek():
        what = f"something follows the {'array' if closing == ']' else 'object'}"
        cure = "a .json file holds one array of objects; where each line is an object, name the file .jsonl"
        refuse(path, what, line=text.line, value=text.sample(), cure=cure)


def _key(text: "_Unread") -> str:
    """The id before an item of an object, its colon taken too. Refuses objects that hold no rows."""
    line, sample = text.line, text.sample()
    key = text.value()
    if not isinstance(key, str):
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text.taken, 0)
    if text.peek() != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text.taken, 0)
    text.at += 1
    if text.peek() == "[":
        cure = f"take them out: jq '.{key}' {text.path.name} > rows.json"
        refuse(text.path, f"the rows seem to lie below {key!r}", line=line, value=sample, cure=cure)
    if text.peek() not in ("{", ""):
        _refuse_form(text.path, line, sample)
    return key


def _refuse_form(path: Path, line: int, sample: str) -> NoReturn:
    refuse(
        path,
        "a .json file has to be one array of objects, or one object that holds objects by their ids",
        line=line,
        value=sample,
        cure="write [ {...}, {...} ]; where each line is an object, name the file .jsonl",
    )


class _Unread:
    """Text of which the front is read away. at: where reading stands. taken: what the last value was made of."""

    def __init__(self, path: Path, pieces: Iterator[str]) -> None:
        self.path = path
        self.at = 0
        self.taken = ""
        self._text = ""
        self._pieces = pieces
        self._line, self._column, self._counted = 1, 1, 0

    @property
    def line(self) -> int:
        """The line of `at`. Counted on from the last time."""
        return self.place(0)[0]

    def place(self, ahead: int) -> tuple[int, int]:
        """Line and column, both from 1, of the character `ahead` of where reading stands."""
        self._count(self.at)
        before = self._text[self.at : self.at + ahead]
        breaks = before.count("\n")
        column = len(before) - before.rfind("\n") if breaks else self._column + len(before)
        return self._line + breaks, column

    def sample(self) -> str:
        """What stands next, shortened."""
        return self._text[self.at : self.at + 60]

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Take the value that stands next. The position of an error counts from where reading stands."""
        while True:
            left = len(self._text) - self.at
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                cut = error.msg.startswith("Unterminated string") or ahead >= left - _NEAR_THE_END
                if cut and self._double(left):
                    continue
                raise json.JSONDecodeError(error.msg, self._text[self.at : error.pos], ahead) from None
            if end == len(self._text) and self._double(left):
                continue  # a number may go on in the next piece
            self.taken = self._text[self.at : end]
            self.at = end
            return value

    def _double(self, left: int) -> bool:
        """Read on until twice as much is there, so that a long item is not tried at every piece."""
        if left > LONGEST:
            cure = "split it, or close the bracket or quotation mark that is open since here"
            refuse(self.path, f"one item of more than {LONGEST // 2**20} MiB", line=self.line, cure=cure)
        more = self._more()
        while len(self._text) < 2 * left and self._more():
            pass
        return more

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._count(self.at)
        self._text = self._text[self.at :] + piece
        self.at = self._counted = 0
        return True

    def _count(self, upto: int) -> None:
        passed = self._text.count("\n", self._counted, upto)
        if passed:
            self._column = upto - self._text.rfind("\n", self._counted, upto)
        else:
            self._column += upto - self._counted
        self._line += passed
        self._counted = upto


def _pieces(path: Path, problems: Problems, note: Note) -> Iterator[str]:
    """A file's text in pieces that need not end with a line. Bytes that are no text go to `problems`, which stop."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opened(path) as file:
        data = start(path, file.read(PIECE), note)
        if not data:
            refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")
        while data:
            try:
                text = decoder.decode(data)
                if "\0" in text:
                    break
            except UnicodeDecodeError:
                break
            yield text
            data = file.read(PIECE)
        else:
            if not decoder.getstate()[0]:
                return
    for _ in lines(path, problems, lambda _: None):  # the same faults again, line by line, with their places
        pass
    problems.stop()


def _is_object(value: Any, line: int, problems: Problems) -> bool:
    if isinstance(value, dict):
        return True
    cure = 'write rows such as {"question": "...", ...}'
    if isinstance(value, list):
        cure = "a file that is one JSON array has to be named .json; in .jsonl every line is one object"
    problems.add(Problem("a row has to be a JSON object", line, 1, value, cure))
    return False


def _sound(text: str, value: Any, line: int, problems: Problems) -> bool:
    """Half of a surrogate pair is legal in JSON's escapes, but no text that UTF-8 can write; so is any depth."""
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        what = f"not usable as JSON: brackets within brackets more than {_DEEPEST} deep"
        problems.add(Problem(what, line, 1, text[:60], "correct or remove the row"))
        return False
    if "\\u" not in text or not _ESCAPED_SURROGATE.search(text):
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = ascii(str(error.object)[error.start : error.end])
        problems.add(Problem("half of a surrogate pair in a text", line, 0, found, r"remove the \ud8.. escape"))
        return False
    return True


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for items in inner for item in items]
    return depth


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
"""Refuses what Python's reader would let in and no JSON writer may put out: NaN, Infinity, 1e999."""


def _cure(text: str, error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Extra data"):
        return "one object a line: put what follows on a line of its own"
    if text.lstrip().startswith("{'"):
        return "JSON quotes names and texts with \", not '"
    if text.strip() == "{":
        return "this looks like JSON over several lines: write each object on one line"
    return "every line has to be one complete JSON object"
