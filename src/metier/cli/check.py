"""`metier check`: the recipe, its wiring, and every file and model that it reads. Loads no weights, writes nothing."""

from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.wording import bytes_text, table
from metier.core.stage import InputFiles, ModelInput
from metier.core.store import Store
from metier.pipeline import Planned, check, plan
from metier.recipe import Recipe, load_recipe

CHUNK = 1 << 20


def check_recipe(path: Path, overrides: Sequence[str], store: Path) -> None:
    """Check all steps, made or not, and print what was looked at."""
    recipe = load_recipe(path, overrides)
    planned = plan(recipe, Store(store))
    check(recipe, planned)
    table(("step", "kind", "looked at"), [_row(recipe, step) for step in planned])
    typer.echo(f"{path}: {len(planned)} steps, nothing wrong.")


def _row(recipe: Recipe, step: Planned) -> tuple[str, str, str]:
    kind = str(type(step.stage).model_fields["kind"].default)
    files: dict[Path, None] = {}
    others = []
    for link in recipe.links[step.name]:
        if isinstance(link.reference.mark, InputFiles):
            files.update(dict.fromkeys(link.files))
        elif isinstance(link.reference.mark, ModelInput) and link.step is None:
            others.append(f"model {link.reference.value}")
        else:
            others.append(link.reference.value)
    seen = [_files_text(list(files))] if files else []
    return step.name, kind, ", ".join([*seen, *dict.fromkeys(others)])


def _files_text(files: Sequence[Path]) -> str:
    lines, size = 0, 0
    for path in files:
        size += path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                lines += chunk.count(b"\n")
    return f"{len(files)} file{'s' * (len(files) != 1)} ({lines:,} lines, {bytes_text(size)})"
