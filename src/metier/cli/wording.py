"""Numbers, times and tables as people read them in a terminal."""

from collections.abc import Mapping, Sequence

import typer

MOST_METRICS = 5


def seconds_text(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number_text(value: float) -> str:
    """Four significant digits, thousands parted by commas."""
    if isinstance(value, int) or (value == round(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """`loss 2.31, tokens 10,240`: the first few metrics of a step."""
    shown = [f"{name} {number_text(value)}" for name, value in list(metrics.items())[:MOST_METRICS]]
    return ", ".join([*shown, *(["..."] if len(metrics) > MOST_METRICS else [])])


def bytes_text(size: float) -> str:
    """`512 bytes`, `1.4 MB`, `3.0 GB`: powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str] | None = None) -> None:
    """Print columns, each as wide as its widest cell, so that the table survives a pipe.

    colours: cell text -> colour, shown on a terminal alone.
    """
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    typer.secho("  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip(), bold=True)
    for row in rows:
        cells = [
            typer.style(cell.ljust(width), fg=(colours or {}).get(cell))
            for cell, width in zip(row[:-1], widths[:-1], strict=True)
        ]
        typer.echo("  ".join([*cells, row[-1]]).rstrip())
