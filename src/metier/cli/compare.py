"""`metier compare`: two runs, steps or contenders, item by item; a table, and a page, JSON or CSV where asked."""

import json
from collections.abc import Callable
from pathlib import Path

import typer

from metier.cli.wording import table
from metier.core.errors import InputError
from metier.core.store import Store
from metier.report.compare import Comparison, as_csv, as_json, as_page, compare, find
from metier.report.wording import count, cut, group, interval, metric, number, probability, signed, visible
from metier.report.writing import write_whole

HEAD = ("metric", "group", "A", "B", "A - B", "interval", "p (Holm)", "verdict", "detectable", "n")
COLOURS = {"better": "green", "worse": "red"}
LONGEST = 40


def compare_two(
    a: str, b: str, store: Path, *, html: Path | None, json_file: Path | None, csv_file: Path | None
) -> None:
    """Print the comparison, and write what is asked for. Raises InputError where the two cannot be compared."""
    place = Store(store)
    found = compare(find(a, place), find(b, place))
    show(found)
    makers: tuple[tuple[Path | None, Callable[[Comparison], str]], ...] = (
        (html, as_page),
        (json_file, _json_text),
        (csv_file, as_csv),
    )
    for path, make in makers:
        if path is not None:
            _write(path, make(found))


def _json_text(found: Comparison) -> str:
    return json.dumps(as_json(found), indent=1, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"cannot write it: {error.strerror}", where=str(path), cure="give another path") from error
    typer.echo(f"Written: {path}")


def show(found: Comparison) -> None:
    """The comparison as a table. No string of others reaches the terminal as it is."""
    typer.echo(f"A: {line(found.a)}\nB: {line(found.b)}\n")
    rows = []
    for r in found.rows:
        digits = metric(r.metric).digits
        rows.append(
            [
                line(metric(r.metric).title),
                line(group(r.group)[0]),
                number(r.a_mean, digits),
                number(r.b_mean, digits),
                signed(r.difference, digits),
                interval(r.low, r.high, digits),
                probability(r.p_holm),
                r.verdict or "not compared",
                number(r.detectable, digits),
                count(r.n),
            ]
        )
    table(HEAD, rows, COLOURS)
    for note in found.notes:
        typer.echo(f"note: {line(note)}")


def line(text: str) -> str:
    """One short line in which nothing hides: no escape sequence, no line end, no change of direction."""
    return cut(" ".join(visible(text).split()), LONGEST if len(text) > 4 * LONGEST else 4 * LONGEST)
