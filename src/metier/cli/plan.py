"""`metier plan` and `metier status`: what would run and why, what is there."""

from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.wording import metrics_text, seconds_text, table
from metier.core.store import Artifact, Store
from metier.pipeline import Planned, plan
from metier.recipe import load_recipe

COLOURS = {"cached": "green", "will run": "yellow", "up to date": "green", "out of date": "yellow"}


def show_plan(path: Path, overrides: Sequence[str], store: Path, only: str | None) -> None:
    """Print each step, whether it will run, why, and how long it took last time."""
    recipe = load_recipe(path, overrides)
    planned = plan(recipe, Store(store), only=only)
    rows = [_row(step) for step in planned]
    table(("step", "kind", "state", "last time", "why"), rows, COLOURS)
    pending = [step for step in planned if step.state == "run"]
    if not pending:
        typer.echo("Nothing to do: every step is made already.")
        return
    known = [step.last_seconds for step in pending if step.last_seconds is not None]
    took = f"; {len(known)} of them took {seconds_text(sum(known))} last time" if known else ""
    typer.echo(f"{len(pending)} of {len(planned)} steps will run{took}.")


def _row(step: Planned) -> tuple[str, str, str, str, str]:
    state = "cached" if step.state == "cached" else "will run"
    kind = str(type(step.stage).model_fields["kind"].default)
    return step.name, kind, state, seconds_text(step.last_seconds), step.why


def show_resolved(path: Path, overrides: Sequence[str]) -> None:
    """Print the recipe as YAML with every default filled in."""
    import yaml

    recipe = load_recipe(path, overrides)
    typer.echo(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=120), nl=False)


def show_status(path: Path, overrides: Sequence[str], store_folder: Path) -> None:
    """Print what each step last made."""
    recipe = load_recipe(path, overrides)
    store = Store(store_folder)
    rows = []
    for step in plan(recipe, store):
        made = step.artifact or store.ref(recipe.name, step.name)
        state = "up to date" if step.artifact else "out of date" if made else "not made"
        rows.append((step.name, state, *_made(made)))
    table(("step", "state", "made", "took", "artifact", "metrics"), rows, COLOURS)


def _made(artifact: Artifact | None) -> tuple[str, str, str, str]:
    if artifact is None:
        return "", "", "", ""
    record = artifact.record
    return record["started"], seconds_text(record["seconds"]), artifact.key, metrics_text(record["metrics"])
