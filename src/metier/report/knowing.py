"""What was forgotten on purpose, and what was kept: every contender of a `knowledge` step, rounded ones among them.

Named apart from refusing: that is what a model says, this is what it knows.
"""

from dataclasses import dataclass

from metier.report.collect import Run, Score, Scores
from metier.report.leaderboard import Board
from metier.report.wording import interval, metric, number

FORGOTTEN = ("forget_probability", "forget_extraction", "forget_truth", "forget_rouge", "forget_quality")
KEPT = ("utility", "retain_probability", "retain_truth", "retain_rouge")


@dataclass(frozen=True)
class Cell:
    """A figure with its interval. verdict: beside the base, empty where it was not compared."""

    shown: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Knows:
    """A contender's row: a cell for each metric of a part, None where it was not measured."""

    name: str
    role: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Part:
    """What was to be forgotten, or kept. heads: title and meaning of each metric. n: questions."""

    title: str
    n: int
    heads: tuple[tuple[str, str], ...]
    rows: tuple[Knows, ...]


@dataclass(frozen=True)
class Knowing:
    """What one step measured."""

    step: str
    base: str
    untouched: str
    confidence: str
    parts: tuple[Part, ...]


def knowing(run: Run, board: Board) -> list[Knowing]:
    """One entry for each step that measured knowledge."""
    return [_of(run, board, scores) for scores in run.scores if scores.of_knowledge]


def _of(run: Run, board: Board, scores: Scores) -> Knowing:
    step = run.step(scores.step)
    settings = step.settings if step else {}
    untouched = settings.get("untouched")
    parts = []
    for title, names, first in (
        (f"To be forgotten: {settings.get('forget', '')}", FORGOTTEN, FORGOTTEN[0]),
        (
            f"To be kept: {', '.join([str(settings.get('retain', '')), *_listed(settings.get('others'))])}",
            KEPT,
            KEPT[0],
        ),
    ):
        present = [name for name in names if name in scores.metrics()]
        sizes = [row.n for row in scores.rows if row.metric == first]
        heads = tuple((metric(name).title, metric(name).meaning) for name in present)
        parts.append(Part(title, max(sizes, default=0), heads, tuple(_rows(run, board, scores, present))))
    shown = run.label(str(untouched)) if untouched else ""
    return Knowing(scores.step, run.label(scores.baseline), shown, f"{100 * scores.confidence:.0f} %", tuple(parts))


def _listed(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _rows(run: Run, board: Board, scores: Scores, names: list[str]) -> list[Knows]:
    contenders = dict.fromkeys(row.contender for row in scores.rows)
    return [
        Knows(
            run.label(name),
            str(board.role_of(name)),
            tuple(_cell(scores.row(name, one, "all"), scores.baseline, metric(one).digits) for one in names),
        )
        for name in contenders
    ]


def _cell(row: Score | None, base: str, digits: int) -> Cell | None:
    if row is None:
        return None
    verdict = next((v.verdict for v in row.versus if v.against == base), "")
    return Cell(number(row.mean, digits), interval(row.low, row.high, digits), verdict)
