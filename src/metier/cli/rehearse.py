"""`metier run RECIPE --rehearse`: will the real thing fit here, and how long will it take?

Each training step runs by itself, in a process of its own, on a model of the true architecture with random weights and
the real tokenizer, with as many layers as fit. What it took stands beside what `metier plan` predicts for it; the same
ratio carries the prediction for all layers and the whole step. Writes `<out>/<recipe>-rehearse/rehearsal.json` and
`rehearsal.md`. Costs one model at a time on disk, which goes when its step is through; a stopped rehearsal goes on.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer
import yaml

from metier.cli.stopping import StopFlag
from metier.cli.wording import bytes_text, seconds_text, table
from metier.core.disk import write_whole
from metier.core.errors import InputError, Interrupted, RecipeError, TrainingError
from metier.core.fingerprint import digest
from metier.core.machine import FILE, Machine
from metier.core.stage import Source
from metier.core.store import Store
from metier.models.builtin import CONFIG, read_json
from metier.models.extension import EXTENSION
from metier.models.sizes import LAYERS, TOKENIZER_FILES, Published, published
from metier.pipeline import Planned, plan, run
from metier.recipe import load_recipe, read_raw
from metier.train import costs, estimate
from metier.train.sizes import Job, Reading
from metier.train.stage import Training
from metier.trial.rehearse import STEPS, Rehearsed, rehearsals
from metier.trial.reshape import Trial

NAME = "rehearsal.json"
TRAINED = "trained"
MODEL = "model"
SPARED = 0.9
"""The share of the free disk that a model and what its step writes may fill."""
HEAD = ("step", "layers", "memory", "predicted", "time", "predicted", "all layers: memory", "time", "trained")
NOTICE = (
    "A rehearsal: true sizes, random weights, a few optimizer steps. It says what the real run will take, and nothing "
    "of how good it will be."
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Rehearsal:
    """Where and how it is rehearsed. layers: so many instead of as many as fit. store: knows the machine's speeds."""

    folder: Path
    store: Path
    tokenizers: Path | None
    layers: int | None

    @property
    def work(self) -> Path:
        """Models and steps, while they are rehearsed."""
        return self.folder / "work"


def rehearse_recipe(
    path: Path,
    overrides: Sequence[str],
    store: Path,
    out: Path,
    *,
    trial: Trial,
    tokenizers: Path | None,
    layers: int | None,
    quiet: bool = False,
) -> Path:
    """Rehearse every training step and write what it took. Returns the table's path.

    Raises InputError before anything runs where sizes or a tokenizer are not at hand, or not one layer fits.
    """
    from metier.scale.link import code

    value, root = read_raw(path, overrides, trial)
    jobs = rehearsals(value, root)
    models = {job.model: _published(job, root, tokenizers) for job in jobs}
    place = Rehearsal((out / f"{value['name']}-rehearse").absolute(), store, tokenizers, layers)
    place.work.mkdir(parents=True, exist_ok=True)
    _measure_machine(place)
    known = _known(place)
    rows: list[Row] = []
    with StopFlag() as stop:
        for job in jobs:
            if stop():
                raise Interrupted("the rehearsal was stopped", cure="run the same command again: it goes on from here")
            key = digest([code(), job.steps, job.whole, dict(models[job.model].config), layers])
            row = known.get(key) or _rehearse(job, models[job.model], place, quiet=quiet)
            rows.append({**row, "key": key})
            _write(place, value["name"], rows)
    shutil.rmtree(place.work, ignore_errors=True)
    _show(rows)
    return place.folder / "rehearsal.md"


def _published(job: Rehearsed, root: Path, tokenizers: Path | None) -> Published:
    found = published(job.model, root, tokenizers)
    if found.tokenizer is None:
        cure = (
            f"name a folder of tokenizers with --tokenizers, or fetch it: `hf download {job.model} tokenizer.json "
            "tokenizer_config.json`"
        )
        raise InputError(
            "the model's tokenizer is not here", where=f"--rehearse: {job.step}", value=job.model, cure=cure
        )
    return found


def _measure_machine(place: Rehearsal) -> None:
    """Without the speeds of this machine's products there are no predicted times."""
    if "peaks" not in (json.loads(text) if (text := _text(place.store / FILE)) else {}):
        _metier("doctor", "--store", str(place.store))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _known(place: Rehearsal) -> dict[str, Row]:
    """The rows of a rehearsal that was stopped, by what they were made of; a finished one is made anew."""
    if not any(place.work.iterdir()):
        return {}
    held = json.loads(_text(place.folder / NAME) or "{}")
    return {row["key"]: row for row in held.get("steps", [])}


