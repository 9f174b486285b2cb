"""Which plots a run has data for, beside intervals and training curves; what has no data has no plot.

    labels     from a score of `choices`: confusion matrix, reliability, coverage and risk of each contender
    lengths    words of an answer against its score, item by item: whether a metric or a model rewards talking
    costs      latency and memory of an answer against the score
    pruning    what the smaller models of `prune` and `guard` still reach

Costs one pass over the answers' texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from metier.report import charts, plots
from metier.report.charts import Axes, Mark
from metier.report.collect import Row, Run, Scores
from metier.report.leaderboard import Board
from metier.report.wording import cut, duration, memory, metric, number

MOST_CONTENDERS = 8
MOST_LABELS = 12
LONGEST_LABEL = 40
SHADES = 10
LENGTH_BINS = 6
FEWEST_ITEMS = 8
"""Fewer items than this show no relation between length and score."""


@dataclass(frozen=True)
class Figure:
    """A plot with its caption. note: what to see in it."""

    name: str
    role: str
    plot: Markup
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix. shade: 0 to SHADES, by its share of the row."""

    count: int
    shade: int
    right: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows are the right labels, columns the chosen ones."""

    name: str
    role: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...], int], ...]


@dataclass(frozen=True)
class Labels:
    """What a score of labels shows of its contenders. cut: labels that are not shown, being too many."""

    step: str
    matrices: tuple[Matrix, ...]
    reliability: tuple[Figure, ...]
    coverage: Markup
    legend: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Gallery:
    """All plots of the page that are not intervals or training curves."""

    labels: tuple[Labels, ...]
    lengths: tuple[Figure, ...]
    costs: tuple[Figure, ...]
    pruning: tuple[Figure, ...]


def gallery(run: Run, board: Board) -> Gallery:
    """Every plot that there is data for."""
    return Gallery(
        tuple(_labels(run, board, s) for s in run.scores if s.confusion or s.reliability or s.coverage),
        tuple(_lengths(run, board)),
        tuple(_costs(run, board)),
        tuple(_pruning(run)),
    )


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(run: Run, board: Board, scores: Scores) -> Labels:
    paths = [
        charts.Path(
            run.label(str(row["contender"])),
            board.role_of(str(row["contender"])),
            [(float(x), float(y)) for x, y in row["points"]],
        )
        for row in _of_models(run, scores.coverage)
        if row["points"]
    ]
    risks = [y for path in paths for _, y in path.points]
    axes = Axes(charts.SHARES, plots.scale([0.0, *risks], wanted=4), "coverage: share answered, surest first", "risk")
    title = "Share of wrong answers over the share of questions answered, the surest first"
    return Labels(
        scores.step,
        tuple(_matrix(run, board, row) for row in _of_models(run, scores.confusion)),
        tuple(_reliability(run, board, row) for row in _of_models(run, scores.reliability)),
        charts.lines(paths, axes=axes, title=title),
        tuple((path.name, path.role, i % 4) for i, path in enumerate(paths)),
    )


def _of_models(run: Run, rows: Sequence[Row]) -> list[Row]:
    """The rows of models; a constant's confusion or confidence shows nothing."""
    apart = {c.name for c in run.contenders() if c.is_reference}
    return [row for row in rows if str(row["contender"]) not in apart][:MOST_CONTENDERS]


def _matrix(run: Run, board: Board, row: Row) -> Matrix:
    name = str(row["contender"])
    labels = tuple(cut(str(label), LONGEST_LABEL) for label in row["labels"][:MOST_LABELS])
    found = []
    for i, label in enumerate(labels):
        counts = [int(value) for value in row["matrix"][i]]
        total = sum(counts)
        cells = tuple(
            Cell(count, round(SHADES * count / total) if total else 0, i == j)
            for j, count in enumerate(counts[: len(labels)])
        )
        found.append((label, cells, total))
    return Matrix(run.label(name), board.role_of(name), labels, tuple(found))


def _reliability(run: Run, board: Board, row: Row) -> Figure:
    from metier.measure.statistics import wilson

    name = str(row["contender"])
    bins: list[tuple[float, float, int, float | None, float | None]] = []
    for one in row["bins"]:
        n = int(one.get("n") or 0)
        if n:
            bins.append((float(one["confidence"]), float(one["accuracy"]), n, *wilson(float(one["accuracy"]), n)))
    ece = row.get("ece")
    note = f"Expected calibration error {number(float(ece), 3)}." if ece is not None else ""
    plot = charts.reliability(bins, title=f"Confidence against accuracy of {run.label(name)}")
    return Figure(run.label(name), board.role_of(name), plot, note)


