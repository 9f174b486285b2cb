"""The teacher that needs no model: rows of a fact table, told and asked by templates.

A template file is YAML: `name`, the column that names a row; `passage`, the sentences that state its facts; and
`templates`, each with wordings to `ask`, an `answer`, a `type` and a `difficulty`. In all of them

    {column}         is the row's value
    {other.column}   that of another row, drawn by the seed, whose value differs
    {all.column}     those of all rows that share the values which the question names
    {column|a}       puts `a` or `an` before it

The first letter of a sentence is made large. A sentence of a passage, or a question, whose cells are empty is left out.
Evidence is what the passage says of the columns that a pair uses, so a column that an answer uses has to be stated.

Refuses, with file and line: malformed templates, columns that the table does not have, answers that no sentence states,
two rows of one name, rows without one, and a `more` column that holds no numbers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import Formatter

from pydantic import Field

from metier.core.errors import DataError, nearest, together
from metier.core.explain import validate
from metier.core.marked import Marked, read_marked
from metier.core.stage import Config, Where
from metier.synthesize.pair import Difficulty, Pair, Passage, QuestionType
from metier.synthesize.tables import Fact, Table, joined
from metier.text.overlap import letters

DRAWS = 50
"""Rows that are tried as the other one of a pair."""
_NUMBER = re.compile(r"[-+]?\d[\d ,]*(?:\.\d+)?")


class Template(Config):
    """One kind of question about a row."""

    ask: list[str] = Field(min_length=1)
    """Wordings of the question."""
    answer: str = Field(min_length=1)
    """The answer to all of them."""
    type: QuestionType = "factual"
    """What kind of question it is."""
    difficulty: Difficulty = "easy"
    """How hard it is."""
    only: dict[str, str | list[str]] = Field(default_factory=dict)
    """The rows that it is for: those with this value, or one of these, in a column."""
    more: str | None = None
    """A column of numbers of which this row has more than the other: for `Which is longer, ...?`."""


class Templates(Config):
    """A template file."""

    name: str
    """The column that names a row: the fish, the drug, the clause."""
    passage: list[str] = Field(min_length=1)
    """The sentences that state a row's facts: what a pair quotes as its evidence."""
    templates: list[Template] = Field(min_length=1)
    """The questions."""


@dataclass(frozen=True)
class Slot:
    """A place to be filled. row: self, other or all. form: `a` or nothing."""

    row: str
    column: str
    form: str = ""


Text = tuple[str | Slot, ...]


@dataclass(frozen=True)
class _Asked:
    """A template, taken apart."""

    number: int
    template: Template
    ask: tuple[Text, ...]
    answer: Text

    def columns(self, row: str, *, ask: bool = True) -> list[str]:
        """The columns that it reads of a row; ask: in its questions too."""
        texts = (self.answer, *(self.ask if ask else ()))
        return list(dict.fromkeys(s.column for text in texts for s in _slots(text) if s.row == row))