# ---- one step --------------------------------------------------------------------------------------------------------


def _rehearse(job: Rehearsed, model: Published, place: Rehearsal, *, quiet: bool) -> Row:
    store = Store(place.work / "store")
    data = _written(job.data(), place, f"{job.step}-data")
    made = run(load_recipe(data), store)
    sources = {
        name: Source(name, (one.files,), "", one.key, produces=one.record["produces"])
        for name, one in made.artifacts.items()
    }
    machine = Machine.here(place.store)
    whole = cast(Training, _stage({**job.whole, "model": MODEL}))
    cut = cast(Training, _stage({**job.steps[job.step], "model": MODEL}))
    layers = place.layers or _fitting(cut, sources, model, place, machine)
    layers = min(layers, model.layers)
    if not quiet:
        typer.echo(f"[{job.step}] {job.model}: {layers} of {model.layers} layers, {STEPS} optimizer steps", err=True)
    folder = place.work / f"{MODEL}-{layers}"
    if not folder.is_dir():
        for old in place.work.glob(f"{MODEL}-*"):
            shutil.rmtree(old)
        _unborn(model, layers, folder)
    recipe = _written(job.on(folder), place, job.step)
    for step in load_recipe(recipe).needed(job.step):  # each in a process of its own, so that its peak is its own
        if step not in job.data():
            before = _planned(recipe, store, step)
            _metier("run", str(recipe), "--only", step, "--store", str(store.root), "--quiet")
    now = {one.name: one for one in plan(load_recipe(recipe), store, only=job.step)}[job.step]
    row = _row(job, model, layers, before, now, whole, machine, place)
    shutil.rmtree(store.root / "objects" / str(now.key), ignore_errors=True)
    return row


def _unborn(model: Published, layers: int, folder: Path) -> None:
    """In a process of its own, whose memory goes with it."""
    assert model.tokenizer is not None
    given = json.dumps([model.with_layers(layers), str(model.tokenizer), str(folder)])
    code = (
        "import json, sys; from pathlib import Path; from metier.models.unborn import write_unborn; "
        "config, tokenizer, folder = json.loads(sys.argv[1]); write_unborn(config, Path(tokenizer), Path(folder))"
    )
    _call([sys.executable, "-c", code, given])


def _fitting(
    stage: Training, sources: Mapping[str, Source], model: Published, place: Rehearsal, machine: Machine
) -> int:
    """The most layers that fit memory and disk. Raises InputError where not one does."""
    free = shutil.disk_usage(place.work).free
    for layers in range(model.layers, 0, -1):
        found = _described(stage, sources, _sizes(model, layers, place), machine)
        if found is None:
            raise InputError("the memory of this architecture is not known", where=stage.model, cure="give --layers N")
        job, reading = found
        written = sum(job.shape.sizes.values()) * job.shape.stored_bytes + sum(costs.disk(job, reading).values())
        needed = sum(costs.memory(job, reading).values())
        if needed <= estimate.MARGIN * machine.memory_bytes and written <= SPARED * free:
            return layers
    room = f"{machine.memory_bytes / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB of disk"
    raise InputError(
        f"not one layer of the model fits: {room}",
        where="--rehearse",
        cure="close other programs, or rehearse on a larger machine",
    )


def _sizes(model: Published, layers: int, place: Rehearsal) -> Path:
    """A folder with what estimates read of a model, without weights."""
    folder = place.work / f"sizes-{layers}"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.with_layers(layers)), encoding="utf-8")
    tokenizer = folder / "tokenizer.json"
    if model.tokenizer is not None and (model.tokenizer / tokenizer.name).is_file() and not tokenizer.is_file():
        shutil.copyfile(model.tokenizer / tokenizer.name, tokenizer)
    return folder


def _described(
    stage: Training, sources: Mapping[str, Source], folder: Path, machine: Machine
) -> tuple[Job, Reading] | None:
    return estimate.described(stage, {**sources, MODEL: Source(MODEL, (folder,), "", "")}, machine)


