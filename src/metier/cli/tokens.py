"""What `metier check` found, as a terminal shows it: trained tokens in colour, the others dim.

In a pipe, where there is no colour, trained stretches stand between « and ».
"""

import os
import sys
from itertools import groupby

import typer

from metier.cli.looking import LEFT_OUT, Data, Leak
from metier.cli.proof import Proof, Shown
from metier.core.errors import shorten

MOST_NOTES = 10
LINE_END = "\u21b5"
"""Shown where a token is or holds a line end."""


def has_colour() -> bool:
    """Whether colours reach a person. NO_COLOR says that they are not wanted (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def print_data(data: Data) -> None:
    """Counts, what was left out and why, and private data."""
    splits = ", ".join(f"{count:,} {name}" for name, count in data.splits.items() if count)
    typer.echo("")
    typer.secho(f"{data.step} ({data.kind})", bold=True)
    typer.echo(f"  {data.rows_read:,} rows read: {splits or 'nothing taken'}")
    if data.left_out:
        typer.echo("  left out: " + ", ".join(f"{count:,} {LEFT_OUT[name]}" for name, count in data.left_out.items()))
        for reason, count, first in data.reasons:
            typer.echo(f"    {count:,} x {reason} (first: {first})")
    else:
        typer.echo("  left out: nothing")
    private = ", ".join(f"{count:,} {kind}" for kind, count in data.private.items())
    found = f"{private}; in {data.private_rows:,} of {data.looked_at:,} rows" if private else "none found"
    typer.echo(f"  private data: {found}")
    for note in data.notes[:MOST_NOTES]:
        typer.echo(f"  note: {note}")
    if len(data.notes) > MOST_NOTES:
        typer.echo(f"  and {len(data.notes) - MOST_NOTES:,} more notes")


def print_leaks(leak: Leak) -> None:
    """How much of a test a contender's training data shows, and both texts of some hits."""
    typer.echo("")
    typer.secho(f"{leak.tested}/{leak.split} in what {leak.trained} trains on", bold=True)
    if not leak.seen:
        typer.echo(f"  none of {leak.items:,} items was seen")
        return
    how = ", ".join(f"{count:,} {name}" for name, count in leak.how.items())
    typer.secho(f"  {leak.seen:,} of {leak.items:,} items were seen ({leak.seen / leak.items:.1%}): {how}", fg="red")
    for hit in leak.hits:
        typer.echo(f"    {hit['how']} {hit['score']:g}, the {hit['part']} of {hit['id']}")
        typer.echo(f"      tested:  {shorten(hit['tested'], 100)}")
        typer.echo(f"      trained: {shorten(hit['trained'], 100)}")


def print_proof(proof: Proof, most: int) -> None:
    """Lengths, claims, and a few examples with each token marked."""
    typer.echo("")
    through = f" through {proof.prompt}" if proof.prompt else ""
    typer.secho(f"{proof.step} ({proof.kind} on {proof.data}{through})", bold=True)
    some = "" if proof.looked_at == proof.rows else f" of {proof.rows:,}, evenly spaced"
    typer.echo(
        f"  tokens in {proof.looked_at:,} rows{some}: median {proof.quantile(0.5):,}, 90 % at most "
        f"{proof.quantile(0.9):,}, longest {proof.lengths[-1]:,}; {proof.trained_share:.0%} are trained on"
    )
    if proof.kind == "tune":
        cut = f"{proof.cut:,} rows are longer than {proof.limit:,} and will be cut"
        typer.echo(f"  {cut}, {proof.masked:,} would keep no token to train on")
    for claim in proof.claims:
        mark = typer.style("yes", fg="green") if claim.holds else typer.style("NO ", fg="red")
        which = "" if claim.holds else f" (not in {', '.join(claim.failing)})"
        typer.echo(f"  {mark}  {claim.what} ({claim.rows:,} rows){which}")
    coloured = has_colour()
    for shown in proof.shown[:most]:
        typer.echo(f"  {shown.id}, {shown.length:,} tokens; {_legend(coloured)}")
        typer.echo(_indented(coloured_text(shown) if coloured else marked_text(shown)))


def _legend(coloured: bool) -> str:
    if not coloured:
        return "what is trained stands between « and »"
    return f"{_colour('trained', trained=True, odd=False)}, {_colour('not trained', trained=False, odd=False)}"


def coloured_text(shown: Shown) -> str:
    """Each token in the colour of what becomes of it; neighbours differ in shade, so that they are told apart."""
    pieces = []
    for number, token in enumerate(shown.tokens):
        pieces.append(_colour(_visible(token.text), trained=token.trained, odd=number % 2 == 1, special=token.special))
    return "".join(pieces)


def marked_text(shown: Shown) -> str:
    """The text with trained stretches between « and »."""
    runs = groupby(shown.tokens, key=lambda token: token.trained)
    texts = ((trained, "".join(_visible(token.text) for token in tokens)) for trained, tokens in runs)
    return "".join(f"«{text}»" if trained else text for trained, text in texts)


def _visible(text: str) -> str:
    """Line ends as a sign and a break; other control characters, which could move the cursor, as their names."""
    return "".join(
        LINE_END + "\n" if letter == "\n" else letter if letter.isprintable() else ascii(letter)[1:-1]
        for letter in text
    )


def _colour(text: str, *, trained: bool, odd: bool, special: bool = False) -> str:
    lines = text.split("\n")
    return "\n".join(
        typer.style(line, fg="black", bg="green" if odd else "bright_green", bold=special or None)
        if trained
        else typer.style(line, fg="bright_black" if odd else "white", bold=special or None)
        for line in lines
    )


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))
