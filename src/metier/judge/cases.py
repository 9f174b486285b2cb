"""What is judged, from an `answers` artifact: which contenders, which questions, and what they are held against.

Refuses a question without the evidence that the step judges by, and texts beyond `longest`, before anything is asked.
Imports nothing heavy.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.errors import DataError, RecipeError, StoreError, nearest
from metier.judge.prompts import Case
from metier.text.artifacts import read_answers, read_asked
from metier.text.nouns import Question

if TYPE_CHECKING:
    from metier.judge.stage import Judge

TRIVIAL = "trivial"
TOO_LONG = "too long for the step's `longest`"
Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """Cases, contender by contender. questions: by id. skipped: indices of cases that are too long, and why."""

    cases: list[Case]
    questions: dict[str, Question]
    skipped: dict[int, str]
    contenders: list[str]


def contenders_of(folder: Path) -> dict[str, Row]:
    """The contenders of an `answers` artifact by name."""
    path = folder / "contenders.json"
    try:
        return {str(one["name"]): one for one in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "delete the artifact's folder and run again"
        raise StoreError(f"the contenders cannot be read: {error}", where=str(path), cure=cure) from error


def cases_of(stage: "Judge", folder: Path) -> Material:
    """All that the step judges.

    Raises RecipeError for a contender that is none, DataError for a question that lacks evidence, or is too long.
    """
    known = contenders_of(folder)
    named = [("contenders", name) for name in stage.contenders or ()]
    for field, name in [*named, *([("pairwise.against", stage.pairwise.against)] if stage.pairwise else [])]:
        if name not in known:
            raise RecipeError("no such contender", where=field, value=name, cure=nearest(name, known))
    chosen = stage.contenders or [name for name, one in known.items() if one.get("kind") != TRIVIAL] or list(known)
    against = stage.pairwise.against if stage.pairwise else None
    chosen = [name for name in chosen if name != against]
    if not chosen:
        cure = "answer with two contenders, or name others"
        raise DataError("there is nobody to compare", where="pairwise.against", value=against, cure=cure)
    asked = read_asked(folder)
    places = _spread(len(asked), stage.limit)
    evidence = {asked[place].id: _evidence(stage, asked[place]) for place in places}
    others = {one.id: one.text for one in read_answers(folder, against)} if against else {}
    cases: list[Case] = []
    for name in chosen:
        said = read_answers(folder, name)
        cases += [
            Case(
                asked[place].id,
                name,
                question_text(asked[place]),
                said[place].text,
                evidence[asked[place].id],
                others[asked[place].id] if against else None,
            )
            for place in places
        ]
    return Material(cases, {q.id: q for q in asked}, _too_long(stage, cases), chosen)


def question_text(question: Question) -> str:
    """What was asked: the user's words, or the whole conversation where there is more."""
    if len(question.messages) == 1:
        return question.messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in question.messages)


def text_digest(text: str) -> str:
    """Of an answer, so that a label is known to be of this very text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _evidence(stage: "Judge", question: Question) -> dict[str, str]:
    found: dict[str, str] = {}
    if stage.by in ("reference", "both"):
        found["reference"] = question.reference
    if stage.by in ("context", "both"):
        if stage.context_field not in question.meta:
            raise DataError(
                "the question has no context to judge by",
                where=f"question {question.id}",
                value=stage.context_field,
                cure=f"{nearest(stage.context_field, question.meta)}; a source's `keep` carries an entry along",
            )
        found["context"] = question.meta[stage.context_field]
    for name, text in found.items():
        if not text.strip():
            cure = "give it one, judge `by` something else, or leave it out of the questions"
            raise DataError(f"the question's {name} is empty", where=f"question {question.id}", cure=cure)
    return found


def _too_long(stage: "Judge", cases: Sequence[Case]) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, case in enumerate(cases):
        size = sum(map(len, case.texts))
        if size <= stage.longest:
            continue
        if stage.overflow == "stop":
            raise DataError(
                f"question, evidence and answer are longer than the {stage.longest:,} characters that are judged",
                where=f"question {case.id}, answer of {case.contender}",
                value=f"{size:,} characters",
                cure="raise `longest`, shorten the reference, or set `overflow: skip`",
            )
        found[index] = TOO_LONG
    return found


def _spread(count: int, limit: int | None) -> list[int]:
    kept = count if limit is None else min(count, limit)
    return [index * count // kept for index in range(kept)]