def _row(
    job: Rehearsed, model: Published, layers: int, before: Planned, now: Planned, whole: Training, machine: Machine,
    place: Rehearsal,
) -> Row:  # fmt: skip
    """What was predicted and what was taken, with the whole step's prediction carried by the same ratios."""
    assert now.artifact is not None
    record = now.artifact.record
    told = before.stage.estimate(before.sources, machine)
    assert told is not None
    memory, seconds = record["peak_rss_bytes"], record["seconds"]
    full = _described(whole, _data_sources(now), _full(now, model, place), machine)
    assert full is not None
    all_memory = sum(costs.memory(*full).values())
    all_seconds = costs.seconds(*full, machine)
    pace = None if not told.seconds else seconds / told.seconds
    return {
        "step": job.step,
        "kind": job.whole["kind"],
        "model": job.model,
        "layers": layers,
        "of_layers": model.layers,
        "lent_data": list(job.lent),
        "optimizer_steps": STEPS,
        "memory_bytes": memory,
        "memory_predicted_bytes": round(told.memory_bytes),
        "seconds": seconds,
        "seconds_predicted": None if told.seconds is None else round(told.seconds, 1),
        "all_memory_predicted_bytes": round(all_memory),
        "all_memory_bytes": round(all_memory * memory / told.memory_bytes),
        "all_seconds_predicted": None if all_seconds is None else round(all_seconds, 1),
        "all_seconds": None if all_seconds is None or pace is None else round(all_seconds * pace, 1),
        "trained": sum(full[0].trained.values()),
        "parameters": sum(full[0].shape.sizes.values()),
        "device": machine.device,
    }


def _data_sources(step: Planned) -> dict[str, Source]:
    return {name: source for name, source in step.sources.items() if name != getattr(step.stage, "model", "")}


def _full(step: Planned, model: Published, place: Rehearsal) -> Path:
    """The sizes of the model that the step started from, its extended vocabulary included, with all layers."""
    started = step.sources[str(step.stage.model)].path  # type: ignore[attr-defined]
    folder = place.work / "sizes-all"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = read_json(started / CONFIG)
    name = next(name for name in LAYERS if name in config)
    (folder / CONFIG).write_text(json.dumps({**config, name: model.layers}), encoding="utf-8")
    for name in (*TOKENIZER_FILES, EXTENSION):
        if (started / name).is_file():
            shutil.copyfile(started / name, folder / name)
    return folder


# ---- processes, files, the table -------------------------------------------------------------------------------------


def _stage(raw: Row) -> Any:
    from metier.stages import CATALOGUE

    return CATALOGUE[raw["kind"]].model_validate(raw)


def _written(steps: Row, place: Rehearsal, name: str) -> Path:
    path = place.work / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": f"rehearse-{name}", "steps": steps}, sort_keys=False), encoding="utf-8")
    return path


def _planned(recipe: Path, store: Store, step: str) -> Planned:
    return {one.name: one for one in plan(load_recipe(recipe), store, only=step)}[step]


def _metier(*arguments: str) -> None:
    _call([sys.executable, "-c", "from metier.cli import main; main()", *arguments])


def _call(command: Sequence[str]) -> None:
    """Run a process of ours to its end. Raises what it ended with."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))  # noqa: S603
    if done.returncode == 0:
        return
    said = done.stderr.strip().removeprefix("error: ")
    if done.returncode in (75, 130, -2):
        raise Interrupted("the rehearsal was stopped", cure="run the same command again: it goes on from here")
    if done.returncode == 2:
        raise RecipeError(said or "a step of the rehearsal was refused")
    raise TrainingError(f"a step of the rehearsal failed: {said[-2000:]}")


def _write(place: Rehearsal, recipe: str, rows: Sequence[Row]) -> None:
    write_whole(place.folder / NAME, json.dumps({"recipe": recipe, "notice": NOTICE, "steps": rows}, indent=1) + "\n")
    lines = [f"# {recipe}: rehearsal", "", NOTICE, "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    notes = [
        f"`{row['step']}` read the smoke block's data for {', '.join(row['lent_data'])}: its own are not here."
        for row in rows
        if row["lent_data"]
    ]
    notes += [
        f"`{row['step']}` had {row['layers']} of {row['of_layers']} layers of {row['model']}, as more did not fit or "
        "fewer were asked for; the figures for all layers are projected."
        for row in rows
        if row["layers"] < row["of_layers"]
    ]
    write_whole(place.folder / "rehearsal.md", "\n".join([*lines, "", *notes]).rstrip() + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    share = 100 * row["trained"] / row["parameters"]
    return (
        row["step"],
        f"{row['layers']} of {row['of_layers']}",
        bytes_text(row["memory_bytes"]),
        bytes_text(row["memory_predicted_bytes"]),
        seconds_text(row["seconds"]),
        seconds_text(row["seconds_predicted"]),
        bytes_text(row["all_memory_bytes"]),
        seconds_text(row["all_seconds"]),
        f"{row['trained']:,} ({share:.2f} %)",
    )


def _show(rows: Sequence[Row]) -> None:
    table(HEAD, [_cells(row) for row in rows])
    typer.echo(NOTICE)
