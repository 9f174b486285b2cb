"""Which questions are shown side by side, and how an answer is marked.

First the answers that changed most from the base to the specialist, item by item, in either direction and by the
ranking metric; then some of each group drawn by a fixed seed, so that nobody picked them. Marks repeat the score and
are by words, not by meaning, which the page says.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metier.report.collect import Answers, Row, Run, Scores
from metier.report.leaderboard import Board
from metier.report.wording import cut, group, signed

MOST_CHANGED = 6
"""Gains shown, and losses."""
EACH = 2
"""Random ones shown of each group."""
LONGEST_ID = 60
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
    """What the section shows. base, specialist: whose answers are compared item by item, or None.

    parts: heading, its note and the questions. gained, lost, same: items by whether the ranking metric rose.
    """

    metric: str | None
    base: str | None
    specialist: str | None
    parts: tuple[tuple[str, str, tuple[Sample, ...]], ...]
    total: int
    gained: int = 0
    lost: int = 0
    same: int = 0

    @property
    def shown(self) -> tuple[Sample, ...]:
        """All questions shown."""
        return tuple(sample for _, _, samples in self.parts for sample in samples)


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
        return Samples(None, None, None, (), 0)
    roles = {p.contender.name: p.role for p in board.places}
    asked = [c.name for c in answers.contenders]
    cast = {role: [n for n in asked if roles.get(n) == role] for role in ("base", "comparison", "specialist")}
    shown = [*cast["base"], *cast["comparison"][:COMPARISONS], *cast["specialist"]] or asked
    specialist, base = next(iter(cast["specialist"]), None), next(iter(cast["base"]), None)
    scored = scores is not None and answers.step == scores.answers
    metric = board.metric if scored else None
    sign = -1 if board.higher_is_better is False else 1
    gains = {
        name: sign * gain
        for name, gain in _gains(answers, scores if scored else None, metric, specialist, base).items()
    }
    parts = tuple(
        (heading, note, tuple(_sample(answers, q, why, shown, roles, scores, metric) for q, why in questions))
        for heading, note, questions in _pick(answers.questions, gains)
        if questions
    )
    return Samples(
        metric,
        base if gains else None,
        specialist if gains else None,
        parts,
        len(answers.questions),
        sum(g > 0 for g in gains.values()),
        sum(g < 0 for g in gains.values()),
        sum(g == 0 for g in gains.values()),
    )


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


def _pick(questions: tuple[Row, ...], gains: Mapping[str, float]) -> list[tuple[str, str, list[tuple[Row, str]]]]:
    """Heading, note and questions of each part: gains, losses, and random ones of each group."""
    order = sorted((q for q in questions if str(q["id"]) in gains), key=lambda q: (-gains[str(q["id"])], str(q["id"])))
    gained = [q for q in order if gains[str(q["id"])] > 0][:MOST_CHANGED]
    lost = [q for q in order[::-1] if gains[str(q["id"])] < 0][:MOST_CHANGED]
    taken = {str(q["id"]) for q in (*gained, *lost)}
    groups: dict[str, list[Row]] = {}
    for question in questions:
        groups.setdefault(str(question.get("group", "")), []).append(question)
    drawn: list[tuple[Row, str]] = []
    for name in list(groups)[:GROUPS]:
        rest = [q for q in groups[name] if str(q["id"]) not in taken]
        drawn += [(q, group(name)[0]) for q in random.Random(0).sample(rest, min(EACH, len(rest)))]
    return [
        ("Gained most", "", [(q, _by(gains, q)) for q in gained]),
        ("Lost most", "", [(q, _by(gains, q)) for q in lost]),
        ("Drawn at random", f"{EACH} of each group, with a fixed seed, so that nobody picked them.", drawn),
    ]


def _by(gains: Mapping[str, float], question: Row) -> str:
    return f"{signed(gains[str(question['id'])], 2)} {group(str(question.get('group', '')))[0]}"


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
        chosen = items.get((name, identity), {}).get("said", "")  # of a choose step, the label
        said.append(
            Said(
                contender=name,
                role=roles.get(name, "stage"),
                text=str(answer.get("text", chosen)),
                score=value,
                mark=mark(value, exact),
                stopped=bool(answer.get("stopped", True)),
            )
        )
    return Sample(
        id=cut(identity, LONGEST_ID),
        group=str(question.get("group", "")),
        why=why,
        context=tuple(messages[:-1]),
        question=str(messages[-1]["content"]) if messages else "",
        reference=str(question.get("reference", "")),
        said=tuple(said),
    )
