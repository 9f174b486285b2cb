"""What a question-answer pair is while it is made: its words, its evidence, and where it comes from.

A passage is a piece of the user's material that a teacher sees at a time: a chunk of a document, or a row of a fact
table told in sentences. Imports nothing heavy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from metier.core.fingerprint import digest
from metier.text.artifacts import conversation_row
from metier.text.nouns import Conversation, Message

QuestionType = Literal["factual", "definition", "number", "yes_no", "list", "reason", "comparison", "summary"]
TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
BETWEEN = "\n"
"""Parts the quotations of an evidence, and the documents of a pair, where they stand in one field."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """A piece of the material. document: whose it is. number: its place there, from 1."""

    document: str
    number: int
    text: str

    @property
    def id(self) -> str:
        """`document#number`."""
        return f"{self.document}#{self.number}"


@dataclass(frozen=True)
class Pair:
    """A question with its answer, before anything is checked.

    passages: the ids of what it was made from, the first being its own. evidence: quotations that have to stand in
    these. where: what to call it in a list of rejects, such as `fish.csv:7, template 2`.
    """

    question: str
    answer: str
    evidence: tuple[str, ...]
    type: QuestionType
    difficulty: Difficulty
    passages: tuple[str, ...]
    teacher: str
    where: str

    @property
    def documents(self) -> tuple[str, ...]:
        """The documents that it joins, its own first."""
        return tuple(dict.fromkeys(document_of(passage) for passage in self.passages))

    @property
    def id(self) -> str:
        """The first 16 hex digits of a digest over its words and its passages."""
        return digest([self.question, self.answer, *self.passages])[:16]

    def row(self, system: str | None = None) -> Row:
        """As it stands in a split's file, with its provenance as `meta`."""
        opening = (Message("system", system),) if system else ()
        messages = (*opening, Message("user", self.question), Message("assistant", self.answer))
        return conversation_row(Conversation(self.id, messages, self.type, self.provenance()))

    def provenance(self) -> dict[str, str]:
        """Where it comes from. cluster: by which scores count pairs of one document as one unit."""
        return {
            "cluster": self.documents[0],
            "document": BETWEEN.join(self.documents),
            "passage": BETWEEN.join(self.passages),
            "evidence": BETWEEN.join(self.evidence),
            "teacher": self.teacher,
            "type": self.type,
            "difficulty": self.difficulty,
        }


@dataclass(frozen=True)
class Reject:
    """Something that a teacher gave and that is left out. kind: counted by it. reason: with the particulars."""

    where: str
    kind: str
    reason: str
    row: Mapping[str, Any]

    def json(self) -> Row:
        """As it stands in `rejects.jsonl`."""
        return {"where": self.where, "kind": self.kind, "reason": self.reason, "row": dict(self.row)}


def document_of(passage_id: str) -> str:
    """The document that a passage's id names."""
    return passage_id.rpartition("#")[0]


def refuse(pair: Pair, kind: str, reason: str = "") -> Reject:
    """The reject that a pair becomes. reason: the kind itself where nothing is to be added."""
    return Reject(pair.where, kind, f"{kind}: {reason}" if reason else kind, pair.row())


def count_by(names: Sequence[str], order: Sequence[str] = ()) -> dict[str, int]:
    """How often each stands there: those of `order` first, in that order, then the others by their number."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    first = {name: counts[name] for name in order if name in counts}
    return first | dict(sorted(((n, c) for n, c in counts.items() if n not in first), key=lambda nc: (-nc[1], nc[0])))
