"""Contamination: which test questions a contender had met in training, and what difference that makes to the scores.

Reads what the answer step wrote down (`contamination.json`) and the `clean` rows of the scores. Says where nobody
looked and whose training nobody can look into, since no finding is not the same as nothing to find.
"""

from dataclasses import dataclass

from metier.report.collect import Answers, Run, Scores
from metier.report.leaderboard import Board
from metier.report.wording import cut, interval, metric, number

MOST_HITS = 10
CLEAN = "clean"
HOW = {"exact": "word for word", "jaccard": "nearly the same (Jaccard)"}


@dataclass(frozen=True)
class Hit:
    """A question that stood in training data, with both texts."""

    id: str
    how: str
    score: str
    tested: str
    trained: str


@dataclass(frozen=True)
class Pair:
    """A contender's score on all items and on those that no contender had seen."""

    name: str
    role: str
    everything: str
    clean: str
    n: int
    n_clean: int


@dataclass(frozen=True)
class Seen:
    """What was found for one answer step. by: (contender, items seen, what of its training is unknown)."""

    step: str
    looked: bool
    tested: int
    seen: int
    dropped: int
    gate: str
    by: tuple[tuple[str, str, int, str], ...]
    hits: tuple[Hit, ...]
    pairs: tuple[Pair, ...]
    measure: str


def contamination(run: Run, board: Board) -> list[Seen]:
    """One entry for each answer step."""
    return [_of(run, board, answers) for answers in run.answers]


def _of(run: Run, board: Board, answers: Answers) -> Seen:
    found = answers.exposure
    scores = next((s for s in run.scores if s.answers == answers.step), None)
    name = scores.metrics()[0] if scores and scores.rows else None
    if scores is board.scores and board.metric:
        name = board.metric
    gate = found.get("gate") or {}
    said = ", ".join(f"{k} {v}" for k, v in gate.items() if k != "action")
    by = tuple(
        (
            run.label(str(contender)),
            str(board.role_of(str(contender))),
            len(one.get("seen") or ()),
            ", ".join(run.label(str(unknown)) for unknown in one.get("unknown") or ()),
        )
        for contender, one in (found.get("contenders") or {}).items()
    )
    hits = tuple(
        Hit(
            cut(str(row.get("id", "")), 60),
            HOW.get(str(row.get("how")), str(row.get("how", ""))),
            number(row.get("score"), 2),
            str(row.get("tested", "")),
            str(row.get("trained", "")),
        )
        for row in (found.get("hits") or ())[:MOST_HITS]
    )
    return Seen(
        answers.step,
        bool(found),
        int(found.get("tested") or 0),
        int(found.get("seen") or 0),
        len(found.get("dropped") or ()),
        said,
        by,
        hits,
        tuple(_pairs(run, board, scores, name)) if scores and name else (),
        metric(name).title if name else "",
    )


def _pairs(run: Run, board: Board, scores: Scores, name: str) -> list[Pair]:
    digits, found = metric(name).digits, []
    for place in board.places:
        contender = place.contender.name
        everything, clean = scores.row(contender, name, "all"), scores.row(contender, name, CLEAN)
        if everything is None or clean is None:
            continue
        shown = [f"{number(r.mean, digits)} {interval(r.low, r.high, digits)}".strip() for r in (everything, clean)]
        found.append(Pair(run.label(contender), place.role, shown[0], shown[1], everything.n, clean.n))
    return found
