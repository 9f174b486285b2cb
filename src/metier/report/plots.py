"""Intervals and curves as small SVG, drawn by hand so that they follow the page's colours, light or dark.

Positions inside a plot are percentages of its width: the picture stretches to a phone or a wide screen while text
and strokes keep their size. Classes (`c-specialist` ...) carry the colour, shapes repeat what the colour says. Every
plot bears a title that a screen reader can say.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from metier.report.wording import visible

POINTS = 240
"""Most points drawn of a curve: beyond that they lie closer than pixels."""


@dataclass(frozen=True)
class Scale:
    """A linear axis from low to high with round ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def at(self, value: float) -> float:
        """Position in percent, kept inside the plot."""
        share = (value - self.low) / (self.high - self.low)
        return 100 * min(1.0, max(0.0, share))

    def label(self, tick: float) -> str:
        """A tick as text."""
        return f"{tick:.{self.digits}f}".replace("-", "−")


def scale(values: Iterable[float], *, bounded: bool = False, wanted: int = 5) -> Scale:
    """An axis around values. bounded: it starts at 0 and ends at 1 at most (shares)."""
    seen = [v for v in values if math.isfinite(v)]
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    if bounded:
        low, high = min(0.0, low), min(1.0, high) if high <= 1 else high
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(size, 1e-9):  # one value, or so close that the ticks would coincide
        around = size / 2 if size > 1e-9 else 0.5
        low, high = low - around, high + around
    step = _round_step((high - low) / wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Scale(first * step, last * step, ticks, digits)


def until(high: float) -> Scale:
    """An axis from 0 to exactly `high`, so that a curve fills its plot."""
    around = scale([0.0, high], wanted=4)
    return Scale(0.0, high or 1.0, tuple(t for t in around.ticks if t <= high), around.digits)


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * m for m in (1, 2, 5, 10) if rough <= size * m * 1.0001)


def text(value: object) -> Markup:
    """Escaped, with hidden characters spelt out."""
    return escape(visible(str(value)))


def _pct(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def marker(x: str, y: str, role: str) -> str:
    """The mark of a contender: circle, ring (base), square (comparison), diamond (stage) or triangle (reference)."""
    place = f'<svg x="{x}" y="{y}" overflow="visible" class="c-{role}">'
    shape = {
        "specialist": '<circle r="6" class="fill"/>',
        "base": '<circle r="5" class="ring"/>',
        "comparison": '<rect x="-5" y="-5" width="10" height="10" class="fill"/>',
        "reference": '<path d="M-6 5 0-6 6 5z" class="ring"/>',
        "better": '<circle r="5.5" class="fill"/>',
        "worse": '<circle r="5.5" class="fill"/>',
        "even": '<circle r="4.5" class="ring"/>',
    }.get(role, '<path d="M0-7 7 0 0 7-7 0z" class="fill"/>')
    return f"{place}{shape}</svg>"


def legend_marker(role: str) -> Markup:
    """A contender's mark to stand in a line of text."""
    return Markup(f'<svg class="mark" width="16" height="16" aria-hidden="true">{marker("8", "8", role)}</svg>')  # noqa: S704


def track(axis: Scale, mean: float, low: float | None, high: float | None, *, role: str, zero: bool = False) -> Markup:
    """One row of a forest plot: grid, interval and mark. zero: draw the line of no difference."""
    parts = [
        f'<line class="grid" x1="{_pct(axis.at(t))}" x2="{_pct(axis.at(t))}" y1="0" y2="100%"/>' for t in axis.ticks
    ]
    if zero and axis.low <= 0 <= axis.high:
        parts.append(f'<line class="zero" x1="{_pct(axis.at(0))}" x2="{_pct(axis.at(0))}" y1="0" y2="100%"/>')
    if low is not None and high is not None:
        left, right = _pct(axis.at(low)), _pct(axis.at(high))
        parts.append(f'<line class="whisker c-{role}" x1="{left}" x2="{right}" y1="50%" y2="50%"/>')
        parts += [f'<line class="whisker c-{role}" x1="{x}" x2="{x}" y1="30%" y2="70%"/>' for x in (left, right)]
    parts.append(marker(_pct(axis.at(mean)), "50%", role))
    return Markup(f'<svg class="track" aria-hidden="true">{"".join(parts)}</svg>')  # noqa: S704


def axis_row(axis: Scale) -> Markup:
    """The tick labels under a forest plot."""
    labels = "".join(
        f'<text x="{_pct(axis.at(t))}" y="12" text-anchor="middle">{axis.label(t)}</text>' for t in axis.ticks
    )
    return Markup(f'<svg class="axis" aria-hidden="true">{labels}</svg>')  # noqa: S704


@dataclass(frozen=True)
class Line:
    """One curve. dots: mark every point (few of them, measured on the dev set)."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def curves(lines: Sequence[Line], *, title: str, x_label: str, small: bool = False) -> Markup:
    """Curves over one x axis that starts at 0. Points beyond `POINTS` are averaged in runs, so no peak is invented.

    small: a low plot without labels along x, to stand under one that has them.
    """
    drawn = [(line, thin(line.points)) for line in lines if line.points]
    x = until(max((p[0] for _, points in drawn for p in points), default=1.0))
    y = scale([p[1] for _, points in drawn for p in points], wanted=2 if small else 4)
    parts = [f"<title>{text(title)}</title>"]
    for tick in y.ticks:
        at = _pct(100 - y.at(tick))
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
        label = y.label(tick) if y.digits <= 2 else f"{tick:g}".replace("e-0", "e−")
        parts.append(f'<text x="-8" y="{at}" dy="4" text-anchor="end">{label}</text>')
    if not small:
        parts += [_x_tick(x, tick) for tick in x.ticks]
        parts.append(f'<text x="100%" y="100%" dy="34" text-anchor="end">{text(x_label)}</text>')
    parts.append(
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%" overflow="visible">'
    )
    for line, points in drawn:
        path = " ".join(f"{x.at(a) * 10:.1f},{1000 - y.at(b) * 10:.1f}" for a, b in points)
        parts.append(f'<polyline class="curve {line.style}" points="{path}"/>')
    parts.append("</svg>")
    for line, points in drawn:
        if line.dots or len(points) == 1:
            parts += [
                f'<circle class="dot {line.style}" r="3.5" cx="{_pct(x.at(a))}" cy="{_pct(100 - y.at(b))}"/>'
                for a, b in points
            ]
    size = "curves small" if small else "curves"
    return Markup(f'<svg class="{size}" role="img">{"".join(parts)}</svg>')  # noqa: S704


def _x_tick(x: Scale, tick: float) -> str:
    label = f"{tick:,.{x.digits}f}" if tick < 1e5 else f"{tick / 1e6:g} M" if tick < 1e9 else f"{tick / 1e9:g} G"
    return f'<text x="{_pct(x.at(tick))}" y="100%" dy="17" text-anchor="middle">{label}</text>'


def thin(points: Sequence[tuple[float, float]], limit: int = POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: the means of equal runs of neighbours."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(p[0] for p in run) / len(run), sum(p[1] for p in run) / len(run)) for run in runs]
