"""The leaderboard as a table: intervals on one axis, ties as lanes, models apart from points of reference.

It is in rank order as it stands; the page's script (`templates/sort.js`) sorts it by any column, and without a script
it is simply not sortable. A lane holds contenders that are all tied with one another, as in a critical-difference
diagram (Demsar 2006), and stays true in any order.
"""

from dataclasses import dataclass

from markupsafe import Markup

from metier.report import plots
from metier.report.leaderboard import Board, Place, cliques
from metier.report.wording import metric

LANE = 9
"""Width of a lane of ties in px."""
PLAIN_COLUMNS, SCORED_COLUMNS = 5, 2
TIMED = (
    ("p50_seconds", "Median answer", "duration"),
    ("p95_seconds", "95th percentile", "duration"),
    ("first_token_p50_seconds", "First token", "duration"),
    ("tokens_per_second", "Tokens a second", "count"),
    ("peak_rss_bytes", "Peak memory", "memory"),
)
"""What is shown of `measured/contenders.json`, where any contender has it."""


@dataclass(frozen=True)
class Standing:
    """One contender's row. verdict: against the base, or empty."""

    place: Place
    role: str
    track: Markup
    ties: Markup
    verdict: str


@dataclass(frozen=True)
class Table:
    """parts: the models' rows, then those of the points of reference, where there are any. timed: key, title, unit."""

    parts: tuple[tuple[Standing, ...], ...]
    axis: Markup
    cliques: tuple[tuple[str, ...], ...]
    timed: tuple[tuple[str, str, str], ...]
    n: int | None

    @property
    def columns(self) -> int:
        """Columns of the table."""
        scored = SCORED_COLUMNS + bool(self.cliques) if self.axis else 0
        return PLAIN_COLUMNS + scored + len(self.timed)


def standing(board: Board) -> Table:
    """The table's rows."""
    measured = [p.score for p in board.places if p.score]
    ends = [v for s in measured for v in (s.mean, s.low, s.high) if v is not None]
    axis = plots.scale(ends, bounded=metric(board.metric).bounded, wanted=2) if board.metric else None
    groups = cliques(board)
    models = tuple(_row(board, p, axis, groups) for p in board.places if p.role != "reference")
    references = tuple(_row(board, p, axis, groups) for p in board.places if p.role == "reference" and p.score)
    return Table(
        tuple(part for part in (models, references) if part),
        plots.axis_row(axis) if axis else Markup(""),
        tuple(tuple(names) for names in groups),
        tuple(t for t in TIMED if any(p.contender.measured.get(t[0]) is not None for p in board.places)),
        max((s.n for s in measured), default=None),
    )


def _row(board: Board, place: Place, axis: plots.Scale | None, groups: list[list[str]]) -> Standing:
    score, kind = place.score, place.contender.kind
    baseline = board.scores.baseline if board.scores else ""
    return Standing(
        place,
        kind if kind in ("trivial", "human") else f"{place.role}, {kind}" if kind != "model" else place.role,
        plots.track(axis, score.mean, score.low, score.high, role=place.role) if score and axis else Markup(""),
        lanes([place.contender.name in names for names in groups]),
        next((v.verdict for v in score.versus if v.against == baseline), "") if score else "",
    )


def lanes(inside: list[bool]) -> Markup:
    """A bar in each lane that the contender is in."""
    if not inside:
        return Markup("")
    bars = "".join(
        f'<line class="lane" x1="{LANE * i + 4}" x2="{LANE * i + 4}" y1="0" y2="100%"/>'
        for i, here in enumerate(inside)
        if here
    )
    said = ", ".join(str(i + 1) for i, here in enumerate(inside) if here)
    title = f"<title>{f'tied, lane {said}' if said else 'not tied'}</title>"
    return Markup(f'<svg class="lanes" role="img" width="{LANE * len(inside)}" height="34">{title}{bars}</svg>')  # noqa: S704
