"""`metier fetch RECIPE`: look whether its models can be had, stored and trained here, then fetch them.

The one command that goes to the hub. Everything that would stop the run is said first, all of it at once: a gated
model without access, too little disk, a GPU or a memory too small for a training step, with the settings that would
fit. Costs reading the recipe's data once, for the lengths of its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import typer
import yaml

from metier.cli.wording import bytes_text, table
from metier.core.errors import InputError, MetierError, together
from metier.core.machine import Machine
from metier.core.stage import Source
from metier.core.store import Store
from metier.models.builtin import CONFIG
from metier.models.hub import Found, check_disk, check_open, fetch, in_cache, look
from metier.models.sizes import Published, published
from metier.pipeline import run
from metier.recipe import load_recipe, read_raw
from metier.train import estimate
from metier.train.stage import Training
from metier.trial.rehearse import Rehearsed, rehearsals
from metier.trial.reshape import Trial, outside_models

MODEL = "model"


def fetch_recipe(
    path: Path, overrides: Sequence[str], store: Path, *, trial: Trial, only_look: bool, api: Any = None,
    machine: Machine | None = None,
) -> None:  # fmt: skip
    """Look at every model of a recipe from the hub, and fetch what the cache lacks.

    only_look: fetch nothing. api: an HfApi. machine: where it will be trained. Raises InputError for all that would not
    work, before anything is fetched.
    """
    value, root = read_raw(path, overrides, trial)
    refs = outside_models(value, root)
    if not refs:
        typer.echo("The recipe names no model of the hub: there is nothing to fetch.")
        return
    lacking = [ref for ref in refs if in_cache(ref) is None]
    errors: list[MetierError] = []
    found: list[Found] = []
    if lacking:
        check_open()
    try:
        found = look(refs, api)
        check_disk(found)
    except MetierError as error:
        errors.append(error)
    errors += _too_big(value, root, machine or _machine(store))
    if errors:
        raise together(errors)
    table(("model", "to fetch", "commit"), [_row(one) for one in found])
    if only_look:
        return
    for one in found:
        if not one.here:
            typer.echo(f"Fetching {one.ref} ({bytes_text(one.bytes)})")
            fetch(one)
    typer.echo(f"Everything is here: `metier run {path}` needs no network.")


def _row(found: Found) -> tuple[str, str, str]:
    return found.ref, "here already" if found.here else bytes_text(found.bytes), found.commit[:12]


def _machine(store: Path) -> Machine:
    """This machine; where there is a GPU, with the GPU's free memory."""
    here = Machine.here(store)
    if not estimate.NVIDIA.exists():
        return here
    import torch

    if not torch.cuda.is_available():
        return here
    free, _ = torch.cuda.mem_get_info()
    return replace(here, device="cuda", memory_bytes=float(free))


def _too_big(value: Mapping[str, Any], root: Path, machine: Machine) -> list[MetierError]:
    """Training steps that need more memory than there is, each with what would fit. A recipe may train nothing."""
    if not any(step.get("kind") in ("pretrain", "tune", "unlearn") for step in value["steps"].values()):
        return []
    errors: list[MetierError] = []
    with TemporaryDirectory(prefix="metier-fetch-") as aside:
        for job in rehearsals(value, root):
            try:
                _check_fits(job, published(job.model, root), Path(aside), machine)
            except InputError as error:
                errors.append(error.within(f"{job.step}"))
    return errors


def _check_fits(job: Rehearsed, model: Published, aside: Path, machine: Machine) -> None:
    """Raise InputError where the step does not fit, as the step itself would."""
    import json
    import shutil

    recipe = aside / f"{job.step}.yaml"
    recipe.write_text(yaml.safe_dump({"name": "look", "steps": job.data()}), encoding="utf-8")
    made = run(load_recipe(recipe), Store(aside / "store"))
    sources = {
        name: Source(name, (one.files,), "", one.key, produces=one.record["produces"])
        for name, one in made.artifacts.items()
    }
    folder = aside / "sizes"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(dict(model.config)), encoding="utf-8")
    if model.tokenizer is not None and (model.tokenizer / "tokenizer.json").is_file():
        shutil.copyfile(model.tokenizer / "tokenizer.json", folder / "tokenizer.json")
    from metier.stages import CATALOGUE

    stage = cast(Training, CATALOGUE[job.whole["kind"]].model_validate({**job.whole, "model": MODEL}))
    sources[MODEL] = Source(MODEL, (folder,), "", "")
    found = estimate.described(stage, sources, machine)
    if found is not None:
        estimate.refuse_if_too_big(*found, machine.memory_bytes)
