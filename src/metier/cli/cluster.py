"""`metier plan --cluster 8xH100`: what the training steps would take on machines that are not here."""

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.wording import bytes_text, number_text, seconds_text, table
from metier.core.errors import RecipeError
from metier.core.machine import Machine
from metier.core.store import Store
from metier.pipeline import Planned, plan
from metier.recipe import load_recipe
from metier.train.cluster import Cluster, fewest, of_stage, parse, total_seconds
from metier.train.stage import Training
from metier.trial.reshape import Trial

PARTS = 3


def show_cluster(
    path: Path, overrides: Sequence[str], store: Path, only: str | None, trial: Trial, cluster: str
) -> None:
    """Print for each training step the fastest layout that fits: memory a device, tokens a second, time."""
    recipe = load_recipe(path, overrides, trial=trial)
    machine = Machine.here(store)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = parse(cluster, machine, cores)
    steps = [step for step in plan(recipe, Store(store), only=only) if isinstance(step.stage, Training)]
    if not steps:
        typer.echo("No step of this recipe trains.")
        return
    rows, notes = [], []
    for step in steps:
        cells, more = _row(step, there, machine)
        rows.append(cells)
        notes += more
    device = there.device
    typer.echo(
        f"{there.name}: {there.count} devices of {bytes_text(device.memory)}, {device.peak / 1e12:,.4g} TFLOP/s in "
        f"{'bf16' if there.kind == 'cuda' else machine.auto}. By arithmetic (see docs/scale.md), not measured there."
    )
    table(("step", "layout", "memory a device", "tokens/s", "time", "bound by", "what holds the memory"), rows)
    for note in notes:
        typer.echo(note)


def _row(step: Planned, cluster: Cluster, machine: Machine) -> tuple[tuple[str, ...], list[str]]:
    assert isinstance(step.stage, Training)
    found = of_stage(step.stage, step.sources, cluster, machine)
    if found is None:
        return (step.name, "the sizes of this model are not known", "", "", "", "", ""), []
    job, reading, fitting = found
    if not fitting:
        enough = fewest(job, reading, cluster, machine)
        need = f"{enough.count} devices are the fewest" if enough else "no number of devices is enough"
        cure = "" if job.quantize or not job.adapts else "; or set quantize: 4bit"
        return (step.name, f"does not fit: {need}{cure}", "", "", "", "", ""), []
    best = fitting[0]
    parts = sorted(best.parts.items(), key=lambda part: -part[1])[:PARTS]
    about = "about " if reading.about else ""
    cells = (
        step.name,
        best.words,
        bytes_text(best.memory),
        number_text(round(best.speed)),
        about + seconds_text(total_seconds(best, reading)),
        best.bound,
        ", ".join(f"{name} {bytes_text(size)}" for name, size in parts),
    )
    return cells, _notes(step, cluster, shard=best.shard, again=best.checkpointing)


def _notes(step: Planned, cluster: Cluster, *, shard: bool, again: bool) -> list[str]:
    """What the recipe has to say for that layout."""
    assert isinstance(step.stage, Training)
    wanted = [f"{step.name}.shard=true"] if shard and not step.stage.shard else []
    wanted += [f"{step.name}.gradient_checkpointing=true"] if again and not step.stage.gradient_checkpointing else []
    notes = [f"{step.name}: this layout takes " + " ".join(f"--set {one}" for one in wanted)] if wanted else []
    try:
        step.stage.check_processes(cluster.count)
    except RecipeError as error:
        notes.append(f"{step.name}: {error.what}; {error.cure}")
    return notes
