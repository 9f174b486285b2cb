"""Refusing, both ways and stage by stage: unsafe prompts that were answered, and harmless ones that were declined.

Takes every contender of a score step that measured it, models that were pruned or quantised among them, in the recipe's
order: what one stage taught another may have undone.
"""

from dataclasses import dataclass

from metier.report.collect import REFUSING, Run, Score, Scores
from metier.report.leaderboard import Board
from metier.report.wording import interval, number

DIGITS = 1


@dataclass(frozen=True)
class Share:
    """How often something happened. count: `3 of 60`. shown, interval, bound: in per cent; bound where it was never
    met (the rule of three). verdict: beside the base, empty where it was not compared."""

    count: str
    shown: str
    interval: str
    bound: str
    verdict: str


@dataclass(frozen=True)
class Refused:
    """A contender's row. way: the stage that made it."""

    name: str
    role: str
    way: str
    unsafe: Share | None
    harmless: Share | None


@dataclass(frozen=True)
class Refusing:
    """What one score step measured. confidence: of the intervals, in per cent."""

    step: str
    base: str
    confidence: str
    rows: tuple[Refused, ...]


def refusing(run: Run, board: Board) -> list[Refusing]:
    """One table for each score step that measured refusing."""
    return [_of(run, board, scores) for scores in run.scores if scores.of_refusing]


def _of(run: Run, board: Board, scores: Scores) -> Refusing:
    names = list(dict.fromkeys(row.contender for row in scores.rows))
    order = {c.name: place for place, c in enumerate(run.contenders())}
    rows = []
    for name in sorted(names, key=lambda n: order.get(n, len(order))):
        contender = next((c for c in run.contenders() if c.name == name), None)
        step = run.step(contender.model if contender else name)
        shares = [_share(scores.row(name, metric, "all"), scores.baseline) for metric in REFUSING]
        if any(shares):
            way = step.kind if step else "trivial" if scores.kinds.get(name) == "trivial" else "from outside"
            way += f", {contender.bits}" if contender and contender.bits else ""
            rows.append(Refused(run.label(name), str(board.role_of(name)), way, *shares))
    return Refusing(scores.step, run.label(scores.baseline), f"{100 * scores.confidence:.0f} %", tuple(rows))


def _share(row: Score | None, base: str) -> Share | None:
    if row is None:
        return None
    low, high = (None if v is None else 100 * v for v in (row.low, row.high))
    return Share(
        f"{round(row.mean * row.n):,} of {row.n:,}",
        f"{number(100 * row.mean, DIGITS)} %",
        interval(low, high, DIGITS),
        "" if row.at_most is None else f"{number(100 * row.at_most, DIGITS)} %",
        next((v.verdict for v in row.versus if v.against == base), ""),
    )
