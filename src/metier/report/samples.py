"""Which questions are shown side by side, and how an answer is marked.

For each group of questions: where the specialist gained most on the rival (the comparison run, else the base), where
it lost most, and some drawn by a fixed seed, so that nobody picked them. Marks repeat the score and are by words, not
by meaning, which the page says.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metier.report.collect import Answers, Row, Run, Scores
from metier.report.leaderboard import Board

EACH = 2
"""Gains, losses and random ones shown of each group."""
GROUPS = 6
"""Groups shown at most."""
COMPARISONS = 2
"""Comparison runs shown at most beside the base and the specialist."""
RIGHT, WRONG = 0.9, 0.2
"""An answer at or above RIGHT is marked right, below WRONG wrong, between them partly."""

Mark = Literal["right", "partly", "wrong", ""]


@dataclass(frozen=True)
class Said:
    """One contender's answer. score: on the marking metric; stopped: it ended by itself."""

    contender: str
    role: str
    text: str
    score: float | None
    mark: Mark
    stopped: bool


@dataclass(frozen=True)
class Sample:
    """A question with its answers. why: how it came to be here."""

    id: str
    group: str
    why: str
    context: tuple[Row, ...]
    question: str
    reference: str
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Samples:
    """What the section shows. rival: whom the gains and losses are counted against."""

    metric: str | None
    rival: str | None
    shown: tuple[Sample, ...]
    total: int


def mark(value: float | None, exact: float | None) -> Mark:
    """right, partly or wrong, from the marking metric and, where measured, the exact match."""
    if exact == 1:
        return "right"
    if value is None:
        return ""
    return "right" if value >= RIGHT else "wrong" if value < WRONG else "partly"


def choose(run: Run, board: Board) -> Samples:
    """The samples of the answer step that the ranking scored, else of the first; none without answers."""
    scores = board.scores
    answers = next((a for a in run.answers if scores and a.step == scores.answers), next(iter(run.answers), None))
    if answers is None:
        return Samples(None, None, (), 0)
    roles = {p.contender.name: p.role for p in board.places}
    asked = [c.name for c in answers.contenders]
    cast = {role: [n for n in asked if roles.get(n) == role] for role in ("base", "comparison", "specialist")}
    shown = [*cast["base"], *cast["comparison"][:COMPARISONS], *cast["specialist"]] or asked
    specialist = next((n for n in shown if roles.get(n) == "specialist"), None)
    rivals = [n for role in ("comparison", "base") for n in shown if roles.get(n) == role]
    rival = rivals[0] if rivals and specialist else None
    metric = board.metric if scores and not scores.of_text else None
    gains = _gains(answers, scores, metric, specialist, rival)
    picked = [
        _sample(answers, question, why, shown, roles, scores, metric)
        for question, why in _pick(answers.questions, gains)
    ]
    return Samples(metric, rival if gains else None, tuple(picked), len(answers.questions))


def _gains(
    answers: Answers, scores: Scores | None, metric: str | None, specialist: str | None, rival: str | None
) -> dict[str, float]:
    if scores is None or metric is None or specialist is None or rival is None:
        return {}
    found = {}
    for question in answers.questions:
        mine = _value(scores.items, specialist, str(question["id"]), metric)
        other = _value(scores.items, rival, str(question["id"]), metric)
        if mine is not None and other is not None:
            found[str(question["id"])] = mine - other
    return found


def _value(items: Mapping[tuple[str, str], Row], contender: str, question: str, metric: str) -> float | None:
    value = items.get((contender, question), {}).get(metric)
    return None if value is None else float(value)


def _pick(questions: tuple[Row, ...], gains: Mapping[str, float]) -> list[tuple[Row, str]]:
    groups: dict[str, list[Row]] = {}
    for question in questions:
        groups.setdefault(str(question.get("group", "")), []).append(question)
    picked: list[tuple[Row, str]] = []
    for name in list(groups)[:GROUPS]:
        members = groups[name]
        by_gain = sorted(
            (q for q in members if str(q["id"]) in gains), key=lambda q: (-gains[str(q["id"])], str(q["id"]))
        )
        gained = [q for q in by_gain[:EACH] if gains[str(q["id"])] > 0]
        lost = [q for q in by_gain[::-1][:EACH] if gains[str(q["id"])] < 0]
        taken = {str(q["id"]) for q in (*gained, *lost)}
        rest = [q for q in members if str(q["id"]) not in taken]
        drawn = random.Random(0).sample(rest, min(EACH, len(rest)))
        for why, chosen in (("gained most", gained), ("lost most", lost), ("drawn at random", drawn)):
            picked += [(question, why) for question in chosen]
    return picked


def _sample(
    answers: Answers,
    question: Row,
    why: str,
    shown: list[str],
    roles: Mapping[str, str],
    scores: Scores | None,
    metric: str | None,
) -> Sample:
    identity = str(question["id"])
    messages = list(question.get("messages") or [])
    said = []
    for name in shown:
        answer = answers.texts[name].get(identity, {})
        items = scores.items if scores else {}
        value = _value(items, name, identity, metric) if metric else None
        exact = _value(items, name, identity, "exact_match")
        said.append(
            Said(
                contender=name,
                role=roles.get(name, "stage"),
                text=str(answer.get("text", "")),
                score=value,
                mark=mark(value, exact),
                stopped=bool(answer.get("stopped", True)),
            )
        )
    return Sample(
        id=identity,
        group=str(question.get("group", "")),
        why=why,
        context=tuple(messages[:-1]),
        question=str(messages[-1]["content"]) if messages else "",
        reference=str(question.get("reference", "")),
        said=tuple(said),
    )
