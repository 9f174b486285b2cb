"""`metier plan` and `metier status`: what would run and why, what is there."""

from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.power import powers, print_power
from metier.cli.wording import bytes_text, metrics_text, seconds_text, table
from metier.core.machine import Estimate, Machine
from metier.core.store import Artifact, Store
from metier.pipeline import Planned, plan
from metier.recipe import load_recipe
from metier.trial.reshape import Trial

COLOURS = {"cached": "green", "will run": "yellow", "up to date": "green", "out of date": "yellow"}
MOST_PARTS = 4
"""Parts of a step's memory that are named, the largest first."""


def show_plan(path: Path, overrides: Sequence[str], store: Path, only: str | None, trial: Trial | None = None) -> None:
    """Print each step, whether it will run, why, how long it took, what training will take and scores can show."""
    recipe = load_recipe(path, overrides, trial=trial)
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
    _show_estimates(pending, Machine.here(store))
    waiting = {step.name for step in pending}
    print_power([(name, power) for name, power in powers(planned) if name in waiting])


def _show_estimates(pending: Sequence[Planned], machine: Machine) -> None:
    """A table of what the steps will take, of those that can tell; printed only where there is one."""
    found = [(step.name, step.stage.estimate(step.sources, machine)) for step in pending]
    known = [(name, estimate) for name, estimate in found if estimate is not None]
    if not known:
        return
    typer.echo("")
    table(("step", "memory", "disk", "time", "what holds the memory"), [_estimate_row(*pair) for pair in known])
    typer.echo(f"{bytes_text(machine.memory_bytes)} of memory are free; the figures hold to about a sixth.")
    for name, estimate in known:
        if estimate.note:
            typer.echo(f"{name}: {estimate.note}.")
    if any(estimate.seconds is None for _, estimate in known):
        typer.echo("Run `metier doctor` for times: this machine was not measured yet.")


def _estimate_row(name: str, estimate: Estimate) -> tuple[str, str, str, str, str]:
    about = "about " if estimate.about else ""
    parts = sorted(estimate.memory.items(), key=lambda part: -part[1])[:MOST_PARTS]
    return (
        name,
        about + bytes_text(estimate.memory_bytes),
        bytes_text(estimate.disk_bytes),
        "" if estimate.seconds is None else f"about {seconds_text(estimate.seconds)}",
        ", ".join(f"{part} {bytes_text(size)}" for part, size in parts),
    )


def _row(step: Planned) -> tuple[str, str, str, str, str]:
    state = "cached" if step.state == "cached" else "will run"
    return step.name, step.kind, state, seconds_text(step.last_seconds), step.why


def show_resolved(path: Path, overrides: Sequence[str], trial: Trial | None = None) -> None:
    """Print the recipe as YAML with every default filled in."""
    import yaml

    recipe = load_recipe(path, overrides, trial=trial)
    typer.echo(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=120), nl=False)


def show_status(path: Path, overrides: Sequence[str], store_folder: Path, trial: Trial | None = None) -> None:
    """Print what each step last made."""
    recipe = load_recipe(path, overrides, trial=trial)
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
