"""MedQuAD's own XML, and any other of the same build: one document with pairs of a question and an answer.

    <Document id= source= url=> <Focus>...</Focus> <QAPairs> <QAPair> <Question qid= qtype=> <Answer>

A row per pair, known by the line of its `<QAPair>`; pairs whose answer was taken out for copyright are blank rows.
Streamed. Refuses malformed XML with line and column, entities that the file defines itself, and files without pairs.
Source: Ben Abacha and Demner-Fushman, "A question-entailment approach to question answering", 2019.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from metier.data.files import LONGEST, Note, Problem, Problems, opened, refuse

META = ("focus", "qtype", "source", "url")
"""What a row tells beside question, answer and id."""
PIECE = 2**18

Row = dict[str, Any]


def pairs(path: Path, problems: Problems, note: Note) -> Iterator[tuple[int, Row]]:
    """Rows with question, answer, id and, where the file gives them, focus, qtype, source and url."""
    document = _Document(path, note)
    with opened(path) as file:
        data = file.read(PIECE)
        if not data:
            refuse(path, "the file is empty", cure="remove it from the source's path, or fill it")
        while True:
            try:
                document.parser.Parse(data, not data)
            except expat.ExpatError as error:
                what = f"malformed XML: {expat.errors.messages[error.code]}"
                cure = "correct it; & is written &amp; and < is written &lt;"
                problems.add(Problem(what, error.lineno, error.offset + 1, None, cure))
                return
            except (ValueError, LookupError) as error:  # an encoding that Python does not know, or bytes not in it
                problems.add(
                    Problem(
                        f"not usable as XML: {error}", document.parser.CurrentLineNumber, 0, None, "save it as UTF-8"
                    )
                )
                return
            yield from document.rows
            document.rows.clear()
            if not data:
                break
            data = file.read(PIECE)
    if not document.count:
        cure = "it needs <QAPair> with <Question> and <Answer>; convert other XML to .jsonl"
        refuse(path, "the XML file holds no <QAPair>", value=sorted(document.tags)[:20], cure=cure)


class _Document:
    """Collects rows as the parser comes by. The text of an element is kept only where it is wanted."""

    def __init__(self, path: Path, note: Note) -> None:
        self.rows: list[tuple[int, Row]] = []
        self.count = 0
        self.tags: set[str] = set()
        self._path = path
        self._note = note
        self._about: Row = {}
        self._row: Row = {}
        self._line = 0
        self._wanted: str | None = None
        self._text: list[str] = []
        self._size = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.EntityDeclHandler = self._entity

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.lower()
        if len(self.tags) < 50:
            self.tags.add(tag)
        if name == "document":
            self._about = {key: attributes[key] for key in ("source", "url") if attributes.get(key)}
        elif name == "qapair":
            self._row, self._line = {}, self.parser.CurrentLineNumber
        elif name == "question":
            given = {"id": attributes.get("qid"), "qtype": attributes.get("qtype")}
            self._row.update({key: value for key, value in given.items() if value})
        if name in ("focus", "question", "answer"):
            self._wanted, self._text, self._size = name, [], 0

    def _characters(self, text: str) -> None:
        if self._wanted:
            self._text.append(text)
            self._size += len(text)
            if self._size > LONGEST:
                refuse(
                    self._path,
                    f"one {self._wanted} of more than {LONGEST // 2**20} MiB",
                    line=self._line,
                    cure="split it",
                )

    def _end(self, tag: str) -> None:
        name = tag.lower()
        if name == self._wanted:
            text = "".join(self._text)
            if name == "focus":
                self._about.setdefault("focus", text.strip())
            else:
                self._row[name] = text
            self._wanted = None
        elif name == "qapair":
            self.count += 1
            self.rows.append((self._line, {"question": "", "answer": "", **self._row, **self._about}))

    def _entity(self, name: str, *_: Any) -> None:
        cure = "write its text in its place"
        refuse(
            self._path, f"the file defines an entity of its own: {name}", line=self.parser.CurrentLineNumber, cure=cure
        )
