"""Tables as CSV that a spreadsheet can open without running anything.

A cell that begins with = + - @, a tab, a line end (or a full-width twin of those) would be taken for a formula: it gets
a quote before it, which spreadsheets show as text (OWASP, CSV injection). Every text cell is quoted, its hidden
characters spelt out. Numbers that this program made are written bare, since a quoted -0.03 would be no number.
"""

from collections.abc import Iterable, Sequence

from metier.report.collect import Run
from metier.report.leaderboard import MEASURED, Board
from metier.report.wording import cut, visible

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20", "|", "%")
LONGEST_CELL = 32_000
"""A spreadsheet's cell holds 32,767 characters."""

Cell = str | int | float | None
HEAD = (
    "rank", "contender", "kind", "role", "model", "step", "metric", "group", "n", "mean", "low", "high", "confidence",
    "higher_is_better", "against", "difference", "difference_low", "difference_high", "p", "p_holm", "verdict",
    "detectable", "tied_with", "parameters", *MEASURED,
)  # fmt: skip


def cell(value: Cell | bool) -> str:
    """One cell. Raises nothing: what is no number is text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = cut(value, LONGEST_CELL)
    guard = "'" if text.lstrip(" \u00a0\ufeff").startswith(FORMULA) else ""
    return '"' + guard + visible(text).replace('"', '""') + '"'


def sheet(head: Sequence[str], rows: Iterable[Sequence[Cell | bool]]) -> str:
    """A table as CSV after RFC 4180, lines ending in CRLF."""
    lines = [",".join(cell(name) for name in head), *(",".join(cell(value) for value in row) for row in rows)]
    return "\r\n".join(lines) + "\r\n"


def leaderboard_csv(run: Run, board: Board) -> str:
    """A line for each contender, step, metric, group and comparison, in rank order."""
    return sheet(HEAD, _lines(run, board))


def _lines(run: Run, board: Board) -> Iterable[list[Cell | bool]]:
    for place in board.places:
        contender = place.contender
        first: list[Cell | bool] = [place.rank, contender.name, contender.kind, place.role, contender.model]
        last: list[Cell | bool] = ["; ".join(place.tied_with), contender.parameters]
        last += [_number(contender.measured.get(name)) for name in MEASURED]
        for scores in run.scores:
            for row in scores.rows:
                if row.contender != contender.name:
                    continue
                middle: list[Cell | bool] = [
                    scores.step,
                    row.metric,
                    row.group,
                    row.n,
                    row.mean,
                    row.low,
                    row.high,
                    scores.confidence,
                ]
                middle.append(row.higher_is_better)
                for v in row.versus or (None,):
                    seven: list[Cell | bool] = [None] * 8
                    if v is not None:
                        seven = [v.against, v.difference, v.low, v.high, v.p, v.p_holm, v.verdict, v.detectable]
                    yield [*first, *middle, *seven, *last]


def _number(value: object) -> float | int | None:
    return value if isinstance(value, int | float) else None