# --- length against score ---------------------------------------------------------------------------------------------


def _lengths(run: Run, board: Board) -> list[Figure]:
    scores = board.scores
    answers = next((a for a in run.answers if scores and a.step == scores.answers), None)
    if scores is None or answers is None or board.metric is None:
        return []
    clouds = {}
    for place in board.places[:MOST_CONTENDERS]:
        name = place.contender.name
        points = _words_and_scores(answers.texts.get(name, {}), scores, name, board.metric)
        if len(points) >= FEWEST_ITEMS:
            clouds[name] = points
    if not clouds:
        return []
    everything = sorted(x for points in clouds.values() for x, _ in points)
    longest = everything[min(len(everything) - 1, int(0.99 * len(everything)))]
    said = metric(board.metric)
    y = plots.scale([v for points in clouds.values() for _, v in points], bounded=said.bounded, wanted=4)
    axes = Axes(plots.until(max(1.0, longest)), y, "words of the answer", said.title)
    found = []
    for name, points in clouds.items():
        shown, role = run.label(name), board.role_of(name)
        plot = charts.cloud(
            points, _means(points), role=role, axes=axes, title=f"Words against {said.title}: answers of {shown}"
        )
        mean = sum(x for x, _ in points) / len(points)
        found.append(Figure(shown, role, plot, f"{number(mean, 1)} words on average, {len(points):,} answers."))
    return found


def _words_and_scores(texts: Mapping[str, Row], scores: Scores, contender: str, name: str) -> list[tuple[float, float]]:
    found = []
    for identity, answer in texts.items():
        value = scores.items.get((contender, identity), {}).get(name)
        if value is not None:
            found.append((float(len(str(answer.get("text", "")).split())), float(value)))
    return found


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of about equally many items, shortest answers first. Answers of one length stay together.

    Parting them would sort them by score, and draw a zigzag that is not in the data.
    """
    ordered = sorted(points)
    size = -(-len(ordered) // LENGTH_BINS)
    runs: list[list[tuple[float, float]]] = [[]]
    for point in ordered:
        if len(runs[-1]) >= size and point[0] != runs[-1][-1][0]:
            runs.append([])
        runs[-1].append(point)
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


# --- cost against score -----------------------------------------------------------------------------------------------

COSTS = (
    ("p50_seconds", "Latency", "milliseconds of a median answer", 1e-3, duration),
    ("peak_rss_bytes", "Memory", "GiB at the peak", 2.0**30, memory),
)


def _costs(run: Run, board: Board) -> list[Figure]:
    found = []
    for key, title, label, unit, spoken in COSTS:
        timed = [
            (p, float(p.contender.measured[key]) / unit)
            for p in board.places[:12]
            if p.score and p.contender.measured.get(key)
        ]
        if len(timed) < 2 or board.metric is None:
            continue
        said = metric(board.metric)
        ends = [v for p, _ in timed if p.score for v in (p.score.mean, p.score.low, p.score.high) if v is not None]
        axes = Axes(
            plots.scale([0.0, *(x for _, x in timed)], wanted=4),
            plots.scale(ends, bounded=said.bounded, wanted=4),
            label,
            said.title,
        )
        marks = [
            Mark(run.label(p.contender.name), p.role, x, p.score.mean, p.score.low, p.score.high)
            for p, x in timed
            if p.score
        ]
        least = min(timed, key=lambda t: t[1])
        note = f"Least: {run.label(least[0].contender.name)}, {spoken(least[1] * unit)}. Up and left is better."
        if board.higher_is_better is False:
            note = note.replace("Up and left", "Down and left")
        plot = charts.contenders(marks, axes=axes, title=f"{title} against {said.title}")
        found.append(Figure(title, "", plot, note))
    return found


# --- pruning ----------------------------------------------------------------------------------------------------------


def _pruning(run: Run) -> list[Figure]:
    found = []
    for step in run.steps:
        points = [
            (float(p["ratio"]), float(p["score"]), p.get("low"), p.get("high"), _size(p.get("size_bytes")))
            for p in step.pruned
        ]
        if points:
            plot = charts.tradeoff(points, title=f"Score over the share cut away in {step.name}")
            found.append(
                Figure(step.name, "", plot, "The dashed line is the model before. Beside each point: its size.")
            )
    return found


def _size(value: object) -> str:
    return memory(float(value)) if isinstance(value, int | float) else ""
