"""`metier report`: publish again from the store, without running anything."""

from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.publishing import publish_result
from metier.core.errors import InputError
from metier.core.store import Store
from metier.pipeline import plan
from metier.recipe import load_recipe
from metier.trial.reshape import Trial


def report_again(path: Path, overrides: Sequence[str], store: Path, out: Path, trial: Trial | None = None) -> None:
    """Publish a recipe whose steps are all made. Raises InputError naming those that are not."""
    recipe = load_recipe(path, overrides, trial=trial)
    planned = plan(recipe, Store(store))
    missing = [step.name for step in planned if step.artifact is None]
    if missing:
        raise InputError(
            f"not every step is made: {', '.join(missing)}", where=str(path), cure=f"run `metier run {path}` first"
        )
    artifacts = {step.name: step.artifact for step in planned if step.artifact is not None}
    typer.echo(f"Report: {publish_result(recipe, artifacts, out)}")
