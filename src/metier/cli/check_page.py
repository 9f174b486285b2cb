"""What `metier check` found, as one self-contained page: no script, nothing from elsewhere, every text escaped."""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from metier.cli.looking import LEFT_OUT
from metier.cli.proof import Proof
from metier.core.errors import InputError, shorten

if TYPE_CHECKING:
    from metier.cli.check import Findings

TEMPLATES = Path(__file__).parent / "templates"
LINE_END = "\u21b5"
WIDTH, HEIGHT = 640, 90
"""Of the picture of lengths, in its own units."""


def write_page(found: "Findings", path: Path) -> None:
    """Write the page. Raises InputError where the file cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=lambda n: f"{n:,}", share=lambda x: f"{x:.1%}", visible=visible, cut=shorten)
    page = environment.get_template("check.html.j2").render(
        found=found, left_out=LEFT_OUT, bars=bars, width=WIDTH, height=HEIGHT
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the page cannot be written: {error.strerror}", where="--html", value=str(path), cure="give another path"
        ) from error


def visible(text: str) -> str:
    """A token's text with line ends as a sign and a break, and other control characters by their names."""
    return "".join(
        LINE_END + "\n" if letter == "\n" else letter if letter.isprintable() else ascii(letter)[1:-1]
        for letter in text
    )


def bars(proof: Proof) -> list[dict[str, float]]:
    """The picture of lengths: for each bar its place, its rows, and how much of it is beyond the limit."""
    bins = proof.histogram
    most = max(rows for _, rows in bins)
    each = WIDTH / len(bins)
    return [
        {
            "x": round(number * each, 2),
            "width": round(each - 1, 2),
            "height": round(max(1.5 if rows else 0.0, HEIGHT * rows / most), 2),
            "rows": rows,
            "upto": upto,
            "beyond": proof.kind == "tune" and upto > proof.limit and bins[number - 1][0] >= proof.limit,
        }
        for number, (upto, rows) in enumerate(bins)
    ]
