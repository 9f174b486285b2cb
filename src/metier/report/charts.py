"""Plots with two axes as small SVG: reliability, coverage and risk, length against score, cost against score, pruning.

Drawn like `plots` draws: positions in percent, colours by class, marks by role, a title that a screen reader says.
Values beyond an axis are drawn at its edge. Each function gives an empty string where there is nothing to draw.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from metier.report.plots import Scale, marker, scale, text

CLOUD = 400
"""Most places drawn of a cloud, evenly spaced over the data."""
LABEL_GAP = 7.0
"""Percent of a plot's height between two labels."""
MOST_LABEL = 24
"""Characters of a label in a plot."""


@dataclass(frozen=True)
class Mark:
    """A contender as a point: x and y with y's interval. cut: the name is shortened to fit."""

    name: str
    role: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Path:
    """A line of points, coloured by role and dashed by its place among those of the same plot."""

    name: str
    role: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axes:
    """Both axes with what they measure. percent: ticks as whole percents."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    x_percent: bool = False

    def at(self, x: float, y: float) -> tuple[str, str]:
        """Where a point lies, in percent of the picture."""
        return pct(self.x.at(x)), pct(100 - self.y.at(y))


SHARES = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), 2)


def pct(value: float) -> str:
    """A position."""
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def reliability(bins: Sequence[tuple[float, float, int, float | None, float | None]], *, title: str) -> Markup:
    """Confidence against accuracy; on the dashed line a model is as sure as it is right.

    bins: (confidence, accuracy, n, low, high), empty ones left out. The mark's area grows with n.
    """
    if not bins:
        return Markup("")
    axes = Axes(SHARES, SHARES, "confidence", "accuracy")
    most = max(n for _, _, n, _, _ in bins)
    parts = ['<line class="zero" x1="0" y1="100%" x2="100%" y2="0"/>']
    for confidence, accuracy, n, low, high in bins:
        x, y = axes.at(confidence, accuracy)
        if low is not None and high is not None:
            ends = axes.at(confidence, low)[1], axes.at(confidence, high)[1]
            parts.append(f'<line class="whisker c-specialist" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>')
        radius = 2.5 + 5.5 * math.sqrt(n / most)
        said = f"<title>{n:,} items: confidence {confidence:.2f}, accuracy {accuracy:.2f}</title>"
        parts.append(f'<circle class="bubble c-specialist" cx="{x}" cy="{y}" r="{radius:.1f}">{said}</circle>')
    return _frame(axes, parts, title, "square")


def lines(paths: Sequence[Path], *, axes: Axes, title: str) -> Markup:
    """Several lines over the same axes, for instance risk over coverage."""
    drawn = [path for path in paths if path.points]
    if not drawn:
        return Markup("")
    return _frame(axes, [_stretched("".join(_polyline(axes, path, i) for i, path in enumerate(drawn)))], title)


def cloud(
    points: Sequence[tuple[float, float]], means: Sequence[tuple[float, float]], *, role: str, axes: Axes, title: str
) -> Markup:
    """Every item as a dot, the larger the more items lie there, and the line of the means.

    points: more than CLOUD places are thinned, not averaged.
    """
    if not points:
        return Markup("")
    places = Counter((round(axes.x.at(x), 1), round(axes.y.at(y), 1)) for x, y in points)
    step = max(1, math.ceil(len(places) / CLOUD))
    dots: dict[int, str] = {}
    for x, y in sorted(places)[::step]:
        size = min(4, places[x, y].bit_length())
        dots[size] = dots.get(size, "") + f"M{x * 10:.0f},{1000 - y * 10:.0f}h0"
    inside = "".join(f'<path class="cloud cloud-{size} c-{role}" d="{d}"/>' for size, d in sorted(dots.items()))
    inside += _polyline(axes, Path("", role, means), 0)
    ends = [
        f'<circle class="fill c-{role}" r="3.5" cx="{at[0]}" cy="{at[1]}"/>' for at in (axes.at(x, y) for x, y in means)
    ]
    return _frame(axes, [_stretched(inside), *ends], title, "low")


def contenders(marks: Sequence[Mark], *, axes: Axes, title: str) -> Markup:
    """A mark with whisker and name for each contender; names that would lie on one another are moved apart."""
    if not marks:
        return Markup("")
    heights = _apart([100 - axes.y.at(m.y) for m in marks])
    parts = []
    for mark, height in zip(marks, heights, strict=True):
        x, y = axes.at(mark.x, mark.y)
        if mark.low is not None and mark.high is not None:
            low, high = axes.at(mark.x, mark.low)[1], axes.at(mark.x, mark.high)[1]
            parts.append(f'<line class="whisker c-{mark.role}" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
        parts.append(marker(x, y, mark.role))
        left = axes.x.at(mark.x) > 55
        name = mark.name if len(mark.name) <= MOST_LABEL else mark.name[: MOST_LABEL - 1] + "…"
        parts.append(
            f'<text class="name" x="{x}" y="{pct(height)}" dx="{-11 if left else 11}" dy="4" '
            f'text-anchor="{"end" if left else "start"}">{text(name)}</text>'
        )
    return _frame(axes, parts, title)


def tradeoff(points: Sequence[tuple[float, float, float | None, float | None, str]], *, title: str) -> Markup:
    """What is left of the score when a share of the model is cut away.

    points: (share cut away, score, low, high, size as text); the first, uncut one, is drawn as a dashed level.
    """
    if not points:
        return Markup("")
    ordered = sorted(points)
    ends = [v for _, score, low, high, _ in ordered for v in (score, low, high) if v is not None]
    most = scale([0.0, max(p[0] for p in ordered)], wanted=4)
    axes = Axes(most, scale(ends, wanted=4), "share cut away", "score", x_percent=True)
    level = axes.at(0, ordered[0][1])[1]
    path = Path("", "specialist", [(p[0], p[1]) for p in ordered])
    parts = [f'<line class="zero" x1="0" x2="100%" y1="{level}" y2="{level}"/>', _stretched(_polyline(axes, path, 0))]
    for ratio, score, low, high, size in ordered:
        x, y = axes.at(ratio, score)
        if low is not None and high is not None:
            bottom, top = axes.at(ratio, low)[1], axes.at(ratio, high)[1]
            parts.append(f'<line class="whisker c-specialist" x1="{x}" x2="{x}" y1="{bottom}" y2="{top}"/>')
        parts.append(marker(x, y, "specialist"))
        anchor = "end" if axes.x.at(ratio) > 85 else "start"
        gap, below = (-9, 18) if anchor == "end" else (9, -8)
        parts.append(f'<text x="{x}" y="{y}" dx="{gap}" dy="{below}" text-anchor="{anchor}">{text(size)}</text>')
    return _frame(axes, parts, title)


def _frame(axes: Axes, inside: Sequence[str], title: str, shape: str = "") -> Markup:
    parts = [f"<title>{text(title)}</title>"]
    for tick in axes.y.ticks:
        at = pct(100 - axes.y.at(tick))
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="-8" y="{at}" dy="4" text-anchor="end">{axes.y.label(tick)}</text>')
    for tick in axes.x.ticks:
        at = pct(axes.x.at(tick))
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
        label = f"{100 * tick:.0f} %" if axes.x_percent else axes.x.label(tick)
        parts.append(f'<text x="{at}" y="100%" dy="17" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="100%" y="100%" dy="34" text-anchor="end">{text(axes.x_label)}</text>')
    parts.append(f'<text x="-34" y="0" dy="-12">{text(axes.y_label)}</text>')
    return Markup(f'<svg class="chart {shape}" role="img">{"".join(parts)}{"".join(inside)}</svg>')  # noqa: S704


def _stretched(inside: str) -> str:
    """A part of the picture with coordinates from 0 to 1000 both ways, for lines, which know no percents."""
    return (
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
        f"{inside}</svg>"
    )


def _polyline(axes: Axes, path: Path, place: int) -> str:
    points = " ".join(f"{axes.x.at(x) * 10:.1f},{1000 - axes.y.at(y) * 10:.1f}" for x, y in path.points)
    return f'<polyline class="curve dash-{place % 4} c-{path.role}" points="{points}"/>'


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights moved down until each is LABEL_GAP below the one above, then up where they leave the picture."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed: list[float] = []
    for index in order:
        placed.append(max(heights[index], placed[-1] + LABEL_GAP) if placed else heights[index])
    bottom = 100.0
    for place in range(len(placed) - 1, -1, -1):
        placed[place] = min(placed[place], bottom)
        bottom = placed[place] - LABEL_GAP
    found = [0.0] * len(heights)
    for place, index in enumerate(order):
        found[index] = placed[place]
    return found
