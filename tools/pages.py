"""Write the pages of docs/ that come from the program and from what was measured: `python -m tools.pages`.

One page a stage with all its settings (docs/stages/), the table of machines, memory and time in docs/hardware.md,
and the list of decisions in docs/design.md.
"""

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from metier.core.described import table
from metier.core.stage import Stage
from metier.stages import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BEGIN, END = "<!-- made -->\n", "<!-- end of made -->\n"
TOPICS = ("main-job", "training")
UNITS = ("GB", "s")


def inside(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes with settings of their own that a field's type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from inside(part)


def nested(config: type[BaseModel]) -> dict[type[BaseModel], str]:
    """Class -> the setting under which it is first written, such as `method` or `sources.fields`, the outer first."""
    found: dict[type[BaseModel], str] = {}
    waiting = [(config, "")]
    while waiting:
        parent, path = waiting.pop(0)
        for name, field in parent.model_fields.items():
            for child in inside(field.annotation):
                if child not in found and child is not config:
                    found[child] = f"{path}{name}"
                    waiting.append((child, f"{path}{name}."))
    return found


def first_line(stage: type[BaseModel]) -> str:
    """What a class is for, in one sentence."""
    text = " ".join((stage.__doc__ or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


def stage_page(kind: str, stage: type[Stage]) -> str:
    """The page of one kind."""
    parts = [f"# {kind}\n", first_line(stage) + "\n", f"Makes: {stage.produces}.\n", table(stage)]
    for child, path in nested(stage).items():
        parts += [f"## Under `{path}`: {child.__name__}\n", first_line(child) + "\n", table(child)]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Path below docs/ -> text, of all pages that are written whole."""
    kinds = "".join(f"| [{kind}]({kind}.md) | {first_line(CATALOGUE[kind])} |\n" for kind in CATALOGUE)
    head = "# Stages\n\nWhat a recipe's `kind` can be; a page each, with every setting.\n\n| kind | |\n|---|---|\n"
    return {
        "stages/index.md": head + kinds,
        **{f"stages/{kind}.md": stage_page(kind, CATALOGUE[kind]) for kind in CATALOGUE},
    }


def hardware() -> str:
    """docs/hardware.md with its table as `benchmarks/results/` has it."""
    lines = ["| what | measured | machine | date | command |", "|---|---|---|---|---|"]
    for topic in TOPICS:
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{topic}.json").read_text(encoding="utf-8")):
            if row["unit"] in UNITS:
                measured = f"{row['measured']:.3g} {row['unit']}"
                cells = (row["case"], measured, row["hardware"], row["date"], f"`{row['command']}`")
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return filled("hardware.md", lines)


def decisions() -> str:
    """docs/design.md with the heading of each file in design/."""
    lines = []
    for path in sorted((ROOT / "design").glob("*.md")):
        heading = path.read_text(encoding="utf-8").splitlines()[0]
        lines.append(f"- `design/{path.name}`: " + re.sub(r"^# (?:\d+\.? )?", "", heading))
    return filled("design.md", lines)


def filled(page: str, lines: list[str]) -> str:
    """A page with these lines between its marks."""
    before, rest = (DOCS / page).read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + rest[rest.index(END) :]


def main() -> None:
    (DOCS / "stages").mkdir(exist_ok=True)
    for name, text in {**pages(), "hardware.md": hardware(), "design.md": decisions()}.items():
        (DOCS / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
