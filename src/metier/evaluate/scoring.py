"""Read the answers of an `answers` artifact and measure each.

Refuses answers that do not belong to the questions (other ids, other order), and questions without a reference where a
metric reads it. An empty answer is an answer, and scores what it deserves. Imports nothing heavy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.core.errors import DataError, nearest
from metier.core.stage import stop_if_asked
from metier.evaluate.exposure import FILE
from metier.measure.metrics import Answered, Metric
from metier.text.artifacts import read_answers, read_asked
from metier.text.nouns import Question
from metier.text.refusals import HARMLESS, REFUSALS_TEST, UNSAFE

CLUSTER = "cluster"
"""The entry of a question's meta that says what it belongs to, where no other is named."""
SHOWN = ("trivial", "human")
"""Kinds of contenders that are reference points: shown with their intervals, and compared with nobody."""

Row = dict[str, Any]
Answers = dict[str, list[Answered]]
"""Each contender's answers in the order of the questions; contenders in theirs."""


def read_all(folder: Path) -> Answers:
    """Every contender's answers in an `answers` artifact's files. Raises DataError where they do not fit together."""
    asked = read_asked(folder)
    if not asked:
        raise DataError("there are no questions to score", where=str(folder / "questions.jsonl"))
    found: Answers = {}
    for name in contenders(folder):
        answers = read_answers(folder, name)
        if [a.id for a in answers] != [q.id for q in asked]:
            raise DataError(
                f"the answers of {name!r} are not to these questions",
                where=str(folder),
                value=_first_difference([q.id for q in asked], [a.id for a in answers]),
                cure="run the answer step again",
            )
        found[name] = [Answered(q, a) for q, a in zip(asked, answers, strict=True)]
    return found


def contenders(folder: Path) -> list[str]:
    """The contenders' names in an `answers` artifact's files, in the recipe's order."""
    return list(kinds(folder))


def kinds(folder: Path) -> dict[str, str]:
    """What each contender is: model, endpoint, trivial or human."""
    found = json.loads((folder / "contenders.json").read_text(encoding="utf-8"))
    return {str(one["name"]): str(one.get("kind", "model")) for one in found}


def baseline(kinds: Mapping[str, str]) -> str:
    """Whom the others are compared with where nothing else is said: the first contender that is no reference point."""
    return next((name for name, kind in kinds.items() if kind not in SHOWN), next(iter(kinds)))


def clusters(questions: Sequence[Question], key: str | None) -> dict[str, str] | None:
    """What each question belongs to, by its id; None where each stands for itself.

    key: the entry of their meta to go by; where None, `cluster`, if any has it. A question without it stands for
    itself. Raises DataError where a named entry is nowhere.
    """
    entry = key or CLUSTER
    told = [question.meta.get(entry, "") for question in questions]
    if not any(told):
        if key is None:
            return None
        found = {name for question in questions for name in question.meta}
        raise DataError(
            "no question's meta has the entry to cluster by", where="cluster", value=key, cure=nearest(key, found)
        )
    labels = {q.id: f"in {value}" if value else f"alone {q.id}" for q, value in zip(questions, told, strict=True)}
    return labels if len(set(labels.values())) < len(labels) else None


@dataclass(frozen=True)
class Exposed:
    """What was found of the questions when they were asked. seen: ids that a contender was trained on."""

    seen: frozenset[str] = frozenset()
    summary: Row = field(default_factory=dict)


def exposed(folder: Path) -> Exposed:
    """What an `answers` artifact's files say of its questions; nothing where nobody looked."""
    path = folder / FILE
    if not path.is_file():
        return Exposed()
    found = json.loads(path.read_text(encoding="utf-8"))
    told = {name: {"seen": len(one["seen"]), "unknown": one["unknown"]} for name, one in found["contenders"].items()}
    dropped = set(found["dropped"])
    seen = frozenset(str(i) for one in found["contenders"].values() for i in one["seen"] if i not in dropped)
    summary = {"tested": found["tested"], "seen": found["seen"], "dropped": len(dropped), "contenders": told}
    return Exposed(seen, {"contamination": summary})


def check_references(questions: Sequence[Question], metrics: Sequence[Metric]) -> None:
    """Raise DataError for the first question without a reference where a metric reads it."""
    readers = [m.name for m in metrics if m.reads_reference]
    if not readers:
        return
    for question in questions:
        if not question.reference.strip():
            raise DataError(
                f"the question has no reference answer, which {readers[0]} compares with",
                where=f"question {question.id}",
                value=question.reference,
                cure="give it an answer, or leave it out of the questions",
            )


def check_applies(questions: Sequence[Question], metrics: Sequence[Metric]) -> None:
    """Raise DataError for the first metric that is about none of the questions."""
    for m in metrics:
        if m.applies is not None and not any(map(m.applies, questions)):
            raise DataError(
                f"{m.name} is about none of these {len(questions)} questions: their groups say neither that they are "
                f"{UNSAFE} nor {HARMLESS}",
                where="metrics",
                value=m.name,
                cure=f"score an `answer` step with `split: {REFUSALS_TEST}`, of examples with a `refusals.test`",
            )


def item_rows(answers: Answers, metrics: Sequence[Metric]) -> list[Row]:
    """One row for each contender and question, with the value of every metric that is about it. A contender at a time
    is measured whole."""
    rows: list[Row] = []
    for name, items in answers.items():
        measured = {}
        for m in metrics:
            stop_if_asked()
            places = [i for i, item in enumerate(items) if m.applies is None or m.applies(item.question)]
            measured[m.name] = dict(zip(places, m.measure([items[i] for i in places]), strict=True))
        rows += [
            {
                "id": item.question.id,
                "contender": name,
                "group": item.question.group,
                **{metric: values[place] for metric, values in measured.items() if place in values},
            }
            for place, item in enumerate(items)
        ]
    return rows


def _first_difference(wanted: Sequence[str], found: Sequence[str]) -> str:
    for index, (a, b) in enumerate(zip(wanted, found, strict=False)):
        if a != b:
            return f"{b} where {a} was asked (number {index + 1})"
    return f"{len(found)} answers to {len(wanted)} questions"