@dataclass(frozen=True)
class Sheet:
    """A table with its templates, checked. number: of the table among the step's, from 1."""

    number: int
    name: str
    teacher: str
    facts: tuple[Fact, ...]
    passage: tuple[Text, ...]
    asked: tuple[_Asked, ...]

    def passages(self) -> list[Passage]:
        """What each row says, in the table's order."""
        return [Passage(f.values[self.name], self.number, " ".join(self._says(f).values())) for f in self.facts]

    def pairs(self, *, wordings: int | None, seed: int) -> Iterator[Pair]:
        """Every pair: of each row, each template, each wording (wordings: at most so many, drawn by the seed)."""
        for fact in self.facts:
            for asked in self.asked:
                yield from self._of(fact, asked, wordings, seed)

    def blank(self) -> dict[str, int]:
        """How many rows have no value in a column that some template asks for."""
        wanted = dict.fromkeys(c for asked in self.asked for c in asked.columns("self"))
        counts = {name: sum(name not in fact.values for fact in self.facts) for name in wanted}
        return {name: count for name, count in counts.items() if count}

    def _of(self, fact: Fact, asked: _Asked, wordings: int | None, seed: int) -> Iterator[Pair]:
        if not _fits(fact, asked.template, asked.columns("self")):
            return
        draw = Random(f"{seed}:{self.number}:{asked.number}:{fact.values[self.name]}")
        other: Fact | None = None
        alike = self._alike(fact, asked)
        if asked.columns("other") or asked.template.more:
            other = self._other(fact, asked, draw)
            if other is None:
                return
        if asked.columns("all") and (len(alike) < 2 or alike[0] is not fact):
            return
        order = list(range(len(asked.ask)))
        if wordings is not None and wordings < len(order):
            order = sorted(draw.sample(order, wordings))
        evidence, passages = self._evidence(fact, asked, other, alike)
        for place in order:
            yield Pair(
                _fill(asked.ask[place], fact, other, alike),
                _fill(asked.answer, fact, other, alike),
                evidence,
                asked.template.type,
                asked.template.difficulty,
                passages,
                self.teacher,
                f"{fact.where}, template {asked.number}" + (f", wording {place + 1}" if len(asked.ask) > 1 else ""),
            )

    def _evidence(
        self, fact: Fact, asked: _Asked, other: Fact | None, alike: Sequence[Fact]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The sentences that state what the pair uses, and the passages that they stand in."""
        own = {*asked.columns("self"), *([asked.template.more] if asked.template.more else [])}
        found = self._stating(fact, own)
        passages = [self._id(fact)]
        if other is not None and (used := asked.columns("other", ask=False)):
            found += self._stating(other, {*used, *([asked.template.more] if asked.template.more else [])})
            passages.append(self._id(other))
        if asked.columns("all"):
            for one in alike:
                found += self._stating(one, {*asked.columns("all"), *self._shared(asked)})
                passages.append(self._id(one))
        return tuple(dict.fromkeys(found)), tuple(dict.fromkeys(passages))

    def _stating(self, fact: Fact, columns: set[str]) -> list[str]:
        wanted = columns - {self.name} or columns
        return [said for place, said in self._says(fact).items() if wanted & _columns(self.passage[place])]

    def _says(self, fact: Fact) -> dict[int, str]:
        """The sentences that can be said of a row, by their place among those of the passage."""
        return {
            place: _fill(text, fact, None, ())
            for place, text in enumerate(self.passage)
            if _columns(text) <= fact.values.keys()
        }

    def _id(self, fact: Fact) -> str:
        return Passage(fact.values[self.name], self.number, "").id

    def _shared(self, asked: _Asked) -> list[str]:
        return [s.column for text in asked.ask for s in _slots(text) if s.row == "self" and s.column != self.name]

    def _alike(self, fact: Fact, asked: _Asked) -> list[Fact]:
        """The rows that have all that `{all...}` names, and share what the question names; itself among them."""
        wanted = asked.columns("all")
        if not wanted:
            return []
        shared = self._shared(asked)
        return [
            one
            for one in self.facts
            if _fits(one, asked.template, [*wanted, *shared])
            and all(letters(one.values[c]) == letters(fact.values[c]) for c in shared)
        ]

    def _other(self, fact: Fact, asked: _Asked, draw: Random) -> Fact | None:
        """A row to set beside this one; None where none of those drawn will do."""
        more = asked.template.more
        wanted = [*asked.columns("other"), *([more] if more else [])]
        for place in draw.sample(range(len(self.facts)), min(DRAWS, len(self.facts))):
            one = self.facts[place]
            if one is fact or not _fits(one, asked.template, wanted):
                continue
            if more and not (more in fact.values and _number(fact.values[more]) > 1.1 * _number(one.values[more])):
                continue
            if all(_differ(one.values[c], fact.values.get(c, "")) for c in wanted if c != more):
                return one
        return None


def read_sheet(number: int, path: Path, table: Table) -> Sheet:
    """The templates of a file, held against the table that they are for. Raises DataError with all that is wrong."""
    marked = read_marked(path)
    found = validate(Templates, marked.value)
    if not isinstance(found, Templates):
        errors = [DataError(p.what, where=_line(path, marked, p.where), value=p.value, cure=p.cure) for p in found]
        raise together(errors)
    reader = _Reader(path, marked, table)
    passage = tuple(reader.text(text, ("passage", i), rows=("self",)) for i, text in enumerate(found.passage))
    asked = tuple(
        _Asked(
            i + 1,
            one,
            tuple(reader.text(text, ("templates", i, "ask", j)) for j, text in enumerate(one.ask)),
            reader.text(one.answer, ("templates", i, "answer")),
        )
        for i, one in enumerate(found.templates)
    )
    reader.columns(found)
    reader.stated(asked, {column for text in passage for column in _columns(text)} | {found.name})
    reader.rows(found.name, asked)
    reader.stop()
    return Sheet(number, found.name, f"templates of {path.name}", table.facts, passage, asked)


class _Reader:
    """Gathers what is wrong with a template file."""

    def __init__(self, path: Path, marked: Marked, table: Table) -> None:
        self._path, self._marked, self._table = path, marked, table
        self._errors: list[DataError] = []

    def stop(self) -> None:
        """Raise all that was found."""
        if self._errors:
            raise together(self._errors)

    def text(self, text: str, where: Where, rows: Sequence[str] = ("self", "other", "all")) -> Text:
        """A text taken apart."""
        try:
            parts = list(_parsed(text))
        except ValueError as error:
            self._add(f"the template cannot be read: {error}", where, text, "write a column as {name}, a brace as {{")
            return ()
        for slot in _slots(parts):
            if slot.row not in rows:
                known = "{column}" + "".join(f", {{{row}.column}}" for row in rows if row != "self")
                self._add("a row that cannot be named here", where, f"{slot.row}.{slot.column}", f"write {known}")
            elif slot.form not in ("", "a"):
                self._add("no such form of a value", where, slot.form, "known: {column|a}")
            else:
                self._column(slot.column, where)
        if not list(_slots(parts)):
            self._add("the text names no column, so it says the same of every row", where, text, "name one: {column}")
        return tuple(parts)

    def columns(self, found: Templates) -> None:
        """The columns that are named elsewhere than in texts."""
        self._column(found.name, ("name",))
        for i, one in enumerate(found.templates):
            for name in one.only:
                self._column(name, ("templates", i, "only", name))
            if one.more is not None:
                self._column(one.more, ("templates", i, "more"))

    def stated(self, asked: Sequence[_Asked], stated: set[str]) -> None:
        """What an answer tells stands in the passage, or nothing could be quoted for it."""
        for one in asked:
            where: Where = ("templates", one.number - 1, "answer")
            for column in dict.fromkeys(s.column for s in _slots(one.answer)):
                if column in self._table.columns and column not in stated:
                    cure = f"add a sentence with {{{column}}} to `passage`"
                    self._add("no sentence of the passage states what the answer tells", where, column, cure)
            rows = {s.row for text in one.ask for s in _slots(text)}
            shared = {s.column for text in one.ask for s in _slots(text) if s.row == "self"}
            if any(s.row == "all" for s in _slots(one.answer)) and not shared:
                cure = "name in `ask` the column whose value they share: Which of them live in {habitat}?"
                self._add("{all...} needs to be told what rows have in common", where, one.template.answer, cure)
            if one.template.more and "other" not in rows:
                cure = "ask of both: Which is longer, the {name} or the {other.name}?"
                self._add("`more` compares with another row, which the question does not name", where, None, cure)

    def rows(self, name: str, asked: Sequence[_Asked]) -> None:
        """Every row is named, no two the same, and numbers are numbers."""
        if name not in self._table.columns:
            return
        seen: dict[str, Fact] = {}
        for fact in self._table.facts:
            value = fact.values.get(name, "")
            if not value:
                self._errors.append(DataError(f"the row has no {name!r}, which names it", where=fact.where))
            elif letters(value) in seen:
                earlier = seen[letters(value)].where
                cure = "keep one of the two, or name another column as `name`"
                self._errors.append(DataError(f"{earlier} has the same name", where=fact.where, value=value, cure=cure))
            seen[letters(value)] = fact
        for column in {one.template.more for one in asked if one.template.more}:
            for fact in self._table.facts:
                value = fact.values.get(column, "0")
                if not _NUMBER.match(value):
                    what = f"{column!r} is compared as a number, and this is none"
                    self._errors.append(
                        DataError(what, where=fact.where, value=value, cure="write a number, or leave it empty")
                    )

    def _column(self, name: str, where: Where) -> None:
        if name not in self._table.columns:
            self._add("the table has no such column", where, name, nearest(name, self._table.columns))

    def _add(self, what: str, where: Where, value: object, cure: str) -> None:
        self._errors.append(DataError(what, where=_line(self._path, self._marked, where), value=value, cure=cure))


def _line(path: Path, marked: Marked, where: Where) -> str:
    """`file:line`, and the path inside the file, of the nearest thing that stands there."""
    place = where
    while place and place not in marked.lines:
        place = place[:-1]
    named = ".".join(map(str, where))
    return f"{path}:{marked.lines.get(place, 1)}" + (f": {named}" if named else "")


def _parsed(text: str) -> Iterator[str | Slot]:
    """The pieces of a template's text. Raises ValueError for braces that do not match and for what is no column."""
    for literal, field, spec, conversion in Formatter().parse(text):
        if literal:
            yield literal
        if field is None:
            continue
        name, _, form = field.partition("|")
        row, dot, column = name.partition(".")
        if spec or conversion or not name.strip():
            raise ValueError(f"{{{field}}} is no column")
        if dot and row in ("other", "all"):
            yield Slot(row, column.strip(), form.strip())
        else:
            yield Slot("self", name.strip(), form.strip())


def _slots(text: Sequence[str | Slot]) -> Iterator[Slot]:
    return (part for part in text if isinstance(part, Slot))


def _columns(text: Text) -> set[str]:
    return {slot.column for slot in _slots(text)}


def _fill(text: Text, fact: Fact, other: Fact | None, alike: Sequence[Fact]) -> str:
    said = "".join(part if isinstance(part, str) else _value(part, fact, other, alike) for part in text)
    said = " ".join(said.split())
    return said[:1].upper() + said[1:]


def _value(slot: Slot, fact: Fact, other: Fact | None, alike: Sequence[Fact]) -> str:
    if slot.row == "all":
        return joined([_formed(one.values[slot.column], slot.form) for one in alike])
    row = other if slot.row == "other" else fact
    assert row is not None
    return _formed(row.values[slot.column], slot.form)


def _formed(value: str, form: str) -> str:
    if form != "a":
        return value
    vowel = value[:1].lower() in "aeiou" and not value.lower().startswith(("eu", "uni", "use"))
    return f"{'an' if vowel else 'a'} {value}"


def _fits(fact: Fact, template: Template, columns: Sequence[str]) -> bool:
    """Whether a row is one that the template is for, and has what is asked of it."""
    values: Mapping[str, str] = fact.values
    if not all(name in values for name in columns):
        return False
    return all(
        values.get(name) in ([wanted] if isinstance(wanted, str) else wanted) for name, wanted in template.only.items()
    )


def _differ(one: str, other: str) -> bool:
    """Whether neither says what the other does."""
    a, b = f" {letters(one)} ", f" {letters(other)} "
    return not other or (a not in b and b not in a)


def _number(value: str) -> float:
    found = _NUMBER.match(value)
    assert found is not None
    return float(re.sub(r"[ ,]", "", found[0]))
